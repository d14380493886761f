"""Passes of `manifold_resnet.functional._channel_norm`; notation as there, and z = ratio b, e = log exp: y = e z + time beta.

No pass writes u or its gradient down. What sums over channels or pixels need of them follows from sums of grad, b and
their products, and the gradient for h is combined from grad and b in the last pass.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from manifold_resnet.functional._eager.radial import (
    SinhFactor,
    asinh_factor,
    asinh_factor_slope,
    bounded_factor,
    bounded_factor_slope,
    collect,
    contract,
    dot,
    largest,
    pieces,
    prepare,
    scratch,
)
from manifold_resnet.functional._even import sinh_limit


def _square(v: Tensor) -> float:
    return torch.dot(v, v).item()


def _normalise(sums: Tensor) -> tuple[Tensor, float]:
    """`midpoint.normalise_mean`, and by what the mean of the points was multiplied."""
    points, excess = sums[:-1], sums[-1].item()
    s = _square(points)
    time = math.sqrt(1 + s)
    r = 1 / math.sqrt(1 + max(excess - s / (1 + time), 0) * (1 + excess + time))
    return points * r, r


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
    count, number, most, reach = max(images * pixels, 1), c.item(), limit.item(), sinh_limit(h.dtype)
    out, xi, log = torch.empty_like(h), h.new_empty(images, 1, pixels), h.new_empty(images, 1, pixels)
    (product,) = scratch(h, 1)
    for x, s in pieces(h, xi):
        torch.sum(torch.mul(x, x, out=product[: len(x)]), 1, keepdim=True, out=s)
    if mean is None:
        excess = (xi / (xi + 1).sqrt_().add_(1)).sum()
        sums = torch.cat([h.sum(2).sum(0), excess.view(1)]).div_(count)
        m, _ = _normalise(sums)
    else:
        m = mean
        sums = torch.cat([m, m.new_full((1,), math.sqrt(1 + _square(m)) - 1)])
    time_m = math.sqrt(1 + _square(m))
    xi.add_(1).sqrt_()
    row, column = m.view(1, 1, -1), m.view(1, -1, 1)
    squares = h.new_empty(images, channels, 1)
    for x, b, xi_, k, along in pieces(h, out, xi, log, squares):
        p = product[: len(x)]
        xi_.sub_(contract(row, x), alpha=1 / (1 + time_m))
        torch.addcmul(x, xi_, column, value=-1, out=b)
        k.copy_(asinh_factor(dot(b, b, p), number))
        if variance is None:
            collect(p, k * k, along)
    variance = squares.sum(0).view(-1).div_(count) if variance is None else variance.clone()
    ratio = (gain * torch.rsqrt(variance + eps)).view(1, -1, 1)
    row, column, time_beta = center.view(1, 1, -1), center.view(1, -1, 1), math.sqrt(1 + _square(center))
    for y, k in pieces(out, log):
        p = product[: len(y)]
        y.mul_(ratio)
        exp = SinhFactor(dot(y, y, p).mul_(k).mul_(k), number, reach)
        e = exp.value.mul_(k)
        time = exp.time.addcmul_(e, contract(row, y), value=1 / (1 + time_beta))
        y.mul_(e).addcmul_(time, column)
        s = dot(y, y, p)
        outside = largest(s) > most
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
    needs_c: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    grad, h, beta = grad.contiguous(), h.contiguous(), center
    prepare(h)
    images, channels, pixels = h.shape
    count, number, most, reach = max(images * pixels, 1), c.item(), limit.item(), sinh_limit(h.dtype)
    m, normalising = _normalise(sums) if mean is None else (mean, 1.0)
    square_m, square_beta = _square(m), _square(beta)
    time_m, time_beta = math.sqrt(1 + square_m), math.sqrt(1 + square_beta)
    inverse = torch.rsqrt((batch_variance if variance is None else variance) + eps)
    ratio = gain * inverse
    ratio_beta, ratio_m, ratio_square, one = ratio * beta, ratio * m, ratio * ratio, torch.ones_like(ratio)
    of_grad = torch.stack([beta, ratio_m])
    of_b = torch.stack([ratio_beta, ratio * ratio_m, m])
    of_square = torch.stack([ratio_square, one])
    ratio_beta_m = torch.dot(ratio_beta, m).item()
    ratio_column, m_column = ratio.view(1, -1, 1), m.view(1, -1, 1)

    grad_h = torch.empty_like(h)
    # coefficients of b in the gradient for h, for ratio^2, decay and 1; of 1, for ratio beta, m and 1
    of_element, of_channel = h.new_empty(images, 3, pixels), h.new_ones(images, 3, pixels)
    # inner products of log times the gradient for w, as far as known, with b and m; of b with itself and m
    products = h.new_empty(images, 4, pixels)
    by_product, by_square, by_b, by_grad = (h.new_empty(images, channels, k) for k in (1, 1, 3, 2))
    memory = scratch(h, 4)
    numbers = h.new_zeros(4)  # sums for beta, ratio beta m, c, m
    masks = grad if result is None else result
    for x, g, mask, xi_, k, element, channel, known, out, *sums_ in pieces(
        h, grad, masks, xi, log, of_element, of_channel, products, grad_h, by_product, by_square, by_b, by_grad
    ):
        masked, b, p, square = memory if len(x) == memory.shape[1] else memory[:, : len(x)]
        if result is not None:
            g = torch.ops.aten.threshold_backward.grad_input(g, mask, 0, grad_input=masked)
        torch.addcmul(x, xi_, m_column, value=-1, out=b)
        torch.mul(g, b, out=p)
        torch.mul(b, b, out=square)
        grad_beta, grad_m = contract(of_grad, g).split(1, 1)
        grad_z = contract(ratio.view(1, 1, -1), p)
        z_beta, z_m, b_m = contract(of_b, b).split(1, 1)
        z_z, b_b = contract(of_square, square).split(1, 1)

        log_square = k * k
        exp = SinhFactor(z_z * log_square, number, reach)
        e = exp.value * k
        time = torch.addcmul(exp.time, e, z_beta, value=1 / (1 + time_beta))
        e_z = e * z_z
        y_z = torch.addcmul(e_z, time, z_beta)
        y_beta = (e * z_beta).add_(time, alpha=square_beta)
        # what is lost here to cancellation is lost near zero, where the factor does not depend on it
        s = (e * y_z).addcmul_(time, y_beta).clamp_(min=0)
        outside = largest(s) > most
        by_grad_, by_grad_beta, d = e, time, None
        if tangent or outside:
            factor = bounded_factor(s, number, most, tangent, outside)
            grad_y = (e * grad_z).addcmul_(time, grad_beta)
            if needs_c and tangent:
                numbers[2] -= 0.5 * (factor * grad_y).sum()
            d = bounded_factor_slope(s, number, most, factor, tangent, outside).mul_(grad_y).mul_(2)
            to_z, to_beta = (factor * grad_z).addcmul_(d, y_z), (factor * grad_beta).addcmul_(d, y_beta)
            by_grad_, by_grad_beta = e * factor, time * factor
        else:
            to_z, to_beta = grad_z, grad_beta
        # gradient for exp is log times this
        to_exp = torch.addcmul(to_z, to_beta, (e_z / exp.time).add_(z_beta, alpha=1 / (1 + time_beta)))
        to_exp.mul_(k)
        if needs_c:
            numbers[2] += (exp.by_c() * to_exp).sum()
        to_time = to_beta * e
        # coefficients of grad, z and beta in the gradient for u, times log; of z once more
        by_z, by_beta = element[:, :1], channel[:, :1]
        torch.mul(exp.slope().mul_(2).mul_(log_square), to_exp, out=by_z).addcdiv_(to_time * e, exp.time)
        torch.mul(to_time, 1 / (1 + time_beta), out=by_beta)
        number_beta = (to_time * z_beta).mul_(-1 / ((1 + time_beta) ** 2 * time_beta))
        if d is not None:
            d_e = d * e
            by_z.addcmul_(d_e, e)
            by_beta.addcmul_(d_e, time)
            number_beta.addcmul_(d.mul_(time), time)
        numbers[0] += number_beta.sum()
        numbers[1] += (xi_ * by_beta).sum()
        element[:, 1:2] = log_square
        known[:, :1] = (by_grad_ * grad_z).addcmul_(by_z, z_z).addcmul_(by_beta, z_beta)
        known[:, 1:2] = (by_grad_ * grad_m).addcmul_(by_z, z_m).add_(by_beta, alpha=ratio_beta_m)
        known[:, 2:3] = b_b
        known[:, 3:] = b_m
        collect(p, by_grad_, sums_[0])
        collect(square, by_z, sums_[1])
        collect(b, torch.cat([by_beta, element[:, :2] * xi_], 1), sums_[2])
        collect(g, torch.cat([by_grad_beta, by_grad_ * xi_], 1), sums_[3])
        torch.mul(g, by_grad_, out=out).mul_(ratio_column)

    grad_b, square_b = by_product.sum(0).view(-1), by_square.sum(0).view(-1)
    b_beta, b_square, b_decay = by_b.sum(0).unbind(1)
    grad_beta, grad_xi = by_grad.sum(0).unbind(1)
    along_w = torch.addcmul(grad_b, ratio, square_b).addcmul_(beta, b_beta)
    grad_beta = torch.addcmul(grad_beta, ratio, b_beta).addcmul_(numbers[0], beta)
    by_variance = (gain * along_w).mul_(inverse**3).mul_(-0.5)
    grad_variance, decay = by_variance, by_variance * (2 / count if variance is None else 0)
    grad_mean = -ratio * torch.addcmul(grad_xi, ratio, b_square).addcmul_(numbers[1], beta) - decay * b_decay

    rows = torch.stack([decay, decay * m])
    by_m = by_product
    for x, xi_, k, element, channel, known, sums_ in pieces(h, xi, log, of_element, of_channel, products, by_m):
        _, b, square, _ = memory if len(x) == memory.shape[1] else memory[:, : len(x)]
        torch.addcmul(x, xi_, m_column, value=-1, out=b)
        torch.mul(b, b, out=square)
        log_square = element[:, 1:2]
        grad_b, grad_m, b_b, b_m = known.split(1, 1)
        grad_b.addcmul_(contract(rows[:1], square), log_square)
        grad_m.addcmul_(contract(rows[1:], b), log_square)
        if needs_c:
            numbers[2] -= 0.5 * grad_b.sum()
        # the gradient for b is log times that for w + d b; q follows: its inner product with m over 1 + the time part
        d = asinh_factor_slope(b_b, number, k).mul_(grad_b).div_(k).mul_(2)
        q = torch.addcmul(grad_m, d, b_m).mul_(1 / (1 + time_m))
        along_m = torch.add(b_m, xi_, alpha=square_m).mul_(1 / (1 + time_m))
        inverse_time = torch.add(xi_, along_m, out=grad_b).reciprocal_()
        by_h, by_m_ = element[:, 2:], channel[:, 1:2]
        torch.addcmul(d, q, inverse_time, value=-(1 + time_m), out=by_h)
        torch.addcmul(q, d, xi_, value=-1, out=by_m_)
        collect(b, by_m_, sums_)
        numbers[3] += torch.addcmul(q * along_m.mul_(-1 / time_m), q, xi_).sum()
        by_m_.addcmul_(by_h, xi_)
    grad_mean = grad_mean.add_(by_m.sum(0).view(-1)).addcmul_(numbers[3], m)

    constant = torch.zeros_like(m)
    if mean is None:  # as `midpoint._normalise_backward`
        along = normalising**2 / count * torch.dot(grad_mean, m).item()
        constant = (grad_mean * (normalising / count)).add_(m, alpha=along / normalising)
        by_excess = products[:, :1].mul_(-along * (1 + sums[-1].item()))
        of_element[:, 2:].add_(by_excess)
        of_channel[:, 1:2].addcmul_(by_excess, xi)
    by_element = torch.stack([ratio_square, decay, one], 1)
    by_channel = torch.stack([ratio_beta, m, constant], 1)
    for x, xi_, element, channel, out in pieces(h, xi, of_element, of_channel, grad_h):
        _, b, square, _ = memory if len(x) == memory.shape[1] else memory[:, : len(x)]
        torch.addcmul(x, xi_, m_column, value=-1, out=b)
        out.addcmul_(b, contract(by_element, element, out=square))
        torch.baddbmm(out, by_channel.expand(len(x), -1, -1), channel, out=out)
    return grad_h, grad_mean, grad_variance, inverse * along_w, grad_beta, numbers[2] / number if needs_c else None
