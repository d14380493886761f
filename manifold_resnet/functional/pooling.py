"""Average pooling by the Poincaré midpoint of each window."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from manifold_resnet.functional._autograd import differentiable
from manifold_resnet.functional._backend import native
from manifold_resnet.functional._checks import Chart, check_chart, curvature, full_precision
from manifold_resnet.functional.charts import _cap, _radial, _radial_backward, convert
from manifold_resnet.functional.midpoint import (
    _excess,
    _excess_backward,
    _normalise,
    _normalise_backward,
    normalise_mean,
    time_excess,
)

Size = int | tuple[int, int]


def _to(x: Tensor, c: Tensor, src: Chart, dst: Chart) -> Tensor:
    return x if src == dst else _radial(x, c, src, dst, math.inf, _cap(src, dst, x.dtype), 1, False)


def _to_backward(
    grad: Tensor, needs: tuple[bool, bool], x: Tensor, c: Tensor, src: Chart, dst: Chart
) -> tuple[Tensor | None, Tensor | None]:
    if src == dst:
        return grad, None
    return _radial_backward(grad, needs, x, c, src, dst, math.inf, _cap(src, dst, x.dtype), 1, False)


def _means(h: Tensor) -> tuple[Tensor, Tensor]:
    return h.mean(2, keepdim=True), _excess(h, 1).mean(2, keepdim=True)


def _midpoint(x: Tensor, c: Tensor, src: Chart, dst: Chart) -> Tensor:
    """Of ``[B, C, N]``: each image's midpoint ``[B, C, 1]``."""
    library = None if "ball" in (src, dst) else native(x, c)
    if library is not None:
        return library.midpoint(x, c, src == "tangent", dst == "tangent")
    mean, excess = _means(_to(x, c, src, "hyperboloid"))
    return _to(_normalise(mean, excess, 1), c, "hyperboloid", dst)


def _midpoint_backward(
    grad: Tensor, needs: tuple[bool, bool], x: Tensor, c: Tensor, src: Chart, dst: Chart
) -> tuple[Tensor | None, Tensor | None]:
    library = None if "ball" in (src, dst) else native(x, grad, c)
    if library is not None:
        grad_x, by_c = library.midpoint_backward(grad, x, c, src == "tangent", dst == "tangent")
        return grad_x, by_c.sum() if needs[1] and "tangent" in (src, dst) else None
    h = _to(x, c, src, "hyperboloid")
    mean, excess = _means(h)
    m = _normalise(mean, excess, 1)
    grad_m, by_c = _to_backward(grad, (True, needs[1]), m, c, "hyperboloid", dst)
    grad_mean, grad_excess = _normalise_backward(grad_m, (True, True), mean, excess, 1)
    (by_excess,) = _excess_backward(grad_excess, (True,), h, 1)
    grad_h = (grad_mean + by_excess) / x.shape[2]
    grad_x, more = _to_backward(grad_h, needs, x, c, src, "hyperboloid")
    return grad_x, more if by_c is None else by_c if more is None else by_c + more


_midpoint_op = differentiable(_midpoint, _midpoint_backward, tensors=2)


def _is_one(size: object) -> bool:
    sizes = size if isinstance(size, (tuple, list)) else (size, size)
    return len(sizes) == 2 and all(type(n) is int and n == 1 for n in sizes)


def _pool(
    x: Tensor, average: Callable[[Tensor], Tensor], c: Tensor | float, in_chart: Chart, out_chart: Chart
) -> Tensor:
    if x.ndim != 4:
        raise ValueError(f"x must have shape (batch, channels, H, W), got {tuple(x.shape)}")
    check_chart(out_chart, "out_chart")
    x = full_precision(x)
    c = curvature(c, x)
    h = convert(x, in_chart, "hyperboloid", c=c, dim=1)
    try:
        # averaging the time part minus one makes padded zeros the origin
        mean, excess = average(h), average(time_excess(h, 1))
    except RuntimeError as error:
        raise ValueError(f"cannot pool images of shape {tuple(x.shape)}: {error}") from None
    m = normalise_mean(mean, excess, 1)
    return convert(m, "hyperboloid", out_chart, c=c, dim=1)


def poincare_avg_pool2d(
    x: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    *,
    c: Tensor | float,
    in_chart: Chart = "ball",
    out_chart: Chart = "ball",
) -> Tensor:
    """Poincaré midpoint of each window of an image of points.

    Parameters
    ----------
    x : Tensor
        Images of points, ``(batch, channels, H, W)``, along dimension 1.
    kernel_size, stride, padding, ceil_mode
        As ``torch.nn.functional.avg_pool2d``.
    count_include_pad : bool
        Whether padded pixels count as points at the origin or are left out.
    c : Tensor or float
        The curvature of the space is ``-c``.
    in_chart, out_chart : {"ball", "tangent", "hyperboloid"}
        Charts of the input and of the result.

    Returns
    -------
    Tensor
        Images of points, ``(batch, channels, H_out, W_out)``.

    Raises
    ------
    ValueError
        If `x` is not four-dimensional, a chart is unknown or `c` is not positive.

    Examples
    --------
    >>> import torch
    >>> import manifold_resnet.functional as F
    >>> x = torch.full((1, 2, 4, 4), 0.5)  # sixteen times the same point
    >>> F.poincare_avg_pool2d(x, 2, c=1.0).unique()
    tensor([0.5000])
    >>> F.poincare_avg_pool2d(x, 2, c=1.0).shape
    torch.Size([1, 2, 2, 2])
    """

    def average(t: Tensor) -> Tensor:
        return F.avg_pool2d(t, kernel_size, stride, padding, ceil_mode, count_include_pad)

    return _pool(x, average, c, in_chart, out_chart)


def poincare_adaptive_avg_pool2d(
    x: Tensor,
    output_size: int | tuple[int | None, int | None],
    *,
    c: Tensor | float,
    in_chart: Chart = "ball",
    out_chart: Chart = "ball",
) -> Tensor:
    """Poincaré midpoint of each cell of a grid of `output_size` cells over an image of points.

    Parameters
    ----------
    x : Tensor
        Images of points, ``(batch, channels, H, W)``, along dimension 1.
    output_size
        As ``torch.nn.functional.adaptive_avg_pool2d``.
    c : Tensor or float
        The curvature of the space is ``-c``.
    in_chart, out_chart : {"ball", "tangent", "hyperboloid"}
        Charts of the input and of the result.

    Returns
    -------
    Tensor
        Images of points, ``(batch, channels, *output_size)``.

    Raises
    ------
    ValueError
        If `x` is not four-dimensional, a chart is unknown or `c` is not positive.

    Examples
    --------
    >>> import torch
    >>> import manifold_resnet.functional as F
    >>> x = torch.tensor([0.5, -0.5]).view(1, 1, 1, 2)  # one channel, two pixels
    >>> F.poincare_adaptive_avg_pool2d(x, 1, c=1.0).shape, F.poincare_adaptive_avg_pool2d(x, 1, c=1.0).item()
    (torch.Size([1, 1, 1, 1]), 0.0)
    """
    if _is_one(output_size) and x.ndim == 4 and x.shape[2:].numel() > 0:
        check_chart(in_chart, "in_chart")
        check_chart(out_chart, "out_chart")
        x = full_precision(x)
        return _midpoint_op(x.flatten(2), curvature(c, x), in_chart, out_chart).unsqueeze(3)
    return _pool(x, lambda t: F.adaptive_avg_pool2d(t, output_size), c, in_chart, out_chart)
