"""Statistics of a batch that is spread over processes: sums, added up over the processes in both directions.

The sums of the points and their number give the joint mean, the sum of squares about it the joint variance, so the
result is that of one process with the whole batch. The gradients of what was added up are added up as well: then each
process gets the gradient of all processes' losses for its own points.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from manifold_resnet.functional._autograd import differentiable
from manifold_resnet.functional._channel_norm import (
    _center,
    _center_backward,
    _channels,
    _input_backward,
    _second_moment,
    mean_of_sums,
)
from manifold_resnet.functional._checks import as_pixels, other_dims
from manifold_resnet.functional._rescale import variance_about
from manifold_resnet.functional.midpoint import time_excess


class _SumOverProcesses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _SumOverProcesses.apply(grad, ctx.group), None


def is_spread(group: dist.ProcessGroup | None) -> bool:
    """Whether there are several processes to add up over."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1


def _squares(h: Tensor, m: Tensor, c: Tensor) -> Tensor:
    m = _channels(m)
    return _second_moment(h, m, *_center(h, m, c)).sum(0)


def _squares_backward(
    grad: Tensor, needs: tuple[bool, ...], h: Tensor, m: Tensor, c: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    m = _channels(m)
    xi, log = _center(h, m, c)
    # the squares alone: nothing comes from the standardised vectors, whose place h takes
    terms = h, h, m, xi, log, torch.zeros_like(m), _channels(2 * grad)
    by_h, by_m, _, grad_m, c_by_log = _center_backward(*terms, c)
    grad_h = _input_backward(*terms, by_h, by_m, torch.zeros_like(m))
    return grad_h, grad_m, -0.5 / c * c_by_log.sum()


sum_of_squares = differentiable(_squares, _squares_backward, tensors=3)
"""Sums ``[C]`` of the squared coordinates of points ``[B, C, N]`` as tangent vectors at a mean ``[C]``."""


def joint_statistics(
    h: Tensor, c: Tensor, *, scale: str, dim: int, group: dist.ProcessGroup | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Statistics of points in the hyperboloid chart over all processes of a group, all of which must call this.

    Returns
    -------
    mean : Tensor
        ``[C]``, in the hyperboloid chart.
    variance : Tensor
        0-d or ``[C]``, by the kind of scale.
    sums : Tensor
        ``[C + 1]``, see `batch_mean`.
    count : Tensor
        0-d, float64: the number of points. Where it is zero, so are the statistics.
    """
    count = h.numel() // h.shape[dim]
    sums = torch.cat([h.sum(other_dims(h, dim)), time_excess(h, dim).sum().reshape(1), h.new_full((1,), count)])
    # in float64: float32 cannot count beyond 2^24
    sums = _SumOverProcesses.apply(sums.double(), group)
    total = sums[-1].detach()
    sums = (sums[:-1] / total.clamp_min(1)).to(h.dtype)
    mean = mean_of_sums(sums)
    if scale == "channel":
        squares = sum_of_squares(as_pixels(h, dim), mean, c)
    elif count:
        squares = count * variance_about(h, mean, c, dim)
    else:  # takes part in the backward pass all the same
        squares = 0 * mean.sum()
    variance = (_SumOverProcesses.apply(squares.double(), group) / total.clamp_min(1)).to(h.dtype)
    return mean, variance, sums, total
