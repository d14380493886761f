"""Möbius residual connection.

References
----------
.. [1] van Spengler, Berkhout, Mettes: Poincaré ResNet. ICCV 2023, sec. 3.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from manifold_resnet.functional._autograd import differentiable
from manifold_resnet.functional._backend import fused, kernel
from manifold_resnet.functional._checks import (
    Chart,
    check_chart,
    check_max_distance,
    curvature,
    full_precision,
)
from manifold_resnet.functional._eager import residual as _eager
from manifold_resnet.functional.charts import (
    bounded_factor,
    bounded_factor_derivatives,
    convert,
    sinh_factor,
    sinh_factor_derivatives,
    squared_limit,
)

Order = Literal["fr", "rf"]

# Tensors are [B, C, N], x and y points in the hyperboloid chart; x (+) y = along x + y with a factor per pixel. The
# shortcut may come as tangent vectors, times exp in the hyperboloid chart.


def _factors(
    s_x: Tensor, s_r: Tensor, inner: Tensor, c: Tensor, order: Order, chart: Chart
) -> tuple[Tensor, Tensor, Tensor]:
    """exp, and what x and the shortcut are multiplied by, from squared norms and the inner product."""
    exp = sinh_factor(s_r, c)[0] if chart == "tangent" else torch.ones_like(s_r)
    time_x, time_r = torch.sqrt(1 + s_x), torch.sqrt(1 + exp * exp * s_r)
    if order == "fr":
        return exp, time_r + exp * inner / (1 + time_x), exp
    return exp, torch.ones_like(exp), exp * (time_x + exp * inner / (1 + time_r))


@kernel(materialise=True)
def _sum(
    x: Tensor,
    shortcut: Tensor,
    c: Tensor,
    limit: Tensor,
    order: Order,
    shortcut_chart: Chart,
    chart: Chart,
) -> Tensor:
    products = ((a * b).sum(1, keepdim=True) for a, b in ((x, x), (shortcut, shortcut), (x, shortcut)))
    _, by_x, by_r = _factors(*products, c, order, shortcut_chart)
    z = torch.addcmul(by_x * x, by_r, shortcut)
    return bounded_factor((z * z).sum(1, keepdim=True), c, limit, chart)[0] * z


@kernel
def _sum_products(grad: Tensor, x: Tensor, shortcut: Tensor) -> tuple[Tensor, ...]:
    """Inner products per pixel: <x, x>, <r, r>, <x, r>, <grad, x>, <grad, r>."""
    pairs = (x, x), (shortcut, shortcut), (x, shortcut), (grad, x), (grad, shortcut)
    return tuple((a * b).sum(1, keepdim=True) for a, b in pairs)


@kernel
def _sum_coefficients(
    s_x: Tensor,
    s_r: Tensor,
    inner: Tensor,
    grad_x: Tensor,
    grad_r: Tensor,
    c: Tensor,
    limit: Tensor,
    order: Order,
    shortcut_chart: Chart,
    chart: Chart,
    extra: bool,
) -> tuple[Tensor | None, ...]:
    """Gradients for x and shortcut: coefficients of grad, x and shortcut in each; [B, 1] for c and the bound."""
    exp, by_x, by_r = _factors(s_x, s_r, inner, c, order, shortcut_chart)
    # what is lost here to cancellation is lost near zero, where out does not depend on it
    s_z = (by_x * by_x * s_x + 2 * by_x * by_r * inner + by_r * by_r * s_r).clamp(min=0)
    out, inside = bounded_factor(s_z, c, limit, chart)
    out_s, out_c, out_limit = bounded_factor_derivatives(s_z, inside, out, c, limit, chart, extra)
    grad_z = by_x * grad_x + by_r * grad_r  # <grad, z>
    k = 2 * out_s * grad_z
    # the gradient for z is out grad + k z; gradients for the two factors
    to_x = out * grad_x + k * (by_x * s_x + by_r * inner)
    to_r = out * grad_r + k * (by_x * inner + by_r * s_r)
    time_x, time_r = torch.sqrt(1 + s_x), torch.sqrt(1 + exp * exp * s_r)
    if order == "fr":  # by_x = time_r + exp inner/(1 + time_x), by_r = exp
        to_inner = to_x * exp / (1 + time_x)
        to_s_x = -0.5 * to_inner * inner / ((1 + time_x) * time_x)
        to_exp = to_r + to_x * (inner / (1 + time_x) + exp * s_r / time_r)
        to_s_r = 0.5 * to_x * exp * exp / time_r
    else:  # by_x = 1, by_r = exp (time_x + exp inner/(1 + time_r))
        to_inner = to_r * exp * exp / (1 + time_r)
        to_time_r = -to_inner * inner / (1 + time_r)
        to_s_x = 0.5 * to_r * exp / time_x
        to_exp = to_r * (time_x + 2 * exp * inner / (1 + time_r)) + to_time_r * exp * s_r / time_r
        to_s_r = 0.5 * to_time_r * exp * exp / time_r
    exp_c = None
    if shortcut_chart == "tangent":
        exp_s, exp_c = sinh_factor_derivatives(s_r, sinh_factor(s_r, c)[1], exp, c, extra)
        to_s_r = to_s_r + to_exp * exp_s
    grad_c = grad_limit = None
    if out_c is not None and out_limit is not None:
        by_c = out_c * grad_z if exp_c is None else out_c * grad_z + to_exp * exp_c
        grad_c, grad_limit = by_c.sum(2), (out_limit * grad_z).sum(2)
    mixed = k * by_x * by_r + to_inner
    return (
        out * by_x,
        k * by_x * by_x + 2 * to_s_x,
        mixed,
        out * by_r,
        k * by_r * by_r + 2 * to_s_r,
        grad_c,
        grad_limit,
    )


@kernel
def _sum_gradients(
    grad: Tensor,
    x: Tensor,
    shortcut: Tensor,
    x_by_grad: Tensor,
    x_by_x: Tensor,
    mixed: Tensor,
    r_by_grad: Tensor,
    r_by_r: Tensor,
) -> tuple[Tensor, Tensor]:
    return (
        torch.addcmul(torch.addcmul(x_by_grad * grad, x_by_x, x), mixed, shortcut),
        torch.addcmul(torch.addcmul(r_by_grad * grad, mixed, x), r_by_r, shortcut),
    )


def _residual(
    x: Tensor,
    shortcut: Tensor,
    c: Tensor,
    limit: Tensor,
    order: Order,
    shortcut_chart: Chart,
    chart: Chart,
    relu: bool,
) -> tuple[Tensor, Tensor]:
    """The sum, and what `_eager` keeps."""
    library = fused(_eager, x, shortcut, c, limit)
    if library is not None:
        return library.residual(
            x, shortcut, c, limit, order == "fr", shortcut_chart == "tangent", chart == "tangent", relu
        )
    z = _sum(x, shortcut, c, limit, order, shortcut_chart, chart)
    return z.relu_() if relu else z, x.new_empty(0)


def _residual_backward(
    grads: tuple[Tensor | None, Tensor | None],
    needs: tuple[bool, ...],
    x: Tensor,
    shortcut: Tensor,
    c: Tensor,
    limit: Tensor,
    result: Tensor,
    numbers: Tensor,
    order: Order,
    shortcut_chart: Chart,
    chart: Chart,
    relu: bool,
) -> tuple[Tensor | None, ...]:
    grad = grads[0]
    if grad is None:
        return (None,) * 4
    library = None if needs[3] else fused(_eager, x, grad, shortcut, c, limit)
    if library is not None:
        *gradients, by_c = library.residual_backward(
            grad, result if relu else None, x, shortcut, c, limit, numbers, order == "fr",
            shortcut_chart == "tangent", chart == "tangent", needs[2],
        )  # fmt: skip
        return *gradients, by_c if needs[2] else None, None
    if relu:
        grad = torch.ops.aten.threshold_backward.default(grad, result, 0)
    extra = needs[2] or needs[3]
    products = _sum_products(grad, x, shortcut)
    *coefficients, by_c, by_limit = _sum_coefficients(*products, c, limit, order, shortcut_chart, chart, extra)
    return (
        *_sum_gradients(grad, x, shortcut, *coefficients),
        None if by_c is None else by_c.sum(),
        None if by_limit is None else by_limit.sum(),
    )


_residual_op = differentiable(_residual, _residual_backward, tensors=4, keep_outputs=True, auxiliary=1, images=2)


def residual_sum(
    x: Tensor,
    shortcut: Tensor,
    *,
    c: Tensor,
    limit: Tensor,
    dim: int,
    order: Order,
    shortcut_chart: Chart,
    chart: Literal["tangent", "hyperboloid"],
    relu: bool = False,
) -> Tensor:
    """Möbius sum, bounded by `limit` (see `squared_limit`), of `x` in the hyperboloid chart and a shortcut in any."""
    if shortcut_chart == "ball":
        shortcut, shortcut_chart = convert(shortcut, "ball", "hyperboloid", c=c, dim=dim), "hyperboloid"
    return _residual_op(x, shortcut, c, limit, dim, order, shortcut_chart, chart, relu)[0]


def mobius_residual(
    x: Tensor,
    shortcut: Tensor,
    *,
    c: Tensor | float,
    dim: int = 1,
    order: Order = "fr",
    in_chart: Chart = "ball",
    shortcut_chart: Chart = "ball",
    out_chart: Chart = "ball",
    max_distance: float | None = math.inf,
    relu: bool = False,
) -> Tensor:
    r"""Möbius sum of a layer's output and its shortcut, :math:`f(x) \oplus r` or :math:`r \oplus f(x)`.

    Parameters
    ----------
    x, shortcut : Tensor
        Points of the same shape, along `dim`.
    c : Tensor or float
        The curvature of the space is ``-c``.
    dim : int
        The dimension the manifold runs along (the channels).
    order : {"fr", "rf"}
        "fr" is the paper's ``f(x) (+) r``. Möbius addition does not commute.
    in_chart, shortcut_chart, out_chart : {"ball", "tangent", "hyperboloid"}
        Charts of `x`, of `shortcut` and of the result.
    max_distance : float, optional
        Bound on the result's geodesic distance from the origin, see `convert`.
    relu : bool
        Apply the tangent ReLU in the same pass; needs ``out_chart="tangent"``.

    Returns
    -------
    Tensor
        Points, same shape.

    Raises
    ------
    ValueError
        If shapes differ, or `order` or a chart is unknown.

    Notes
    -----
    [1]_, sec. 3; in the hyperboloid chart ``x (+) y = y + (tau_y + <x, y>/(1 + tau_x)) x``.

    Examples
    --------
    >>> import torch
    >>> import manifold_resnet.functional as F
    >>> x = torch.tensor([[[0.3], [0.0]]])  # one image of one pixel of two channels
    >>> F.mobius_residual(x, x, c=1.0).flatten()  # 0.6 / (1 + 0.09)
    tensor([0.5505, 0.0000])
    """
    if x.shape != shortcut.shape:
        raise ValueError(f"x and shortcut must have the same shape, got {tuple(x.shape)} and {tuple(shortcut.shape)}")
    if order not in ("fr", "rf"):
        raise ValueError(f"order must be 'fr' (f(x) (+) shortcut) or 'rf' (shortcut (+) f(x)), got {order!r}")
    if relu and out_chart != "tangent":
        raise ValueError(f"relu=True acts on tangent vectors and needs out_chart='tangent', got {out_chart!r}")
    check_chart(shortcut_chart, "shortcut_chart")
    check_chart(out_chart, "out_chart")
    check_max_distance(max_distance)
    x, shortcut = full_precision(x), full_precision(shortcut, "shortcut")
    c = curvature(c, x)
    x = convert(x, in_chart, "hyperboloid", c=c, dim=dim)
    chart: Literal["tangent", "hyperboloid"] = "tangent" if out_chart == "tangent" else "hyperboloid"
    z = residual_sum(
        x, shortcut, c=c, limit=squared_limit(c, x, max_distance), dim=dim, order=order,
        shortcut_chart=shortcut_chart, chart=chart, relu=relu,
    )  # fmt: skip
    return convert(z, chart, out_chart, c=c, dim=dim)
