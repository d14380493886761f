"""Passes of `manifold_resnet.functional._hyperplanes`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from manifold_resnet.functional._eager.radial import (
    Scratch,
    SinhFactor,
    added,
    collect,
    contract,
    dot,
    pieces,
    prepare,
    root_,
    sinh_factor,
)
from manifold_resnet.functional._even import sinh_limit


def _offset_terms(offset: Tensor, c: float, limit: float) -> tuple[Tensor, Tensor]:
    """Hyperbolic cosine and sine [1, K, 1] of 2 sqrt(c) r."""
    r = (offset * (2 * math.sqrt(c))).clamp_(-limit, limit).view(1, -1, 1)
    return r.cosh(), r.sinh()


def hyperplanes(
    inner: Tensor,
    square: Tensor,
    norm: Tensor,
    offset: Tensor | None,
    c: Tensor,
    limit: Tensor,
    is_input: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    inner = inner.to(square.dtype).contiguous()
    if is_input:
        inner = inner.new_empty(0).set_(inner)  # autograd does not want to see an input again
    prepare(inner)
    number, most, reach = c.item(), limit.item(), sinh_limit(inner.dtype)
    factor = sinh_factor(square, number, reach)
    if offset is not None:
        cosh_r, sinh_r = _offset_terms(offset, number, 0.5 * reach)
    # Near: q times sqrt(2), for 2 asinh |q| = log1p(2 |q| (|q| + sqrt(1 + q^2))). Far: |q| may have no square.
    distance = math.sqrt(square.max().item()) + (0.0 if offset is None else offset.abs().max().item())
    largest = 2 * math.sqrt(number) * distance  # asinh |q| is not larger
    far = largest > 0.5 * math.log(torch.finfo(inner.dtype).max)
    # what the coordinates of the points cannot exceed; where these are within the bound, so are the points
    coordinates = norm.abs() * (2 * largest)
    clipped = not coordinates.max().item() < reach
    bounded = clipped or not coordinates.sinh_().square_().sum().item() < most * (1 - 1e-4)
    unit = 1.0 if far else math.sqrt(2)
    norm, excess, constant = norm.view(1, -1, 1), inner.new_ones(1, 1, 1), inner.new_full((1, 1, 1), unit**2)
    zero = inner.new_zeros(1, 1, 1)
    one, to_q = excess, factor.value * unit
    memory = Scratch(inner, 2)
    first = 0
    for q, slope, cosh in pieces(inner, to_q, factor.time):
        x, y = memory.like(q)
        q.mul_(slope)
        if offset is not None:
            q.mul_(cosh_r).addcmul_(cosh, sinh_r, value=-unit)
        torch.abs(q, out=y)
        if far:  # asinh |q| = log1p(|q| + q^2/(1 + sqrt(1 + q^2)))
            torch.div(y, torch.hypot(constant, q, out=x).add_(1), out=x).mul_(y).add_(y).log1p_().mul_(2)
        else:
            root_(torch.addcmul(constant, q, q, out=x)).add_(y).mul_(y).log1p_()
        x.mul_(norm)
        if clipped:
            x.clamp_(max=reach)
        x.expm1_()
        x.addcdiv_(x, torch.add(x, 1, out=y))  # twice |h|
        torch.addcmul(zero, x, q.sgn_(), value=0.5, out=q)
        if bounded and (s := dot(x, x, y)).max().item() > 4 * most:
            if excess is one:
                excess = torch.ones_like(square)
            exceeded = (s / (4 * most)).clamp_(min=1).sqrt_()
            excess[first : first + q.shape[0]] = exceeded
            q.div_(exceeded)
        first += q.shape[0]
    return inner, excess, factor.value


def hyperplanes_backward(
    grad: Tensor,
    h: Tensor,
    excess: Tensor,
    slope: Tensor,
    square: Tensor,
    norm: Tensor,
    offset: Tensor | None,
    c: Tensor,
    limit: Tensor,
    needs_c: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    grad = grad.contiguous()
    prepare(h)
    number, most, reach = c.item(), limit.item(), sinh_limit(h.dtype)
    root_c = math.sqrt(number)
    log2 = math.log(2)  # powers of two are faster than those of e
    overflow = (80.0 if h.dtype == torch.float32 else 700.0) / log2
    far = math.sinh(reach) * (1 - 1e-5)
    bounded = excess.numel() > 1 or most > far * far
    zero, one, two_norm = h.new_zeros(1, 1, 1), h.new_ones(1, 1, 1), (2 * norm).view(1, -1, 1)
    inverse_norm = two_norm.clamp(min=torch.finfo(norm.dtype).tiny ** 0.5).reciprocal_()
    cosh_r = sinh_r = one
    if offset is not None:
        cosh_r, sinh_r = _offset_terms(offset, number, 0.5 * reach)
    cosh = root_(torch.addcmul(one, slope * slope, square))
    limit_y = math.asinh(math.sqrt(most)) if not bounded else reach
    inverse_norm.mul_(0.5 / log2)
    steep = h.numel() > 0 and limit_y * 2 * inverse_norm.max().item() > overflow
    memory = Scratch(h, 4)
    grad_inner, along_q, along_sinh = torch.empty_like(h), torch.empty_like(square), torch.empty_like(square)
    four_norm, by_norm, by_q, by_cosh = 2 * two_norm, [], [], []
    to_inner, q_row, sinh_row = four_norm * cosh_r, two_norm.mT, (four_norm * sinh_r).mT
    for raw, g, e, slope_, cosh_, out, q_, sinh_ in pieces(
        h, grad, excess.expand_as(square), slope, cosh, grad_inner, along_q, along_sinh
    ):
        x, y, z, w = memory.like(raw)
        if bounded:
            by_h = dot(g, raw, z).mul_(e > 1).div_(e).mul_(-1 / most)
            g = torch.mul(g, 1 / e, out=w).addcmul_(raw, by_h)
            raw = raw * e
            g.mul_(raw.abs() < far)
        root_(torch.addcmul(one, raw, raw, out=x))
        torch.abs(raw, out=y)
        torch.addcmul(zero, y, torch.add(y, x, out=z), value=2, out=y).log1p_().mul_(inverse_norm)
        if steep:
            y.clamp_(max=overflow)
        torch.copysign(y, raw, out=y)  # asinh q over log 2
        x.mul_(g)  # gradient for the scaled distance
        by_norm.append(torch.mul(x, y, out=z).sum(2).sum(0))
        y.exp2_()
        torch.reciprocal(y, out=z)
        x.div_(torch.add(y, z, out=out))  # gradient for q over four_norm
        torch.mul(y.sub_(z), x, out=z)  # that times 2 q
        contract(q_row, z, out=q_)
        torch.mul(x, slope_, out=out).mul_(to_inner)
        if offset is not None:
            by_q.append(z.sum(2).sum(0))
            by_cosh.append(collect(x, cosh_))
            contract(sinh_row, x, out=sinh_)
    end = reach**2 / (4 * number)
    everywhere = square.numel() == 0 or square.max().item() < end  # within sinh's range
    factor = SinhFactor(square, number, reach, slope, cosh)
    grad_slope = along_q if offset is None else along_q.addcmul_(cosh, along_sinh)  # times the slope
    grad_square = torch.addcdiv(zero, grad_slope, slope, value=-0.5).mul_(factor.decrease(everywhere))
    if not everywhere:
        inside = square < end
        along_sinh, grad_slope = along_sinh * inside, grad_slope * inside
    grad_offset = grad_c = None
    if offset is not None:
        grad_square.addcmul_(along_sinh, slope, value=-root_c)
        in_reach = offset.abs() < 0.25 * reach / root_c
        by_r = (added(by_q) * sinh_r.view(-1)).mul_(0.5).sub_(added(by_cosh)[0]).div_(cosh_r.view(-1))
        grad_offset = by_r.mul_(four_norm.view(-1)).mul_(in_reach).mul_(2 * root_c)
    if needs_c:
        by_square = grad_square * square
        grad_c = torch.sum(by_square if everywhere else by_square * inside).add_(grad_slope.sum(), alpha=0.5)
        if offset is not None and grad_offset is not None:
            grad_c.add_(torch.dot(grad_offset, offset), alpha=0.5)
        grad_c.div_(number)
    return grad_inner, grad_square, added(by_norm).mul_(2 * log2), grad_offset, grad_c
