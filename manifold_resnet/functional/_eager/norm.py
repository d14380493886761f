"""Passes of `manifold_resnet.functional._channel_norm`; notation as there.

No pass writes u or its gradient down. What sums over channels or pixels need of them follows from sums of grad, b and
their products, and the gradient for h is combined from those in the last pass.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from manifold_resnet.functional._eager.radial import (
    asinh,
    bounded_factor,
    bounded_factor_slope,
    collect,
    contract,
    pieces,
    prepare,
    scratch,
    sinh_factor,
    sinh_factor_by_c,
    sinh_factor_slope,
    _quotient,
    _root,
    _tolerance,
)
from manifold_resnet.functional._even import sinh_limit
from manifold_resnet.functional.midpoint import _normalise_backward, normalise_mean, time_excess


def _time(m: Tensor) -> float:
    return math.sqrt(1 + m.square().sum().item())


def batch_norm(
    h: Tensor,
    mean: Tensor | None,
    variance: Tensor | None,
    gain: Tensor,
    center: Tensor,
    c: Tensor,
    limit: Tensor,
    eps: float,
    tangent: bool,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    h = h.contiguous()
    prepare(h)
    images, channels, pixels = h.shape
    count, number, most = max(images * pixels, 1), c.item(), limit.item()
    out = torch.empty_like(h)
    square, log = h.new_empty(2, images, 1, pixels)
    (product,) = scratch(h, 1)
    for piece in pieces(h):
        x = h[piece]
        torch.sum(torch.mul(x, x, out=product[: len(x)]), 1, keepdim=True, out=square[piece])
    time = (square + 1).sqrt_()
    if mean is None:
        points, excess = h.sum(2).sum(0), (square / (time + 1)).sum()
        sums = torch.cat([points, excess.view(1)]) / count
        mean = normalise_mean(sums[:-1], sums[-1:], 0)
    else:
        sums = torch.cat([mean, time_excess(mean, 0)])
    m = mean.view(1, -1, 1)
    time_m = _time(mean)
    second = torch.zeros_like(mean)
    xi = time  # less the inner product with m over 1 + its time part
    minus_m = -m
    for piece in pieces(h):
        x, b, p = h[piece], out[piece], product
        p = p[: len(x)]
        xi[piece].sub_(contract(mean.view(1, -1), x), alpha=1 / (1 + time_m))
        torch.addcmul(x, xi[piece], minus_m, out=b)
        torch.mul(b, b, out=p)
        root = _root(p.sum(1, keepdim=True))
        k = asinh(root).mul_(0.5 / math.sqrt(number)).div_(root)
        log[piece] = k
        if variance is None:
            second += collect(p, k.square_())
    variance = second / count if variance is None else variance.clone()
    ratio = (gain * torch.rsqrt(variance + eps)).view(1, -1, 1)
    beta = center.view(1, -1, 1)
    time_beta = _time(center)
    reach = sinh_limit(h.dtype)
    for piece in pieces(h):
        y, k = out[piece].mul_(ratio), log[piece]
        p = product[: len(y)]
        s = torch.mul(y, y, out=p).sum(1, keepdim=True).mul_(k).mul_(k)
        exp, time_u = sinh_factor(s, number, reach)
        along_beta = contract(center.view(1, -1), y).mul_(k)
        time_u.addcmul_(exp, along_beta, value=1 / (1 + time_beta))
        y.mul_(exp.mul_(k)).addcmul_(time_u, beta)
        s = torch.mul(y, y, out=p).sum(1, keepdim=True)
        outside = s.numel() > 0 and s.max().item() > most
        if tangent or outside:
            y.mul_(bounded_factor(s, number, most, tangent, outside))
        if relu:
            y.relu_()
    return out, sums, variance, xi, log


def batch_norm_backward(
    grad: Tensor,
    result: Tensor | None,
    h: Tensor,
    mean: Tensor | None,
    variance: Tensor | None,
    gain: Tensor,
    center: Tensor,
    c: Tensor,
    limit: Tensor,
    sums: Tensor,
    batch_variance: Tensor,
    xi: Tensor,
    log: Tensor,
    eps: float,
    tangent: bool,
    by_c: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    grad, h = grad.contiguous(), h.contiguous()
    prepare(h)
    images, channels, pixels = h.shape
    count, number, most = max(images * pixels, 1), c.item(), limit.item()
    root_c = math.sqrt(number)
    reach = sinh_limit(h.dtype)
    m = normalise_mean(sums[:-1], sums[-1:], 0) if mean is None else mean
    inverse = torch.rsqrt((batch_variance if variance is None else variance) + eps)
    ratio, beta = gain * inverse, center
    time_m, time_beta, square_beta = _time(m), _time(beta), beta.square().sum().item()
    square_m = m.square().sum().item()
    minus_m = -m.view(1, -1, 1)
    ratio_square = ratio * ratio
    of_grad = torch.stack([beta, ratio * m])
    of_b = torch.stack([ratio * beta, ratio_square * m, m])
    of_square = torch.stack([ratio_square, torch.ones_like(m)])
    ratio_beta_m = (ratio * beta * m).sum().item()

    grad_h = torch.empty_like(h)
    # of b: by ratio^2, by decay, by one; by channel: ratio beta, m, one
    of_element, of_channel = h.new_empty(2, images, 3, pixels)
    of_channel[:, 2] = 1
    # inner products per pixel: of b with the gradient for w, as far as known, of m with it; of b with itself, with m
    products = h.new_empty(4, images, 1, pixels)
    buffers = scratch(h, 4)
    along_w, grad_beta, m_by_grad, m_by_u, m_by_decay = (torch.zeros_like(m) for _ in range(5))
    beta_by_beta = beta_by_m = 0.0
    grad_c = h.new_zeros(()) if by_c else None
    for piece in pieces(h):
        x = h[piece]
        b, p, square, g = (buffer[: len(x)] for buffer in buffers)
        xi_, k = xi[piece], log[piece]
        if result is None:
            g = grad[piece]
        else:
            torch.ops.aten.threshold_backward.grad_input(grad[piece], result[piece], 0, grad_input=g)
        torch.addcmul(x, xi_, minus_m, out=b)
        torch.mul(g, b, out=p)
        torch.mul(b, b, out=square)
        grad_beta_, grad_m = contract(of_grad, g).split(1, 1)
        grad_b = contract(ratio.view(1, -1), p)
        b_beta, b_m2, b_m = contract(of_b, b).split(1, 1)
        s2, s1 = contract(of_square, square).split(1, 1)

        # y = exp u + time beta, as far as it enters gradients
        s, u_beta, grad_u = s2 * k * k, b_beta * k, grad_b * k
        exp, time_u = sinh_factor(s, number, reach)
        exp_s = sinh_factor_slope(s, number, exp, time_u, reach)
        along_beta = u_beta / (1 + time_beta)
        time = torch.addcmul(time_u, exp, along_beta)
        y_u = (exp * s).addcmul_(time, u_beta)
        y_beta = (exp * u_beta).add_(time, alpha=square_beta)
        s_y = (exp * y_u).addcmul_(time, y_beta).clamp_(min=0)
        outside = s_y.numel() > 0 and s_y.max().item() > most
        grad_y = (exp * grad_u).addcmul_(time, grad_beta_)
        if tangent or outside:
            factor = bounded_factor(s_y, number, most, tangent, outside)
            d = bounded_factor_slope(s_y, number, most, factor, tangent, outside).mul_(grad_y).mul_(2)
            grad_u = (factor * grad_u).addcmul_(d, y_u)
            to_beta = (factor * grad_beta_).addcmul_(d, y_beta)
            by_grad, beta_by_grad = factor * exp, factor * time
        else:
            factor, d, to_beta, by_grad, beta_by_grad = None, None, grad_beta_, exp, time
        by_exp = grad_u + to_beta * (along_beta + exp * s / time_u)
        by_beta = to_beta * exp / (1 + time_beta)
        by_u = (2 * by_exp).mul_(exp_s).addcdiv_(to_beta * exp * exp, time_u)
        c_beta = b_u = by_beta
        if d is not None:
            by_u = by_u.addcmul_(d * exp, exp)
            c_beta = b_u = torch.addcmul(by_beta, d * exp, time)
            beta_by_beta += (d * time * time).sum().item()
        beta_by_beta -= (by_beta * along_beta).sum().item() / time_beta
        if grad_c is not None:
            # by homogeneity: c d/dc of exp and of factor (tangent: -1/2)
            grad_c += (sinh_factor_by_c(s, number, time_u, reach) * by_exp).sum()
            if tangent and factor is not None:
                grad_c -= 0.5 * (factor * grad_y).sum()

        # gradient for u: by_grad g + by_u u + c_beta beta
        by_u.mul_(k)
        grad_log = by_grad * k
        log_square = k * k
        torch.mul(by_u, k, out=of_element[piece, 0:1])
        of_element[piece, 1:2] = log_square
        torch.mul(c_beta, k, out=of_channel[piece, 0:1])
        by_b = of_channel[piece, 0:1]
        along_w += collect(p, grad_log) + ratio * collect(square, of_element[piece, 0:1]) + beta * collect(b, by_b)
        grad_beta += collect(g, beta_by_grad) + ratio * collect(b, b_u * k)
        m_by_grad += collect(g, xi_ * grad_log)
        m_by_u += collect(b, xi_ * of_element[piece, 0:1])
        m_by_decay += collect(b, xi_ * log_square)
        beta_by_m += (xi_ * by_b).sum().item()
        products[0, piece] = (by_grad * grad_b).addcmul_(by_u, s2).addcmul_(c_beta, b_beta)
        products[1, piece] = (by_grad * grad_m).addcmul_(by_u, b_m2).add_(c_beta, alpha=ratio_beta_m)
        products[2, piece] = s1
        products[3, piece] = b_m
        torch.mul(g, grad_log, out=grad_h[piece]).mul_(ratio.view(1, -1, 1))

    by_variance = -0.5 * gain * inverse**3 * along_w
    grad_variance, decay = by_variance, torch.zeros_like(along_w)
    if variance is None:
        decay = 2 / count * by_variance

    m_by_h, m_by_m = torch.zeros_like(m), 0.0
    for piece in pieces(h):
        x = h[piece]
        b, p, *_ = (buffer[: len(x)] for buffer in buffers)
        xi_, k = xi[piece], log[piece]
        torch.addcmul(x, xi_, minus_m, out=b)
        torch.mul(b, b, out=p)
        grad_b, grad_m, s, b_m = products[:, piece]
        grad_b.addcmul_(contract(decay.view(1, -1), p), k)
        grad_m.addcmul_(contract((decay * m).view(1, -1), b), k)
        if grad_c is not None:
            grad_c -= 0.5 * (k * grad_b).sum()
        slope = _quotient((s + 1).rsqrt_().mul_(0.25 / root_c).sub_(k, alpha=0.5), s, -1 / (12 * root_c), _tolerance(s))
        d = slope.mul_(2).mul_(grad_b)
        q = (k * grad_m).addcmul_(d, b_m).mul_(1 / (1 + time_m))
        along_m = (b_m + xi_ * square_m).mul_(1 / (1 + time_m))
        inverse_time = (xi_ + along_m).reciprocal_()
        by_h = d - q * inverse_time * (1 + time_m)
        by_m = torch.addcmul(q, d, xi_, value=-1)
        m_by_m += (d * xi_ * xi_).sum().item() - (q * along_m).sum().item() / time_m + (by_m * xi_).sum().item()
        m_by_h += collect(b, by_m)
        of_element[piece, 2:3] = by_h
        products[0, piece] = inverse_time
        torch.addcmul(by_m, by_h, xi_, out=of_channel[piece, 1:2])
    grad_mean = (
        m_by_h + m_by_m * m - ratio * m_by_grad - ratio_square * m_by_u - decay * m_by_decay - ratio * beta * beta_by_m
    )
    constant = torch.zeros_like(m)
    if mean is None:
        constant, to_excess = _normalise_backward(grad_mean / count, (True, True), sums[:-1], sums[-1:], 0)
        inverse_time = products[0].mul_(to_excess)
        of_element[:, 2:3] += inverse_time
        of_channel[:, 1:2].addcmul_(inverse_time, xi)
    by_element = torch.stack([ratio_square, decay, torch.ones_like(m)], 1)
    by_channel = torch.stack([ratio * beta, m, constant], 1)
    for piece in pieces(h):
        x = h[piece]
        b, p, *_ = (buffer[: len(x)] for buffer in buffers)
        torch.addcmul(x, xi[piece], minus_m, out=b)
        b.mul_(contract(by_element, of_element[piece]))
        out = grad_h[piece].add_(b)
        torch.baddbmm(out, by_channel.expand(len(x), -1, -1), of_channel[piece], out=out)
    grad_c = None if grad_c is None else grad_c / number
    return grad_h, grad_mean, grad_variance, inverse * along_w, grad_beta + beta_by_beta * beta, grad_c
