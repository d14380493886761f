"""Passes of `manifold_resnet.functional._hyperplanes`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from manifold_resnet.functional._eager.radial import (
    collect,
    contract,
    pieces,
    prepare,
    scratch,
    sinh_factor,
    sinh_factor_slope,
)
from manifold_resnet.functional._even import sinh_limit


def _channels(v: Tensor) -> Tensor:
    return v.view(1, -1, 1)


def _offset_terms(offset: Tensor, c: float, limit: float) -> tuple[Tensor, Tensor]:
    r = _channels(offset * (2 * math.sqrt(c))).clamp_(-limit, limit)
    return r.cosh(), r.sinh()


def hyperplanes(
    inner: Tensor, square: Tensor, norm: Tensor, offset: Tensor | None, c: Tensor, limit: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    inner = inner.to(square.dtype).contiguous()
    inner = inner.new_empty(0).set_(inner)  # autograd does not want to see an input again
    prepare(inner)
    reach = sinh_limit(inner.dtype)
    number, most = c.item(), limit.item()
    slope, cosh = sinh_factor(square, number)
    if offset is not None:
        cosh_r, sinh_r = _offset_terms(offset, number, 0.5 * reach)
    two_norm = _channels(2 * norm)
    one = inner.new_ones(())
    a, r = scratch(inner, 2)
    excess = None
    for piece in pieces(inner):
        q = inner[piece]
        x, y = a[: len(q)], r[: len(q)]
        q.mul_(slope[piece])
        if offset is not None:
            q.mul_(cosh_r).addcmul_(cosh[piece], sinh_r, value=-1)
        # |asinh q| = log1p(x + x^2/(1 + sqrt(1 + x^2)))
        torch.abs(q, out=x)
        torch.addcmul(one, q, q, out=y).sqrt_().add_(1)
        x.addcmul_(x, torch.div(x, y, out=y)).log1p_()
        x.mul_(two_norm).clamp_(max=reach).expm1_()
        x.addcdiv_(x, torch.add(x, 1, out=y))  # twice the hyperbolic sine
        s = torch.mul(x, x, out=y).sum(1, keepdim=True)
        torch.copysign(x, q, out=q)
        if s.numel() and s.max().item() > 4 * most:
            if excess is None:
                excess = torch.ones_like(square)
            torch.clamp(s / (4 * most), min=1, out=excess[piece]).sqrt_()
            q.mul_(0.5 / excess[piece])
        else:
            q.mul_(0.5)
    return inner, one.view(1, 1, 1) if excess is None else excess, slope


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
    by_c: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    grad = grad.contiguous()
    prepare(h)
    number, most = c.item(), limit.item()
    reach = sinh_limit(h.dtype)
    overflow = 80.0 if h.dtype == torch.float32 else 700.0
    far = math.sinh(reach) * (1 - 1e-5)
    bounded = excess.numel() > 1 or most > far * far
    one, two_norm = h.new_ones(()), _channels(2 * norm)
    inverse_norm = 1 / two_norm.clamp_min(torch.finfo(norm.dtype).tiny ** 0.5)
    if offset is not None:
        cosh_r, sinh_r = _offset_terms(offset, number, 0.5 * reach)
    cosh = (slope * slope).mul_(square).add_(1).sqrt_()
    grad_inner = torch.empty_like(h)
    along_q, along_sinh = torch.empty_like(square), torch.empty_like(square)
    by_norm, by_q, by_cosh = norm.new_zeros(3, len(norm))
    buffers = scratch(h, 4)
    for piece in pieces(h):
        out = grad_inner[piece]
        x, y, z, w = (b[: len(out)] for b in buffers)
        raw, g = h[piece], grad[piece]
        if bounded:
            e = excess if excess.numel() == 1 else excess[piece]
            along = torch.mul(g, raw, out=z).sum(1, keepdim=True)
            by_h = (e > 1) * along / (-most * e)
            g = torch.addcmul(torch.mul(g, 1 / e, out=w), by_h, raw, out=w)
            raw = raw * e
            g.mul_(raw.abs() < far)
        torch.addcmul(one, raw, raw, out=x).sqrt_()
        torch.abs(raw, out=y)
        y.addcmul_(y, torch.div(y, torch.add(x, 1, out=z), out=z)).log1p_()
        y.mul_(inverse_norm).clamp_(max=overflow)
        torch.copysign(y, raw, out=y)  # asinh q
        x.mul_(g)  # gradient for the distance
        by_norm += torch.mul(x, y, out=z).sum((0, 2))
        y.exp_()
        torch.reciprocal(y, out=z)
        x.mul_(two_norm).div_(torch.add(y, z, out=out)).mul_(2)  # gradient for q
        torch.mul(y.sub_(z).mul_(0.5), x, out=z)  # q times that
        torch.sum(z, 1, keepdim=True, out=along_q[piece])
        torch.mul(x, slope[piece], out=out)
        if offset is not None:
            by_q += z.sum((0, 2))
            by_cosh += collect(x, cosh[piece])
            torch.matmul(sinh_r.view(1, -1), x, out=along_sinh[piece])
            out.mul_(cosh_r)
    slope_s = sinh_factor_slope(square, number, slope, cosh)
    if offset is None:
        grad_slope, grad_cosh = along_q, None
        grad_square = grad_slope / slope * slope_s
    else:
        grad_cosh = -along_sinh
        grad_slope = along_q.addcmul_(cosh, along_sinh)
        grad_square = (grad_slope / slope).mul_(slope_s).addcmul_(grad_cosh, slope, value=math.sqrt(number))
    grad_offset = None
    if offset is not None:
        in_reach = (2 * math.sqrt(number) * offset).abs() < 0.5 * reach
        tanh_r = (sinh_r / cosh_r).flatten()
        along_r = by_q * tanh_r - by_cosh / cosh_r.flatten()
        grad_offset = in_reach * along_r * (2 * math.sqrt(number))
    grad_c = None
    if by_c:
        # homogeneous: c d/dc = square d/dsquare + 1/2 slope d/dslope
        grad_c = (grad_square * square).sum() + 0.5 * grad_slope.sum()
        if offset is not None and grad_offset is not None:
            grad_c = grad_c + 0.5 * (grad_offset * offset).sum()
        grad_c = grad_c / number
    return grad_inner, grad_square, 2 * by_norm, grad_offset, grad_c
