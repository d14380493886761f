"""Passes of `manifold_resnet.functional.residual`; notation as there."""

from __future__ import annotations

import torch
from torch import Tensor

from manifold_resnet.functional._eager.radial import (
    BoundedFactor,
    Scratch,
    SinhFactor,
    dot,
    pieces,
    prepare,
)
from manifold_resnet.functional._even import sinh_limit


def residual(
    x: Tensor,
    shortcut: Tensor,
    c: Tensor,
    limit: Tensor,
    x_first: bool,
    shortcut_tangent: bool,
    tangent: bool,
    relu: bool,
) -> Tensor:
    x, shortcut = x.contiguous(), shortcut.contiguous()
    prepare(x)
    number, most, reach = c.item(), limit.item(), sinh_limit(x.dtype)
    out = torch.empty_like(x)
    memory = Scratch(x, 1)
    for a, r, z in pieces(x, shortcut, out):
        (p,) = memory.like(z)
        inner, time_x = dot(a, r, p), dot(a, a, p).add_(1).sqrt_()
        if shortcut_tangent:
            exp = SinhFactor(dot(r, r, p), number, reach)
            time_r = exp.time
            inner.mul_(exp.value)
        else:
            exp, time_r = None, dot(r, r, p).add_(1).sqrt_()
        if x_first:
            torch.mul(a, time_r.addcdiv_(inner, time_x.add_(1)), out=z)
            z.add_(r) if exp is None else z.addcmul_(r, exp.value)
        else:
            by_r = time_x.addcdiv_(inner, time_r + 1)
            torch.addcmul(a, r, by_r if exp is None else by_r.mul_(exp.value), out=z)
        factor = BoundedFactor(dot(z, z, p), number, most, tangent).value
        if factor is not None:
            z.mul_(factor)
        if relu:
            z.relu_()
    return out


def residual_backward(
    grad: Tensor,
    result: Tensor | None,
    x: Tensor,
    shortcut: Tensor,
    c: Tensor,
    limit: Tensor,
    x_first: bool,
    shortcut_tangent: bool,
    tangent: bool,
    needs_c: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    grad, x, shortcut = grad.contiguous(), x.contiguous(), shortcut.contiguous()
    prepare(x)
    number, most, reach = c.item(), limit.item(), sinh_limit(x.dtype)
    to_x, to_shortcut, sum_c = torch.empty_like(x), torch.empty_like(x), 0.0
    memory = Scratch(x, 1)
    masks = grad if result is None else result
    for a, r, g, mask, out_x, out_r in pieces(x, shortcut, grad, masks, to_x, to_shortcut):
        (p,) = memory.like(a)
        if result is not None:
            g = torch.ops.aten.threshold_backward.grad_input(g, mask, 0, grad_input=out_r)
        s_x, s_r, inner, grad_x, grad_r = dot(a, a, p), dot(r, r, p), dot(a, r, p), dot(g, a, p), dot(g, r, p)
        sinh = SinhFactor(s_r, number, reach) if shortcut_tangent else None
        exp, time_r = (torch.ones_like(s_r), (s_r + 1).sqrt_()) if sinh is None else (sinh.value, sinh.time)
        time_x, exp_inner = (s_x + 1).sqrt_(), exp * inner
        # what x and the shortcut are multiplied by; z is their sum
        if x_first:
            share = (time_x + 1).reciprocal_()
            by_x, by_r = torch.addcmul(time_r, exp_inner, share), exp
        else:
            share = (time_r + 1).reciprocal_()
            by_x, by_r = torch.ones_like(exp), torch.addcmul(time_x, exp_inner, share).mul_(exp)
        z_x, z_r = (by_x * s_x).addcmul_(by_r, inner), (by_x * inner).addcmul_(by_r, s_r)
        # what is lost here to cancellation is lost near zero, where the factor does not depend on it
        factor = BoundedFactor((by_x * z_x).addcmul_(by_r, z_r).clamp_(min=0), number, most, tangent)
        d = None
        if factor.value is not None:
            grad_z = (by_x * grad_x).addcmul_(by_r, grad_r)
            if needs_c and tangent:
                sum_c -= 0.5 * (factor.value * grad_z).sum().item()
            d = factor.slope().mul_(grad_z).mul_(2)
            grad_x = (grad_x * factor.value).addcmul_(d, z_x)
            grad_r = (grad_r * factor.value).addcmul_(d, z_r)
        # gradients for the two multipliers are now grad_x and grad_r; on to the products they are made of
        if x_first:
            to_time_r, by_inner = grad_x, grad_x * exp * share
            x_by_x = (by_inner * inner).mul_(share).div_(time_x).neg_()
            to_exp = torch.addcmul(grad_r, grad_x, inner * share)
        else:
            by_inner = (grad_r * exp).mul_(exp).mul_(share)
            to_time_r = (by_inner * inner).mul_(share).neg_()
            x_by_x = (grad_r * exp).div_(time_x)
            to_exp = torch.addcmul(time_x, exp_inner, share, value=2).mul_(grad_r)
        exp_by_time = (to_time_r * exp).div_(time_r)
        r_by_r = exp_by_time * exp
        if sinh is not None:
            to_exp.addcmul_(exp_by_time, s_r)
            everywhere = s_r.max().item() < reach**2 / (4 * number)
            r_by_r.addcmul_(to_exp, sinh.slope(everywhere), value=2)
            if needs_c:
                sum_c += (sinh.by_c(everywhere) * to_exp).sum().item()
        if d is not None:
            x_by_x.addcmul_(d * by_x, by_x)
            d.mul_(by_r)
            r_by_r.addcmul_(d, by_r)
            by_inner.addcmul_(d, by_x)
            by_x, by_r = factor.value * by_x, factor.value * by_r
        torch.mul(g, by_x, out=out_x).addcmul_(a, x_by_x).addcmul_(r, by_inner)
        torch.mul(g, by_r, out=out_r).addcmul_(a, by_inner).addcmul_(r, r_by_r)
    return to_x, to_shortcut, c.new_full((), sum_c / number) if needs_c else None
