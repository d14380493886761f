"""Parameters: small and many, so that what counts is how few operations there are."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def lift_factor(s: float, c: float, cap: float) -> tuple[float, float, float]:
    """The factor for a point of squared norm s, and its derivatives with respect to s and c."""
    bound = math.tanh(0.5 * cap) ** 2 / c
    half_lambda = 1 / (1 - c * min(s, bound))
    factor = 2 * math.sqrt(c) * half_lambda
    if s <= bound:
        return factor, c * half_lambda * factor, half_lambda * (1 + 2 * c * s * half_lambda) / math.sqrt(c)
    factor *= math.sqrt(bound / s)
    return factor, -0.5 * factor / s, 0.0


def lift(x: Tensor, c: Tensor, cap: float) -> Tensor:
    """As `Library.lift`."""
    x = x.as_subclass(Tensor)
    return x * lift_factor(torch.dot(x, x).item(), c.item(), cap)[0]


def lift_backward(grad: Tensor, x: Tensor, c: Tensor, cap: float) -> tuple[Tensor, Tensor]:
    """As `Library.lift_backward`."""
    x = x.as_subclass(Tensor)
    factor, by_s, by_c = lift_factor(torch.dot(x, x).item(), c.item(), cap)
    along = torch.dot(grad, x).item()
    return (grad * factor).add_(x, alpha=2 * by_s * along), c.new_full((), by_c * along)


def _rows(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of a weight, their lengths [K, 1] and the inverse of those."""
    rows = weight.as_subclass(Tensor).flatten(1)
    radius = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows, radius, radius.clamp(min=torch.finfo(radius.dtype).tiny ** 0.5).reciprocal_()


def directions(weight: Tensor, c: Tensor, scale: float | None, factor: float) -> tuple[Tensor, Tensor]:
    """As `Library.directions`."""
    rows, radius, inverse = _rows(weight)
    unit = (rows * inverse.mul_(factor)).view(weight.shape)
    if scale is not None:
        root_c = math.sqrt(c.item())
        t = radius.mul_(root_c).clamp_(max=1 - 2 * torch.finfo(radius.dtype).eps)
        radius = (2 * t).div_(1 - t).log1p_().mul_(0.5 * scale / root_c)
    return unit, radius.view(-1)


def directions_backward(
    grad: Tensor | None,
    grad_norm: Tensor | None,
    weight: Tensor,
    c: Tensor,
    scale: float | None,
    factor: float,
) -> tuple[Tensor, None]:
    """As `Library.directions_backward`, without the gradient for c."""
    rows, radius, inverse = _rows(weight)
    unit, along, grad_rows = rows * inverse, 0.0, None
    if grad is not None:
        share, grad = inverse.mul_(factor), grad.flatten(1)
        grad_rows = grad * share
        along = (unit * grad).sum(1, keepdim=True).mul_(share).neg_()
    if grad_norm is not None:
        slope = grad_norm.unsqueeze(1)
        if scale is not None:
            # of artanh, within what `directions` bounds
            least = 1 - (1 - 2 * torch.finfo(radius.dtype).eps) ** 2
            inside = torch.addcmul(radius.new_ones(()), radius, radius, value=-c.item()).clamp_(min=least)
            slope = (slope * scale).div_(inside)
        along = slope + along
    return (unit * along if grad_rows is None else grad_rows.addcmul_(unit, along)).view(weight.shape), None
