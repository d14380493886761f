"""What the passes share: going through a batch in pieces, sums, and factors per pixel.

Factors are functions of squared norms s ``[B, 1, N]``: one radius over another.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

# bytes of a tensor at once, for each thread: what is read several times stays in the cache, and calls are few
_PIECE = 1 << 21


def _at_once(x: Tensor) -> int:
    """How many of the images ``[B, ...]`` make a piece."""
    images = x.shape[0]
    return min(max(1, _PIECE * torch.get_num_threads() * images // max(x.numel() * x.element_size(), 1)), images)


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Consecutive images of tensors ``[B, ...]``; the first one's size counts."""
    images, size = tensors[0].shape[0], _at_once(tensors[0])
    if images == 0:
        return iter(())
    if size == images:
        return iter((tensors,))
    return zip(*[t.split(size) for t in tensors], strict=True)


class Scratch:
    """Memory for `count` tensors like the `pieces` of `x`."""

    def __init__(self, x: Tensor, count: int) -> None:
        self._images = _at_once(x)
        self._buffers = [x.new_empty(self._images, *x.shape[1:]) for _ in range(count)]

    def like(self, piece: Tensor) -> list[Tensor]:
        """The memory, as large as a piece."""
        images = piece.shape[0]
        return self._buffers if images == self._images else [b[:images] for b in self._buffers]


def prepare(x: Tensor) -> None:
    """Read the constants of torch's log1p and expm1, once more than needed.

    With AVX-512 they load one of them for negative zeros only, under a mask. While its page is not in memory that costs
    ten times as long as the function, for any argument. Pages of a process stay, but under pressure.
    """
    _read_constants(x.dtype, os.getpid(), int(time.monotonic()) >> 2)


@lru_cache(maxsize=2)
def _read_constants(dtype: torch.dtype, process: int, moment: int) -> None:
    torch.full((64,), -0.0, dtype=dtype, device="cpu").log1p_().expm1_()


def contract(rows: Tensor, x: Tensor, out: Tensor | None = None) -> Tensor:
    """Sums over the channels of `x` ``[B, C, N]`` with weights ``[k, C]``: ``[B, k, N]``."""
    return torch.bmm(rows.expand(len(x), -1, -1), x, out=out)


def collect(x: Tensor, rows: Tensor) -> Tensor:
    """Sums over the images and pixels of `x` ``[B, C, N]`` with weights ``[B, k, N]``: ``[k, C]``."""
    return torch.bmm(rows, x.mT).sum(0)


def dot(a: Tensor, b: Tensor, product: Tensor) -> Tensor:
    """Inner products over the channels; `product` is overwritten."""
    return torch.mul(a, b, out=product).sum(1, keepdim=True)


def _over(x: Tensor, s: Tensor, unit: float = 1.0) -> Tensor:
    """x/s, where both go to zero; s in units of `unit`.

    It is a coefficient of vectors of squared norm s. Near zero it is all rounding, eps/s at most; the product is not.
    """
    return x.div_(s.clamp(min=torch.finfo(s.dtype).eps * unit))


def _root(s: Tensor) -> Tensor:
    return s.clamp(min=torch.finfo(s.dtype).tiny).sqrt_()


class SinhFactor:
    """The factor from tangent vectors of squared norm s to the hyperboloid chart, within ``2 sqrt(c s) <= reach``.

    Attributes
    ----------
    value, time : Tensor
        The factor, and the time part of the points.
    """

    def __init__(
        self, s: Tensor, c: float, reach: float = math.inf, known: tuple[Tensor, Tensor] | None = None
    ) -> None:
        self._s, self._c, self._reach = s, c, reach
        if known is not None:
            self.value, self.time = known
            return
        double = _root(s).mul_(2)
        e = double * math.sqrt(c)
        if not math.isinf(reach):
            e.clamp_(max=reach)
        r = e.expm1_() / (e + 1)
        self.time = torch.addcmul(e.new_ones(()), e, r, value=0.5)
        self.value = e.add_(r).div_(double)

    def by_c(self, everywhere: bool) -> Tensor:
        """C times the derivative of the value with respect to c; `everywhere`: no s is out of reach."""
        x = self.time * math.sqrt(self._c)
        return x if everywhere else x.mul_(self._s < self._reach**2 / (4 * self._c))

    def slope(self, everywhere: bool = True) -> Tensor:
        """The derivative of the value with respect to s."""
        return _over(self.by_c(everywhere).sub_(self.value, alpha=0.5), self._s, 0.25 / self._c)


class AsinhFactor:
    """The factor from the hyperboloid chart to tangent vectors, for points of squared norm s."""

    def __init__(self, s: Tensor, c: float, known: Tensor | None = None) -> None:
        self._s, self._c = s, c
        self._time = (s + 1).sqrt_()
        if known is not None:
            self.value = known
            return
        t = _root(s)
        self.value = torch.addcdiv(t, s, self._time + 1).log1p_().mul_(0.5 / math.sqrt(c)).div_(t)

    def slope(self) -> Tensor:
        """Derivative with respect to s."""
        x = self._time.reciprocal_().mul_(0.25 / math.sqrt(self._c))
        return _over(x.sub_(self.value, alpha=0.5), self._s)


class BoundedFactor:
    """The factor that bounds points of squared norm s in the hyperboloid chart by `limit`, and converts them.

    Attributes
    ----------
    value : Tensor or None
        The factor; None is one.
    outside : bool
        Whether there are points beyond the bound.
    """

    def __init__(self, s: Tensor, c: float, limit: float, tangent: bool) -> None:
        self._s, self._limit = s, limit
        self.outside = s.max().item() > limit
        inside = s.clamp(max=limit) if self.outside else s
        self._chart = AsinhFactor(inside, c) if tangent else None
        self.value = None if self._chart is None else self._chart.value
        if self.outside:
            shrink = (s / limit).clamp_(min=1).rsqrt_()
            self.value = shrink if self.value is None else shrink.mul_(self.value)

    def slope(self) -> Tensor | None:
        """Derivative with respect to s: outside, the factor is a radius over the norm."""
        slope = None if self._chart is None else self._chart.slope()
        if not self.outside or self.value is None:
            return slope
        inside = self._s <= self._limit
        outer = (self.value * -0.5).div_(self._s.clamp(min=self._limit)).mul_(~inside)
        return outer if slope is None else outer.addcmul_(slope, inside)
