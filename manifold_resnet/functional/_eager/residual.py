"""Passes of `manifold_resnet.functional.residual`; notation as there."""

from __future__ import annotations

import torch
from torch import Tensor

from manifold_resnet.functional._eager.radial import (
    bounded_factor,
    bounded_factor_slope,
    pieces,
    prepare,
    scratch,
    sinh_factor,
    sinh_factor_by_c,
    sinh_factor_slope,
)
from manifold_resnet.functional._even import sinh_limit


def _lifted(s: Tensor, c: float, tangent: bool) -> tuple[Tensor, Tensor]:
    """`exp`, and the time part, of a shortcut with squared norm s."""
    if tangent:
        return sinh_factor(s, c, sinh_limit(s.dtype))
    return torch.ones_like(s), (s + 1).sqrt_()


def _factors(inner: Tensor, exp: Tensor, time_x: Tensor, time_r: Tensor, x_first: bool) -> tuple[Tensor | None, Tensor]:
    """What x and the shortcut are multiplied by; None is one."""
    if x_first:
        return time_r.addcdiv(exp * inner, time_x + 1), exp
    return None, time_x.addcdiv(exp * inner, time_r + 1).mul_(exp)


def _dot(a: Tensor, b: Tensor, product: Tensor) -> Tensor:
    return torch.mul(a, b, out=product).sum(1, keepdim=True)


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
    number, most = c.item(), limit.item()
    out = torch.empty_like(x)
    (product,) = scratch(x, 1)
    for piece in pieces(x):
        a, r, z = x[piece], shortcut[piece], out[piece]
        p = product[: len(z)]
        exp, time_r = _lifted(_dot(r, r, p), number, shortcut_tangent)
        by_x, by_r = _factors(_dot(a, r, p), exp, _dot(a, a, p).add_(1).sqrt_(), time_r, x_first)
        torch.mul(r, by_r, out=z)
        z.add_(a) if by_x is None else z.addcmul_(a, by_x)
        s = _dot(z, z, p)
        outside = s.numel() > 0 and s.max().item() > most
        if tangent or outside:
            z.mul_(bounded_factor(s, number, most, tangent, outside))
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
    all_grad_x, all_grad_r = torch.empty_like(x), torch.empty_like(x)
    grad_c = x.new_zeros(()) if needs_c else None
    masked, product = scratch(x, 2)
    for piece in pieces(x):
        a, r, g = x[piece], shortcut[piece], grad[piece]
        p = product[: len(a)]
        if result is not None:
            g = masked[: len(a)]
            torch.ops.aten.threshold_backward.grad_input(grad[piece], result[piece], 0, grad_input=g)
        s_x, s_r, inner = _dot(a, a, p), _dot(r, r, p), _dot(a, r, p)
        grad_x, grad_r = _dot(g, a, p), _dot(g, r, p)

        exp, time_r = _lifted(s_r, number, shortcut_tangent)
        time_x = (s_x + 1).sqrt_()
        by_x, by_r = _factors(inner, exp, time_x, time_r, x_first)
        if by_x is None:
            by_x = torch.ones_like(s_x)
        z_x = (by_x * s_x).addcmul_(by_r, inner)
        z_r = (by_x * inner).addcmul_(by_r, s_r)
        s_z = (by_x * z_x).addcmul_(by_r, z_r).clamp_(min=0)
        outside = s_z.numel() > 0 and s_z.max().item() > most
        grad_z = (by_x * grad_x).addcmul_(by_r, grad_r)
        out = k = None
        if tangent or outside:
            out = bounded_factor(s_z, number, most, tangent, outside)
            k = bounded_factor_slope(s_z, number, most, out, tangent, outside).mul_(grad_z).mul_(2)
            grad_x = (out * grad_x).addcmul_(k, z_x)
            grad_r = (out * grad_r).addcmul_(k, z_r)
        share = 1 / (1 + (time_x if x_first else time_r))
        if x_first:  # by_x = time_r + exp inner/(1 + time_x), by_r = exp
            to_inner = grad_x * exp * share
            to_s_x = (to_inner * inner * share).div_(time_x)  # minus twice
            x_by_x = to_s_x.neg_()
            to_exp = grad_r + grad_x * (inner * share).addcdiv_(exp * s_r, time_r)
            r_by_r = (grad_x * exp * exp).div_(time_r)
        else:  # by_x = 1, by_r = exp (time_x + exp inner/(1 + time_r))
            to_inner = grad_r * exp * exp * share
            to_time_r = (to_inner * inner * share).neg_()
            x_by_x = (grad_r * exp).div_(time_x)
            to_exp = grad_r * torch.addcmul(time_x, exp * inner, share, value=2) + to_time_r * exp * s_r / time_r
            r_by_r = (to_time_r * exp * exp).div_(time_r)
        if shortcut_tangent:
            exp_s = sinh_factor_slope(s_r, number, exp, time_r, reach)
            r_by_r.addcmul_(to_exp, exp_s, value=2)
        if grad_c is not None:  # by homogeneity: c d/dc of exp, and of the factor to the tangent space
            if shortcut_tangent:
                grad_c += (sinh_factor_by_c(s_r, number, time_r, reach) * to_exp).sum()
            if tangent and out is not None:
                grad_c -= 0.5 * (out * grad_z).sum()
        if out is not None and k is not None:
            x_by_x.addcmul_(k * by_x, by_x)
            r_by_r.addcmul_(k * by_r, by_r)
            to_inner.addcmul_(k * by_x, by_r)
            by_x, by_r = out * by_x, out * by_r
        torch.mul(g, by_x, out=all_grad_x[piece]).addcmul_(a, x_by_x).addcmul_(r, to_inner)
        torch.mul(g, by_r, out=all_grad_r[piece]).addcmul_(a, to_inner).addcmul_(r, r_by_r)
    return all_grad_x, all_grad_r, None if grad_c is None else grad_c / number
