r"""The forward pass of the code published with the paper, to check old results with.

It differs from the mathematics, and from this package, in five ways:

- Distances to hyperplanes use :math:`2(1 - c\|x\|^2)` as the conformal factor; it is :math:`2/(1 - c\|x\|^2)`.
- Residual connections take rows of an image, its width, as points: exponential map, Möbius sum and logarithm run along
  the last dimension, not the channels.
- Norms use the statistics of the batch in evaluation too, so an image's logits depend on the others in its batch.
- Features are pooled by the plain mean of tangent vectors over 8 x 8 pixels, not by the midpoint.
- Between layers points are clipped where geoopt clips them, at a distance of about :math:`6.2/\sqrt{c}` in float32 and
  :math:`12.2/\sqrt{c}` in float64.

Logits are tangent coordinates of the classifier's output. The gradients here are those of this forward pass, as
autograd and our operations derive them; the published code's gradient for c is another one.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from manifold_resnet.functional import beta_ratio, convert, midpoint_batch_norm, mobius_residual
from manifold_resnet.functional._checks import curvature
from manifold_resnet.functional.charts import _GEOOPT_EPS
from manifold_resnet.nn import PoincareBatchNorm2d, PoincareConv2d, PoincareLinear, PoincareMLR

if TYPE_CHECKING:
    from manifold_resnet.models.blocks import PoincareBlock
    from manifold_resnet.models.hyperbolic import PoincareResNet

COMPAT = ("authors",)
EPS = 1e-6  # of their norms


def check_compat(compat: str | None, **options: tuple[object, object]) -> None:
    """Raise a ValueError unless `compat` is known and every option, a pair of given and needed, is as it must be."""
    if compat is None:
        return
    if compat not in COMPAT:
        raise ValueError(f"compat must be None or {COMPAT[0]!r}, got {compat!r}")
    for name, (given, needed) in options.items():
        if given != needed:
            raise ValueError(
                f"compat={compat!r} needs {name}={needed!r}, got {given!r}: create the model with variant='paper'"
            )


def _to_hyperplanes(inner: Tensor, square: Tensor, normal: Tensor, bias: Tensor | None, c: Tensor) -> Tensor:
    """Tangent vectors at the origin of a fully connected layer's output, along dimension 1.

    `inner` are the products of tangent vectors of squared norm `square` with normals of length `normal`.
    """
    root = c.sqrt()
    norm = square.clamp_min(1e-30).sqrt()
    on_ball = (root * norm).tanh().clamp_max(1 - _GEOOPT_EPS[inner.dtype]) / root
    factor = 2 * (1 - c * on_ball * on_ball)
    shape = (-1, *[1] * (inner.ndim - 2))
    normal = normal.view(shape).clamp_min(1e-15)
    offset = 0.0 * normal if bias is None else 2 * root * bias.view(shape)
    q = root * factor * (on_ball / norm) * inner / normal * offset.cosh() - (factor - 1) * offset.sinh()
    h = (2 * normal * q.asinh()).sinh()
    return convert(convert(h, "hyperboloid", "ball", c=c, dim=1), "ball", "tangent", c=c, dim=1)


def _convolution(layer: PoincareConv2d, u: Tensor) -> Tensor:
    u = u * beta_ratio(layer.in_channels, math.prod(layer.kernel_size))
    normals = layer.normals()
    inner = F.conv2d(u, normals, None, layer.stride, layer.padding)
    square = F.conv2d(
        (u * u).sum(1, keepdim=True), u.new_ones(1, 1, *layer.kernel_size), None, layer.stride, layer.padding
    )
    return _to_hyperplanes(inner, square, normals.flatten(1).norm(dim=1), layer.bias, curvature(layer.c, u))


def fully_connected(layer: PoincareLinear | PoincareMLR, u: Tensor) -> Tensor:
    """Tangent vectors at the origin ``(batch, in)`` through the published code's fully connected layer, and back."""
    normals = layer.normals()
    square = (u * u).sum(1, keepdim=True)
    return _to_hyperplanes(u @ normals.t(), square, normals.norm(dim=1), layer.bias, curvature(layer.c, u))


def _norm(layer: PoincareBatchNorm2d, u: Tensor) -> Tensor:
    x = convert(u, "tangent", "ball", c=layer.c, dim=1)
    x = midpoint_batch_norm(
        x, gain=layer.gain(), center=layer.bias, c=layer.c, about=layer.mean, scale="scalar", eps=EPS, dim=1
    )
    return convert(x, "ball", "tangent", c=layer.c, dim=1)


def _block(block: PoincareBlock, u: Tensor) -> Tensor:
    relu = nn.Identity() if block.relu is None else F.relu
    v = relu(_norm(block.bn1, _convolution(block.conv1, u)))
    v = _norm(block.bn2, _convolution(block.conv2, v))
    shortcut = u if block.downsample is None else _convolution(block.downsample, u)
    c = block.residual.c
    v, shortcut = (convert(t, "tangent", "ball", c=c, dim=-1) for t in (v, shortcut))
    return relu(mobius_residual(v, shortcut, c=c, dim=-1, order=block.residual.order, out_chart="tangent"))


def features(model: PoincareResNet, images: Tensor) -> Tensor:
    """Pooled features as the published code has them: tangent vectors at the origin ``(batch, channels)``.

    Raises
    ------
    ValueError
        If the published code does not take images of that size.
    """
    height, width = images.shape[2:]
    if height % 4 or width % 4 or not (32 <= height < 64 and 32 <= width < 64):
        raise ValueError(
            f"the published code takes images of 32 to 60 pixels, a multiple of 4, got {height} x {width}: "
            f"resize them, or leave compat out"
        )
    relu = nn.Identity() if model.relu is None else F.relu
    u = relu(_norm(model.bn, _convolution(model.conv, images)))
    for group in model.groups:
        for block in group:
            u = _block(block, u)  # type: ignore[arg-type]
    return F.avg_pool2d(u, 8).flatten(1)
