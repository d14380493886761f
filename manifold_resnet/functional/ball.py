r"""Operations of the Poincaré ball :math:`\{x : c\|x\|^2 < 1\}`, each with a hand-written backward.

Values agree with the methods of the same name of ``geoopt.PoincareBall(c)``. Every function takes `c` as a number or
a scalar tensor and is differentiable in it, and works along `dim`. The backward passes keep the inputs only (van
Spengler et al. 2023, sec. 3.4), are smooth at zero vectors and can be differentiated again.

References
----------
.. [1] Ganea, Bécigneul, Hofmann: Hyperbolic neural networks. NeurIPS 2018.
.. [2] van Spengler, Berkhout, Mettes: Poincaré ResNet. ICCV 2023.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from manifold_resnet.functional import _even
from manifold_resnet.functional._autograd import differentiable
from manifold_resnet.functional._checks import curvature, full_precision
from manifold_resnet.functional.charts import _GEOOPT_EPS, _radial_op, convert

_Needs = tuple[bool, ...]


def _dot(x: Tensor, y: Tensor, dim: int) -> Tensor:
    return (x * y).sum(dim, keepdim=True)


def _open(x: Tensor) -> Tensor:
    """Keep a denominator that is positive inside the ball away from zero on its boundary."""
    return x.clamp_min(torch.finfo(x.dtype).eps ** 2)


# -- Möbius addition -------------------------------------------------------------------------------------


def _mobius_add(x: Tensor, y: Tensor, c: Tensor, dim: int) -> Tensor:
    x2, y2, xy = _dot(x, x, dim), _dot(y, y, dim), _dot(x, y, dim)
    denominator = _open(1 + 2 * c * xy + c * c * x2 * y2)
    return ((1 + 2 * c * xy + c * y2) * x + (1 - c * x2) * y) / denominator


def _mobius_add_backward(
    grad: Tensor, needs: _Needs, x: Tensor, y: Tensor, c: Tensor, dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    x2, y2, xy = _dot(x, x, dim), _dot(y, y, dim), _dot(x, y, dim)
    gx, gy = _dot(grad, x, dim), _dot(grad, y, dim)
    a, b = 1 + 2 * c * xy + c * y2, 1 - c * x2
    r = 1 / _open(1 + 2 * c * xy + c * c * x2 * y2)
    gz = (a * gx + b * gy) * r  # <grad, result>
    d_xy = 2 * c * r * (gx - gz)
    d_x2 = -c * r * (gy + c * y2 * gz)
    d_y2 = c * r * (gx - c * x2 * gz)
    grad_x = a * r * grad + 2 * d_x2 * x + d_xy * y
    grad_y = b * r * grad + 2 * d_y2 * y + d_xy * x
    grad_c = (r * ((2 * xy + y2) * gx - x2 * gy - 2 * (xy + c * x2 * y2) * gz)).sum()
    return grad_x, grad_y, grad_c


_mobius_add_op = differentiable(_mobius_add, _mobius_add_backward, tensors=3)


def mobius_add(x: Tensor, y: Tensor, *, c: Tensor | float, dim: int = -1) -> Tensor:
    r"""Möbius addition :math:`x \oplus_c y`, kept on the ball.

    Parameters
    ----------
    x, y : Tensor
        Ball points, broadcastable, along `dim`.
    c : Tensor or float
        The curvature of the ball is ``-c``.
    dim : int
        The dimension the manifold runs along (counted after broadcasting).

    Returns
    -------
    Tensor
        Ball points of the broadcast shape.

    Notes
    -----
    [1]_, eq. 4; backward [2]_, sec. 3.4.

    Examples
    --------
    >>> import torch
    >>> import manifold_resnet.functional as F
    >>> x, y = torch.tensor([0.5, 0.0]), torch.tensor([0.5, 0.0])
    >>> F.mobius_add(x, y, c=1.0)  # on a line (x + y) / (1 + xy), as velocities add
    tensor([0.8000, 0.0000])
    """
    x, y, c = _pair(x, y, c)
    return project(_mobius_add_op(x, y, c, dim), c=c, dim=dim)


def _pair(x: Tensor, y: Tensor, c: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
    x, y = full_precision(x), full_precision(y, "y")
    if x.dtype != y.dtype:
        dtype = torch.promote_types(x.dtype, y.dtype)
        x, y = x.to(dtype), y.to(dtype)
    try:
        x, y = torch.broadcast_tensors(x, y)
    except RuntimeError:
        raise ValueError(f"shapes {tuple(x.shape)} and {tuple(y.shape)} cannot be broadcast together") from None
    return x, y, curvature(c, x)


# -- exponential and logarithmic map at the origin, projection -------------------------------------------


def expmap0(u: Tensor, *, c: Tensor | float, dim: int = -1) -> Tensor:
    r"""Exponential map at the origin, :math:`\tanh(\sqrt{c}\|u\|)\,u/(\sqrt{c}\|u\|)`, kept on the ball.

    Parameters
    ----------
    u : Tensor
        Tangent vectors at the origin, along `dim`. The result lies at geodesic distance ``2|u|`` from the origin.
    c : Tensor or float
        The curvature of the ball is ``-c``.
    dim : int
        The dimension the manifold runs along.

    Returns
    -------
    Tensor
        Ball points, same shape as `u`.

    Examples
    --------
    >>> import torch
    >>> import manifold_resnet.functional as F
    >>> u = torch.tensor([0.5, 0.0])
    >>> F.expmap0(u, c=1.0)  # tanh(0.5)
    tensor([0.4621, 0.0000])
    """
    return convert(u, "tangent", "ball", c=c, dim=dim)


def logmap0(x: Tensor, *, c: Tensor | float, dim: int = -1) -> Tensor:
    r"""Logarithmic map at the origin, :math:`\mathrm{artanh}(\sqrt{c}\|x\|)\,x/(\sqrt{c}\|x\|)`.

    Parameters
    ----------
    x : Tensor
        Ball points, along `dim`.
    c : Tensor or float
        The curvature of the ball is ``-c``.
    dim : int
        The dimension the manifold runs along.

    Returns
    -------
    Tensor
        Tangent vectors at the origin, same shape as `x`; their norm is half the geodesic distance from the origin.

    Examples
    --------
    >>> import torch
    >>> import manifold_resnet.functional as F
    >>> x = torch.tensor([0.5, 0.0])
    >>> F.logmap0(x, c=1.0)  # artanh(0.5): half the distance from the origin
    tensor([0.5493, 0.0000])
    """
    return convert(x, "ball", "tangent", c=c, dim=dim)


def project(x: Tensor, *, c: Tensor | float, dim: int = -1, eps: float | None = None) -> Tensor:
    r"""Project onto the closed ball of radius :math:`(1-\epsilon)/\sqrt{c}`, as ``geoopt.PoincareBall.projx`` does.

    Parameters
    ----------
    x : Tensor
        Points near the ball, along `dim`.
    c : Tensor or float
        The curvature of the ball is ``-c``.
    dim : int
        The dimension the manifold runs along.
    eps : float, optional
        Relative distance kept from the boundary, default 4e-3 in float32 and 1e-5 in float64.

    Returns
    -------
    Tensor
        Ball points, same shape as `x`. No radial gradient where the projection is active.

    Raises
    ------
    ValueError
        If `eps` is not between 0 and 1.

    Examples
    --------
    >>> import torch
    >>> import manifold_resnet.functional as F
    >>> F.project(torch.tensor([3.0, 4.0]), c=1.0)  # to norm 1 - 0.004
    tensor([0.5976, 0.7968])
    """
    x = full_precision(x)
    eps = _GEOOPT_EPS[x.dtype] if eps is None else eps
    if not 0 < eps < 1:
        raise ValueError(f"eps must be between 0 and 1, got {eps}")
    return _radial_op(x, curvature(c, x), "ball", "ball", math.inf, 2 * math.atanh(1 - eps), dim, False)


# -- conformal factor ------------------------------------------------------------------------------------


def _lambda_x(x: Tensor, c: Tensor, dim: int) -> Tensor:
    return 2 / _open(1 - c * _dot(x, x, dim))


def _lambda_x_backward(grad: Tensor, needs: _Needs, x: Tensor, c: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    slope = grad * _lambda_x(x, c, dim) ** 2
    return slope * c * x, 0.5 * (slope * _dot(x, x, dim)).sum()


_lambda_x_op = differentiable(_lambda_x, _lambda_x_backward, tensors=2)


def lambda_x(x: Tensor, *, c: Tensor | float, dim: int = -1, keepdim: bool = False) -> Tensor:
    r"""Conformal factor :math:`\lambda_x = 2/(1-c\|x\|^2)`: Riemannian norms are Euclidean ones times this.

    Parameters
    ----------
    x : Tensor
        Ball points, along `dim`.
    c : Tensor or float
        The curvature of the ball is ``-c``.
    dim : int
        The dimension the manifold runs along.
    keepdim : bool
        Keep `dim` with size one.

    Returns
    -------
    Tensor
        Shape of `x` without `dim` (or with size one there).

    Examples
    --------
    >>> import torch
    >>> import manifold_resnet.functional as F
    >>> x = torch.tensor([[0.0, 0.0], [0.6, 0.0]])
    >>> F.lambda_x(x, c=1.0)  # 2 at the origin; 2 / (1 - 0.36)
    tensor([2.0000, 3.1250])
    """
    x = full_precision(x)
    result = _lambda_x_op(x, curvature(c, x), dim)
    return result if keepdim else result.squeeze(dim)


# -- exponential and logarithmic map at a point ----------------------------------------------------------


def _exp0(u: Tensor, c: Tensor, dim: int) -> Tensor:
    return _even.tanhc(c * _dot(u, u, dim)) * u


def _exp0_backward(grad: Tensor, u: Tensor, c: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    s, along = _dot(u, u, dim), _dot(grad, u, dim)
    slope = _even.tanhc_derivative(c * s) * along
    return _even.tanhc(c * s) * grad + 2 * c * slope * u, (s * slope).sum()


def _expmap(x: Tensor, u: Tensor, c: Tensor, dim: int) -> Tensor:
    return _mobius_add(x, _exp0(0.5 * _lambda_x(x, c, dim) * u, c, dim), c, dim)


def _expmap_backward(
    grad: Tensor, needs: _Needs, x: Tensor, u: Tensor, c: Tensor, dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    half_lambda = 0.5 * _lambda_x(x, c, dim)
    w = half_lambda * u
    grad_x, grad_v, grad_c = _mobius_add_backward(grad, needs, x, _exp0(w, c, dim), c, dim)
    grad_w, grad_c_exp = _exp0_backward(grad_v, w, c, dim)
    lambda_to_x, lambda_to_c = _lambda_x_backward(0.5 * _dot(grad_w, u, dim), needs, x, c, dim)
    return grad_x + lambda_to_x, half_lambda * grad_w, grad_c + grad_c_exp + lambda_to_c


_expmap_op = differentiable(_expmap, _expmap_backward, tensors=3)


def expmap(x: Tensor, u: Tensor, *, c: Tensor | float, dim: int = -1) -> Tensor:
    r"""Exponential map :math:`x \oplus \exp_0(\lambda_x u/2)`: follow the geodesic from `x` in direction `u`.

    Parameters
    ----------
    x : Tensor
        Ball points, along `dim`.
    u : Tensor
        Tangent vectors at `x`, broadcastable with it; the distance travelled is ``lambda_x |u|``.
    c : Tensor or float
        The curvature of the ball is ``-c``.
    dim : int
        The dimension the manifold runs along (counted after broadcasting).

    Returns
    -------
    Tensor
        Ball points of the broadcast shape.

    Notes
    -----
    [1]_, lemma 2.

    Examples
    --------
    >>> import torch
    >>> import manifold_resnet.functional as F
    >>> x, u = torch.tensor([0.5, 0.0]), torch.tensor([0.0, 0.3])
    >>> F.dist(x, F.expmap(x, u, c=1.0), c=1.0)  # the length of u at x,
    tensor(0.8000)
    >>> F.lambda_x(x, c=1.0) * u.norm()  # which is this
    tensor(0.8000)
    """
    x, u, c = _pair(x, u, c)
    return project(_expmap_op(x, u, c, dim), c=c, dim=dim)


def _log0(w: Tensor, c: Tensor, dim: int) -> Tensor:
    return _even.artanhc(_inside(c * _dot(w, w, dim))) * w


def _inside(x: Tensor) -> Tensor:
    return x.clamp(max=1 - 4 * torch.finfo(x.dtype).eps)


def _logmap(x: Tensor, y: Tensor, c: Tensor, dim: int) -> Tensor:
    return (1 - c * _dot(x, x, dim)) * _log0(_mobius_add(-x, y, c, dim), c, dim)


def _logmap_backward(
    grad: Tensor, needs: _Needs, x: Tensor, y: Tensor, c: Tensor, dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    w = _mobius_add(-x, y, c, dim)
    x2, s = _dot(x, x, dim), _dot(w, w, dim)
    mu, f, slope = 1 - c * x2, _even.artanhc(_inside(c * s)), _even.artanhc_derivative(_inside(c * s))
    along = _dot(grad, w, dim)
    grad_w = mu * (f * grad + 2 * c * slope * along * w)
    grad_minus_x, grad_y, grad_c = _mobius_add_backward(grad_w, needs, -x, y, c, dim)
    grad_mu = f * along
    return (
        -grad_minus_x - 2 * c * grad_mu * x,
        grad_y,
        grad_c + (mu * slope * s * along - grad_mu * x2).sum(),
    )


_logmap_op = differentiable(_logmap, _logmap_backward, tensors=3)


def logmap(x: Tensor, y: Tensor, *, c: Tensor | float, dim: int = -1) -> Tensor:
    r"""Logarithmic map: the tangent vector at `x` whose geodesic reaches `y`. Inverse of `expmap`.

    Parameters
    ----------
    x, y : Tensor
        Ball points, broadcastable, along `dim`.
    c : Tensor or float
        The curvature of the ball is ``-c``.
    dim : int
        The dimension the manifold runs along (counted after broadcasting).

    Returns
    -------
    Tensor
        Tangent vectors at `x`; ``lambda_x |u|`` is the geodesic distance between `x` and `y`.

    Notes
    -----
    [1]_, lemma 2.

    Examples
    --------
    >>> import torch
    >>> import manifold_resnet.functional as F
    >>> x, y = torch.tensor([0.5, 0.0]), torch.tensor([0.0, 0.5])
    >>> u = F.logmap(x, y, c=1.0)
    >>> torch.allclose(F.expmap(x, u, c=1.0), y, atol=1e-6)
    True
    """
    x, y, c = _pair(x, y, c)
    return _logmap_op(x, y, c, dim)


# -- gyration and parallel transport ---------------------------------------------------------------------


def _gyration(a: Tensor, b: Tensor, u: Tensor, c: Tensor, dim: int) -> Tensor:
    a2, b2, ab = _dot(a, a, dim), _dot(b, b, dim), _dot(a, b, dim)
    au, bu = _dot(a, u, dim), _dot(b, u, dim)
    p = c * (bu + c * (2 * ab * bu - au * b2))
    q = -c * (au + c * bu * a2)
    return u + (2 / _open(1 + 2 * c * ab + c * c * a2 * b2)) * (p * a + q * b)


def _gyration_backward(
    grad: Tensor, needs: _Needs, a: Tensor, b: Tensor, u: Tensor, c: Tensor, dim: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    a2, b2, ab = _dot(a, a, dim), _dot(b, b, dim), _dot(a, b, dim)
    au, bu = _dot(a, u, dim), _dot(b, u, dim)
    ga, gb = _dot(grad, a, dim), _dot(grad, b, dim)
    p = c * (bu + c * (2 * ab * bu - au * b2))
    q = -c * (au + c * bu * a2)
    r = 2 / _open(1 + 2 * c * ab + c * c * a2 * b2)
    half = 0.5 * r * r * (p * ga + q * gb)  # minus the derivative with respect to the denominator
    d_au = -r * c * (c * b2 * ga + gb)
    d_bu = r * c * ((1 + 2 * c * ab) * ga - c * a2 * gb)
    d_ab = 2 * c * (r * c * bu * ga - half)
    d_a2 = -c * c * (r * bu * gb + half * b2)
    d_b2 = -c * c * (r * au * ga + half * a2)
    grad_a = r * p * grad + 2 * d_a2 * a + d_ab * b + d_au * u
    grad_b = r * q * grad + 2 * d_b2 * b + d_ab * a + d_bu * u
    grad_u = grad + d_au * a + d_bu * b
    p_c = bu + 2 * c * (2 * ab * bu - au * b2)
    q_c = -au - 2 * c * bu * a2
    grad_c = (r * (p_c * ga + q_c * gb) - 2 * half * (ab + c * a2 * b2)).sum()
    return grad_a, grad_b, grad_u, grad_c


_gyration_op = differentiable(_gyration, _gyration_backward, tensors=4)


def _triple(x: Tensor, y: Tensor, u: Tensor, c: Tensor | float, name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    u = full_precision(u, name)
    x, y, _ = _pair(x, y, c)
    x, u, _ = _pair(x, u, c)
    y, u, c = _pair(y, u, c)
    return x.to(u.dtype), y, u, c


def gyration(a: Tensor, b: Tensor, u: Tensor, *, c: Tensor | float, dim: int = -1) -> Tensor:
    r"""Gyration :math:`\mathrm{gyr}[a, b]u = \ominus(a \oplus b) \oplus (a \oplus (b \oplus u))`, a rotation of `u`.

    Parameters
    ----------
    a, b : Tensor
        Ball points, broadcastable, along `dim`.
    u : Tensor
        Ball points or tangent vectors at the origin: gyrations are linear.
    c : Tensor or float
        The curvature of the ball is ``-c``.
    dim : int
        The dimension the manifold runs along (counted after broadcasting).

    Returns
    -------
    Tensor
        What `u` is (points or vectors), of the broadcast shape and with the norm of `u`.

    Notes
    -----
    Ungar: A gyrovector space approach to hyperbolic geometry, 2009.

    Examples
    --------
    >>> import torch
    >>> import manifold_resnet.functional as F
    >>> a, b, u = torch.tensor([[0.5, 0.0], [0.0, 0.5], [0.3, 0.4]])
    >>> turned = F.gyration(a, b, u, c=1.0)
    >>> turned, turned.norm()  # a rotation: the length is still 0.5
    (tensor([0.4529, 0.2118]), tensor(0.5000))
    """
    a, b, u, c = _triple(a, b, u, c, "u")
    return _gyration_op(a, b, u, c, dim)


def _transp(x: Tensor, y: Tensor, v: Tensor, c: Tensor, dim: int) -> Tensor:
    ratio = _lambda_x(x, c, dim) / _lambda_x(y, c, dim)
    return ratio * _gyration(y, -x, v, c, dim)


def _transp_backward(
    grad: Tensor, needs: _Needs, x: Tensor, y: Tensor, v: Tensor, c: Tensor, dim: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    lambda_x, lambda_y = _lambda_x(x, c, dim), _lambda_x(y, c, dim)
    ratio = lambda_x / lambda_y
    along = _dot(grad, _gyration(y, -x, v, c, dim), dim)
    grad_y, grad_minus_x, grad_v, grad_c = _gyration_backward(ratio * grad, needs, y, -x, v, c, dim)
    x_of_x, c_of_x = _lambda_x_backward(along / lambda_y, needs, x, c, dim)
    y_of_y, c_of_y = _lambda_x_backward(-along * ratio / lambda_y, needs, y, c, dim)
    return x_of_x - grad_minus_x, grad_y + y_of_y, grad_v, grad_c + c_of_x + c_of_y


_transp_op = differentiable(_transp, _transp_backward, tensors=4)


def transp(x: Tensor, y: Tensor, v: Tensor, *, c: Tensor | float, dim: int = -1) -> Tensor:
    r"""Parallel transport from `x` to `y` along the geodesic, :math:`\mathrm{gyr}[y, \ominus x]v\,\lambda_x/\lambda_y`.

    Parameters
    ----------
    x, y : Tensor
        Ball points, broadcastable, along `dim`.
    v : Tensor
        Tangent vectors at `x`.
    c : Tensor or float
        The curvature of the ball is ``-c``.
    dim : int
        The dimension the manifold runs along (counted after broadcasting).

    Returns
    -------
    Tensor
        Tangent vectors at `y` with the same Riemannian norm.

    Notes
    -----
    [1]_, theorem 4 and eq. 12.

    Examples
    --------
    >>> import torch
    >>> import manifold_resnet.functional as F
    >>> x, y, v = torch.tensor([[0.0, 0.0], [0.6, 0.0], [0.0, 1.0]])
    >>> F.transp(x, y, v, c=1.0)  # of the same length at y, where the metric is 1 / 0.64 times as large
    tensor([0.0000, 0.6400])
    """
    x, y, v, c = _triple(x, y, v, c, "v")
    return _transp_op(x, y, v, c, dim)


# -- distance --------------------------------------------------------------------------------------------


def _dist(x: Tensor, y: Tensor, c: Tensor, dim: int) -> Tensor:
    eps = torch.finfo(x.dtype).eps
    a, b = (1 - c * _dot(x, x, dim)).clamp_min(eps), (1 - c * _dot(y, y, dim)).clamp_min(eps)
    # half the chord on the hyperboloid: exact for points that are close, wherever they are
    chord = (x - y).square().sum(dim, keepdim=True) / (a * b)
    return 2 * _even.asinh((c * chord).sqrt()) * c.rsqrt()


def _dist_backward(
    grad: Tensor, needs: _Needs, x: Tensor, y: Tensor, c: Tensor, dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    x2, y2 = _dot(x, x, dim), _dot(y, y, dim)
    eps = torch.finfo(x.dtype).eps
    a, b = (1 - c * x2).clamp_min(eps), (1 - c * y2).clamp_min(eps)
    difference = x - y
    chord = _dot(difference, difference, dim) / (a * b)
    zero = chord == 0
    # the distance has a kink where the points coincide: its gradient is zero there, as that of the squared distance is
    safe = torch.where(zero, torch.ones_like(chord), chord)
    slope = torch.where(zero, torch.zeros_like(chord), grad * (safe * (1 + c * safe)).rsqrt())
    grad_x = slope * (2 / (a * b) * difference + 2 * c * chord / a * x)
    grad_y = slope * (-2 / (a * b) * difference + 2 * c * chord / b * y)
    grad_c = slope * chord * (x2 / a + y2 / b)
    grad_c = grad_c + torch.where(zero, chord, grad * 2 * safe * safe.sqrt() * _even.asinhc_derivative(c * safe))
    return grad_x, grad_y, grad_c.sum()


_dist_op = differentiable(_dist, _dist_backward, tensors=3)


def dist(x: Tensor, y: Tensor, *, c: Tensor | float, dim: int = -1, keepdim: bool = False) -> Tensor:
    r"""Geodesic distance.

    .. math::
        d(x, y) = \frac{2}{\sqrt c}\,\mathrm{asinh}\frac{\sqrt c\|x-y\|}{\sqrt{(1-c\|x\|^2)(1-c\|y\|^2)}}

    Parameters
    ----------
    x, y : Tensor
        Ball points, broadcastable, along `dim`.
    c : Tensor or float
        The curvature of the ball is ``-c``.
    dim : int
        The dimension the manifold runs along (counted after broadcasting).
    keepdim : bool
        Keep `dim` with size one.

    Returns
    -------
    Tensor
        Distances, of the broadcast shape without `dim` (or with size one there). Where the points coincide, the
        gradient is 0.

    Examples
    --------
    >>> import torch
    >>> import manifold_resnet.functional as F
    >>> x = torch.tensor([[0.0, 0.0], [0.6, 0.0]])
    >>> F.dist(x[0], x[1], c=1.0)  # 2 artanh(0.6)
    tensor(1.3863)
    """
    x, y, c = _pair(x, y, c)
    result = _dist_op(x, y, c, dim)
    return result if keepdim else result.squeeze(dim)
