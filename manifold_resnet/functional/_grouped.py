"""What convolutions with several groups and transposed convolutions add to `manifold_resnet.functional.conv`.

Each group has squared norms of its own. Where a convolution sums over the pixels of a window, a transposed one spreads
a pixel over the window: each is the other's adjoint.
"""

from __future__ import annotations

import torch
from torch import Tensor

from manifold_resnet.functional._autograd import differentiable
from manifold_resnet.functional._hyperplanes import hyperplane_points
from manifold_resnet.functional._native import Geometry
from manifold_resnet.functional._windows import window_sum, window_sum_adjoint
from manifold_resnet.functional.charts import bound


def _inner(
    v: Tensor,
    weight: Tensor,
    factor: float,
    geometry: Geometry,
    output_padding: tuple[int, ...] | None,
    groups: int,
    low: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Inner products with the kernels; per group, squared norms [B, G, ...] of what the kernels see, times `factor`.

    `weight` is in torch's layout, that of a transposed convolution where there is an `output_padding`.
    """
    strides, paddings, dilations = geometry
    transposed = output_padding is not None
    inner = torch.ops.aten.convolution.default(
        v.to(low), weight.to(low), None, strides, paddings, dilations, transposed, output_padding or [0] * len(strides),
        groups,
    )  # fmt: skip
    square = (v * v).unflatten(1, (groups, -1)).sum(2)
    sums = window_sum_adjoint if transposed else window_sum
    return inner, factor * sums(square, inner.shape[2:], weight.shape[2:], geometry)


def _inner_backward(
    grads: tuple[Tensor | None, Tensor | None],
    needs: tuple[bool, ...],
    v: Tensor,
    weight: Tensor,
    factor: float,
    geometry: Geometry,
    output_padding: tuple[int, ...] | None,
    groups: int,
    low: torch.dtype,
) -> tuple[Tensor | None, Tensor | None]:
    grad, grad_square = grads
    grad_v = grad_weight = None
    transposed = output_padding is not None
    if grad is not None and (needs[0] or needs[1]):
        strides, paddings, dilations = geometry
        grad_v, grad_weight, _ = torch.ops.aten.convolution_backward.default(
            grad, v.to(low), weight.to(low), None, strides, paddings, dilations, transposed,
            output_padding or [0] * len(strides), groups, [needs[0], needs[1], False],
        )  # fmt: skip
        grad_weight = None if grad_weight is None else grad_weight.to(weight.dtype)
        grad_v = None if grad_v is None else grad_v.to(v.dtype)
    if needs[0] and grad_square is not None:
        adjoint = window_sum if transposed else window_sum_adjoint
        along = adjoint(grad_square, v.shape[2:], weight.shape[2:], geometry).unsqueeze(2)
        by_square = (2 * factor * along * v.unflatten(1, (groups, -1))).reshape(v.shape)
        grad_v = by_square if grad_v is None else grad_v + by_square
    return grad_v, grad_weight


grouped_inner = differentiable(_inner, _inner_backward, tensors=2)


def grouped_points(
    inner: Tensor, square: Tensor, norm: Tensor, offset: Tensor | None, c: Tensor, limit: Tensor, far: Tensor
) -> Tensor:
    """`hyperplane_points` with squared norms ``[B, G, N]``, each for its share of the hyperplanes, in their order.

    `limit` bounds the point that all coordinates make together; `far` is the limit of what the number format can hold.
    """
    groups = square.shape[1]
    if groups == 1:
        return hyperplane_points(inner, square, norm, offset, c, limit)
    offsets = [None] * groups if offset is None else offset.chunk(groups)
    shares = zip(inner.chunk(groups, 1), square.chunk(groups, 1), norm.chunk(groups), offsets, strict=True)
    h = torch.cat([hyperplane_points(*share, c, far) for share in shares], 1)
    return bound(h, c, limit, "hyperboloid", dim=1)
