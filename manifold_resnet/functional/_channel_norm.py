"""Normalising points by one scale per channel, in the hyperboloid chart: one node of the autograd graph.

Statistics, standardisation, chart, bound and ReLU together keep nothing but the points, the result (which the next
layer keeps anyway) and two numbers per pixel.

Tensors are [B, C, N]; m, beta [1, C, 1] are the mean and the centre in the hyperboloid chart, and per pixel
  xi      such that b = h - xi m is x translated to the mean,
  log     such that w = log b is its tangent vector; u = ratio w is the standardised one, ratio [1, C, 1],
  exp     such that exp u is in the hyperboloid chart again; y = exp u + time beta is translated to the centre,
  out     such that out y is bounded and in the output's chart.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from manifold_resnet.functional import _even
from manifold_resnet.functional._autograd import differentiable
from manifold_resnet.functional._backend import fused, kernel
from manifold_resnet.functional._checks import Chart
from manifold_resnet.functional._eager import norm as _eager
from manifold_resnet.functional.charts import (
    _cap,
    _radial,
    _radial_backward,
    bounded_factor,
    bounded_factor_derivatives,
    sinh_factor,
    sinh_factor_derivatives,
)
from manifold_resnet.functional.midpoint import _normalise_backward, normalise_mean, time_excess


def mean_of_sums(sums: Tensor) -> Tensor:
    """The mean ``[C]`` in the hyperboloid chart that belongs to (averaged) sums ``[C + 1]``."""
    return normalise_mean(sums[:-1], sums[-1:], 0)


def _channels(v: Tensor) -> Tensor:
    return v.view(1, -1, 1)


@kernel
def _sums(h: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of the points, and of their time parts minus one, over the pixels of each image."""
    s = (h * h).sum(1, keepdim=True)
    return h.sum(2), (s / (1 + torch.sqrt(1 + s))).sum(2)


def _mean_sums(h: Tensor) -> Tensor:
    """[C + 1]: the mean of the points, and of their time part minus one."""
    points, excess = _sums(h)
    return torch.cat([points.sum(0), excess.sum(0)]) / (h.shape[0] * h.shape[2])


@kernel(materialise=True)
def _center(h: Tensor, m: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """`xi` and `log`."""
    along_m = (h * m).sum(1, keepdim=True) / (1 + torch.sqrt(1 + (m * m).sum()))
    xi = torch.sqrt(1 + (h * h).sum(1, keepdim=True)) - along_m
    b = torch.addcmul(h, xi, m, value=-1)
    return xi, 0.5 * c.rsqrt() * _even.asinhc((b * b).sum(1, keepdim=True))


@kernel
def _second_moment(h: Tensor, m: Tensor, xi: Tensor, log: Tensor) -> Tensor:
    w = torch.addcmul(h, xi, m, value=-1) * log
    return (w * w).sum(2)


@kernel(materialise=True)
def _recenter(
    h: Tensor,
    m: Tensor,
    xi: Tensor,
    log: Tensor,
    ratio: Tensor,
    beta: Tensor,
    c: Tensor,
    limit: Tensor,
    chart: Chart,
) -> Tensor:
    u = torch.addcmul(h, xi, m, value=-1) * log * ratio
    s = (u * u).sum(1, keepdim=True)
    exp, _ = sinh_factor(s, c)
    along_beta = (u * beta).sum(1, keepdim=True) / (1 + torch.sqrt(1 + (beta * beta).sum()))
    y = torch.addcmul(exp * u, torch.sqrt(1 + exp * exp * s) + exp * along_beta, beta)
    return bounded_factor((y * y).sum(1, keepdim=True), c, limit, chart)[0] * y


@kernel
def _recenter_products(
    grad: Tensor, h: Tensor, m: Tensor, xi: Tensor, log: Tensor, ratio: Tensor, beta: Tensor
) -> tuple[Tensor, ...]:
    """Inner products per pixel: <u, u>, <u, beta>, <grad, u>, <grad, beta>."""
    u = torch.addcmul(h, xi, m, value=-1) * log * ratio
    return tuple((a * b).sum(1, keepdim=True) for a, b in ((u, u), (u, beta), (grad, u), (grad, beta)))


@kernel
def _recenter_coefficients(
    s: Tensor,
    u_beta: Tensor,
    grad_u: Tensor,
    grad_beta: Tensor,
    square_beta: Tensor,
    c: Tensor,
    limit: Tensor,
    chart: Chart,
    extra: bool,
) -> tuple[Tensor | None, ...]:
    """Coefficients of grad, u and beta in the gradient for u, and of these in the gradient for beta.

    With `extra`, also what to sum up for the gradients for c and for the bound.
    """
    time_beta = torch.sqrt(1 + square_beta)
    exp, end = sinh_factor(s, c)
    exp_s, exp_c = sinh_factor_derivatives(s, end, exp, c, extra)
    along_beta = u_beta / (1 + time_beta)
    time_u = torch.sqrt(1 + exp * exp * s)
    time = time_u + exp * along_beta

    # y = exp u + time beta; what is lost here to cancellation is lost near zero, where out does not depend on it
    s_y = (exp * exp * s + 2 * exp * time * u_beta + time * time * square_beta).clamp(min=0)
    out, inside = bounded_factor(s_y, c, limit, chart)
    out_s, out_c, out_limit = bounded_factor_derivatives(s_y, inside, out, c, limit, chart, extra)
    grad_y = exp * grad_u + time * grad_beta  # <grad, y>
    k = 2 * out_s * grad_y
    # gradient for y: out grad + k y
    y_u, y_beta = exp * s + time * u_beta, exp * u_beta + time * square_beta
    grad_u, grad_beta = out * grad_u + k * y_u, out * grad_beta + k * y_beta
    by_exp = grad_u + grad_beta * (along_beta + exp * s / time_u)
    by_beta = grad_beta * exp / (1 + time_beta)
    by_u = 2 * by_exp * exp_s + grad_beta * exp * exp / time_u
    by_c = by_limit = None
    if exp_c is not None and out_c is not None and out_limit is not None:
        by_c = (exp_c * by_exp + out_c * grad_y).sum(2)
        by_limit = (out_limit * grad_y).sum(2)
    return (
        exp * out,
        k * exp * exp + by_u,
        k * exp * time + by_beta,
        time * out,
        time * k * exp + by_beta,
        (time * time * k - by_beta * along_beta / time_beta).sum(2),
        by_c,
        by_limit,
    )


@kernel
def _standardised_backward(
    grad: Tensor,
    h: Tensor,
    m: Tensor,
    xi: Tensor,
    log: Tensor,
    ratio: Tensor,
    beta: Tensor,
    by_grad: Tensor,
    by_u: Tensor,
    by_beta: Tensor,
    beta_by_grad: Tensor,
    beta_by_u: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient for u; and [B, C]: its product with w, and the gradient for beta but for multiples of beta."""
    w = torch.addcmul(h, xi, m, value=-1) * log
    u = ratio * w
    grad_u = torch.addcmul(torch.addcmul(by_grad * grad, by_u, u), by_beta, beta)
    return grad_u, (grad_u * w).sum(2), torch.addcmul(beta_by_grad * grad, beta_by_u, u).sum(2)


@kernel
def _center_products(
    grad_u: Tensor, h: Tensor, m: Tensor, xi: Tensor, log: Tensor, ratio: Tensor, decay: Tensor
) -> tuple[Tensor, ...]:
    """Inner products per pixel: <grad_w, b>, <grad_w, m>, <b, b>, <h, m>."""
    b = torch.addcmul(h, xi, m, value=-1)
    grad_w = torch.addcmul(ratio * grad_u, decay * log, b)
    return tuple((x * y).sum(1, keepdim=True) for x, y in ((grad_w, b), (grad_w, m), (b, b), (h, m)))


@kernel
def _center_coefficients(
    grad_b: Tensor, grad_m: Tensor, s: Tensor, h_m: Tensor, xi: Tensor, log: Tensor, square_m: Tensor, c: Tensor
) -> tuple[Tensor, ...]:
    """Coefficients of h and m in the gradient for h, and 1/time; for m: [B, 1] of m; [B, 1] for c."""
    time_m = torch.sqrt(1 + square_m)
    along_m = h_m / (1 + time_m)
    time = xi + along_m
    # the gradient with respect to b is log grad_w + k b; its inner product with m over 1 + tau_m follows
    k = c.rsqrt() * _even.asinhc_derivative(s) * grad_b
    p = (log * grad_m + k * (h_m - xi * square_m)) / (1 + time_m)
    return (
        k - p * (1 + time_m) / time,
        p - k * xi,
        1 / time,
        (k * xi * xi - p * along_m / time_m).sum(2),
        (log * grad_b).sum(2),
    )


@kernel
def _mean_backward(
    grad_u: Tensor, h: Tensor, m: Tensor, xi: Tensor, log: Tensor, ratio: Tensor, decay: Tensor, by_m: Tensor
) -> Tensor:
    """[B, C]: gradient for m but for multiples of m."""
    b = torch.addcmul(h, xi, m, value=-1)
    grad_w = torch.addcmul(ratio * grad_u, decay * log, b)
    return torch.addcmul(by_m * h, -xi * log, grad_w).sum(2)


@kernel
def _input_backward(
    grad_u: Tensor,
    h: Tensor,
    m: Tensor,
    xi: Tensor,
    log: Tensor,
    ratio: Tensor,
    decay: Tensor,
    by_h: Tensor,
    by_m: Tensor,
    constant: Tensor,
) -> Tensor:
    b = torch.addcmul(h, xi, m, value=-1)
    grad_w = torch.addcmul(ratio * grad_u, decay * log, b)
    return torch.addcmul(torch.addcmul(torch.addcmul(constant, by_h, h), by_m, m), log, grad_w)


def _moments(h: Tensor, m: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`xi`, `log`, and the second moments [C] of w."""
    xi, log = _center(h, m, c)
    return xi, log, _second_moment(h, m, xi, log).sum(0) / max(h.shape[0] * h.shape[2], 1)


def _recenter_backward(
    grad: Tensor,
    result: Tensor | None,
    h: Tensor,
    m: Tensor,
    xi: Tensor,
    log: Tensor,
    ratio: Tensor,
    beta: Tensor,
    c: Tensor,
    limit: Tensor,
    chart: Chart,
    by_c: bool,
    by_limit: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradient for u, [C] its product with w, gradients for beta [C], c and the bound. `result` masks a ReLU."""
    terms = h, m, xi, log, ratio, beta
    if result is not None:
        grad = torch.ops.aten.threshold_backward.default(grad, result, 0)
    products = _recenter_products(grad, *terms)
    *coefficients, by_beta, to_c, to_limit = _recenter_coefficients(
        *products, (beta * beta).sum(), c, limit, chart, by_c or by_limit
    )
    grad_u, along_w, grad_beta = _standardised_backward(grad, *terms, *coefficients)
    return (
        grad_u,
        along_w.sum(0),
        grad_beta.sum(0) + by_beta.sum() * beta.flatten(),
        None if to_c is None else to_c.sum(),
        None if to_limit is None else to_limit.sum(),
    )


def _center_backward(
    grad_u: Tensor,
    h: Tensor,
    m: Tensor,
    xi: Tensor,
    log: Tensor,
    ratio: Tensor,
    decay: Tensor,
    c: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Coefficients of h and m in the gradient for h, 1/time, the gradient for m, and what log adds to that for c."""
    terms = grad_u, h, m, xi, log, ratio, decay
    by_h, by_m, inverse_time, m_by_m, by_c = _center_coefficients(*_center_products(*terms), xi, log, (m * m).sum(), c)
    return by_h, by_m, inverse_time, _mean_backward(*terms, by_m).sum(0) + m_by_m.sum() * m.flatten(), by_c


def _batch_norm(
    h: Tensor,
    mean: Tensor | None,
    variance: Tensor | None,
    gain: Tensor,
    center: Tensor,
    c: Tensor,
    limit: Tensor,
    eps: float,
    chart: Chart,
    relu: bool,
    base_gain: float | None,
) -> tuple[Tensor, ...]:
    """The result; the batch's sums [C + 1] and variance [C] (or those given); `xi`, `log`, and what `_eager` keeps."""
    library = fused(_eager, h, mean, variance, gain, center, c, limit)
    if library is not None:
        return library.batch_norm(
            h, mean, variance, gain, center, c, limit, eps, chart == "tangent", relu, base_gain, _cap_of(center)
        )
    gain, center = _affine(gain, center, c, base_gain)
    if mean is None:
        sums = _mean_sums(h)
        mean = mean_of_sums(sums)
    else:
        sums = torch.cat([mean, time_excess(mean, 0)])
    m = _channels(mean)
    xi, log, second_moment = _moments(h, m, c)
    variance = second_moment if variance is None else variance.clone()  # outputs must not be inputs
    terms = h, m, xi, log, _channels(gain * torch.rsqrt(variance + eps)), _channels(center), c, limit
    y = _recenter(*terms, chart)
    return y.relu_() if relu else y, sums, variance, xi, log, h.new_empty(0)


def _batch_norm_backward(
    grads: tuple[Tensor | None, ...],
    needs: tuple[bool, ...],
    h: Tensor,
    mean: Tensor | None,
    variance: Tensor | None,
    gain: Tensor,
    center: Tensor,
    c: Tensor,
    limit: Tensor,
    result: Tensor,
    sums: Tensor,
    batch_variance: Tensor,
    xi: Tensor,
    log: Tensor,
    factors: Tensor,
    eps: float,
    chart: Chart,
    relu: bool,
    base_gain: float | None,
) -> tuple[Tensor | None, ...]:
    if grads[0] is None:  # the other outputs pass no gradients
        return (None,) * 7
    library = None if needs[6] else fused(_eager, h, grads[0], mean, variance, gain, center, c, limit)
    if library is not None:
        return *library.batch_norm_backward(
            grads[0], result if relu else None, h, mean, variance, gain, center, c, limit, sums, batch_variance, xi,
            log, factors, eps, chart == "tangent", base_gain, _cap_of(center), needs[5],
        ), None  # fmt: skip
    used_gain, used_center = _affine(gain, center, c, base_gain)
    *others, grad_gain, grad_center, grad_c, grad_limit = _standard_backward(
        grads[0], needs, h, mean, variance, used_gain, used_center, c, limit, result, sums, batch_variance, xi, log,
        eps, chart, relu,
    )  # fmt: skip
    grad_center, more = _radial_backward(grad_center, needs[4:6], center, *_lift(center, c))
    if grad_c is not None and more is not None:
        grad_c = grad_c + more
    return *others, grad_gain if base_gain is None else grad_gain * used_gain, grad_center, grad_c, grad_limit


def _lift(center: Tensor, c: Tensor) -> tuple[Any, ...]:
    """Arguments of `charts._radial` that bring the centre from the ball to the hyperboloid chart."""
    return c, "ball", "hyperboloid", math.inf, _cap_of(center), 0, False


def _cap_of(center: Tensor) -> float:
    return _cap("ball", "hyperboloid", center.dtype)


def _affine(gain: Tensor, center: Tensor, c: Tensor, base_gain: float | None) -> tuple[Tensor, Tensor]:
    """The gain, and the centre in the hyperboloid chart."""
    return gain if base_gain is None else gain.exp() * base_gain, _radial(center, *_lift(center, c))


def _standard_backward(
    grad: Tensor,
    needs: tuple[bool, ...],
    h: Tensor,
    mean: Tensor | None,
    variance: Tensor | None,
    gain: Tensor,
    center: Tensor,
    c: Tensor,
    limit: Tensor,
    result: Tensor,
    sums: Tensor,
    batch_variance: Tensor,
    xi: Tensor,
    log: Tensor,
    eps: float,
    chart: Chart,
    relu: bool,
) -> tuple[Any, ...]:
    """Gradients, the centre being in the hyperboloid chart."""
    count = max(h.shape[0] * h.shape[2], 1)
    used_mean, used_variance = mean, batch_variance if variance is None else variance
    again = torch.is_grad_enabled()  # a second derivative goes through these as well
    if used_mean is None:
        sums = _mean_sums(h) if again else sums
        used_mean = mean_of_sums(sums)
    m = _channels(used_mean)
    if again:
        xi, log, second_moment = _moments(h, m, c)
        used_variance = second_moment if variance is None else variance
    inverse = torch.rsqrt(used_variance + eps)
    terms = h, m, xi, log, _channels(gain * inverse)

    grad_u, along_w, grad_center, grad_c, grad_limit = _recenter_backward(
        grad, result if relu else None, *terms, _channels(center), c, limit, chart, needs[5], needs[6]
    )
    grad_variance = None
    by_variance = -0.5 * gain * inverse**3 * along_w
    if variance is not None:
        grad_variance, by_variance = by_variance, torch.zeros_like(by_variance)

    terms = *terms, _channels(2 / count * by_variance)
    by_h, by_m, inverse_time, grad_mean, c_by_log = _center_backward(grad_u, *terms, c)
    if needs[5] and grad_c is not None:
        grad_c = grad_c.sum() - 0.5 / c * c_by_log.sum()
    constant, to_excess = torch.zeros_like(m), c.new_zeros(())
    if mean is None:
        to_points, to_excess = _normalise_backward(grad_mean / count, (True, True), sums[:-1], sums[-1:], 0)
        constant = _channels(to_points)
    grad_h = _input_backward(grad_u, *terms, by_h + to_excess * inverse_time, by_m, constant)
    return (
        grad_h,
        None if mean is None else grad_mean,
        grad_variance,
        inverse * along_w,
        grad_center,
        grad_c if needs[5] else None,
        grad_limit,
    )


channel_norm = differentiable(_batch_norm, _batch_norm_backward, tensors=7, keep_outputs=True, auxiliary=5, images=1)
