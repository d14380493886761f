"""Passes of `manifold_resnet.functional._channel_norm`; notation as there.

Besides, z = ratio b and e = log exp, so that y = e z + time beta.

No pass writes u or its gradient down. What sums over channels or pixels need of them follows from sums of grad, b and
their products, and the gradient for h is combined from grad and b in the last pass.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from manifold_resnet.functional._eager.radial import (
    AsinhFactor,
    BoundedFactor,
    Scratch,
    SinhFactor,
    collect,
    contract,
    dot,
    pieces,
    prepare,
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
    memory = Scratch(h, 1)
    for x, s in pieces(h, xi):
        torch.sum(torch.mul(x, x, out=memory.like(x)[0]), 1, keepdim=True, out=s)
    if mean is None:
        excess = (xi / (xi + 1).sqrt_().add_(1)).sum()
        sums = torch.cat([h.sum(2).sum(0), excess.view(1)]).div_(count)
        m, _ = _normalise(sums)
    else:
        m = mean
        sums = torch.cat([m, m.new_full((1,), math.sqrt(1 + _square(m)) - 1)])
    time_m = math.sqrt(1 + _square(m))
    xi.add_(1).sqrt_()
    row, column, squares = m.view(1, 1, -1), m.view(1, -1, 1), []
    for x, b, xi_, k in pieces(h, out, xi, log):
        (p,) = memory.like(x)
        xi_.sub_(contract(row, x), alpha=1 / (1 + time_m))
        torch.addcmul(x, xi_, column, value=-1, out=b)
        k.copy_(AsinhFactor(dot(b, b, p), number).value)
        if variance is None:
            squares.append(collect(p, k * k))
    variance = sum(squares).view(-1) / count if variance is None else variance.clone()
    ratio = (gain * torch.rsqrt(variance + eps)).view(1, -1, 1)
    row, column, time_beta = center.view(1, 1, -1), center.view(1, -1, 1), math.sqrt(1 + _square(center))
    for y, k in pieces(out, log):
        (p,) = memory.like(y)
        y.mul_(ratio)
        exp = SinhFactor(dot(y, y, p).mul_(k).mul_(k), number, reach)
        e = exp.value.mul_(k)
        time = exp.time.addcmul_(e, contract(row, y), value=1 / (1 + time_beta))
        y.mul_(e).addcmul_(time, column)
        factor = BoundedFactor(dot(y, y, p), number, most, tangent).value
        if factor is not None:
            y.mul_(factor)
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
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor, Tensor, Tensor | None]:
    grad, h, beta = grad.contiguous(), h.contiguous(), center
    prepare(h)
    images, _, pixels = h.shape
    count, number, most, reach = images * pixels, c.item(), limit.item(), sinh_limit(h.dtype)
    m, normalising = _normalise(sums) if mean is None else (mean, 1.0)
    square_m, square_beta = _square(m), _square(beta)
    time_m, time_beta = math.sqrt(1 + square_m), math.sqrt(1 + square_beta)
    by_time_m, by_time_beta = 1 / (1 + time_m), 1 / (1 + time_beta)
    # points within the bound come from exp u within sinh's range
    reachable = math.asinh(math.sqrt(most)) + math.asinh(math.sqrt(square_beta)) < reach
    inverse = torch.rsqrt((batch_variance if variance is None else variance) + eps)
    ratio = gain * inverse
    ratio_beta, ratio_m, ratio_square, one = ratio * beta, ratio * m, ratio * ratio, torch.ones_like(ratio)
    rows_of_grad = torch.stack([beta, ratio_m])
    rows_of_b = torch.stack([ratio_beta, ratio * ratio_m, m])
    rows_of_square = torch.stack([ratio_square, one])
    ratio_beta_m = torch.dot(ratio_beta, m).item()
    ratio_row, ratio_column, m_column = ratio.view(1, 1, -1), ratio.view(1, -1, 1), m.view(1, -1, 1)

    grad_h, differences, squares = torch.empty_like(h), torch.empty_like(h), torch.empty_like(h)
    memory = Scratch(h, 1)
    sum_beta = sum_xi = sum_m = sum_c = 0.0
    known, totals = [], []
    masks = grad if result is None else result
    for x, g, mask, xi_, k, b, square, out in pieces(h, grad, masks, xi, log, differences, squares, grad_h):
        (p,) = memory.like(x)
        if result is not None:
            g = torch.ops.aten.threshold_backward.grad_input(g, mask, 0, grad_input=out)
        torch.addcmul(x, xi_, m_column, value=-1, out=b)
        torch.mul(g, b, out=p)
        torch.mul(b, b, out=square)
        grad_beta, grad_m = contract(rows_of_grad, g).split(1, 1)
        grad_z = contract(ratio_row, p)
        z_beta, z_m, b_m = contract(rows_of_b, b).split(1, 1)
        z_z, b_b = contract(rows_of_square, square).split(1, 1)

        log_square = k * k
        exp = SinhFactor(z_z * log_square, number, reach)
        e = exp.value * k
        time = torch.addcmul(exp.time, e, z_beta, value=by_time_beta)
        e_z = e * z_z
        y_z = torch.addcmul(e_z, time, z_beta)
        y_beta = (e * z_beta).add_(time, alpha=square_beta)
        # what is lost here to cancellation is lost near zero, where the factor does not depend on it
        factor = BoundedFactor((e * y_z).addcmul_(time, y_beta).clamp_(min=0), number, most, tangent)
        everywhere = reachable and not factor.outside
        to_z, to_beta, by_e, by_time, d = grad_z, grad_beta, e, time, None
        if factor.value is not None:
            grad_y = (e * grad_z).addcmul_(time, grad_beta)
            if needs_c and tangent:
                sum_c -= 0.5 * (factor.value * grad_y).sum().item()
            d = factor.slope().mul_(grad_y).mul_(2)
            to_z = (grad_z * factor.value).addcmul_(d, y_z)
            to_beta = (grad_beta * factor.value).addcmul_(d, y_beta)
            by_e, by_time = e * factor.value, time * factor.value
        # the gradients for y's inner products with z and beta are e and time times these; that for exp is log times
        to_exp = (e_z / exp.time).add_(z_beta, alpha=by_time_beta).mul_(to_beta).add_(to_z).mul_(k)
        if needs_c:
            sum_c += (exp.by_c(everywhere) * to_exp).sum().item()
        # coefficients in log times the gradient for u: of beta, of z; of grad it is by_e
        to_time = to_beta * e
        rows = x.new_empty(len(x), 3, pixels)
        of_beta, of_z = torch.mul(to_time, by_time_beta, out=rows[:, :1]), (to_time * e).div_(exp.time)
        of_z.addcmul_(exp.slope(everywhere).mul_(log_square), to_exp, value=2)
        products = to_time.mul_(z_beta).mul_(-(by_time_beta**2) / time_beta)
        if d is not None:
            d_e = d * e
            of_z.addcmul_(d_e, e)
            of_beta.addcmul_(d_e, time)
            products.addcmul_(d.mul_(time), time)
        sum_beta += products.sum().item()
        sum_xi += torch.mul(xi_, of_beta, out=products).sum().item()
        torch.mul(of_z, xi_, out=rows[:, 1:2])
        torch.mul(log_square, xi_, out=rows[:, 2:])
        by_g = torch.cat([by_time, by_e * xi_], 1)
        totals.append((collect(p, by_e), collect(square, of_z), collect(b, rows), collect(g, by_g)))
        torch.mul(g, by_e, out=out).mul_(ratio_column)
        # inner products of b and m with log times the gradient for w, but for what passes through the variance
        grad_b = (by_e * grad_z).addcmul_(of_z, z_z).addcmul_(of_beta, z_beta)
        grad_m = (by_e * grad_m).addcmul_(of_z, z_m).add_(of_beta, alpha=ratio_beta_m)
        known.append((of_z, log_square, of_beta, grad_b, grad_m, b_b, b_m))

    of_p, of_square, (b_beta, b_z, b_log), (grad_beta, grad_xi) = (sum(column) for column in zip(*totals, strict=True))
    along_w = torch.addcmul(of_p[0], ratio, of_square[0]).addcmul_(beta, b_beta)
    grad_beta = torch.addcmul(grad_beta, ratio, b_beta).add_(beta, alpha=sum_beta)
    grad_variance = (gain * along_w).mul_(inverse**3).mul_(-0.5)
    decay = grad_variance * (2 / count if variance is None else 0)
    grad_mean = (torch.addcmul(grad_xi, ratio, b_z).add_(beta, alpha=sum_xi) * -ratio).addcmul_(decay, b_log, value=-1)

    decay_row, decay_m_row = decay.view(1, 1, -1), (decay * m).view(1, 1, -1)
    coefficients, totals = [], []
    for (b, square, xi_, k), (of_z, log_square, of_beta, grad_b, grad_m, b_b, b_m) in zip(
        pieces(differences, squares, xi, log), known, strict=True
    ):
        grad_b.addcmul_(contract(decay_row, square), log_square)
        grad_m.addcmul_(contract(decay_m_row, b), log_square)
        if needs_c:
            sum_c -= 0.5 * grad_b.sum().item()
        # the gradient for b is log times that for w, plus d b; q: its inner product with m over 1 + m's time part
        d = AsinhFactor(b_b, number, known=k).slope().mul_(grad_b).div_(k).mul_(2)
        q = grad_m.addcmul_(d, b_m).mul_(by_time_m)
        along_m = b_m.add_(xi_, alpha=square_m).mul_(by_time_m)
        inverse_time = (xi_ + along_m).reciprocal_()
        of_m = torch.addcmul(q, d, xi_, value=-1)
        of_h = d.addcmul_(q, inverse_time, value=-(1 + time_m))
        totals.append(collect(b, of_m)[0])
        sum_m += q.mul_(torch.sub(xi_, along_m, alpha=1 / time_m)).sum().item()
        coefficients.append((of_z, log_square, of_h, of_beta, of_m, inverse_time))
    grad_mean = grad_mean.add_(sum(totals)).add_(m, alpha=sum_m)

    constant, by_excess = torch.zeros_like(m), 0.0
    if mean is None:  # as `midpoint._normalise_backward`
        along = normalising**2 / count * torch.dot(grad_mean, m).item()
        constant = (grad_mean * (normalising / count)).add_(m, alpha=along / normalising)
        by_excess = -along * (1 + sums[-1].item())
    by_element = torch.stack([ratio_square, decay, one], 1)
    by_channel = torch.stack([ratio_beta, m, constant], 1)
    for (b, square, xi_, out), (of_z, log_square, of_h, of_beta, of_m, inverse_time) in zip(
        pieces(differences, squares, xi, grad_h), coefficients, strict=True
    ):
        of_h.add_(inverse_time, alpha=by_excess)
        out.addcmul_(b, contract(by_element, torch.cat([of_z, log_square, of_h], 1), out=square))
        of_one = torch.cat([of_beta, of_m.addcmul_(of_h, xi_), torch.ones_like(of_m)], 1)
        torch.baddbmm(out, by_channel.expand(len(b), -1, -1), of_one, out=out)
    grad_c = c.new_full((), sum_c / number) if needs_c else None
    by_mean, by_variance = None if mean is None else grad_mean, None if variance is None else grad_variance
    return grad_h, by_mean, by_variance, inverse * along_w, grad_beta, grad_c
