"""Max pooling by distance from the origin: of each window, the farthest point.

Networks on the ball read a point's distance from the origin as evidence; the pool keeps the pixel that has most of it.
Points move as a whole: maxima coordinate by coordinate would make points that were not there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from manifold_resnet.functional._checks import Chart, check_chart, curvature, full_precision
from manifold_resnet.functional.charts import convert

_POOL: dict[int, Callable[..., Any]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
Size = int | Sequence[int]


def _max_pool(
    spatial: int,
    x: Tensor,
    kernel_size: Size,
    stride: Size | None,
    padding: Size,
    dilation: Size,
    ceil_mode: bool,
    return_indices: bool,
    c: Tensor | float,
    in_chart: Chart,
    out_chart: Chart,
) -> Tensor | tuple[Tensor, Tensor]:
    if x.ndim != spatial + 2:
        raise ValueError(f"x must have shape (batch, channels, {', '.join('DHW'[-spatial:])}), got {tuple(x.shape)}")
    check_chart(in_chart, "in_chart")
    check_chart(out_chart, "out_chart")
    x = full_precision(x)
    c = curvature(c, x)
    # in every chart, the norm grows with the distance
    square = (x.detach() * x.detach()).sum(1, keepdim=True)
    try:
        _, indices = _POOL[spatial](
            square, kernel_size, stride, padding, dilation, ceil_mode=ceil_mode, return_indices=True
        )
    except RuntimeError as error:
        raise ValueError(f"cannot pool images of shape {tuple(x.shape)}: {error}") from None
    which = indices.flatten(2)
    y = x.flatten(2).gather(2, which.expand(-1, x.shape[1], -1)).view(*x.shape[:2], *indices.shape[2:])
    y = convert(y, in_chart, out_chart, c=c, dim=1)
    return (y, indices) if return_indices else y


def poincare_max_pool2d(
    x: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    c: Tensor | float,
    in_chart: Chart = "ball",
    out_chart: Chart = "ball",
) -> Tensor | tuple[Tensor, Tensor]:
    """Of each window of an image of points, the point farthest from the origin.

    Parameters
    ----------
    x : Tensor
        Images of points, ``(batch, channels, H, W)``, along dimension 1.
    kernel_size, stride, padding, dilation, ceil_mode
        As ``torch.nn.functional.max_pool2d``. Padding is never chosen.
    return_indices : bool
        Also return which pixel each point was.
    c : Tensor or float
        The curvature of the space is ``-c``.
    in_chart, out_chart : {"ball", "tangent", "hyperboloid"}
        Charts of the input and of the result.

    Returns
    -------
    y : Tensor
        Images of points, ``(batch, channels, H_out, W_out)``: whole points of `x`, of equally far ones the first in
        reading order. The gradient goes to the points chosen.
    indices : Tensor
        Only with `return_indices`: ``(batch, 1, H_out, W_out)``, positions in ``x.flatten(2)``, as
        ``torch.nn.functional.max_unpool2d`` takes them after ``indices.expand_as(y)``.

    Raises
    ------
    ValueError
        If `x` is not four-dimensional or too small, a chart is unknown or `c` is not positive.

    Examples
    --------
    >>> import torch
    >>> from manifold_resnet.functional import poincare_max_pool2d
    >>> x = torch.tensor([[0.0, 0.3, 0.2, 0.0], [0.1, 0.3, 0.2, 0.4]]).view(1, 2, 1, 4)
    >>> poincare_max_pool2d(x, (1, 2), c=1.0)
    tensor([[[[0.3000, 0.0000]],
    <BLANKLINE>
             [[0.3000, 0.4000]]]])
    """
    return _max_pool(
        2, x, kernel_size, stride, padding, dilation, ceil_mode, return_indices, c, in_chart, out_chart
    )  # fmt: skip


def poincare_max_pool1d(
    x: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    c: Tensor | float,
    in_chart: Chart = "ball",
    out_chart: Chart = "ball",
) -> Tensor | tuple[Tensor, Tensor]:
    """Of each window of a sequence of points ``(batch, channels, L)``, the farthest one. See `poincare_max_pool2d`.

    Examples
    --------
    >>> import torch
    >>> from manifold_resnet.functional import poincare_max_pool1d
    >>> poincare_max_pool1d(torch.tensor([[[0.1, -0.3, 0.2]]]), 3, c=1.0)
    tensor([[[-0.3000]]])
    """
    return _max_pool(1, x, kernel_size, stride, padding, dilation, ceil_mode, return_indices, c, in_chart, out_chart)


def poincare_max_pool3d(
    x: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    c: Tensor | float,
    in_chart: Chart = "ball",
    out_chart: Chart = "ball",
) -> Tensor | tuple[Tensor, Tensor]:
    """Of each window of a volume of points ``(batch, channels, D, H, W)``, the farthest. See `poincare_max_pool2d`.

    Examples
    --------
    >>> import torch
    >>> from manifold_resnet.functional import poincare_max_pool3d
    >>> poincare_max_pool3d(torch.zeros(2, 3, 4, 4, 4), 2, c=1.0).shape
    torch.Size([2, 3, 2, 2, 2])
    """
    return _max_pool(3, x, kernel_size, stride, padding, dilation, ceil_mode, return_indices, c, in_chart, out_chart)
