r"""Three charts of the hyperbolic space of curvature :math:`-c`, and the radial maps between them.

ball
    :math:`x` with :math:`c\|x\|^2 < 1`: what users and geoopt see.
tangent
    :math:`u = \log_0 x`; the distance to the origin is :math:`2\|u\|`. The input of linear maps, and where ReLU acts.
hyperboloid
    :math:`h = \sinh(2\sqrt{c}\|u\|)\,u/\|u\|`, the spatial part of a point of the unit hyperboloid, whose time part is
    :math:`\sqrt{1+\|h\|^2}`. The output of linear maps; batch normalisation and residuals work here.

Going from one to another scales each vector by one number, so a conversion is one scalar per point. Only the ball is
bounded: in float32 it has no room beyond a distance of about :math:`17/\sqrt{c}`, and geoopt keeps points within
:math:`6.2/\sqrt{c}`. The other two charts have no such limit, which is why the bound on the distance from the origin
is an explicit argument here (`max_distance`).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from manifold_resnet.functional import _even
from manifold_resnet.functional._autograd import differentiable
from manifold_resnet.functional._backend import fused, kernel
from manifold_resnet.functional._checks import (
    Chart,
    check_chart,
    check_max_distance,
    curvature,
    full_precision,
)
from manifold_resnet.functional._eager import parameters
from manifold_resnet.functional._even import sinh_limit

#: Layers keep their outputs within this distance from the origin, in units of the curvature radius 1/sqrt(c).
DEFAULT_MAX_DISTANCE = 6.0

_GEOOPT_EPS = {torch.float32: 4e-3, torch.float64: 1e-5}  # geoopt.manifolds.stereographic.math.project


def _factor(s: Tensor, c: Tensor, src: Chart, dst: Chart) -> Tensor:
    """The radial factor of src -> dst for vectors of squared norm s."""
    if src == dst:
        return torch.ones_like(s)
    if (src, dst) == ("ball", "tangent"):
        return _even.artanhc(c * s)
    if (src, dst) == ("tangent", "ball"):
        return _even.tanhc(c * s)
    if (src, dst) == ("ball", "hyperboloid"):
        return 2 * c.sqrt() / (1 - c * s)
    if (src, dst) == ("hyperboloid", "ball"):
        return c.rsqrt() / (1 + torch.sqrt(1 + s))
    if (src, dst) == ("tangent", "hyperboloid"):
        return 2 * c.sqrt() * _even.sinhc(4 * c * s)
    return 0.5 * c.rsqrt() * _even.asinhc(s)


def _factor_derivatives(s: Tensor, c: Tensor, src: Chart, dst: Chart, by_c: bool) -> tuple[Tensor, Tensor | None]:
    """Derivatives of `_factor` with respect to s and, on request, c."""
    if src == dst:
        return torch.zeros_like(s), torch.zeros_like(s) if by_c else None
    if (src, dst) in (("ball", "tangent"), ("tangent", "ball")):
        d = _even.artanhc_derivative(c * s) if src == "ball" else _even.tanhc_derivative(c * s)
        return c * d, s * d if by_c else None
    if (src, dst) == ("ball", "hyperboloid"):
        half_lambda = 1 / (1 - c * s)
        f_c = c.rsqrt() * half_lambda * (1 + 2 * c * s * half_lambda) if by_c else None
        return 2 * c * c.sqrt() * half_lambda**2, f_c
    if (src, dst) == ("hyperboloid", "ball"):
        time = torch.sqrt(1 + s)
        f = c.rsqrt() / (1 + time)
        return -0.5 * f / (time * (1 + time)), -0.5 * f / c if by_c else None
    if (src, dst) == ("tangent", "hyperboloid"):
        x = 4 * c * s
        d = _even.sinhc_derivative(x)
        return 8 * c * c.sqrt() * d, c.rsqrt() * (_even.sinhc(x) + 2 * x * d) if by_c else None
    return 0.5 * c.rsqrt() * _even.asinhc_derivative(s), -0.25 * c.rsqrt() / c * _even.asinhc(s) if by_c else None


def _radius(delta: Tensor, c: Tensor, chart: Chart) -> Tensor:
    """The norm that points at distance delta/sqrt(c) from the origin have in a chart."""
    if chart == "hyperboloid":
        return _even.sinh(delta)
    return (torch.tanh(delta / 2) if chart == "ball" else delta / 2) * c.rsqrt()


def _radius_derivatives(delta: Tensor, c: Tensor, chart: Chart) -> tuple[Tensor, Tensor]:
    """Derivatives of `_radius` with respect to delta and c."""
    if chart == "hyperboloid":
        return torch.cosh(delta), torch.zeros_like(c)
    r = _radius(delta, c, chart)
    along = 0.5 * c.rsqrt() * (1 - c * r * r) if chart == "ball" else 0.5 * c.rsqrt()
    return along, -0.5 * r / c


def _bound(c: Tensor, distance: float, cap: float) -> tuple[Tensor, Tensor]:
    """min(sqrt(c) * distance, cap), and its derivative with respect to c."""
    if math.isinf(distance):
        return torch.full_like(c, cap), torch.zeros_like(c)
    delta = c.sqrt() * distance
    return delta.clamp(max=cap), torch.where(delta < cap, 0.5 * distance * c.rsqrt(), torch.zeros_like(c))


def _squared_bound(c: Tensor, chart: Chart, distance: float, cap: float) -> Tensor | float:
    """Square of the norm in a chart at min(distance, cap/sqrt(c)); a number where it does not depend on c."""
    if chart == "hyperboloid" and math.isinf(distance):
        return math.sinh(cap) ** 2
    return _radius(_bound(c, distance, cap)[0], c, chart).square()


def squared_limit(c: Tensor | float, like: Tensor, max_distance: float | None, summands: int = 1) -> Tensor:
    """Square of the norm in the hyperboloid chart at `max_distance` from the origin, 0-d.

    Never farther than where the Möbius sum of so many points stays finite.
    """
    c = curvature(c, like)
    cap = sinh_limit(like.dtype) / summands
    if max_distance is None:
        max_distance, cap = math.inf, DEFAULT_MAX_DISTANCE
    if math.isinf(max_distance):
        return torch.full_like(c, math.sinh(cap) ** 2)
    return _even.sinh(_bound(c, max_distance, cap)[0]).square()


def _scale(
    s: Tensor, c: Tensor, src: Chart, dst: Chart, distance: float, cap: float
) -> tuple[Tensor, Tensor | float | None, Tensor]:
    """Squared norms and squared radius of the bound in `src`, and the factor that converts and bounds."""
    if math.isinf(distance) and math.isinf(cap):
        return s, None, _factor(s, c, src, dst)
    bound = _squared_bound(c, src, distance, cap)
    inside = s.clamp(max=bound)
    shrink = (s * (1 / bound)).clamp(min=1).rsqrt()
    return inside, bound, shrink if src == dst else _factor(inside, c, src, dst) * shrink


def _fused_lift(x: Tensor, c: Tensor, src: Chart, dst: Chart, distance: float, dim: int, relu: bool) -> Any:
    """What lifts single points of the ball: parameters, of which there are many, and each is small."""
    lifts = (src, dst) == ("ball", "hyperboloid") and x.ndim == 1 and math.isinf(distance) and not relu
    return fused(parameters, x, c, parameter=True) if lifts else None


def _radial(x: Tensor, c: Tensor, src: Chart, dst: Chart, distance: float, cap: float, dim: int, relu: bool) -> Tensor:
    library = _fused_lift(x, c, src, dst, distance, dim, relu)
    if library is not None:
        return library.lift(x, c, cap)
    *_, f = _scale((x * x).sum(dim, keepdim=True), c, src, dst, distance, cap)
    return torch.relu_(f * x) if relu else f * x


def _radial_backward(
    grad: Tensor,
    needs: tuple[bool, ...],
    x: Tensor,
    c: Tensor,
    src: Chart,
    dst: Chart,
    distance: float,
    cap: float,
    dim: int,
    relu: bool,
) -> tuple[Tensor | None, Tensor | None]:
    library = _fused_lift(x, c, src, dst, distance, dim, relu)
    if library is not None:
        grad_x, grad_c = library.lift_backward(grad, x, c, cap)
        return grad_x, grad_c if needs[1] else None
    if relu:
        grad = torch.ops.aten.threshold_backward.default(grad, x, 0)
    s = (x * x).sum(dim, keepdim=True)
    along = (grad * x).sum(dim, keepdim=True)
    inside, bound, f = _scale(s, c, src, dst, distance, cap)
    f_s, f_c = _factor_derivatives(inside, c, src, dst, needs[1])
    if bound is not None:
        outside = _even.above(s, bound)
        # outside, the factor is the radius over the norm: no radial gradient
        f_s = _even.select(outside, -0.5 * f / s.clamp(min=bound), f_s)
        if f_c is not None:
            delta, delta_c = _bound(c, distance, cap)
            radius_delta, radius_c = _radius_derivatives(delta, c, dst)
            f_c = _even.select(outside, (radius_delta * delta_c + radius_c) * s.clamp(min=bound).rsqrt(), f_c)
    grad_x = torch.addcmul(grad * f, x, 2 * f_s * along) if needs[0] else None
    grad_c = (f_c * along).sum() if f_c is not None else None
    return grad_x, grad_c


_radial_op = differentiable(_radial, _radial_backward, tensors=2)


def _cap(src: Chart, dst: Chart, dtype: torch.dtype) -> float:
    """Bound on sqrt(c) * distance that the number format imposes on points of the ball."""
    cap = math.inf
    if src == "ball":  # a point on or outside the boundary counts as just inside it
        cap = 2 * math.atanh(1 - 2 * torch.finfo(dtype).eps)
    if dst == "hyperboloid" != src:
        cap = min(cap, sinh_limit(dtype))
    if dst == "ball":
        cap = min(cap, 2 * math.atanh(1 - _GEOOPT_EPS[dtype]))
    return cap


def convert(
    x: Tensor,
    src: Chart,
    dst: Chart,
    *,
    c: Tensor | float,
    dim: int = -1,
    max_distance: float | None = math.inf,
    relu: bool = False,
) -> Tensor:
    r"""Express points in another chart, and bound their distance from the origin.

    Points farther than `max_distance` from the origin are moved along the geodesic towards it, onto the sphere of
    that radius. The gradient is that of the projection onto the ball of radius `max_distance`: for points outside it
    has no radial part. Points in the ball chart are always kept where geoopt keeps them too
    (``geoopt.PoincareBall.projx``), and others where a hyperbolic sine fits the number format (distance ``40/sqrt(c)``
    in float32, ``300/sqrt(c)`` in float64).

    Parameters
    ----------
    x : Tensor
        Coordinates of the points in chart `src`, any shape, along `dim`.
    src, dst : {"ball", "tangent", "hyperboloid"}
        Charts of the input and of the output, see the module's documentation.
    c : Tensor or float
        The curvature of the space is ``-c``.
    dim : int
        The dimension the manifold runs along.
    max_distance : float, optional
        Largest geodesic distance from the origin. ``math.inf``: no bound; None: ``DEFAULT_MAX_DISTANCE / sqrt(c)``.
    relu : bool
        Apply ``max(., 0)`` to the result, in the same pass. Meant for ``dst="tangent"``.

    Returns
    -------
    Tensor
        Coordinates in chart `dst`, same shape as `x`.

    Raises
    ------
    ValueError
        If a chart is unknown, or `c` or `max_distance` is not positive.
    TypeError
        If `x` is not a floating point tensor.

    Examples
    --------
    >>> import torch
    >>> import manifold_resnet.functional as F
    >>> u = torch.tensor([3.0, 4.0])  # to a point at distance 10
    >>> F.convert(u, "tangent", "hyperboloid", c=1.0).norm().asinh()  # of length sinh(10)
    tensor(10.)
    >>> F.convert(u, "tangent", "tangent", c=1.0, max_distance=2.0)  # to distance 2, in the same direction
    tensor([0.6000, 0.8000])
    """
    check_chart(src, "src")
    check_chart(dst, "dst")
    check_max_distance(max_distance)
    x = full_precision(x)
    c = curvature(c, x)
    if src == dst != "ball" and max_distance == math.inf:
        return x.relu() if relu else x
    cap = _cap(src, dst, x.dtype)
    if max_distance is None:
        max_distance, cap = math.inf, min(cap, DEFAULT_MAX_DISTANCE)
    elif not math.isinf(max_distance):
        cap = min(cap, sinh_limit(x.dtype))
    return _radial_op(x, c, src, dst, float(max_distance), cap, dim, relu)


def sinh_factor(s: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """The factor from tangent vectors of squared norm s to the hyperboloid chart, within sinh's range; that range."""
    end = (0.5 * sinh_limit(s.dtype)) ** 2 / c
    return _factor(torch.minimum(s, end), c, "tangent", "hyperboloid") * (s / end).clamp(min=1).rsqrt(), end


def sinh_factor_derivatives(
    s: Tensor, end: Tensor, factor: Tensor, c: Tensor, by_c: bool
) -> tuple[Tensor, Tensor | None]:
    """Derivatives of `sinh_factor` with respect to s and, on request, c."""
    outside = _even.above(s, end)
    f_s, f_c = _factor_derivatives(torch.minimum(s, end), c, "tangent", "hyperboloid", by_c)
    # outside, it is a radius over the norm, whatever c is
    return _even.select(outside, -0.5 * factor / torch.maximum(s, end), f_s), None if f_c is None else (
        1 - outside
    ) * f_c


def bounded_factor(s: Tensor, c: Tensor, limit: Tensor, dst: Chart) -> tuple[Tensor, Tensor]:
    """The factor that bounds points of squared norm s in the hyperboloid chart and converts them; min(s, limit)."""
    inside = torch.minimum(s, limit)
    shrink = (s / limit).clamp(min=1).rsqrt()
    return shrink if dst == "hyperboloid" else _factor(inside, c, "hyperboloid", dst) * shrink, inside


def bounded_factor_derivatives(
    s: Tensor, inside: Tensor, factor: Tensor, c: Tensor, limit: Tensor, dst: Chart, extra: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Derivatives of `bounded_factor` with respect to s and, with `extra`, c and limit."""
    outside = _even.above(s, limit)
    f_s, f_c = _factor_derivatives(inside, c, "hyperboloid", dst, extra)
    # outside, the factor is the radius over the norm: no radial gradient
    by_s = _even.select(outside, -0.5 * factor / torch.maximum(s, limit), f_s)
    if f_c is None:
        return by_s, None, None
    shrink = (s / limit).clamp(min=1).rsqrt()
    return by_s, f_c * shrink, outside * (f_s * shrink + 0.5 * factor / limit)


@kernel(materialise=True)
def _bounded(h: Tensor, c: Tensor, limit: Tensor, dst: Chart) -> Tensor:
    return bounded_factor((h * h).sum(1, keepdim=True), c, limit, dst)[0] * h


@kernel(materialise=True)
def _bounded_gradients(
    grad: Tensor, h: Tensor, c: Tensor, limit: Tensor, dst: Chart, extra: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    s, along = (h * h).sum(1, keepdim=True), (grad * h).sum(1, keepdim=True)
    factor, inside = bounded_factor(s, c, limit, dst)
    f_s, f_c, f_limit = bounded_factor_derivatives(s, inside, factor, c, limit, dst, extra)
    grad_h = torch.addcmul(grad * factor, h, 2 * f_s * along)
    if f_c is None or f_limit is None:
        return grad_h, None, None
    return grad_h, (f_c * along).sum(2), (f_limit * along).sum(2)


def _bound_points(h: Tensor, c: Tensor, limit: Tensor, dst: Chart, relu: bool) -> Tensor:
    y = _bounded(h, c, limit, dst)
    return y.relu_() if relu else y


def _bound_points_backward(
    grad: Tensor,
    needs: tuple[bool, ...],
    h: Tensor,
    c: Tensor,
    limit: Tensor,
    dst: Chart,
    relu: bool,
) -> tuple[Tensor | None, ...]:
    if relu:
        grad = torch.ops.aten.threshold_backward.default(grad, h, 0)
    extra = needs[1] or needs[2]
    grad_h, by_c, by_limit = _bounded_gradients(grad, h, c, limit, dst, extra)
    return grad_h, None if by_c is None else by_c.sum(), None if by_limit is None else by_limit.sum()


_bound_points_op = differentiable(_bound_points, _bound_points_backward, tensors=3, images=1)


def bound(h: Tensor, c: Tensor, limit: Tensor, dst: Chart, *, dim: int, relu: bool = False) -> Tensor:
    """Bound points in the hyperboloid chart by `limit`, a `squared_limit`, and express them in another."""
    return _bound_points_op(h, c, limit, dim, dst, relu)


def ball_to_hyperboloid(x: Tensor, *, c: Tensor | float, dim: int = -1) -> Tensor:
    r"""Ball point to hyperboloid chart, :math:`h = 2\sqrt{c}\,x/(1-c\|x\|^2)`, along `dim`. See `convert`.

    Examples
    --------
    >>> import torch
    >>> import manifold_resnet.functional as F
    >>> F.ball_to_hyperboloid(torch.tensor([0.5, 0.0]), c=1.0)  # 2 * 0.5 / (1 - 0.25)
    tensor([1.3333, 0.0000])
    """
    return convert(x, "ball", "hyperboloid", c=c, dim=dim)


def hyperboloid_to_ball(h: Tensor, *, c: Tensor | float, dim: int = -1) -> Tensor:
    r"""Hyperboloid chart to ball point, :math:`x = h/((1+\sqrt{1+\|h\|^2})\sqrt{c})`, along `dim`. See `convert`.

    Examples
    --------
    >>> import torch
    >>> import manifold_resnet.functional as F
    >>> F.hyperboloid_to_ball(torch.tensor([0.75, 0.0]), c=1.0)  # 0.75 / (1 + 1.25)
    tensor([0.3333, 0.0000])
    """
    return convert(h, "hyperboloid", "ball", c=c, dim=dim)


def tangent_to_hyperboloid(u: Tensor, *, c: Tensor | float, dim: int = -1) -> Tensor:
    r"""Tangent vector at the origin to hyperboloid chart, :math:`h = \sinh(2\sqrt{c}\|u\|)\,u/\|u\|`. See `convert`.

    Examples
    --------
    >>> import torch
    >>> import manifold_resnet.functional as F
    >>> F.tangent_to_hyperboloid(torch.tensor([0.5, 0.0]), c=1.0)  # sinh(1)
    tensor([1.1752, 0.0000])
    """
    return convert(u, "tangent", "hyperboloid", c=c, dim=dim)


def hyperboloid_to_tangent(h: Tensor, *, c: Tensor | float, dim: int = -1) -> Tensor:
    r"""Hyperboloid chart to tangent vector, :math:`u = \mathrm{asinh}(\|h\|)/(2\sqrt{c})\,h/\|h\|`. See `convert`.

    Examples
    --------
    >>> import torch
    >>> import manifold_resnet.functional as F
    >>> F.hyperboloid_to_tangent(torch.tensor([0.75, 0.0]), c=1.0)  # asinh(0.75) / 2
    tensor([0.3466, 0.0000])
    """
    return convert(h, "hyperboloid", "tangent", c=c, dim=dim)


def _time(h: Tensor, dim: int) -> Tensor:
    return torch.sqrt(1 + (h * h).sum(dim, keepdim=True))


def _time_backward(grad: Tensor, needs: tuple[bool, ...], h: Tensor, dim: int) -> tuple[Tensor]:
    return (grad / _time(h, dim) * h,)


_time_op = differentiable(_time, _time_backward, tensors=1)


def time_component(h: Tensor, *, dim: int = -1) -> Tensor:
    r"""Time part :math:`\sqrt{1+\|h\|^2} = \cosh(\sqrt{c}\,d(x, 0))` in the hyperboloid chart; keeps `dim`."""
    return _time_op(full_precision(h, "h"), dim)


def to_lorentz(x: Tensor, *, c: Tensor | float, dim: int = -1) -> Tensor:
    """Ball points as points of ``geoopt.Lorentz(k=1/c)``, an isometry.

    Parameters
    ----------
    x : Tensor
        Ball points, ``n`` coordinates along `dim`.
    c : Tensor or float
        The curvature of the space is ``-c``.
    dim : int
        The dimension the manifold runs along.

    Returns
    -------
    Tensor
        Points of the hyperboloid of radius ``1/sqrt(c)``, ``n + 1`` coordinates along `dim`, time first.

    Examples
    --------
    >>> import torch
    >>> import manifold_resnet.functional as F
    >>> p = F.to_lorentz(torch.tensor([0.5, 0.0]), c=1.0)
    >>> p  # time first
    tensor([1.6667, 1.3333, 0.0000])
    >>> p[1:] @ p[1:] - p[0] ** 2  # on the hyperboloid: -1/c
    tensor(-1.0000)
    """
    x = full_precision(x)
    c = curvature(c, x)
    h = ball_to_hyperboloid(x, c=c, dim=dim)
    return torch.cat([time_component(h, dim=dim), h], dim) * c.rsqrt()


def from_lorentz(p: Tensor, *, c: Tensor | float, dim: int = -1) -> Tensor:
    """Points of ``geoopt.Lorentz(k=1/c)`` (time first, along `dim`) as ball points. Inverse of `to_lorentz`.

    Examples
    --------
    >>> import torch
    >>> import manifold_resnet.functional as F
    >>> F.from_lorentz(torch.tensor([1.25, 0.75, 0.0]), c=1.0)
    tensor([0.3333, 0.0000])
    """
    p = full_precision(p, "p")
    c = curvature(c, p)
    return hyperboloid_to_ball(p.narrow(dim, 1, p.shape[dim] - 1) * c.sqrt(), c=c, dim=dim)
