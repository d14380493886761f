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
from functools import lru_cache

import torch
import torch.nn.functional as F
from scipy.special import beta
from torch import Tensor

from manifold_resnet.functional._autograd import differentiable, reshaped
from manifold_resnet.functional._backend import kernel, native, transformed
from manifold_resnet.functional._checks import (
    Chart,
    as_pixels,
    check_chart,
    check_max_distance,
    curvature,
    full_precision,
)
from manifold_resnet.functional._grouped import grouped_inner, grouped_points
from manifold_resnet.functional._hyperplanes import (
    _directions,
    _directions_backward,
    _hyperplanes,
    _hyperplanes_backward,
    hyperplane_normals,
)
from manifold_resnet.functional._native import Geometry, Library, window
from manifold_resnet.functional._windows import window_sum
from manifold_resnet.functional._windows import window_sum_adjoint as _box_sum_adjoint
from manifold_resnet.functional.charts import convert, squared_limit
from manifold_resnet.functional.linear import check_offsets, check_same_dtype

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def _low_precision(v: Tensor) -> torch.dtype:
    """What autocast wants convolutions to run in; it leaves float64 alone."""
    autocast = v.dtype == torch.float32 and torch.is_autocast_enabled(v.device.type)
    return torch.get_autocast_dtype(v.device.type) if autocast else v.dtype


@torch.compiler.assume_constant_result
def beta_ratio(channels: int, pixels: float) -> float:
    r"""Factor :math:`s = B(kn/2, 1/2)/B(n/2, 1/2)` of the beta-concatenation of ``k`` pixels of ``n`` channels each.

    Parameters
    ----------
    channels : int
        Channels ``n`` of one pixel.
    pixels : float
        Pixels ``k`` in the receptive field; an average number of them need not be whole.

    Returns
    -------
    float
        About ``1/sqrt(k)``: keeps the expected norm of a concatenation at that of its parts.

    Notes
    -----
    [1]_, sec. 3.3.

    Examples
    --------
    >>> import manifold_resnet.functional as F
    >>> print(f"{F.beta_ratio(channels=16, pixels=9):.4f}")  # about 1/sqrt(9)
    0.3287
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


def _box_sum(x: Tensor, kernel: Sequence[int], geometry: Geometry) -> Tensor:
    """Sum over each window."""
    sizes = zip(x.shape[2:], kernel, *geometry, strict=True)
    count = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes]
    return window_sum(x, count, kernel, geometry)


@kernel
def _square(v: Tensor) -> Tensor:
    return (v * v).sum(1, keepdim=True)


def _patch_squares(v: Tensor, kernel: Sequence[int], factor: float, geometry: Geometry) -> Tensor:
    """The patches' squared norms times `factor`."""
    square = _square(v.flatten(2)).view(v.shape[0], 1, *v.shape[2:])
    return factor * _box_sum(square, kernel, geometry)


def _product_gradients(
    grad: Tensor, needs: tuple[bool, bool], v: Tensor, weight: Tensor, geometry: Geometry, low: torch.dtype
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients for images and kernels by the inner products."""
    strides, paddings, dilations = geometry
    images, kernels = v.to(low), weight.to(low)
    # with few channels oneDNN is up to twice as fast if they come last
    last = needs[0] and v.ndim == 4 and v.shape[1] < 16 and v.is_cpu and v.is_contiguous() and not transformed()
    if last:
        grad, images, kernels = (t.contiguous(memory_format=torch.channels_last) for t in (grad, images, kernels))
    grad_v, grad_weight, _ = torch.ops.aten.convolution_backward.default(
        grad.to(low), images, kernels, None, strides, paddings, dilations, False, [0] * len(strides), 1,
        [*needs, False],
    )  # fmt: skip
    if last and grad_v is not None:
        grad_v = grad_v.contiguous()
    return None if grad_v is None else grad_v.to(v.dtype), None if grad_weight is None else grad_weight.to(weight.dtype)


def _patches_backward(
    grad: Tensor,
    grad_square: Tensor,
    needs: tuple[bool, bool],
    v: Tensor,
    weight: Tensor,
    factor: float,
    geometry: Geometry,
    low: torch.dtype,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients for images and kernels by the inner products and by `_patch_squares`."""
    grad_v, grad_weight = _product_gradients(grad, needs, v, weight, geometry, low)
    if grad_v is None:
        return None, grad_weight
    along = _box_sum_adjoint(grad_square, v.shape[2:], weight.shape[2:], geometry)
    add = grad_v.addcmul if torch.is_grad_enabled() else grad_v.addcmul_
    return add(along, v, value=2 * factor), grad_weight


def _convolution(
    v: Tensor,
    weight: Tensor,
    offset: Tensor | None,
    c: Tensor,
    limit: Tensor,
    scale: float | None,
    s: float,
    kernel: tuple[int, ...],
    geometry: Geometry,
    low: torch.dtype,
) -> tuple[Tensor, ...]:
    """The points, and what the backward pass needs beside them: excess, slope, squares, directions and lengths.

    `weight` may be flat; `kernel` has its sizes in space.
    """
    library = native(v, weight, offset, c, limit) if v.ndim < 5 else None
    if library is not None:
        directions, norm, square = library.convolution_inputs(v, weight, c, scale, s, _span(v, kernel, geometry))
    else:
        directions, norm = _directions(weight, c, scale, s)
        square = _patch_squares(v, kernel, s * s, geometry).flatten(2)
    directions = directions.view(weight.shape[0], -1, *kernel)
    inner = _CONV[v.ndim - 2](v.to(low), directions.to(low), None, *geometry)
    if library is not None:
        return *library.hyperplanes(inner, square, norm, offset, c, limit, is_input=False), square, directions, norm
    h, excess, slope = _hyperplanes(inner.flatten(2), square, norm, offset, c, limit, is_input=False)
    return reshaped(h, inner.shape), excess, slope, square, directions, norm


def _span(v: Tensor, kernel: tuple[int, ...], geometry: Geometry) -> tuple[int, ...]:
    return window(tuple(v.shape[2:]), kernel, geometry)


def _native_gradients(
    library: Library,
    grad: Tensor,
    needs: tuple[bool, ...],
    v: Tensor,
    weight: Tensor,
    offset: Tensor | None,
    c: Tensor,
    limit: Tensor,
    h: Tensor,
    excess: Tensor,
    slope: Tensor,
    square: Tensor,
    directions: Tensor,
    norm: Tensor,
    scale: float | None,
    s: float,
    kernel: tuple[int, ...],
    geometry: Geometry,
    low: torch.dtype,
) -> tuple[Tensor | None, ...]:
    """`_convolution_backward` with the C++ kernels."""
    grad_inner, grad_square, grad_norm, grad_offset, grad_c = library.hyperplanes_backward(
        grad, h, excess, slope, square, norm, offset, c, limit, needs[3]
    )
    grad_v = grad_weight = None
    of_weight = needs[1] or needs[3]
    if needs[0] or of_weight:
        grad_v, grad_directions = _product_gradients(grad_inner, (needs[0], of_weight), v, directions, geometry, low)
        if grad_directions is not None:
            grad_directions = grad_directions.reshape(weight.shape)  # channels last, if the images are
        grad_v, grad_weight, more = library.convolution_gradients(
            grad_directions, grad_norm, grad_square, grad_v, v, weight, c, scale, s, _span(v, kernel, geometry)
        )
        if grad_c is not None and more is not None:
            grad_c = grad_c + more
    return grad_v, grad_weight, grad_offset, grad_c, None


def _convolution_backward(
    grads: tuple[Tensor | None, ...],
    needs: tuple[bool, ...],
    v: Tensor,
    weight: Tensor,
    offset: Tensor | None,
    c: Tensor,
    limit: Tensor,
    h: Tensor,
    excess: Tensor,
    slope: Tensor,
    square: Tensor,
    directions: Tensor,
    norm: Tensor,
    scale: float | None,
    s: float,
    kernel: tuple[int, ...],
    geometry: Geometry,
    low: torch.dtype,
) -> tuple[Tensor | None, ...]:
    grad = grads[0]
    library = None
    if grad is not None and grads[1] is None and not needs[4] and v.ndim < 5:
        library = native(v, grad, weight, offset, c, limit)
    if grad is not None and library is not None:
        return _native_gradients(
            library, grad, needs, v, weight, offset, c, limit, h, excess, slope, square, directions, norm, scale, s,
            kernel, geometry, low,
        )  # fmt: skip
    if torch.is_grad_enabled():  # a second derivative goes through these as well
        directions, norm = _directions(weight, c, scale, s)
        directions = directions.view(weight.shape[0], -1, *kernel)
        square = _patch_squares(v, kernel, s * s, geometry).flatten(2)
    grad_inner, grad_square, grad_norm, grad_offset, grad_c, grad_limit = _hyperplanes_backward(
        (None if grad is None else as_pixels(grad, 1), grads[1]), (True, True, needs[1] or needs[3], *needs[2:]), None,
        square, norm, offset, c, limit, h.flatten(2), excess, slope,
    )  # fmt: skip
    grad_v = grad_weight = None
    of_weight = needs[1] or needs[3]
    if grad_inner is not None and grad_square is not None and (needs[0] or of_weight):
        grad_v, grad_directions = _patches_backward(
            grad_inner.view(h.shape), grad_square.view(h.shape[0], 1, *h.shape[2:]), (needs[0], of_weight), v,
            directions, s * s, geometry, low,
        )  # fmt: skip
        if grad_directions is not None:
            grad_directions = grad_directions.reshape(weight.shape)  # channels last, if the images are
            grad_weight, more = _directions_backward((grad_directions, grad_norm), needs[1::2], weight, c, scale, s)
            grad_c = grad_c if grad_c is None or more is None else grad_c + more
    return grad_v, grad_weight, grad_offset, grad_c, grad_limit


_convolution_op = differentiable(_convolution, _convolution_backward, tensors=5, keep_outputs=True, auxiliary=4)


def check_images(x: Tensor, shape: Sequence[int], groups: int) -> int:
    """Check images and the `shape` of kernels, ``(out, in / groups, *kernel)``; the number of spatial dimensions.

    Raises
    ------
    ValueError
        If they do not fit.
    """
    spatial = len(shape) - 2
    if spatial not in _CONV:
        raise ValueError(f"weight must have shape (out, in, *kernel) with 1 to 3 kernel dims, got {tuple(shape)}")
    check_groups(groups, shape[1] * (groups if isinstance(groups, int) else 1), shape[0])
    if x.ndim != spatial + 2 or x.shape[1] != shape[1] * groups:
        raise ValueError(
            f"x must have shape (batch, {shape[1] * groups}, {', '.join('DHW'[-spatial:])}) to match weight of "
            f"shape {tuple(shape)}{f' and {groups} groups' if groups > 1 else ''}, got {tuple(x.shape)}"
        )
    return spatial


def check_groups(groups: int, inputs: int, outputs: int) -> None:
    """Raise a ValueError unless `groups` divides the numbers of channels."""
    if not isinstance(groups, int) or groups < 1:
        raise ValueError(f"groups must be a positive integer, got {groups!r}")
    if inputs % groups or outputs % groups:
        raise ValueError(
            f"groups must divide the numbers of input ({inputs}) and output ({outputs}) channels, got {groups}"
        )


def _is_plain(value: object) -> bool:
    """Whether equal values are the same to `_plan`: 2.0 is not 2."""
    return type(value) in (int, str) or (type(value) is tuple and all(type(n) is int for n in value))


@lru_cache(maxsize=1024)
def _plan(
    size: tuple[int, ...],
    shape: tuple[int, ...],
    stride: int | Sequence[int],
    padding: int | str | Sequence[int],
    dilation: int | Sequence[int],
) -> tuple[list[int] | None, Geometry, float]:
    """Checked arguments: what to pad with beforehand, if sides differ; the geometry; and the factor of beta_ratio."""
    spatial, kernel = len(shape) - 2, shape[2:]
    strides = _per_dim(stride, spatial, "stride", 1)
    dilations = _per_dim(dilation, spatial, "dilation", 1)
    paddings = _paddings(padding, kernel, strides, dilations)
    for n, k, d, (p, q) in zip(size, kernel, dilations, paddings, strict=True):
        if n + p + q < d * (k - 1) + 1:
            raise ValueError(
                f"kernel of size {kernel} with dilation {dilations} is larger than the padded input of spatial size "
                f"{size}: use a larger image, or more padding"
            )
    uneven = None
    if any(p != q for p, q in paddings):
        uneven = [side for pair in reversed(paddings) for side in pair]
        paddings = [(0, 0)] * spatial
    return uneven, (strides, tuple(p for p, _ in paddings), dilations), beta_ratio(shape[1], math.prod(kernel))


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int | Sequence[int],
    padding: int | str | Sequence[int],
    dilation: int | Sequence[int],
    groups: int = 1,
    *,
    c: Tensor | float,
    in_chart: Chart,
    max_distance: float | None,
    summands: int = 1,
    scale: float | None = None,
    shape: tuple[int, ...] | None = None,
) -> Tensor:
    """`poincare_conv` in the hyperboloid chart.

    `weight` may be flat if there is a `shape`. See `squared_limit` for `summands`, and `hyperplane_normals` for
    `scale`.
    """
    shape = tuple(weight.shape) if shape is None else shape
    check_images(x, shape, groups)
    check_offsets(bias, shape[0])
    arguments = tuple(x.shape[2:]), shape, stride, padding, dilation
    known = not torch.compiler.is_compiling() and all(map(_is_plain, arguments[2:]))
    paddings, geometry, s = _plan(*arguments) if known else _plan.__wrapped__(*arguments)

    x = full_precision(x)
    c = curvature(c, x)
    weight = full_precision(weight, "weight")
    check_same_dtype(x, weight)
    v = convert(x, in_chart, "tangent", c=c, dim=1)
    if paddings is not None:
        v = F.pad(v, paddings)
    if groups == 1:
        limit = squared_limit(c, v, max_distance, summands)
        return _convolution_op(v, weight, bias, c, limit, scale, s, shape[2:], geometry, _low_precision(v))[0]
    normals, norm = hyperplane_normals(weight.view(shape), c, scale, s)
    inner, square = grouped_inner(v, normals, s * s, geometry, None, groups, _low_precision(v))
    return points_of(inner, square, norm, bias, c, v, max_distance, summands)


def points_of(
    inner: Tensor,
    square: Tensor,
    norm: Tensor,
    bias: Tensor | None,
    c: Tensor,
    like: Tensor,
    max_distance: float | None,
    summands: int,
) -> Tensor:
    """From images of inner products [B, K, ...] and of the groups' squared norms [B, G, ...] to images of points."""
    limit = squared_limit(c, like, max_distance, summands)
    far = squared_limit(c, like, math.inf, summands) if square.shape[1] > 1 else limit
    return grouped_points(inner.flatten(2), square.flatten(2), norm, bias, c, limit, far).view(inner.shape)


def poincare_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    c: Tensor | float,
    in_chart: Chart = "ball",
    out_chart: Chart = "ball",
    max_distance: float | None = math.inf,
) -> Tensor:
    r"""Poincaré convolution over as many spatial dimensions (1 to 3) as `weight` has. See `poincare_conv2d`.

    Examples
    --------
    >>> import torch
    >>> import manifold_resnet.functional as F
    >>> x, weight = torch.full((2, 3, 8), 0.1), torch.full((4, 3, 5), 0.2)  # 1D: batch, channels, length
    >>> F.poincare_conv(x, weight, padding=2, c=1.0).shape
    torch.Size([2, 4, 8])
    """
    check_chart(out_chart, "out_chart")
    check_max_distance(max_distance)
    h = convolve(x, weight, bias, stride, padding, dilation, groups, c=c, in_chart=in_chart, max_distance=max_distance)
    return convert(h, "hyperboloid", out_chart, c=c, dim=1)


def poincare_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
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
        Hyperplane normals, tangent vectors at the origin, ``(out_channels, in_channels / groups, kH, kW)``.
    bias : Tensor, optional
        Signed offsets of the hyperplanes in tangent norm (half a distance), ``(out_channels,)``.
    stride, dilation : int or pair of int
        As ``torch.nn.functional.conv2d``.
    padding : int, pair of int, "same" or "valid"
        As ``torch.nn.functional.conv2d``.
    groups : int
        Divides both numbers of channels. Each group of output channels sees its group of input channels: that part of
        the pixels' tangent vectors at the origin counts as tangent vectors of ``in_channels / groups`` dimensions, also
        in ``s``. The coordinates of the output point are the signed distances of all groups.
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

    Examples
    --------
    >>> import torch
    >>> import manifold_resnet.functional as F
    >>> x = torch.tensor([0.3, 0.4]).view(1, 2, 1, 1).expand(1, 2, 3, 3)
    >>> kernel = torch.zeros(2, 2, 1, 1)
    >>> kernel[0, 1] = kernel[1, 0] = 0.5  # normals of length 1/2 along the axes, swapped: a reflection
    >>> F.poincare_conv2d(x, kernel, c=1.0)[0, :, 1, 1]
    tensor([0.4000, 0.3000])
    """
    if weight.ndim != 4:
        raise ValueError(f"weight must have shape (out, in, kH, kW), got {tuple(weight.shape)}")
    return poincare_conv(
        x, weight, bias, stride, padding, dilation, groups,
        c=c, in_chart=in_chart, out_chart=out_chart, max_distance=max_distance,
    )  # fmt: skip
