r"""The same operations as plain compositions of geoopt calls: slow, and meant to be read.

Every function here has the name and the signature of its counterpart in :mod:`manifold_resnet.functional`,
without the chart arguments: ball points in, ball points out, on the ball :math:`\{x : c|x|^2 < 1\}`. Each one
is written down from the definition in its paper (unfold, exponential map, distances to hyperplanes, Karcher
flow, ...), and the gradient of every argument, ``c`` included, is the one torch's autograd derives. That
makes this module the truth the tests compare with, and the baseline the benchmarks compare with.

How exact is it? In float64, for points up to a distance of about ``8 / sqrt(c)`` from the origin, values are
good to 1e-12. The limits, all of them geoopt's (0.5.1):

- ``sabs`` adds 1e-15 to ``c`` inside ``tan_k`` and its relatives: a relative error of ``1e-15 / c`` in ``c``.
- ``artanh`` stops at ``1 - 1e-7`` (a distance of 16.8) and, like ``arsinh``, takes logarithms of ``1 + x``:
  the absolute error is one rounding of 1. So the gradient of a logarithm at a point with ``sqrt(c)|x| = e``
  is only good to ``1e-16 / e`` (5 % off at the zero vector itself, though finite), and a gradient for ``c``
  to ``1e-16 c ** -1.5``.
- ``arsinh(q)`` cancels for large negative ``q``: a relative error of about ``1e-16 q ** 2``.
- ``weighted_midpoint`` adds 1e-10 to its denominator, which is why :func:`midpoint` here spells the sum out.

References
----------
.. [1] Ganea, Becigneul, Hofmann. Hyperbolic neural networks. NeurIPS 2018.
.. [2] Shimizu, Mukuta, Harada. Hyperbolic neural networks++. ICLR 2021.
.. [3] van Spengler, Berkhout, Mettes. Poincare ResNet. ICCV 2023.
.. [4] Ungar. Analytic hyperbolic geometry. World Scientific, 2005.
.. [5] Karcher. Riemannian center of mass and mollifier smoothing. CPAM 30, 1977.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from geoopt.manifolds.lorentz import math as gmath_lorentz
from geoopt.manifolds.stereographic import math as gmath
from scipy.special import beta as beta_function
from torch import Tensor

__all__ = [
    "convert",
    "dist",
    "expmap",
    "expmap0",
    "frechet_mean",
    "frechet_variance",
    "from_lorentz",
    "gyration",
    "lambda_x",
    "logmap",
    "logmap0",
    "midpoint",
    "midpoint_batch_norm",
    "mobius_add",
    "mobius_residual",
    "poincare_adaptive_avg_pool2d",
    "poincare_avg_pool2d",
    "poincare_conv",
    "poincare_conv2d",
    "poincare_linear",
    "poincare_mlr",
    "poincare_relu",
    "project",
    "to_lorentz",
    "transp",
]

Curvature = float | Tensor


def _k(c: Curvature, like: Tensor) -> Tensor:
    """Signed sectional curvature ``k = -c``, as geoopt has it: 0-d, carrying the gradient of ``c``."""
    return -torch.as_tensor(c, dtype=like.dtype, device=like.device)


# ------------------------------------------------------------------------------------------------------------
# The ball: geoopt's PoincareBall, method by method


def project(x: Tensor, *, c: Curvature, dim: int = -1, eps: float | None = None) -> Tensor:
    """Clip to the norm ``(1 - eps) / sqrt(c)``, as ``geoopt.PoincareBall.projx`` does."""
    return gmath.project(x, k=_k(c, x), dim=dim, eps=-1.0 if eps is None else eps)


def mobius_add(x: Tensor, y: Tensor, *, c: Curvature, dim: int = -1) -> Tensor:
    """Moebius addition of ball points that broadcast against each other ([1], sec. 2), projected."""
    k = _k(c, x)
    return gmath.project(gmath.mobius_add(x, y, k=k, dim=dim), k=k, dim=dim)


def expmap0(u: Tensor, *, c: Curvature, dim: int = -1) -> Tensor:
    """Exponential map at the origin of tangent vectors ([1], sec. 2), projected."""
    k = _k(c, u)
    return gmath.project(gmath.expmap0(u, k=k, dim=dim), k=k, dim=dim)


def logmap0(x: Tensor, *, c: Curvature, dim: int = -1) -> Tensor:
    """Logarithm at the origin: the tangent vector of norm ``dist(0, x) / 2`` ([1], sec. 2)."""
    return gmath.logmap0(x, k=_k(c, x), dim=dim)


def expmap(x: Tensor, u: Tensor, *, c: Curvature, dim: int = -1) -> Tensor:
    """Exponential map at ``x`` of the tangent vector ``u`` ([1], sec. 2), projected."""
    k = _k(c, x)
    return gmath.project(gmath.expmap(x, u, k=k, dim=dim), k=k, dim=dim)


def logmap(x: Tensor, y: Tensor, *, c: Curvature, dim: int = -1) -> Tensor:
    """Logarithm at ``x`` of the point ``y``, a tangent vector at ``x`` ([1], sec. 2)."""
    return gmath.logmap(x, y, k=_k(c, x), dim=dim)


def lambda_x(x: Tensor, *, c: Curvature, dim: int = -1, keepdim: bool = False) -> Tensor:
    """Conformal factor ``2 / (1 - c|x|^2)``."""
    return gmath.lambda_x(x, k=_k(c, x), dim=dim, keepdim=keepdim)


def gyration(a: Tensor, b: Tensor, u: Tensor, *, c: Curvature, dim: int = -1) -> Tensor:
    """``gyr[a, b] u``, the rotation by which Moebius addition fails to be associative ([4])."""
    return gmath.gyration(a, b, u, k=_k(c, u), dim=dim)


def transp(x: Tensor, y: Tensor, v: Tensor, *, c: Curvature, dim: int = -1) -> Tensor:
    """Parallel transport of the tangent vector ``v`` along the geodesic from ``x`` to ``y``."""
    return gmath.parallel_transport(x, y, v, k=_k(c, x), dim=dim)


def dist(x: Tensor, y: Tensor, *, c: Curvature, dim: int = -1, keepdim: bool = False) -> Tensor:
    """Geodesic distance."""
    return gmath.dist(x, y, k=_k(c, x), dim=dim, keepdim=keepdim)


def _clip_distance(x: Tensor, c: Curvature, dim: int, max_distance: float) -> Tensor:
    """Move points farther than ``max_distance`` from the origin onto that sphere; then ``project``."""
    k = _k(c, x)
    if math.isfinite(max_distance):
        radius = gmath.tan_k(torch.as_tensor(max_distance / 2, dtype=x.dtype, device=x.device), k)
        norm = x.norm(dim=dim, keepdim=True)
        x = torch.where(norm > radius, x / norm.clamp_min(1e-15) * radius, x)
    return gmath.project(x, k=k, dim=dim)


# ------------------------------------------------------------------------------------------------------------
# Charts


def to_lorentz(x: Tensor, *, c: Curvature, dim: int = -1) -> Tensor:
    """Ball points as ``geoopt.Lorentz(k=1/c)`` points: one more coordinate along ``dim``, time first.

    By way of the unit hyperboloid: geoopt's projection has the ``sabs`` error at a small ``c``, none at 1.
    """
    sqrt_c = (-_k(c, x)).sqrt()
    p = gmath.inv_sproj(sqrt_c * x, k=_k(1.0, x), dim=dim) / sqrt_c  # geoopt puts time last
    n = x.size(dim)
    return torch.cat((p.narrow(dim, n, 1), p.narrow(dim, 0, n)), dim=dim)


def from_lorentz(p: Tensor, *, c: Curvature, dim: int = -1) -> Tensor:
    """Inverse of :func:`to_lorentz`; time is what ``geoopt.Lorentz.projx`` makes it, given the space part."""
    sqrt_c = (-_k(c, p)).sqrt()
    p = gmath_lorentz.project(sqrt_c * p, k=torch.ones_like(sqrt_c), dim=dim)  # on the unit hyperboloid
    time_last = torch.cat((p.narrow(dim, 1, p.size(dim) - 1), p.narrow(dim, 0, 1)), dim=dim)
    return gmath.sproj(time_last, k=_k(1.0, p), dim=dim) / sqrt_c


def convert(x: Tensor, src: str, dst: str, *, c: Curvature, dim: int = -1, max_distance: float = math.inf) -> Tensor:
    """Change of chart by way of the ball; "hyperboloid" is a Lorentz point's space part times ``sqrt(c)``."""
    sqrt_c = (-_k(c, x)).sqrt()
    if src == "tangent":
        x = gmath.expmap0(x, k=_k(c, x), dim=dim)
    elif src == "hyperboloid":
        time = (1 + x.pow(2).sum(dim=dim, keepdim=True)).sqrt()
        x = from_lorentz(torch.cat((time, x), dim=dim) / sqrt_c, c=c, dim=dim)
    if math.isfinite(max_distance) or dst == "ball":
        x = _clip_distance(x, c, dim, max_distance)
    if dst == "tangent":
        return logmap0(x, c=c, dim=dim)
    if dst == "hyperboloid":
        return to_lorentz(x, c=c, dim=dim).narrow(dim, 1, x.size(dim)) * sqrt_c
    return x


# ------------------------------------------------------------------------------------------------------------
# Fully connected layers and convolutions


def poincare_mlr(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, c: Curvature) -> Tensor:
    """Signed distances to hyperplanes, times the lengths of their normals ([1], sec. 3.1; [2], sec. 3.1).

    Hyperplane ``k`` goes through ``p_k = exp_0(r_k z_k / |z_k|)`` and is orthogonal there to ``a_k``, the
    normal ``z_k`` transported from the origin to ``p_k``.

    Parameters
    ----------
    x : Tensor
        Ball points ``[..., n]``.
    weight : Tensor
        Normals ``z``, tangent vectors at the origin, ``[K, n]``.
    bias : Tensor, optional
        Signed offsets ``r`` in units of the tangent norm, ``[K]``.
    c : float or Tensor
        Curvature, positive.

    Returns
    -------
    Tensor
        ``[..., K]``.
    """
    k = _k(c, x)
    r = weight.new_zeros(weight.size(0)) if bias is None else bias
    p = gmath.expmap0(r.unsqueeze(-1) * weight / weight.norm(dim=-1, keepdim=True).clamp_min(1e-15), k=k)  # [K, n]
    a = gmath.parallel_transport0(p, weight, k=k)  # [K, n]
    distance = gmath.dist2plane(x.unsqueeze(-2), p, a, k=k, signed=True, scaled=True)  # [..., K], times |a|
    return gmath.lambda_x(p, k=k) * distance  # the Riemannian length of a at p is lambda_p |a|


def _from_hyperplane_distances(v: Tensor, c: Curvature, max_distance: float) -> Tensor:
    """Find the point at distances ``v`` from the coordinate hyperplanes ([2], sec. 3.2); clip it; dim=-1."""
    k = _k(c, v)
    w = gmath.sin_k(v, k)  # sinh(sqrt(c) v) / sqrt(c)
    y = w / (1 + (1 - k * w.pow(2).sum(dim=-1, keepdim=True)).sqrt())
    return _clip_distance(y, c, -1, max_distance)


def poincare_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, c: Curvature, max_distance: float = math.inf
) -> Tensor:
    """Fully connected layer ([2], sec. 3.2), ``[..., n]`` to ``[..., K]``; see :func:`poincare_mlr`."""
    return _from_hyperplane_distances(poincare_mlr(x, weight, bias, c=c), c, max_distance)


def _tuple(value: int | Sequence[int], n: int) -> tuple[int, ...]:
    return (value,) * n if isinstance(value, int) else tuple(value)


def _unfold(x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """Windows of ``x [B, C, *in]`` as ``[B, *out, C, *kernel]``."""
    n = len(kernel)
    for i in range(n):
        x = x.unfold(2 + i, dilation[i] * (kernel[i] - 1) + 1, stride[i])[..., :: dilation[i]]
    return x.movedim(1, 1 + n)  # [B, C, *out, *kernel] -> [B, *out, C, *kernel]


def _pad(x: Tensor, padding: Sequence[int], value: float = 0.0) -> Tensor:
    return F.pad(x, [p for size in reversed(padding) for p in (size, size)], value=value)


def poincare_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    *,
    c: Curvature,
    max_distance: float = math.inf,
) -> Tensor:
    """Convolution in 1 to 3 dimensions ([3], sec. 3.1): a fully connected layer on every receptive field.

    The pixels of a receptive field are joined by beta-concatenation ([2], sec. 3.3): their tangent vectors at
    the origin are scaled by a ratio of beta functions and stacked. ``x [B, C, *in]`` along dim=1 and
    ``weight [out, C, *kernel]`` give ``[B, out, *out]``.
    """
    kernel = weight.shape[2:]
    n = len(kernel)
    channels, pixels = x.size(1), math.prod(kernel)
    scale = beta_function(pixels * channels / 2, 0.5) / beta_function(channels / 2, 0.5)
    u = gmath.logmap0(x, k=_k(c, x), dim=1) * float(scale)
    dilation = _tuple(dilation, n)
    if padding == "same":  # torch puts the odd pixel at the end
        total = [d * (size - 1) for d, size in zip(dilation, kernel, strict=True)]
        u = F.pad(u, [p for t in reversed(total) for p in (t // 2, t - t // 2)])
    elif not isinstance(padding, str):
        u = _pad(u, _tuple(padding, n))
    u = _unfold(u, kernel, _tuple(stride, n), dilation)
    patches = gmath.expmap0(u.flatten(1 + n), k=_k(c, x))  # [B, *out, C * kh * kw]
    y = poincare_linear(patches, weight.flatten(1), bias, c=c, max_distance=max_distance)
    return y.movedim(-1, 1)


def poincare_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    *,
    c: Curvature,
    max_distance: float = math.inf,
) -> Tensor:
    """Convolution of ball points ``[B, C, H, W]`` along dim=1 with ``weight [out, in, kh, kw]``."""
    return poincare_conv(x, weight, bias, stride, padding, dilation, c=c, max_distance=max_distance)


# ------------------------------------------------------------------------------------------------------------
# Means, variance, batch normalisation


def _reducedims(x: Tensor, reducedim: int | Sequence[int] | None, dim: int) -> list[int]:
    if reducedim is None:
        return [i for i in range(x.dim()) if i != dim % x.dim()]
    return sorted(i % x.dim() for i in ([reducedim] if isinstance(reducedim, int) else reducedim))


def _squeeze(x: Tensor, dims: Sequence[int]) -> Tensor:
    for i in sorted(dims, reverse=True):
        x = x.squeeze(i)
    return x


def _unsqueeze_like(x: Tensor, like: Tensor, dims: Sequence[int]) -> Tensor:
    if x.dim() == like.dim():
        return x
    for i in sorted(dims):
        x = x.unsqueeze(i)
    return x


def midpoint(
    x: Tensor,
    weights: Tensor | None = None,
    *,
    c: Curvature,
    reducedim: int | Sequence[int] | None = None,
    dim: int = -1,
    keepdim: bool = False,
) -> Tensor:
    """Gyromidpoint ``1/2 (x) (sum w lambda x / sum w (lambda - 1))`` ([4]) over ``reducedim``.

    geoopt's ``weighted_midpoint`` without the 1e-10 it adds to the denominator; ``weights >= 0`` have the
    shape of ``x`` without ``dim``.
    """
    k = _k(c, x)
    dims = _reducedims(x, reducedim, dim)
    if not dims:  # torch would sum over everything
        return x
    w = torch.ones_like(x.narrow(dim, 0, 1)) if weights is None else weights.unsqueeze(dim)
    lam = gmath.lambda_x(x, k=k, dim=dim, keepdim=True)
    twice = (w * lam * x).sum(dims, keepdim=True) / (w * (lam - 1)).sum(dims, keepdim=True)
    m = gmath.mobius_scalar_mul(torch.tensor(0.5, dtype=x.dtype, device=x.device), twice, k=k, dim=dim)
    m = gmath.project(m, k=k, dim=dim)
    return m if keepdim else _squeeze(m, dims)


def frechet_mean(
    x: Tensor,
    weights: Tensor | None = None,
    *,
    c: Curvature,
    reducedim: int | Sequence[int] | None = None,
    dim: int = -1,
    keepdim: bool = False,
    tol: float | None = None,
    max_iter: int = 2000,
) -> Tensor:
    """Frechet mean by the Karcher flow ``m <- exp_m(step * mean log_m(x_i))`` ([5]), run to convergence.

    The Hessian of half the mean squared distance has its eigenvalues between 1 and ``L = mean(t coth t)``
    with ``t = sqrt(c) d(m, x_i)``: the step ``2 / (1 + L)`` contracts by ``(L - 1) / (L + 1)``, where a step
    of 1 diverges once the points are spread far. The gradient is that of the flow itself: after convergence,
    as many more steps as make ``((L - 1) / (L + 1)) ** steps`` vanish run under autograd.
    """
    k = _k(c, x)
    dims = _reducedims(x, reducedim, dim)
    if not dims:
        return x
    w = torch.ones_like(x.narrow(dim, 0, 1)) if weights is None else weights.unsqueeze(dim)
    w = w.expand_as(x.narrow(dim, 0, 1))
    w = w / w.sum(dims, keepdim=True)
    eps = torch.finfo(x.dtype).eps if tol is None else tol

    def bound(m: Tensor) -> Tensor:
        t = (-k).sqrt() * gmath.dist(m, x, k=k, dim=dim, keepdim=True)
        return (w * t / torch.tanh(t.clamp_min(1e-6))).sum(dims, keepdim=True).clamp_min(1)

    def step(m: Tensor, size: Tensor) -> Tensor:
        return gmath.expmap(m, size * (w * gmath.logmap(m, x, k=k, dim=dim)).sum(dims, keepdim=True), k=k, dim=dim)

    with torch.no_grad():
        m = midpoint(x, weights, c=c, reducedim=dims, dim=dim, keepdim=True)
        for _ in range(max_iter):
            previous, m = m, step(m, 2 / (1 + bound(m)))
            if not m.numel() or (m - previous).norm(dim=dim).max() <= eps * (-k).rsqrt():
                break
        upper = bound(m)
        rate = ((upper - 1) / (upper + 1)).max().item() if m.numel() else 0.0
        steps = 2 if rate <= eps else min(max_iter, 2 + math.ceil(math.log(eps) / math.log(rate)))
    for _ in range(steps):
        m = step(m, 2 / (1 + upper))
    return m if keepdim else _squeeze(m, dims)


def frechet_variance(
    x: Tensor,
    mean: Tensor | None = None,
    weights: Tensor | None = None,
    *,
    c: Curvature,
    reducedim: int | Sequence[int] | None = None,
    dim: int = -1,
    keepdim: bool = False,
) -> Tensor:
    """Weighted mean over ``reducedim`` of the squared distances to ``mean`` (``None``: to the midpoint)."""
    dims = _reducedims(x, reducedim, dim)
    if mean is None:
        mean = midpoint(x, weights, c=c, reducedim=dims, dim=dim, keepdim=True)
    mean = _unsqueeze_like(mean, x, dims)
    squared = gmath.dist(mean, x, k=_k(c, x), dim=dim, keepdim=True).pow(2)
    if not dims:
        return squared if keepdim else squared.squeeze(dim)
    w = torch.ones_like(squared) if weights is None else weights.unsqueeze(dim).expand_as(squared)
    variance = (w * squared).sum(dims, keepdim=True) / w.sum(dims, keepdim=True)
    return variance if keepdim else _squeeze(variance, [*dims, dim % x.dim()])


def midpoint_batch_norm(
    x: Tensor,
    mean: Tensor | None = None,
    variance: Tensor | None = None,
    gain: Tensor | None = None,
    center: Tensor | None = None,
    *,
    c: Curvature,
    about: str = "midpoint",
    scale: str = "scalar",
    eps: float = 1e-5,
    dim: int = 1,
    max_distance: float = math.inf,
) -> Tensor:
    """Batch normalisation ([3], sec. 3.3): the batch's mean moves to ``center``, its deviation to ``gain``.

    Parameters
    ----------
    x : Tensor
        Ball points along ``dim``, of size ``C``.
    mean, center : Tensor, optional
        Ball points ``[C]``. Without ``mean``, the midpoint (with ``about="frechet"`` the Frechet mean) of the
        batch over all other dimensions; without ``center``, the origin.
    variance, gain : Tensor, optional
        ``scale="scalar"``: 0-d; the mean squared geodesic distance to the mean, and the root of the one
        wanted. ``scale="channel"``: ``[C]``; the second moment of each coordinate of the tangent vectors at
        the mean (moved to the origin), and the root of the one wanted. Without ``gain``, 1; without
        ``variance``, the batch's.
    """
    k = _k(c, x)
    shape = [1] * x.dim()
    shape[dim] = -1
    dims = _reducedims(x, None, dim)
    if mean is None:
        mean = (midpoint if about == "midpoint" else frechet_mean)(x, c=c, dim=dim)
    if center is None:
        center = torch.zeros_like(mean)
    if gain is None:
        gain = x.new_ones(())
    if scale == "scalar":
        if variance is None:
            variance = frechet_variance(x, mean, c=c, dim=dim)
        m, b = mean.reshape(shape), center.reshape(shape)
        u = gmath.parallel_transport(m, b, gmath.logmap(m, x, k=k, dim=dim), k=k, dim=dim)
        y = gmath.expmap(b, gain / (variance + eps).sqrt() * u, k=k, dim=dim)
    else:
        w = gmath.logmap0(gmath.mobius_add(-mean.reshape(shape), x, k=k, dim=dim), k=k, dim=dim)
        if variance is None:
            variance = w.pow(2).mean(dims) if dims else w.pow(2)
        u = w * (gain / (variance + eps).sqrt()).reshape(shape)
        y = gmath.mobius_add(center.reshape(shape), gmath.expmap0(u, k=k, dim=dim), k=k, dim=dim)
    return _clip_distance(y, c, dim, max_distance)


# ------------------------------------------------------------------------------------------------------------
# Residual connection, activation, pooling


def mobius_residual(
    x: Tensor,
    shortcut: Tensor,
    *,
    c: Curvature,
    dim: int = 1,
    order: str = "fr",
    max_distance: float = math.inf,
) -> Tensor:
    """Residual connection ([3], sec. 3.2): ``"fr"`` is ``x (+) shortcut``, ``"rf"`` is ``shortcut (+) x``."""
    first, second = (x, shortcut) if order == "fr" else (shortcut, x)
    return _clip_distance(gmath.mobius_add(first, second, k=_k(c, x), dim=dim), c, dim, max_distance)


def poincare_relu(x: Tensor, *, c: Curvature, dim: int = 1) -> Tensor:
    """``exp_0(max(log_0(x), 0))`` of ball points along ``dim`` ([1], sec. 3)."""
    return expmap0(logmap0(x, c=c, dim=dim).relu(), c=c, dim=dim)


def poincare_avg_pool2d(
    x: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    *,
    c: Curvature,
) -> Tensor:
    """Midpoint of every window of ``x [B, C, H, W]``, windows as in ``torch.nn.functional.avg_pool2d``.

    Padding is the origin (``count_include_pad=True``) or left out; what ``ceil_mode`` adds beyond the padding
    is always left out.
    """
    kernel, padding = _tuple(kernel_size, 2), _tuple(padding, 2)
    stride = kernel if stride is None else _tuple(stride, 2)
    extra = []  # rows and columns past the padding that the last window reaches
    for size, k, s, p in zip(x.shape[2:], kernel, stride, padding, strict=True):
        steps = (size + 2 * p - k) / s
        out = (math.ceil(steps) if ceil_mode else math.floor(steps)) + 1
        if ceil_mode and (out - 1) * s >= size + p:  # the last window has to start inside the image or the left padding
            out -= 1
        extra.append((out - 1) * s + k - size - 2 * p)
    inside = _pad(torch.ones_like(x[:, :1]), padding, value=float(count_include_pad))
    points = _pad(x, padding)
    beyond = (0, extra[1], 0, extra[0])
    w = _unfold(F.pad(inside, beyond), kernel, stride, (1, 1)).squeeze(3)  # [B, H', W', kh, kw]
    windows = _unfold(F.pad(points, beyond), kernel, stride, (1, 1))  # [B, H', W', C, kh, kw]
    return midpoint(windows, w, c=c, reducedim=(4, 5), dim=3).movedim(-1, 1)


def poincare_adaptive_avg_pool2d(x: Tensor, output_size: int | Sequence[int], *, c: Curvature) -> Tensor:
    """Midpoints of ``output_size`` windows that cover ``x [B, C, H, W]`` as torch's adaptive pooling does."""
    height, width = _tuple(output_size, 2)

    def windows(size: int, out: int) -> list[slice]:
        return [slice(i * size // out, -(-(i + 1) * size // out)) for i in range(out)]

    rows = [
        torch.stack([midpoint(x[:, :, r, s], c=c, reducedim=(2, 3), dim=1) for s in windows(x.size(3), width)], dim=-1)
        for r in windows(x.size(2), height)
    ]
    return torch.stack(rows, dim=-2)
