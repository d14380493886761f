r"""Batch normalisation about the Poincaré midpoint or the Fréchet mean.

Everything happens in the hyperboloid chart, where the midpoint is a sum and a left translation a Lorentz boost. With
:math:`m` the batch's mean and :math:`\beta` the learned centre,

- ``scale="scalar"`` divides by one Fréchet variance, as the paper does:
  :math:`y = \exp_\beta\!\big(\tfrac{g}{\sqrt{\mathrm{var}+\epsilon}}\,PT_{m\to\beta}\log_m x\big)`;
- ``scale="channel"`` standardises each coordinate of the tangent vector :math:`w = \log_0(\ominus m \oplus x)`:
  :math:`y = \beta \oplus \exp_0\!\big(g_k w_k/\sqrt{\mathrm{mean}(w_k^2)+\epsilon}\big)`.

References
----------
.. [1] van Spengler, Berkhout, Mettes: Poincaré ResNet. ICCV 2023, sec. 3.3.
.. [2] Lou, Katsman, Jiang, Belongie, Lim, De Sa: Differentiating through the Fréchet mean. ICML 2020, sec. 5.2.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from manifold_resnet.functional import _even
from manifold_resnet.functional._autograd import differentiable
from manifold_resnet.functional._checks import (
    Chart,
    broadcast_channels,
    check_chart,
    check_max_distance,
    curvature,
    full_precision,
    other_dims,
)
from manifold_resnet.functional.charts import _SINH_LIMIT, _factor_derivatives, _scale, convert
from manifold_resnet.functional.frechet import (
    _TOLERANCE,
    hyperboloid_frechet_mean,
    translate,
)
from manifold_resnet.functional.midpoint import normalise_mean, time_excess

Mean = Literal["midpoint", "frechet"]
Scale = Literal["scalar", "channel"]


# -- the pieces, each with its backward ------------------------------------------------------------------


def _sums(h: Tensor, dim: int) -> Tensor:
    """[C + 1]: the mean of the points, and of their time part minus one."""
    rest = other_dims(h, dim)
    s = (h * h).sum(dim, keepdim=True)
    return torch.cat([h.mean(rest), (s / (1 + torch.sqrt(1 + s))).mean().reshape(1)])


def _sums_backward(grad: Tensor, needs: tuple[bool, ...], h: Tensor, dim: int) -> tuple[Tensor]:
    count = h.numel() // h.shape[dim]
    s = (h * h).sum(dim, keepdim=True)
    spatial = broadcast_channels(grad[:-1] / count, h, dim)
    return (torch.addcmul(spatial, h, grad[-1] / count * torch.rsqrt(1 + s)),)


_sums_op = differentiable(_sums, _sums_backward, tensors=1)


def _center(h: Tensor, m: Tensor, c: Tensor, dim: int) -> Tensor:
    """Map x to log0((-m) (+) x), from the hyperboloid chart to tangent vectors."""
    b = translate(h, broadcast_channels(m, h, dim), dim)
    return 0.5 * c.rsqrt() * _even.asinhc((b * b).sum(dim, keepdim=True)) * b


def _center_backward(
    grad: Tensor, needs: tuple[bool, ...], h: Tensor, m: Tensor, c: Tensor, dim: int
) -> tuple[Tensor | None, ...]:
    m_ = broadcast_channels(m, h, dim)
    m2 = (m * m).sum()
    time_m = torch.sqrt(1 + m2)
    time = torch.sqrt(1 + (h * h).sum(dim, keepdim=True))
    along_m = (m_ * h).sum(dim, keepdim=True) / (1 + time_m)
    xi = time - along_m
    b = torch.addcmul(h, xi, m_, value=-1)  # as `translate`
    s = (b * b).sum(dim, keepdim=True)
    grad_b, grad_m = (grad * b).sum(dim, keepdim=True), (grad * m_).sum(dim, keepdim=True)
    # the gradient with respect to b is f grad + k b; its inner product with m over 1 + tau_m follows
    scale = 0.5 * c.rsqrt()
    f = scale * _even.asinhc(s)
    k = 2 * scale * _even.asinhc_derivative(s) * grad_b
    p = (f * grad_m + k * ((1 + time_m) * along_m - xi * m2)) / (1 + time_m)
    by_h = k - p * (1 + time_m) / time
    by_m = p - k * xi
    grad_h = torch.addcmul(torch.addcmul(f * grad, by_h, h), by_m, m_)
    grad_mean = grad_c = None
    if needs[1]:
        rest = other_dims(h, dim)
        by_m = k * xi * xi - p * along_m / time_m
        grad_mean = (-xi * f * grad).sum(rest) + ((p - xi * k) * h).sum(rest) + by_m.sum() * m
    if needs[2]:
        grad_c = -0.5 / c * (f * grad_b).sum()
    return grad_h, grad_mean, grad_c


_center_op = differentiable(_center, _center_backward, tensors=3)


def _standardise(w: Tensor, variance: Tensor, gain: Tensor, eps: float, dim: int) -> Tensor:
    return broadcast_channels(gain * torch.rsqrt(variance + eps), w, dim) * w


def _standardise_backward(
    grad: Tensor, needs: tuple[bool, ...], w: Tensor, variance: Tensor, gain: Tensor, eps: float, dim: int
) -> tuple[Tensor | None, ...]:
    rest = other_dims(w, dim)
    if torch.is_grad_enabled():  # a second derivative goes through the variance as well
        variance = (w * w).mean(rest)
    r = torch.rsqrt(variance + eps)
    along = r * (grad * w).sum(rest)
    by_w = -along * gain * r * r * (w.shape[dim] / w.numel())
    grad_w = torch.addcmul(broadcast_channels(gain * r, w, dim) * grad, broadcast_channels(by_w, w, dim), w)
    return grad_w, None, along


# the variance is that of w itself; the backward pass accounts for it
_standardise_op = differentiable(_standardise, _standardise_backward, tensors=3)


def _recenter_terms(
    u: Tensor, beta: Tensor, c: Tensor, limit: float, dim: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    s = (u * u).sum(dim, keepdim=True)
    inside, bound, f = _scale(s, c, "tangent", "hyperboloid", math.inf, limit)
    time = torch.sqrt(1 + f * f * s)
    time_beta = torch.sqrt(1 + (beta * beta).sum())
    along_beta = (u * broadcast_channels(beta, u, dim)).sum(dim, keepdim=True) / (1 + time_beta)
    return s, f, time, time_beta, along_beta, inside


def _recenter(u: Tensor, beta: Tensor, c: Tensor, limit: float, dim: int) -> Tensor:
    """Map u to beta (+) exp0(u), from tangent vectors to the hyperboloid chart."""
    _, f, time, _, along_beta, _ = _recenter_terms(u, beta, c, limit, dim)
    return torch.addcmul(f * u, time + f * along_beta, broadcast_channels(beta, u, dim))


def _recenter_backward(
    grad: Tensor, needs: tuple[bool, ...], u: Tensor, beta: Tensor, c: Tensor, limit: float, dim: int
) -> tuple[Tensor | None, ...]:
    s, f, time, time_beta, along_beta, inside = _recenter_terms(u, beta, c, limit, dim)
    beta_ = broadcast_channels(beta, u, dim)
    grad_u, grad_beta = (grad * u).sum(dim, keepdim=True), (grad * beta_).sum(dim, keepdim=True)
    f_s, f_c = _factor_derivatives(inside, c, "tangent", "hyperboloid", needs[2])
    outside = _even.above(s, inside)
    f_s = _even.select(outside, -0.5 * f / s.clamp(min=torch.finfo(s.dtype).tiny ** 0.5), f_s)
    # y = f u + (time + f along_beta) beta, time^2 = 1 + f^2 s
    by_f = grad_u + grad_beta * (along_beta + f * s / time)
    by_u = 2 * by_f * f_s + grad_beta * f * f / time
    by_beta = grad_beta * f / (1 + time_beta)
    grad_in = torch.addcmul(torch.addcmul(f * grad, by_u, u), by_beta, beta_)
    grad_center = grad_c = None
    if needs[1]:
        rest = other_dims(u, dim)
        shrink = (grad_beta * f * along_beta).sum() / ((1 + time_beta) * time_beta)
        grad_center = ((time + f * along_beta) * grad).sum(rest) + (by_beta * u).sum(rest) - shrink * beta
    if f_c is not None:
        # where bounded, the point is sinh(limit) u/|u| whatever c is
        grad_c = ((1 - outside) * f_c * by_f).sum()
    return grad_in, grad_center, grad_c


_recenter_op = differentiable(_recenter, _recenter_backward, tensors=3)


def _cosh_distance_excess(h: Tensor, m: Tensor, dim: int) -> Tensor:
    """Compute cosh d(x, m) - 1 without cancellation for points that are close to m, wherever m is."""
    time_h = torch.sqrt(1 + (h * h).sum(dim, keepdim=True))
    time_m = torch.sqrt(1 + (m * m).sum(dim, keepdim=True))
    difference = h - m
    square = (difference * difference).sum(dim, keepdim=True)
    time_difference = (difference * (h + m)).sum(dim, keepdim=True) / (time_h + time_m)
    return (0.5 * (square - time_difference * time_difference)).clamp_min(0)


def _cosh_excess_backward(grad: Tensor, h: Tensor, m: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    time_h = torch.sqrt(1 + (h * h).sum(dim, keepdim=True))
    time_m = torch.sqrt(1 + (m * m).sum(dim, keepdim=True))
    return grad * (time_m / time_h * h - m), grad * (time_h / time_m * m - h)


def _square_of_distance(excess: Tensor) -> tuple[Tensor, Tensor]:
    """Compute arcosh(1 + excess)^2 and its derivative, smooth at zero."""
    x = excess * (2 + excess)  # sinh(d)^2
    d_over_sinh = _even.asinhc(x)
    return x * d_over_sinh * d_over_sinh, 2 * d_over_sinh


def _variance(h: Tensor, m: Tensor, c: Tensor, dim: int) -> Tensor:
    excess = _cosh_distance_excess(h, broadcast_channels(m, h, dim), dim)
    return _square_of_distance(excess)[0].mean() / c


def _variance_backward(
    grad: Tensor, needs: tuple[bool, ...], h: Tensor, m: Tensor, c: Tensor, dim: int
) -> tuple[Tensor | None, ...]:
    m_ = broadcast_channels(m, h, dim)
    square, slope = _square_of_distance(_cosh_distance_excess(h, m_, dim))
    grad_h, grad_m = _cosh_excess_backward(grad / (c * square.numel()) * slope, h, m_, dim)
    return (
        grad_h,
        grad_m.sum(other_dims(h, dim)) if needs[1] else None,
        -grad * square.mean() / (c * c) if needs[2] else None,
    )


_variance_op = differentiable(_variance, _variance_backward, tensors=3)


def _scaled_square(scale: Tensor, excess: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """From cosh(d) - 1: sinh(d)^2, d/sinh(d), (s d)^2 bounded so that its sinh is finite, and whether it was."""
    x = excess * (2 + excess)
    k = _even.asinhc(x)
    y = scale * scale * x * k * k
    limit = _SINH_LIMIT[excess.dtype] ** 2  # far outside of any bound on the radius
    return x, k, y.clamp(max=limit), y > limit


def _sinh_ratio(scale: Tensor, excess: Tensor) -> tuple[Tensor, Tensor]:
    """Compute sinh(s d)/sinh(d) and cosh(s d) from cosh(d) - 1."""
    x, k, y, bounded = _scaled_square(scale, excess)
    f = _even.sinhc(y)
    ratio = torch.where(bounded, y.sqrt() * torch.where(bounded, x, torch.ones_like(x)).rsqrt(), scale * k)
    return ratio * f, torch.sqrt(1 + y * f * f)


def _sinh_ratio_derivatives(scale: Tensor, excess: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Derivatives of the two values of `_sinh_ratio` with respect to cosh(d), then with respect to s."""
    x, k, y, bounded = _scaled_square(scale, excess)
    f, f_y = _even.sinhc(y), _even.sinhc_derivative(y)
    zero = torch.zeros_like(y)
    x_cosh = 2 * (1 + excess)
    y_cosh, y_scale = (
        torch.where(bounded, zero, 2 * scale * scale * k),
        torch.where(bounded, zero, 2 * scale * x * k * k),
    )
    safe = torch.where(bounded, x, torch.ones_like(x))
    rho_cosh = torch.where(
        bounded,
        -0.5 * (y / safe).sqrt() * f * x_cosh / safe,
        scale * (_even.asinhc_derivative(x) * x_cosh * f + k * f_y * y_cosh),
    )
    rho_scale = torch.where(bounded, zero, k * f + scale * k * f_y * y_scale)
    return rho_cosh, 0.5 * f * y_cosh, rho_scale, 0.5 * f * y_scale


def _rescale(h: Tensor, m: Tensor, beta: Tensor, scale: Tensor, dim: int) -> Tensor:
    """Map x to exp_beta(scale PT_{m->beta} log_m x) in the hyperboloid chart."""
    m, beta = broadcast_channels(m, h, dim), broadcast_channels(beta, h, dim)
    excess = _cosh_distance_excess(h, m, dim)
    rho, cosh = _sinh_ratio(scale, excess)
    excess_b, theta = _cosh_distance_excess(h, beta, dim), 1 + _cosh_distance_excess(m, beta, dim)
    # kappa = (alpha theta - alpha_b)/(1 + theta), with alpha = 1 + excess
    kappa = ((1 + excess) * theta - (1 + excess_b)) / (1 + theta)
    return rho * h + rho * (kappa - 1 - excess) * m + (cosh + rho * kappa) * beta


def _rescale_backward(
    grad: Tensor, needs: tuple[bool, ...], h: Tensor, m: Tensor, beta: Tensor, scale: Tensor, dim: int
) -> tuple[Tensor | None, ...]:
    m, beta = broadcast_channels(m, h, dim), broadcast_channels(beta, h, dim)
    excess = _cosh_distance_excess(h, m, dim)
    rho, cosh = _sinh_ratio(scale, excess)
    rho_cosh, cosh_cosh, rho_scale, cosh_scale = _sinh_ratio_derivatives(scale, excess)
    excess_b, theta = _cosh_distance_excess(h, beta, dim), 1 + _cosh_distance_excess(m, beta, dim)
    alpha = 1 + excess
    kappa = (alpha * theta - 1 - excess_b) / (1 + theta)
    gh = (grad * h).sum(dim, keepdim=True)
    gm = (grad * m).sum(dim, keepdim=True)
    gb = (grad * beta).sum(dim, keepdim=True)
    grad_rho = gh + (kappa - alpha) * gm + kappa * gb
    grad_kappa = rho * (gm + gb)
    grad_alpha = grad_kappa * theta / (1 + theta) - rho * gm + grad_rho * rho_cosh + gb * cosh_cosh
    h_m, m_h = _cosh_excess_backward(grad_alpha, h, m, dim)
    h_b, b_h = _cosh_excess_backward(-grad_kappa / (1 + theta), h, beta, dim)
    rest = other_dims(h, dim)
    grad_theta = (grad_kappa * (alpha - kappa) / (1 + theta)).sum(rest, keepdim=True)
    m_b, b_m = _cosh_excess_backward(grad_theta, m, beta, dim)
    grad_h = rho * grad + h_m + h_b
    grad_m = (rho * (kappa - alpha) * grad + m_h).sum(rest) + m_b.flatten()
    grad_beta = ((cosh + rho * kappa) * grad + b_h).sum(rest) + b_m.flatten()
    return grad_h, grad_m, grad_beta, (grad_rho * rho_scale + gb * cosh_scale).sum()


_rescale_op = differentiable(_rescale, _rescale_backward, tensors=4)


# -- mean and normalisation, in the hyperboloid chart ----------------------------------------------------


def batch_mean(h: Tensor, *, about: Mean, dim: int) -> tuple[Tensor, Tensor]:
    """Mean of points in the hyperboloid chart over all dimensions but `dim`.

    Returns
    -------
    mean : Tensor
        ``[C]``, in the hyperboloid chart.
    sums : Tensor
        ``[C + 1]``: what to average over batches to get their joint mean, namely for the midpoint the mean of the
        points' coordinates and of their time part minus one, and for the Fréchet mean these of the mean itself.
    """
    if about == "midpoint":
        sums = _sums_op(h, dim)
        return mean_of_sums(sums), sums
    points = h.movedim(dim, -1).reshape(-1, h.shape[dim])
    weights = h.new_full((), 1 / points.shape[0]).expand(points.shape[0], 1)
    mean = hyperboloid_frechet_mean(points, weights, _TOLERANCE[h.dtype], 1000)
    return mean, torch.cat([mean, time_excess(mean, 0)])


def mean_of_sums(sums: Tensor) -> Tensor:
    """The mean ``[C]`` in the hyperboloid chart that belongs to (averaged) sums ``[C + 1]``."""
    return normalise_mean(sums[:-1], sums[-1:], 0)


def normalise(
    h: Tensor,
    mean: Tensor,
    variance: Tensor | None,
    gain: Tensor | None,
    center: Tensor | None,
    *,
    c: Tensor,
    scale: Scale,
    eps: float,
    dim: int,
) -> tuple[Tensor, Tensor]:
    """Normalise points in the hyperboloid chart.

    `mean` and `center` ``[C]`` are in that chart too; a `variance` of None is computed. Returns the points and the
    variance.
    """
    center = torch.zeros_like(mean) if center is None else center
    if scale == "scalar":
        if variance is None:
            variance = _variance_op(h, mean, c, dim)
        factor = torch.rsqrt(variance + eps)
        return _rescale_op(h, mean, center, factor if gain is None else gain * factor, dim), variance
    w = _center_op(h, mean, c, dim)
    if gain is None:
        gain = torch.ones_like(mean)
    if variance is None:
        with torch.no_grad():
            variance = (w * w).mean(other_dims(w, dim))
        u = _standardise_op(w, variance, gain, eps, dim)
    else:
        u = w * broadcast_channels(gain * torch.rsqrt(variance + eps), w, dim)
    return _recenter_op(u, center, c, _SINH_LIMIT[u.dtype], dim), variance


def check_norm(about: str, scale: str) -> None:
    """Raise a ValueError unless the mean and the scale are known."""
    if about not in get_args(Mean):
        raise ValueError(f"the mean must be one of {', '.join(get_args(Mean))}; got {about!r}")
    if scale not in get_args(Scale):
        raise ValueError(f"the scale must be one of {', '.join(get_args(Scale))}; got {scale!r}")


def midpoint_batch_norm(
    x: Tensor,
    mean: Tensor | None = None,
    variance: Tensor | None = None,
    gain: Tensor | None = None,
    center: Tensor | None = None,
    *,
    c: Tensor | float,
    about: Mean = "midpoint",
    scale: Scale = "scalar",
    eps: float = 1e-5,
    dim: int = 1,
    in_chart: Chart = "ball",
    out_chart: Chart = "ball",
    max_distance: float | None = math.inf,
) -> Tensor:
    r"""Batch normalisation on the ball.

    Parameters
    ----------
    x : Tensor
        Points, any shape, along `dim`.
    mean : Tensor, optional
        Ball point ``(C,)`` to normalise about. Default: the mean of `x` over all dimensions but `dim`, of the kind
        `about`.
    variance : Tensor, optional
        For ``scale="scalar"`` a squared geodesic distance, 0-d; for ``"channel"`` squared coordinates of tangent
        vectors, ``(C,)``. Default: that of `x` about the mean.
    gain : Tensor, optional
        What the standardised tangent vectors are multiplied by, 0-d or ``(C,)`` by the kind of scale. Default 1.
    center : Tensor, optional
        Ball point ``(C,)`` to move the mean to. Default: the origin.
    c : Tensor or float
        The curvature of the space is ``-c``.
    about : {"midpoint", "frechet"}
        Kind of mean of the batch.
    scale : {"scalar", "channel"}
        One scale for all channels (the paper) or one for each, see the module's documentation.
    eps : float
        Added to the variance.
    dim : int
        The dimension the manifold runs along.
    in_chart, out_chart : {"ball", "tangent", "hyperboloid"}
        Charts of `x` and of the result.
    max_distance : float, optional
        Bound on the result's geodesic distance from the origin, see `convert`.

    Returns
    -------
    Tensor
        Points, same shape as `x`.

    Raises
    ------
    ValueError
        If a chart, mean or scale is unknown, a statistic or parameter has the wrong shape, or the batch is empty and
        `mean` or `variance` would have to come from it.

    Notes
    -----
    [1]_, sec. 3.3; with ``about="frechet"`` [2]_, sec. 5.2.
    """
    check_norm(about, scale)
    check_chart(out_chart, "out_chart")
    check_max_distance(max_distance)
    x = full_precision(x)
    c = curvature(c, x)
    channels = x.shape[dim]
    spread = () if scale == "scalar" else (channels,)
    for name, t, shape in (
        ("mean", mean, (channels,)), ("center", center, (channels,)), ("variance", variance, spread), ("gain", gain,
        spread),
    ):  # fmt: skip
        if t is not None and t.shape != shape:
            raise ValueError(
                f"{name} must have shape {shape} for {channels} channels and scale={scale!r}, got {tuple(t.shape)}"
            )
    if x.numel() == 0 and (mean is None or variance is None):
        raise ValueError(f"an empty batch (shape {tuple(x.shape)}) has no mean and variance: pass them")
    single = x.ndim == 1
    if single:  # one point is a batch of one
        x, dim = x.unsqueeze(0), 1
    h = convert(x, in_chart, "hyperboloid", c=c, dim=dim)
    if mean is None:
        mean, _ = batch_mean(h, about=about, dim=dim)
    else:
        mean = convert(mean, "ball", "hyperboloid", c=c)
    if center is not None:
        center = convert(center, "ball", "hyperboloid", c=c)
    y, _ = normalise(h, mean, variance, gain, center, c=c, scale=scale, eps=eps, dim=dim)
    y = convert(y, "hyperboloid", out_chart, c=c, dim=dim, max_distance=max_distance)
    return y.squeeze(0) if single else y
