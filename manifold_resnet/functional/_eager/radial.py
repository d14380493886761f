"""What the passes share: going through a batch in pieces, sums, and factors per pixel.

Factors are functions of squared norms s ``[B, 1, N]``: a radius over the norm. They come with their derivatives with
respect to s where asked for. Those are differences that cancel near zero, see `_quotient`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

# so much of a tensor at once that what is read several times stays in the cache
_PIECE = 1 << 20


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Consecutive images of tensors ``[B, ...]``; the first one's size counts."""
    x = tensors[0]
    images = len(x)
    if images == 0:
        return iter(())
    size = max(1, _PIECE * images // max(x.numel() * x.element_size(), 1))
    return zip(*[t.split(size) for t in tensors], strict=True)


def scratch(x: Tensor, count: int) -> Tensor:
    """Memory for `count` tensors like the first of the `pieces` of `x`."""
    first = next(pieces(x), (x,))[0]
    return first.new_empty(count, *first.shape)


def prepare(x: Tensor) -> None:
    """Read the constants of torch's log1p and expm1, once more than needed.

    With AVX-512 they load one of them for negative zeros only, under a mask. While its page is not in memory that costs
    ten times as long as the function, for any argument.
    """
    x.new_full((64,), -0.0).log1p_().expm1_()


def contract(rows: Tensor, x: Tensor, out: Tensor | None = None) -> Tensor:
    """Sums over the channels of `x` ``[B, C, N]`` with weights ``[k, C]``: ``[B, k, N]``."""
    return torch.bmm(rows.expand(len(x), -1, -1), x, out=out)


def collect(x: Tensor, rows: Tensor, out: Tensor) -> None:
    """Sums over the pixels of `x` ``[B, C, N]`` with weights ``[B, k, N]``, to `out` ``[B, C, k]``."""
    torch.bmm(x, rows.mT, out=out)


def dot(a: Tensor, b: Tensor, product: Tensor) -> Tensor:
    """Inner products over the channels; `product` is overwritten."""
    return torch.mul(a, b, out=product).sum(1, keepdim=True)


def largest(s: Tensor) -> float:
    """The largest of squared norms."""
    return s.max().item()


def _quotient(x: Tensor, s: Tensor, at_zero: float, tolerance: float) -> Tensor:
    """x/s, where x goes to zero with s as ``at_zero * s`` and cannot be told from zero below a tolerance.

    It is a coefficient of vectors of squared norm s: in the product an error of the size of eps/s is one of eps.
    """
    divisor = s.clamp(min=tolerance)
    return x.add_(divisor - s, alpha=at_zero).div_(divisor)


def _tolerance(s: Tensor) -> float:
    return math.sqrt(torch.finfo(s.dtype).eps)


def _root(s: Tensor) -> Tensor:
    return s.clamp(min=torch.finfo(s.dtype).tiny).sqrt_()


class SinhFactor:
    """The factor from tangent vectors to the hyperboloid chart, within ``2 sqrt(c s) <= reach``.

    Attributes
    ----------
    value, time : Tensor
        The factor, and the time part of the points.
    """

    def __init__(self, s: Tensor, c: float, reach: float = math.inf, known: tuple[Tensor, Tensor] | None = None) -> None:
        self._s, self._c, self._reach = s, c, reach
        if known is not None:
            self.value, self.time = known
            return
        t = _root(s * (4 * c))
        e = t.expm1() if math.isinf(reach) else t.clamp(max=reach).expm1_()
        r = e / (e + 1)
        self.time = (e - r).mul_(0.5).add_(1)
        self.value = e.add_(r).mul_(math.sqrt(c)).div_(t)

    def by_c(self) -> Tensor:
        """C times the derivative of the value with respect to c."""
        x = self.time * math.sqrt(self._c)
        return x if math.isinf(self._reach) else x.mul_(self._s < self._reach**2 / (4 * self._c))

    def slope(self) -> Tensor:
        """Its derivative with respect to s."""
        c = self._c
        return _quotient(self.by_c().sub_(self.value, alpha=0.5), self._s, c**1.5 / 0.75, _tolerance(self._s) / (4 * c))


def asinh_factor(s: Tensor, c: float) -> Tensor:
    """The factor from the hyperboloid chart to tangent vectors."""
    t = _root(s)
    time = (s + 1).sqrt_()
    return torch.addcdiv(t, s, time.add_(1)).log1p_().mul_(0.5 / math.sqrt(c)).div_(t)


def asinh_factor_slope(s: Tensor, c: float, factor: Tensor, inside: Tensor | None = None) -> Tensor:
    """Its derivative with respect to s; but for points that are not inside of a bound, that of a radius over the norm."""
    x = (s + 1).rsqrt_().mul_(0.25 / math.sqrt(c))
    if inside is not None:
        x.mul_(inside)
    return _quotient(x.sub_(factor, alpha=0.5), s, -1 / (12 * math.sqrt(c)), _tolerance(s))


def bounded_factor(s: Tensor, c: float, limit: float, tangent: bool, outside: bool) -> Tensor:
    """The factor that bounds points in the hyperboloid chart by `limit`, if some are `outside`, and converts them."""
    if not outside:
        return asinh_factor(s, c) if tangent else torch.ones_like(s)
    inside = s.clamp(max=limit)
    factor = (inside / s.clamp(min=torch.finfo(s.dtype).tiny)).sqrt_().clamp_(max=1)
    return factor.mul_(asinh_factor(inside, c)) if tangent else factor


def bounded_factor_slope(s: Tensor, c: float, limit: float, factor: Tensor, tangent: bool, outside: bool) -> Tensor:
    """Its derivative with respect to s: outside, the factor is a radius over the norm."""
    if tangent:
        return asinh_factor_slope(s, c, factor, s <= limit if outside else None)
    return (factor * (s > limit)).mul_(-0.5).div_(s.clamp(min=limit))
