"""Sums over the windows of images in 1 to 3 dimensions, and back: slices added up, exact in any precision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch.nn.functional as F
from torch import Tensor

from manifold_resnet.functional._native import Geometry


def _taps(count: int, kernel: int, stride: int, dilation: int) -> Iterator[slice]:
    """For each pixel of a kernel, where in a padded dimension the first `count` windows look."""
    return (slice(j * dilation, j * dilation + (count - 1) * stride + 1, stride) for j in range(kernel))


def window_sum(x: Tensor, count: Sequence[int], kernel: Sequence[int], geometry: Geometry) -> Tensor:
    """Sum over each of the first `count` windows per spatial dimension."""
    strides, paddings, dilations = geometry
    if any(paddings):
        x = F.pad(x, [p for p in reversed(paddings) for _ in range(2)])
    for i, (n, k, s, d) in enumerate(zip(count, kernel, strides, dilations, strict=True)):
        dims = (slice(None),) * (2 + i)
        terms = [x[(*dims, tap)] for tap in _taps(n, k, s, d)]
        x = sum(terms[1:], terms[0])
    return x


def window_sum_adjoint(x: Tensor, size: Sequence[int], kernel: Sequence[int], geometry: Geometry) -> Tensor:
    """From the windows back to an image of `size`: each pixel gets the sum over the windows it is in."""
    for i, (n, k, s, p, d) in enumerate(zip(size, kernel, *geometry, strict=True)):
        spread = x
        if k > 1 or s > 1:
            dims = (slice(None),) * (2 + i)
            shape = list(x.shape)
            shape[2 + i] = n + 2 * p
            spread = x.new_zeros(shape)
            for tap in _taps(x.shape[2 + i], k, s, d):
                spread[(*dims, tap)] += x
        x = spread.narrow(2 + i, p, n)
    return x
