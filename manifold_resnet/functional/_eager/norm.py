"""Passes of `manifold_resnet.functional._channel_norm`; notation as there.

Besides, z = ratio b and e = log exp, so that y = e z + time beta.

No pass writes u or its gradient down. What sums over channels or pixels need of them follows from sums of grad, b and
their products, and the gradient for h is combined from grad and b in the last pass.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from manifold_resnet.functional._eager.parameters import lift_factor
from manifold_resnet.functional._eager.radial import (
    BoundedFactor,
    Scratch,
    SinhFactor,
    added,
    asinh_decrease,
    asinh_factor,
    collect,
    contract,
    dot,
    pieces,
    prepare,
    root_,
    sinh_factor,
    square_from_time,
    sum_of_products,
)
from manifold_resnet.functional._even import sinh_limit

# squared norm of a centre; with one that is farther, terms of y's time part cancel
_FAR = 1


def _square(v: Tensor) -> float:
    return torch.dot(v, v).item()


def _row(v: Tensor) -> Tensor:
    return v.view(1, 1, -1)


def _column(v: Tensor) -> Tensor:
    return v.view(1, -1, 1)


def _joined(numbers: Tensor) -> Tensor:
    """From numbers per pixel ``[k, B, 1, N]`` to rows ``[B, k, N]``."""
    return numbers.squeeze(2).transpose(0, 1)


def _normalise(sums: Tensor) -> tuple[Tensor, float]:
    """`midpoint.normalise_mean`, and by what the mean of the points was multiplied."""
    points, excess = sums[:-1], sums[-1].item()
    s = _square(points)
    time = math.sqrt(1 + s)
    r = 1 / math.sqrt(1 + max(excess - s / (1 + time), 0) * (1 + excess + time))
    return points * r, r


def _gains(gain: Tensor, base_gain: float | None) -> Tensor:
    return gain if base_gain is None else gain.exp().mul_(base_gain)


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
    base_gain: float | None,
    cap: float,
) -> tuple[Tensor, ...]:
    """As `Library.batch_norm`."""
    h = h.contiguous()
    prepare(h)
    images, channels, pixels = h.shape
    count, number, most, reach = images * pixels, c.item(), limit.item(), sinh_limit(h.dtype)
    out, (xi, log, s) = torch.empty_like(h), (h.new_empty(images, 1, pixels) for _ in range(3))
    factors = h.new_empty(3 if tangent else 1, images, 1, pixels)  # exp, and what BoundedFactor takes and gives
    memory = Scratch(h, 1)
    for x, s_ in pieces(h, s):
        torch.sum(torch.mul(x, x, out=memory.like(x)[0]), 1, keepdim=True, out=s_)
    root_(torch.add(s, 1, out=xi))
    if mean is None:
        sums = torch.cat([h.sum(2).sum(0), s.div_(xi + 1).sum().view(1)]).div_(count)
        m, _ = _normalise(sums)
    else:
        m = mean
        sums = torch.cat([m, m.new_full((1,), math.sqrt(1 + _square(m)) - 1)])
    row, column, by_time = _row(m), _column(m), 1 / (1 + math.sqrt(1 + _square(m)))
    squares = []
    for x, b, xi_, k in pieces(h, out, xi, log):
        (p,) = memory.like(x)
        xi_.sub_(contract(row, x), alpha=by_time)
        torch.addcmul(x, xi_, column, value=-1, out=b)
        asinh_factor(dot(b, b, p), number, out=k)
        if variance is None:
            squares.append(collect(p, k * k))
    variance = added(squares).view(-1).div_(count) if variance is None else variance.clone()
    ratio, point = _gains(gain, base_gain) * torch.rsqrt(variance + eps), center.as_subclass(Tensor)
    beta = point * lift_factor(_square(point), number, cap)[0]
    square_beta, by_z, row, column = _square(beta), _column(ratio), _row(beta), _column(beta)
    time_beta, is_far = math.sqrt(1 + square_beta), square_beta > _FAR
    for y, k, e, *others in pieces(out, log, *factors):
        (p,), (square_y, kept) = memory.like(y), others or (None, None)
        y.mul_(by_z)
        z_z = dot(y, y, p)
        time_u = sinh_factor(z_z, number, reach, scale=k, out=e).time
        e_beta = contract(row, y).mul_(e)
        time = torch.add(time_u, e_beta, alpha=1 / (1 + time_beta))
        time_y = e_beta.add_(time_u, alpha=time_beta)
        square = None if is_far else square_from_time(time_y, most, out=square_y)
        if square is None:
            y.mul_(e).addcmul_(time, column)
            factor = BoundedFactor(dot(y, y, p, out=square_y), number, most, tangent, out=kept).value
            if factor is not None:
                y.mul_(factor)
        else:
            factor = BoundedFactor(square, number, most, tangent, time=time_y, out=kept).value
            if factor is not None:
                e, time = e * factor, time.mul_(factor)
            y.mul_(e).addcmul_(time, column)
        if relu:
            y.relu_()
    return out, sums, variance, xi, log, factors


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
    factors: Tensor,
    eps: float,
    tangent: bool,
    base_gain: float | None,
    cap: float,
    needs_c: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor, Tensor, Tensor | None]:
    """As `Library.batch_norm_backward`."""
    grad, h = grad.contiguous(), h.contiguous()
    prepare(h)
    images, _, pixels = h.shape
    if factors.numel() == 0:  # other kernels went forward
        terms = h, mean, variance, gain, center, c, limit, eps, tangent, False, base_gain, cap
        *_, xi, log, factors = batch_norm(*terms)
    count, number, most, reach = images * pixels, c.item(), limit.item(), sinh_limit(h.dtype)
    gains, point = _gains(gain, base_gain), center.as_subclass(Tensor)
    m, normalising = _normalise(sums) if mean is None else (mean, 1.0)
    lift, lift_by_s, lift_by_c = lift_factor(_square(point), number, cap)
    beta = point * lift
    square_m, square_beta = _square(m), _square(beta)
    time_m, time_beta = math.sqrt(1 + square_m), math.sqrt(1 + square_beta)
    by_time_m, by_time_beta = 1 / (1 + time_m), 1 / (1 + time_beta)
    # points within the bound come from exp u within sinh's range
    reachable = math.asinh(math.sqrt(most)) + math.asinh(math.sqrt(square_beta)) < reach
    inverse = torch.rsqrt((batch_variance if variance is None else variance) + eps)
    ratio = gains * inverse
    ratio_beta, ratio_m, ratio_square, one = ratio * beta, ratio * m, ratio * ratio, torch.ones_like(ratio)
    rows_of_grad, rows_of_b = torch.stack([beta, ratio_m]), torch.stack([ratio_beta, ratio * ratio_m, m])
    rows_of_square, row_of_product = torch.stack([ratio_square, one]), _row(ratio)
    ratio_column, m_column, ratio_beta_m = _column(ratio), _column(m), torch.dot(ratio_beta, m).item()

    grad_h, differences, squares = torch.empty_like(h), torch.empty_like(h), torch.empty_like(h)
    memory, one_pixel = Scratch(h, 1), h.new_ones(1, 1, 1)
    sum_beta = sum_xi = sum_m = sum_c = 0.0
    known, totals = [], []
    masks = grad if result is None else result
    for x, g, mask, xi_, k, b, square, out, e, *others in pieces(
        h, grad, masks, xi, log, differences, squares, grad_h, *factors
    ):
        (p,), (square_y, kept) = memory.like(x), others or (None, None)
        if result is not None:
            g = torch.ops.aten.threshold_backward.grad_input(g, mask, 0, grad_input=out)
        torch.addcmul(x, xi_, m_column, value=-1, out=b)
        torch.mul(g, b, out=p)
        torch.mul(b, b, out=square)
        grad_beta, grad_m = contract(rows_of_grad, g).chunk(2, 1)
        grad_z = contract(row_of_product, p)
        z_beta, z_m, b_m = contract(rows_of_b, b).chunk(3, 1)
        z_z, b_b = contract(rows_of_square, square).chunk(2, 1)

        # side by side: what is summed up together, or multiplied
        table = x.new_empty(10, x.shape[0], 1, pixels)
        _, _, of_beta, _, _, of_z, log_square, _, by_time, by_xi = table.unbind()
        torch.mul(k, k, out=log_square)
        e_z, e_beta = e * z_z, e * z_beta
        time_u = root_(torch.addcmul(one_pixel, e, e_z))
        sinh = SinhFactor(z_z, number, reach, e, time_u, scale=k)
        time = torch.add(time_u, e_beta, alpha=by_time_beta)
        y_z, y_beta = torch.addcmul(e_z, time, z_beta), e_beta.add_(time, alpha=square_beta)
        if square_y is None:  # what cancels here is lost near zero, where the bound is not
            square_y = (e * y_z).addcmul_(time, y_beta).clamp_(min=0)
        factor = BoundedFactor(square_y, number, most, tangent, value=kept)
        everywhere = reachable and not factor.outside
        to_z, to_beta, by_e, d = grad_z, grad_beta, e, None
        if factor.value is None:
            by_time.copy_(time)
        else:
            grad_y = (e * grad_z).addcmul_(time, grad_beta)
            if needs_c and tangent:
                sum_c -= 0.5 * sum_of_products(factor.value, grad_y)
            d = factor.decrease().mul_(grad_y)
            to_z = (grad_z * factor.value).addcmul_(d, y_z, value=-1)
            to_beta = (grad_beta * factor.value).addcmul_(d, y_beta, value=-1)
            torch.mul(time, factor.value, out=by_time)
            by_e = factor.value * e
        # the gradients for y's inner products with z and beta are e and time times these; that for e follows
        to_e = e_z.div_(time_u).add_(z_beta, alpha=by_time_beta).mul_(to_beta).add_(to_z)
        if needs_c:
            sum_c += sum_of_products(sinh.by_c(everywhere), to_e)
        # coefficients in log times the gradient for u: of beta, of z; of grad it is by_e
        to_time = to_beta * e
        by_z, by_beta = to_time / time_u, to_beta.mul_(by_time_beta)
        if d is not None:
            by_z.addcmul_(d, e, value=-1)
            by_beta.addcmul_(d, time, value=-1)
            sum_beta -= sum_of_products(d.mul_(time), time)
        torch.mul(by_beta, e, out=of_beta)
        torch.addcmul(by_z.mul_(e), sinh.decrease(everywhere), to_e, value=-1, out=of_z)
        sum_beta -= sum_of_products(to_time, z_beta) * by_time_beta**2 / time_beta
        sum_xi += sum_of_products(xi_, of_beta)
        torch.mul(table[5:7], xi_, out=table[:2])
        torch.mul(by_e, xi_, out=by_xi)
        totals.append(
            (collect(p, by_e), collect(square, of_z), collect(b, _joined(table[:3])), collect(g, _joined(table[8:])))
        )
        torch.mul(g, by_e, out=out).mul_(ratio_column)
        # inner products of b and m with log times the gradient for w, but for what passes through the variance
        grad_b = (by_e * grad_z).addcmul_(of_z, z_z).addcmul_(of_beta, z_beta)
        grad_m = (by_e * grad_m).addcmul_(of_z, z_m).add_(of_beta, alpha=ratio_beta_m)
        known.append((table, grad_b, grad_m, b_b, b_m))

    of_p, of_square, (b_z, b_log, b_beta), (by_beta, by_xi) = map(added, zip(*totals, strict=True))
    along_w = torch.addcmul(of_p[0], ratio, of_square[0]).addcmul_(beta, b_beta)
    by_beta = torch.addcmul(by_beta, ratio, b_beta).add_(beta, alpha=sum_beta)
    grad_variance = (gains * along_w).mul_(inverse**3).mul_(-0.5)
    decay = grad_variance * (2 / count if variance is None else 0)
    grad_mean = (torch.addcmul(by_xi, ratio, b_z).add_(beta, alpha=sum_xi) * -ratio).addcmul_(decay, b_log, value=-1)

    decay_row, decay_m_row = _row(decay), _row(decay * m)
    mean_totals = []
    for (b, square, xi_, k), (table, grad_b, grad_m, b_b, b_m) in zip(
        pieces(differences, squares, xi, log), known, strict=True
    ):
        _, _, _, of_m, _, _, log_square, of_h, inverse_time, _ = table.unbind()
        grad_b.addcmul_(contract(decay_row, square), log_square)
        grad_m.addcmul_(contract(decay_m_row, b), log_square)
        if needs_c:
            sum_c -= 0.5 * grad_b.sum().item()
        # the gradient for b is log times that for w, minus d b; q: its inner product with m over 1 + m's time part
        d = asinh_decrease(b_b, (b_b + 1).pow_(-0.5), k, number).mul_(grad_b).div_(k)
        q = grad_m.addcmul_(d, b_m, value=-1).mul_(by_time_m)
        along_m = b_m.add_(xi_, alpha=square_m).mul_(by_time_m)
        torch.reciprocal(xi_ + along_m, out=inverse_time)
        torch.addcmul(d, q, inverse_time, value=1 + time_m, out=of_h)  # minus this one
        mean_totals.append(collect(b, torch.addcmul(q, d, xi_, out=of_m))[0])
        sum_m += sum_of_products(q, torch.sub(xi_, along_m, alpha=1 / time_m))
    grad_mean = grad_mean.add_(added(mean_totals)).add_(m, alpha=sum_m)

    constant, by_excess = torch.zeros_like(m), 0.0
    if mean is None:  # as `midpoint._normalise_backward`
        along = normalising**2 / count * torch.dot(grad_mean, m).item()
        constant = (grad_mean * (normalising / count)).add_(m, alpha=along / normalising)
        by_excess = -along * (1 + sums[-1].item())
    by_element = torch.stack([ratio_square, decay, -one], 1)
    by_channel = torch.stack([ratio_beta, m, constant], 1)
    for (b, square, xi_, out), (table, *_) in zip(pieces(differences, squares, xi, grad_h), known, strict=True):
        _, _, _, of_m, ones, _, _, of_h, inverse_time, _ = table.unbind()
        of_h.sub_(inverse_time, alpha=by_excess)
        of_m.addcmul_(of_h, xi_, value=-1)
        ones.fill_(1)
        out.addcmul_(b, contract(by_element, _joined(table[5:8]), out=square))
        torch.baddbmm(out, by_channel.expand(b.shape[0], -1, -1), _joined(table[2:5]), out=out)

    along = torch.dot(by_beta, point).item()
    return (
        grad_h,
        None if mean is None else grad_mean,
        None if variance is None else grad_variance,
        (inverse if base_gain is None else ratio) * along_w,
        (by_beta * lift).add_(point, alpha=2 * lift_by_s * along),
        c.new_full((), sum_c / number + lift_by_c * along) if needs_c else None,
    )
