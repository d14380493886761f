"""What the passes share: factors per pixel, and going through a batch in pieces.

Factors are functions of squared norms s ``[B, 1, N]``: a radius over the norm, ``g(t)/t``. Their derivatives with respect
to s are ``(g'(t) - g(t)/t)/(2 t^2)`` in one unit or another, a difference that cancels near zero: `_quotient`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

# so much of a tensor at once that what is read several times stays in the cache
_PIECE = 1 << 20


def pieces(x: Tensor) -> Iterator[slice]:
    """Consecutive images of `x`."""
    size = max(1, _PIECE // max(x[:1].numel() * x.element_size(), 1))
    return (slice(i, i + size) for i in range(0, len(x), size))


def scratch(x: Tensor, count: int) -> list[Tensor]:
    """Memory for `count` tensors like the first of the `pieces` of `x`."""
    piece = x[next(pieces(x), slice(0, 0))]
    return [torch.empty_like(piece, memory_format=torch.contiguous_format) for _ in range(count)]


def prepare(x: Tensor) -> None:
    """Read the constants of torch's log1p and expm1, once more than needed.

    With AVX-512 they load one of them for negative zeros only, under a mask. While its page is not in memory that costs
    ten times as long as the function, for any argument.
    """
    zeros = x.new_full((64,), -0.0)
    zeros.log1p_()
    zeros.expm1_()


def _quotient(x: Tensor, s: Tensor, at_zero: float, tolerance: float) -> Tensor:
    """x/s, where x goes to zero with s as ``at_zero * s`` and cannot be told from zero below a tolerance."""
    divisor = s.clamp(min=tolerance)
    return x.add_(divisor - s, alpha=at_zero).div_(divisor)


def _root(s: Tensor) -> Tensor:
    return s.clamp(min=torch.finfo(s.dtype).tiny).sqrt_()


def asinh(t: Tensor) -> Tensor:
    """For t >= 0."""
    return torch.addcdiv(t, t * t, (t * t).add_(1).sqrt_().add_(1)).log1p_()


def sinh_factor(s: Tensor, c: float, reach: float = math.inf) -> tuple[Tensor, Tensor]:
    """The factor from tangent vectors to the hyperboloid chart, within ``2 sqrt(c s) <= reach``; and the time part."""
    t = _root(4 * c * s)
    e = torch.clamp(t, max=reach).expm1_()
    r = e / (e + 1)
    time = (e - r).mul_(0.5).add_(1)
    return e.add_(r).div_(t).mul_(math.sqrt(c)), time


def sinh_factor_slope(s: Tensor, c: float, factor: Tensor, time: Tensor, reach: float = math.inf) -> Tensor:
    """Derivative of `sinh_factor` with respect to s."""
    return _quotient(sinh_factor_by_c(s, c, time, reach).sub_(factor, alpha=0.5), s, 4 * c * math.sqrt(c) / 3, _tolerance(s) / (4 * c))


def sinh_factor_by_c(s: Tensor, c: float, time: Tensor, reach: float = math.inf) -> Tensor:
    """C times the derivative of `sinh_factor` with respect to c."""
    x = time * math.sqrt(c)
    return x if math.isinf(reach) else x.mul_(4 * c * s < reach * reach)


def bounded_factor(s: Tensor, c: float, limit: float, tangent: bool, outside: bool) -> Tensor:
    """The factor that bounds points in the hyperboloid chart by `limit`, if some are `outside`, and converts them."""
    root = _root(s)
    radius = root.clamp(max=math.sqrt(limit)) if outside else root
    return asinh(radius).mul_(0.5 / math.sqrt(c)).div_(root) if tangent else radius / root


def bounded_factor_slope(s: Tensor, c: float, limit: float, factor: Tensor, tangent: bool, outside: bool) -> Tensor:
    """Derivative of `bounded_factor` with respect to s."""
    if not tangent:  # outside, the factor is the radius over the norm
        return factor.mul(-0.5).mul_(s > limit).div_(s.clamp(min=limit))
    x = (s + 1).rsqrt_().mul_(0.25 / math.sqrt(c))
    if outside:
        x.mul_(s <= limit)
    return _quotient(x.sub_(factor, alpha=0.5), s, -1 / (12 * math.sqrt(c)), _tolerance(s))


def _tolerance(s: Tensor) -> float:
    return math.sqrt(torch.finfo(s.dtype).eps)


def contract(rows: Tensor, x: Tensor) -> Tensor:
    """Sums over the channels of `x` ``[B, C, N]`` with weights ``[k, C]``: ``[B, k, N]``."""
    return torch.matmul(rows, x)


def collect(x: Tensor, weights: Tensor) -> Tensor:
    """Sum over the images and pixels of `x` ``[B, C, N]`` with weights ``[B, 1, N]``: ``[C]``."""
    return torch.bmm(x, weights.mT).sum(0).squeeze(1)
