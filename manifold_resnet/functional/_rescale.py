"""Normalising points by one Fréchet variance, in the hyperboloid chart: the pieces of ``scale="scalar"``.

With the mean m, the centre beta and a factor, y = exp_beta(factor PT_{m->beta} log_m x) (van Spengler et al. 2023, sec.
3.3) is a linear combination of x, m and beta whose coefficients are scalars per pixel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from manifold_resnet.functional import _even
from manifold_resnet.functional._autograd import differentiable
from manifold_resnet.functional._checks import broadcast_channels, other_dims
from manifold_resnet.functional.charts import sinh_limit


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


variance_about = differentiable(_variance, _variance_backward, tensors=3)


def _scaled_square(scale: Tensor, excess: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """From cosh(d) - 1: sinh(d)^2, d/sinh(d), (s d)^2 bounded so that its sinh is finite, and whether it was."""
    x = excess * (2 + excess)
    k = _even.asinhc(x)
    y = scale * scale * x * k * k
    limit = sinh_limit(excess.dtype) ** 2  # far outside of any bound on the radius
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
    grad_m = (rho * (kappa - alpha) * grad + m_h).sum(rest) + m_b.reshape(-1)
    grad_beta = ((cosh + rho * kappa) * grad + b_h).sum(rest) + b_m.reshape(-1)
    return grad_h, grad_m, grad_beta, (grad_rho * rho_scale + gb * cosh_scale).sum()


rescale = differentiable(_rescale, _rescale_backward, tensors=4)
