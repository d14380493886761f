r"""Poincaré convolution, as one ordinary convolution and elementwise work on radial scalars.

The receptive field of an output pixel is the beta-concatenation of its ``k`` pixels of ``n`` channels: their tangent
vectors, side by side, times :math:`s = B(kn/2, 1/2)/B(n/2, 1/2)`. A fully connected layer acts on it. Since that
layer needs only the inner products with the hyperplane normals and the norm of the concatenated vector, no patch is
ever materialised: the inner products are a convolution, the squared norm is a box filter over the pixels' squared
norms.

References
----------
.. [1] Shimizu, Mukuta, Harada: Hyperbolic neural networks++. ICLR 2021, sec. 3.3 and 3.4.
.. [2] van Spengler, Berkhout, Mettes: Poincaré ResNet. ICCV 2023, sec. 3.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from scipy.special import beta
from torch import Tensor

from manifold_resnet.functional._checks import (
    Chart,
    check_chart,
    check_max_distance,
    curvature,
    full_precision,
)
from manifold_resnet.functional.charts import convert
from manifold_resnet.functional.linear import (
    _hyperplanes_op,
    check_offsets,
    check_same_dtype,
    squared_norm,
    unit_normals,
)

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@torch.compiler.assume_constant_result
def beta_ratio(channels: int, pixels: int) -> float:
    r"""Factor :math:`s = B(kn/2, 1/2)/B(n/2, 1/2)` of the beta-concatenation of ``k`` pixels of ``n`` channels each.

    Parameters
    ----------
    channels : int
        Channels ``n`` of one pixel.
    pixels : int
        Pixels ``k`` in the receptive field.

    Returns
    -------
    float
        About ``1/sqrt(k)``: keeps the expected norm of a concatenation at that of its parts.

    Notes
    -----
    [1]_, sec. 3.3.
    """
    return float(beta(pixels * channels / 2, 0.5) / beta(channels / 2, 0.5))


def _per_dim(value: int | Sequence[int], spatial: int, name: str, least: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, Sequence) else (value,) * spatial
    if len(values) != spatial or any(not isinstance(v, int) or v < least for v in values):
        raise ValueError(f"{name} must be an integer >= {least} or {spatial} of them, got {value!r}")
    return values


def _paddings(
    padding: int | str | Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> list[tuple[int, int]]:
    """Pixels added before and after, per spatial dimension."""
    if padding == "valid":
        return [(0, 0)] * len(kernel)
    if padding == "same":
        if any(s != 1 for s in stride):
            raise ValueError(f"padding='same' needs stride 1, got {tuple(stride)}")
        total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return [(t // 2, t - t // 2) for t in total]
    if isinstance(padding, str):
        raise ValueError(f"padding must be 'same', 'valid' or integers, got {padding!r}")
    return [(p, p) for p in _per_dim(padding, len(kernel), "padding", 0)]


def _box_sum(x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """Sum of each window, one dimension after the other."""
    for i, (k, s, d) in enumerate(zip(kernel, stride, dilation, strict=True)):
        dim = 2 + i
        size = (x.shape[dim] - d * (k - 1) - 1) // s + 1
        windows = [x.narrow(dim, j * d, (size - 1) * s + 1) for j in range(k)]
        if s > 1:
            index = (slice(None),) * dim + (slice(None, None, s),)
            windows = [w[index] for w in windows]
        x = sum(windows[1:], windows[0])
    return x


def poincare_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    *,
    c: Tensor | float,
    in_chart: Chart = "ball",
    out_chart: Chart = "ball",
    max_distance: float | None = math.inf,
) -> Tensor:
    r"""Poincaré convolution over as many spatial dimensions (1 to 3) as `weight` has. See `poincare_conv2d`."""
    spatial = weight.ndim - 2
    if spatial not in _CONV:
        raise ValueError(
            f"weight must have shape (out, in, *kernel) with 1 to 3 kernel dims, got {tuple(weight.shape)}"
        )
    if x.ndim != spatial + 2 or x.shape[1] != weight.shape[1]:
        raise ValueError(
            f"x must have shape (batch, {weight.shape[1]}, {', '.join('DHW'[-spatial:])}) to match weight of shape "
            f"{tuple(weight.shape)}, got {tuple(x.shape)}"
        )
    check_offsets(bias, weight.shape[0])
    check_chart(out_chart, "out_chart")
    check_max_distance(max_distance)
    kernel = tuple(weight.shape[2:])
    strides = _per_dim(stride, spatial, "stride", 1)
    dilations = _per_dim(dilation, spatial, "dilation", 1)
    paddings = _paddings(padding, kernel, strides, dilations)
    for size, k, d, (p, q) in zip(x.shape[2:], kernel, dilations, paddings, strict=True):
        if size + p + q < d * (k - 1) + 1:
            raise ValueError(
                f"kernel of size {kernel} with dilation {dilations} is larger than the padded input of spatial size "
                f"{tuple(x.shape[2:])}: use a larger image, or more padding"
            )

    x = full_precision(x)
    c = curvature(c, x)
    weight = full_precision(weight, "weight")
    check_same_dtype(x, weight)
    v = convert(x, in_chart, "tangent", c=c, dim=1)
    square = squared_norm(v, 1)
    sides = [side for pair in reversed(paddings) for side in pair]
    symmetric = all(p == q for p, q in paddings)
    if not symmetric:
        v = F.pad(v, sides)

    s = beta_ratio(weight.shape[1], math.prod(kernel))
    normals, norm = unit_normals(weight)
    inner = _CONV[spatial](v, s * normals, None, strides, [p for p, _ in paddings] if symmetric else 0, dilations)
    square = s * s * _box_sum(F.pad(square, sides) if any(sides) else square, kernel, strides, dilations)
    h = _hyperplanes_op(full_precision(inner), square, norm, bias, c, 1, True)
    return convert(h, "hyperboloid", out_chart, c=c, dim=1, max_distance=max_distance)


def poincare_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    *,
    c: Tensor | float,
    in_chart: Chart = "ball",
    out_chart: Chart = "ball",
    max_distance: float | None = math.inf,
) -> Tensor:
    r"""Poincaré 2D convolution: a Poincaré fully connected layer over the beta-concatenation of each window.

    Parameters
    ----------
    x : Tensor
        Images of points, ``(batch, in_channels, H, W)``, along dimension 1. Padded pixels are the origin.
    weight : Tensor
        Hyperplane normals, tangent vectors at the origin, ``(out_channels, in_channels, kH, kW)``.
    bias : Tensor, optional
        Signed offsets of the hyperplanes in tangent norm (half a distance), ``(out_channels,)``.
    stride, dilation : int or pair of int
        As ``torch.nn.functional.conv2d``.
    padding : int, pair of int, "same" or "valid"
        As ``torch.nn.functional.conv2d``.
    c : Tensor or float
        The curvature of the space is ``-c``.
    in_chart, out_chart : {"ball", "tangent", "hyperboloid"}
        Charts of the input and of the result.
    max_distance : float, optional
        Bound on the result's geodesic distance from the origin, see `convert`.

    Returns
    -------
    Tensor
        Images of points, ``(batch, out_channels, H_out, W_out)``. In the flat limit, twice the Euclidean convolution
        with ``s * weight``, where ``s`` is `beta_ratio`.

    Raises
    ------
    ValueError
        If shapes do not fit, a chart is unknown, or `c` or `max_distance` is not positive.

    Notes
    -----
    [1]_, sec. 3.4; [2]_, sec. 3.1. Under autocast the convolution runs in low precision, all else in float32.
    """
    if weight.ndim != 4:
        raise ValueError(f"weight must have shape (out, in, kH, kW), got {tuple(weight.shape)}")
    return poincare_conv(
        x, weight, bias, stride, padding, dilation,
        c=c, in_chart=in_chart, out_chart=out_chart, max_distance=max_distance,
    )  # fmt: skip
