r"""Transposed Poincaré convolution: upsampling by one ordinary transposed convolution and radial scalars.

The window of an output pixel holds, for each tap of the kernel, the input pixel that the tap carries there, or the
origin if there is none: at the borders, and between pixels where the stride is larger than one. An output pixel is a
Poincaré fully connected layer over the beta-concatenation of its window. So it is a convolution with stride one and the
mirrored kernel of the input with ``stride - 1`` origins put between its pixels; but the concatenation's factor counts
pixels that reach an output pixel, not the origins in between. So that all output pixels are computed alike, it counts
their average number, :math:`k=\prod_i\max(k_i/s_i, 1)` for a kernel of :math:`k_i` pixels and a stride of :math:`s_i`
per dimension: the exact one away from the borders where the stride divides the kernel and no dilation interferes.

References
----------
.. [1] Shimizu, Mukuta, Harada: Hyperbolic neural networks++. ICLR 2021, sec. 3.3 and 3.4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from manifold_resnet.functional._checks import Chart, check_chart, check_max_distance, curvature, full_precision
from manifold_resnet.functional._grouped import grouped_inner
from manifold_resnet.functional._hyperplanes import hyperplane_normals
from manifold_resnet.functional.charts import convert
from manifold_resnet.functional.conv import _low_precision, _per_dim, beta_ratio, check_images, points_of
from manifold_resnet.functional.linear import check_offsets, check_same_dtype


def average_pixels(kernel: Sequence[int], stride: Sequence[int]) -> float:
    """How many input pixels reach an output pixel of a transposed convolution, on average; at least one."""
    pixels = 1.0
    for k, s in zip(kernel, stride, strict=True):
        pixels *= max(k / s, 1.0)
    return pixels


def check_output_padding(output_padding: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> None:
    """Raise a ValueError unless it is smaller than the stride or the dilation, as torch wants it."""
    if any(o >= max(s, d) for o, s, d in zip(output_padding, stride, dilation, strict=True)):
        raise ValueError(
            f"output_padding must be smaller than the stride {tuple(stride)} or the dilation {tuple(dilation)}, got "
            f"{tuple(output_padding)}"
        )


def _torch_layout(weight: Tensor, groups: int) -> Tensor:
    """From ``(out, in / groups, *kernel)`` to torch's layout for transposed convolutions, (in, out / groups, ...)."""
    return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)


def convolve_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    output_padding: int | Sequence[int],
    groups: int,
    dilation: int | Sequence[int],
    *,
    c: Tensor | float,
    in_chart: Chart,
    max_distance: float | None,
    summands: int = 1,
    scale: float | None = None,
) -> Tensor:
    """`poincare_conv_transpose` in the hyperboloid chart.

    See `squared_limit` for `summands`, and `hyperplane_normals` for `scale`.
    """
    spatial = check_images(x, weight.shape, groups)
    check_offsets(bias, weight.shape[0])
    kernel = tuple(weight.shape[2:])
    strides = _per_dim(stride, spatial, "stride", 1)
    paddings = _per_dim(padding, spatial, "padding", 0)
    outer = _per_dim(output_padding, spatial, "output_padding", 0)
    dilations = _per_dim(dilation, spatial, "dilation", 1)
    check_output_padding(outer, strides, dilations)
    size = [
        (n - 1) * s - 2 * p + d * (k - 1) + o + 1
        for n, k, s, p, d, o in zip(x.shape[2:], kernel, strides, paddings, dilations, outer, strict=True)
    ]
    if min(size) < 1:
        raise ValueError(
            f"padding {paddings} leaves no output of an input of spatial size {tuple(x.shape[2:])} with a kernel of "
            f"size {kernel}: use a larger image, or less padding"
        )

    x = full_precision(x)
    c = curvature(c, x)
    weight = full_precision(weight, "weight")
    check_same_dtype(x, weight)
    v = convert(x, in_chart, "tangent", c=c, dim=1)
    s = beta_ratio(weight.shape[1], average_pixels(kernel, strides))
    normals, norm = hyperplane_normals(weight, c, scale, s)
    inner, square = grouped_inner(
        v, _torch_layout(normals, groups), s * s, (strides, paddings, dilations), outer, groups, _low_precision(v)
    )
    return points_of(inner, square, norm, bias, c, v, max_distance, summands)


def poincare_conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
    *,
    c: Tensor | float,
    in_chart: Chart = "ball",
    out_chart: Chart = "ball",
    max_distance: float | None = math.inf,
) -> Tensor:
    r"""Transposed Poincaré convolution over as many spatial dimensions (1 to 3) as `weight` has.

    See `poincare_conv_transpose2d`.

    Examples
    --------
    >>> import torch
    >>> from manifold_resnet.functional import poincare_conv_transpose
    >>> x = torch.full((2, 3, 5), 0.1)
    >>> poincare_conv_transpose(x, torch.ones(4, 3, 2), stride=2, c=1.0).shape
    torch.Size([2, 4, 10])
    """
    check_chart(out_chart, "out_chart")
    check_max_distance(max_distance)
    h = convolve_transpose(
        x, weight, bias, stride, padding, output_padding, groups, dilation,
        c=c, in_chart=in_chart, max_distance=max_distance,
    )  # fmt: skip
    return convert(h, "hyperboloid", out_chart, c=c, dim=1)


def poincare_conv_transpose2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
    *,
    c: Tensor | float,
    in_chart: Chart = "ball",
    out_chart: Chart = "ball",
    max_distance: float | None = math.inf,
) -> Tensor:
    r"""Transposed Poincaré 2D convolution.

    An output pixel is a Poincaré fully connected layer over the beta-concatenation of its window: for each tap of the
    kernel the input pixel that the tap carries there, or the origin if there is none.

    Parameters
    ----------
    x : Tensor
        Images of points, ``(batch, in_channels, H, W)``, along dimension 1.
    weight : Tensor
        Hyperplane normals, tangent vectors at the origin, ``(out_channels, in_channels / groups, kH, kW)``: one row per
        output channel, as in `poincare_conv2d` (torch's weight has inputs first). Tap ``(i, j)`` carries input pixel
        ``(y, x)`` to output pixel ``(y * stride + i * dilation - padding, ...)``, as in torch.
    bias : Tensor, optional
        Signed offsets of the hyperplanes in tangent norm (half a distance), ``(out_channels,)``.
    stride, padding, output_padding, groups, dilation
        As ``torch.nn.functional.conv_transpose2d``. Groups as in `poincare_conv2d`.
    c : Tensor or float
        The curvature of the space is ``-c``.
    in_chart, out_chart : {"ball", "tangent", "hyperboloid"}
        Charts of the input and of the result.
    max_distance : float, optional
        Bound on the result's geodesic distance from the origin, see `convert`.

    Returns
    -------
    Tensor
        Images of points, ``(batch, out_channels, H_out, W_out)`` with ``H_out = (H - 1) * stride - 2 * padding +
        dilation * (kH - 1) + output_padding + 1``. In the flat limit, twice the Euclidean transposed convolution with
        ``s * weight``, where ``s`` is `beta_ratio` of ``in_channels / groups`` channels and of the average number
        ``max(kH / stride, 1) * max(kW / stride, 1)`` of input pixels that reach an output pixel. The length of a normal
        is that of its whole row, all taps. An output pixel that no input pixel reaches is the origin, but for the
        offsets.

    Raises
    ------
    ValueError
        If shapes do not fit, a chart is unknown, or `c` or `max_distance` is not positive.
    TypeError
        If `x` and `weight` have different dtypes.

    Notes
    -----
    [1]_, sec. 3.3 and 3.4. Under autocast the convolution runs in low precision, all else in float32.

    Examples
    --------
    >>> import torch
    >>> from manifold_resnet.functional import poincare_conv_transpose2d
    >>> x = torch.full((2, 3, 8, 8), 0.1)
    >>> poincare_conv_transpose2d(x, torch.ones(4, 3, 4, 4), stride=2, padding=1, c=1.0).shape
    torch.Size([2, 4, 16, 16])
    """
    if weight.ndim != 4:
        raise ValueError(f"weight must have shape (out, in, kH, kW), got {tuple(weight.shape)}")
    return poincare_conv_transpose(
        x, weight, bias, stride, padding, output_padding, groups, dilation,
        c=c, in_chart=in_chart, out_chart=out_chart, max_distance=max_distance,
    )  # fmt: skip
