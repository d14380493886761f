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
    root_,
    sinh_factor,
    square_from_time,
)
from manifold_resnet.functional._even import sinh_limit

# of the product of two time parts: above, cancellation may cost more than a digit
_FAR = 10


class _Sum:
    """What x and the shortcut are multiplied by, z being their sum.

    From squared norms and the inner product, and from exp if the shortcut comes as tangent vectors.
    """

    def __init__(self, s_x: Tensor, s_r: Tensor, inner: Tensor, sinh: SinhFactor | None, x_first: bool) -> None:
        self._s_x, self._s_r, self._inner = s_x, s_r, inner
        if sinh is None:
            self.exp, self.time_r = torch.ones_like(s_r), root_(s_r + 1)
        else:
            self.exp, self.time_r = sinh.value, sinh.time
        self.time_x, self.exp_inner = root_(s_x + 1), self.exp * inner
        if x_first:
            self.share = (self.time_x + 1).reciprocal_()
            self.by_x, self.by_r = torch.addcmul(self.time_r, self.exp_inner, self.share), self.exp
        else:
            self.share = (self.time_r + 1).reciprocal_()
            self.by_x = torch.ones_like(s_x)
            self.by_r = torch.addcmul(self.time_x, self.exp_inner, self.share).mul_(self.exp)

    def products(self) -> tuple[Tensor, Tensor]:
        """Inner products of z with x and with the shortcut."""
        return (
            (self.by_x * self._s_x).addcmul_(self.by_r, self._inner),
            (self.by_x * self._inner).addcmul_(self.by_r, self._s_r),
        )


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
        s_x, s_r, inner = dot(a, a, p), dot(r, r, p), dot(a, r, p)
        sinh = sinh_factor(s_r, number, reach) if shortcut_tangent else None
        total = _Sum(s_x, s_r, inner, sinh, x_first)
        by_x, by_r, time = total.by_x, total.by_r, total.time_x * total.time_r
        # with points far from the origin, terms of z and of its time part cancel; the bound must hold all the same
        is_far = time.max().item() > _FAR
        square = None if is_far else square_from_time(time.add_(total.exp_inner), most)
        if square is None:
            torch.mul(a, by_x, out=z).addcmul_(r, by_r)
            factor = BoundedFactor(dot(z, z, p), number, most, tangent).value
            if factor is not None:
                z.mul_(factor)
        else:
            factor = BoundedFactor(square, number, most, tangent, time=time).value
            if factor is not None:
                by_x, by_r = by_x * factor, by_r * factor
            torch.mul(a, by_x, out=z).addcmul_(r, by_r)
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
        sinh = sinh_factor(s_r, number, reach) if shortcut_tangent else None
        total = _Sum(s_x, s_r, inner, sinh, x_first)
        by_x, by_r, (z_x, z_r) = total.by_x, total.by_r, total.products()
        # what cancels here is lost near zero, where the factor does not depend on it
        square = (by_x * z_x).addcmul_(by_r, z_r).clamp_(min=0)
        factor = BoundedFactor(square, number, most, tangent)
        exp, time_x, time_r, share, exp_inner = total.exp, total.time_x, total.time_r, total.share, total.exp_inner
        d = None
        if factor.value is not None:
            grad_z = (by_x * grad_x).addcmul_(by_r, grad_r)
            if needs_c and tangent:
                sum_c -= 0.5 * (factor.value * grad_z).sum().item()
            d = factor.decrease().mul_(grad_z)
            grad_x = (grad_x * factor.value).addcmul_(d, z_x, value=-1)
            grad_r = (grad_r * factor.value).addcmul_(d, z_r, value=-1)
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
            r_by_r.addcmul_(to_exp, sinh.decrease(everywhere), value=-1)
            if needs_c:
                sum_c += (sinh.by_c(everywhere) * to_exp).sum().item()
        if d is not None:
            x_by_x.addcmul_(d * by_x, by_x, value=-1)
            d.mul_(by_r)
            r_by_r.addcmul_(d, by_r, value=-1)
            by_inner.addcmul_(d, by_x, value=-1)
            by_x, by_r = factor.value * by_x, factor.value * by_r
        torch.mul(g, by_x, out=out_x).addcmul_(a, x_by_x).addcmul_(r, by_inner)
        torch.mul(g, by_r, out=out_r).addcmul_(a, by_inner).addcmul_(r, r_by_r)
    return to_x, to_shortcut, c.new_full((), sum_c / number) if needs_c else None
