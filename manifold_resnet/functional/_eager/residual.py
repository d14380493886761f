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
    sum_of_products,
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
) -> tuple[Tensor, Tensor]:
    x, shortcut = x.contiguous(), shortcut.contiguous()
    prepare(x)
    number, most, reach = c.item(), limit.item(), sinh_limit(x.dtype)
    out, numbers = torch.empty_like(x), x.new_empty(6, x.shape[0], 1, x.shape[2])
    memory = Scratch(x, 1)
    for a, r, z, s_x, s_r, inner, exp, s_z, value in pieces(x, shortcut, out, *numbers):
        (p,) = memory.like(z)
        for first, second, product in ((a, a, s_x), (r, r, s_r), (a, r, inner)):
            dot(first, second, p, out=product)
        sinh = sinh_factor(s_r, number, reach, out=exp) if shortcut_tangent else None
        total = _Sum(s_x, s_r, inner, sinh, x_first)
        by_x, by_r, time = total.by_x, total.by_r, total.time_x * total.time_r
        # with points far from the origin, terms of z and of its time part cancel; the bound must hold all the same
        is_far = time.max().item() > _FAR
        square = None if is_far else square_from_time(time.add_(total.exp_inner), most, out=s_z)
        if square is None:
            torch.mul(a, by_x, out=z).addcmul_(r, by_r)
            factor = BoundedFactor(dot(z, z, p, out=s_z), number, most, tangent, out=value).value
            if factor is not None:
                z.mul_(factor)
        else:
            factor = BoundedFactor(square, number, most, tangent, time=time, out=value).value
            if factor is not None:
                by_x, by_r = by_x * factor, by_r * factor
            torch.mul(a, by_x, out=z).addcmul_(r, by_r)
        if relu:
            z.relu_()
    return out, numbers


def residual_backward(
    grad: Tensor,
    result: Tensor | None,
    x: Tensor,
    shortcut: Tensor,
    c: Tensor,
    limit: Tensor,
    numbers: Tensor,
    x_first: bool,
    shortcut_tangent: bool,
    tangent: bool,
    needs_c: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    grad, x, shortcut = grad.contiguous(), x.contiguous(), shortcut.contiguous()
    prepare(x)
    if numbers.numel() == 0:  # other kernels went forward
        _, numbers = residual(x, shortcut, c, limit, x_first, shortcut_tangent, tangent, relu=False)
    number, most, reach = c.item(), limit.item(), sinh_limit(x.dtype)
    to_x, to_shortcut, sum_c = torch.empty_like(x), torch.empty_like(x), 0.0
    memory = Scratch(x, 1)
    masks, one = grad if result is None else result, x.new_ones(1, 1, 1)
    for a, r, g, mask, out_x, out_r, s_x, s_r, inner, exp, s_z, value in pieces(
        x, shortcut, grad, masks, to_x, to_shortcut, *numbers
    ):
        (p,) = memory.like(a)
        if result is not None:
            g = torch.ops.aten.threshold_backward.grad_input(g, mask, 0, grad_input=out_r)
        grad_x, grad_r, sinh = dot(g, a, p), dot(g, r, p), None
        if shortcut_tangent:
            sinh = SinhFactor(s_r, number, reach, exp, root_(torch.addcmul(one, exp * exp, s_r)))
        total = _Sum(s_x, s_r, inner, sinh, x_first)
        by_x, by_r, (z_x, z_r) = total.by_x, total.by_r, total.products()
        factor = BoundedFactor(s_z, number, most, tangent, value=value if tangent else None)
        exp, time_x, time_r, share, exp_inner = total.exp, total.time_x, total.time_r, total.share, total.exp_inner
        d = None
        if factor.value is not None:
            grad_z = (by_x * grad_x).addcmul_(by_r, grad_r)
            if needs_c and tangent:
                sum_c -= 0.5 * sum_of_products(factor.value, grad_z)
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
                sum_c += sum_of_products(sinh.by_c(everywhere), to_exp)
        if d is not None:
            x_by_x.addcmul_(d * by_x, by_x, value=-1)
            d.mul_(by_r)
            r_by_r.addcmul_(d, by_r, value=-1)
            by_inner.addcmul_(d, by_x, value=-1)
            by_x, by_r = factor.value * by_x, factor.value * by_r
        torch.mul(g, by_x, out=out_x).addcmul_(a, x_by_x).addcmul_(r, by_inner)
        torch.mul(g, by_r, out=out_r).addcmul_(a, by_inner).addcmul_(r, r_by_r)
    return to_x, to_shortcut, c.new_full((), sum_c / number) if needs_c else None
