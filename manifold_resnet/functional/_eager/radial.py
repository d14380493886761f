"""What the passes share: going through a batch in pieces, sums, and factors per pixel.

Factors are functions of squared norms s ``[B, 1, N]``: one radius over another.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

# bytes of a tensor at once, for each thread: what is read several times stays in the cache, and calls are few
_PIECE = 1 << 21
# elements that memory for intermediate results has to spare
_ROOM = 256


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
    """Memory for `count` tensors like the `pieces` of `x`.

    With room to spare: where one was freed, glibc finds place for an aligned tensor of the same size, for which it
    would otherwise ask the system.
    """

    def __init__(self, x: Tensor, count: int) -> None:
        self._images = _at_once(x)
        shape = self._images, *x.shape[1:]
        # one by one: freed memory of images fits these, and less is asked of the system
        self._buffers = [x.new_empty(math.prod(shape) + _ROOM).resize_(shape) for _ in range(count)]

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
    return torch.bmm(rows.expand(x.shape[0], -1, -1), x, out=out)


def collect(x: Tensor, rows: Tensor) -> Tensor:
    """Sums over the images and pixels of `x` ``[B, C, N]`` with weights ``[B, k, N]``: ``[k, C]``."""
    return torch.bmm(rows, x.mT).sum(0)


def added(parts: Sequence[Tensor]) -> Tensor:
    """The sum over pieces; of a single one that is no operation."""
    return sum(parts[1:], parts[0])


def dot(a: Tensor, b: Tensor, product: Tensor, out: Tensor | None = None) -> Tensor:
    """Inner products over the channels; `product` is overwritten."""
    return torch.sum(torch.mul(a, b, out=product), 1, keepdim=True, out=out)


def sum_of_products(a: Tensor, b: Tensor) -> float:
    """Sum of the products of two tensors of one size."""
    return torch.dot(a.flatten(), b.flatten()).item()


def root_(x: Tensor) -> Tensor:
    """Square roots of numbers that are not zero, in place; torch's sqrt may take twice as long as these two."""
    return x.pow_(-0.5).reciprocal_()


def _inverse_root(s: Tensor) -> Tensor:
    return s.clamp(min=torch.finfo(s.dtype).tiny).pow_(-0.5)


def _over(x: Tensor, s: Tensor) -> Tensor:
    """x/s, where both go to zero.

    It is a coefficient of vectors of squared norm s. Near zero it is all rounding, eps/s at most; the product is not.
    """
    return x.div_(s.clamp(min=torch.finfo(s.dtype).eps))


def _product(x: Tensor, y: Tensor, number: float, out: Tensor | None = None) -> Tensor:
    """Product of two tensors and a number; torch multiplies by numbers slowly."""
    return torch.addcmul(x.new_zeros(()), x, y, value=number, out=out)


@dataclass(slots=True)
class SinhFactor:
    """From vectors v of squared norm s to the hyperboloid chart, `scale` v (or v) being tangent vectors.

    Attributes
    ----------
    value, time : Tensor
        What v is multiplied by, and the time part of the points, within ``2 sqrt(c s) scale <= reach``.
    """

    s: Tensor
    c: float
    reach: float
    value: Tensor
    time: Tensor
    scale: Tensor | None = None

    def _time_inside(self, everywhere: bool) -> Tensor:
        """The time part, or zero out of reach."""
        if everywhere:
            return self.time
        s = self.s if self.scale is None else self.s * self.scale * self.scale
        return self.time * (s < self.reach**2 / (4 * self.c))

    def by_c(self, everywhere: bool) -> Tensor:
        """C times the derivative of the value with respect to c; `everywhere`: all vectors are in reach."""
        x = self._time_inside(everywhere) * math.sqrt(self.c)
        return x if self.scale is None else x.mul_(self.scale)

    def decrease(self, everywhere: bool) -> Tensor:
        """Minus twice the derivative of the value with respect to s."""
        time, slope = self._time_inside(everywhere), 2 * math.sqrt(self.c)
        if self.scale is None:
            return _over(torch.sub(self.value, time, alpha=slope), self.s)
        return _over(torch.addcmul(self.value, time, self.scale, value=-slope), self.s)


def sinh_factor(
    s: Tensor, c: float, reach: float, scale: Tensor | None = None, out: Tensor | None = None
) -> SinhFactor:
    """The factor for squared norms s; its value is written to `out`."""
    inverse = _inverse_root(s)
    e = inverse.reciprocal() if scale is None else scale / inverse
    e.mul_(2 * math.sqrt(c)).clamp_(max=reach).expm1_()
    r = e / (e + 1)
    time = torch.addcmul(e.new_ones(()), e, r, value=0.5)
    return SinhFactor(s, c, reach, _product(e.add_(r), inverse, 0.5, out), time, scale)


def asinh_factor(s: Tensor, c: float, time: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """The factor from the hyperboloid chart to tangent vectors, for points of squared norm s and time part `time`."""
    inverse, time = _inverse_root(s), root_(s + 1) if time is None else time
    x = torch.addcdiv(inverse.reciprocal(), s, time + 1).log1p_()
    return _product(x, inverse, 0.5 / math.sqrt(c), out)


def asinh_decrease(s: Tensor, inverse_time: Tensor, value: Tensor, c: float) -> Tensor:
    """Minus twice the derivative of `asinh_factor` with respect to s, with one over the points' time part."""
    return _over(torch.sub(value, inverse_time, alpha=0.5 / math.sqrt(c)), s)


def square_from_time(time: Tensor, limit: float, out: Tensor | None = None) -> Tensor | None:
    """Squared norm of points in the hyperboloid chart from their time part; None if `limit`, a bound, forbids it.

    What rounding loses is lost near zero, where `BoundedFactor` does not depend on it, unless the bound is there.
    """
    if limit < 1:
        return None
    excess = (time - 1).clamp_(min=0)
    return torch.addcmul(excess, excess, time, out=out)


class BoundedFactor:
    """The factor that bounds points of squared norm s in the hyperboloid chart by `limit`, and converts them.

    Parameters
    ----------
    s : Tensor
        Squared norms.
    c, limit : float
        The curvature is ``-c``; bound on squared norms.
    tangent : bool
        Whether to convert to tangent vectors.
    time, value : Tensor, optional
        The time part of the points, and the factor, if they are known: for these very squared norms, or `decrease`
        would blow up near zero, being a difference over s.
    out : Tensor, optional
        Memory for the factor, if it converts.

    Attributes
    ----------
    value : Tensor or None
        The factor; None is one.
    outside : bool
        Whether there are points beyond the bound.
    """

    def __init__(
        self,
        s: Tensor,
        c: float,
        limit: float,
        tangent: bool,
        time: Tensor | None = None,
        value: Tensor | None = None,
        out: Tensor | None = None,
    ) -> None:
        self._s, self._c, self._limit, self._tangent = s, c, limit, tangent
        self.value, self.outside = value, s.max().item() > limit
        if tangent and value is None:
            inside = s.clamp(max=limit) if self.outside else s
            self.value = asinh_factor(inside, c, time=None if self.outside else time, out=out)
        if self.outside and value is None:
            shrink = (s / limit).clamp_(min=1).rsqrt_()
            self.value = shrink if self.value is None else self.value.mul_(shrink)

    def decrease(self) -> Tensor:
        """Minus twice the derivative with respect to the squared norm.

        Outside, the factor is a radius over the norm.
        """
        if not self._tangent or self.value is None:
            inner = torch.zeros_like(self._s)
        else:
            inner = asinh_decrease(self._s, (self._s + 1).pow_(-0.5), self.value, self._c)
        if not self.outside or self.value is None:
            return inner
        inside = self._s <= self._limit
        return (self.value / self._s.clamp(min=self._limit)).mul_(~inside).addcmul_(inner, inside)
