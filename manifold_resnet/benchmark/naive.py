"""A Poincaré residual network as the plain composition of geoopt calls, on the parameters of one of ours."""

from __future__ import annotations

import math
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from manifold_resnet.functional import DEFAULT_MAX_DISTANCE, naive
from manifold_resnet.models.blocks import PoincareBlock
from manifold_resnet.models.hyperbolic import PoincareResNet
from manifold_resnet.nn import PoincareBatchNorm2d, PoincareConv2d, PoincareMLR


class NaiveResNet(nn.Module):
    """The same function as a `PoincareResNet` in training, every layer from ball points to ball points.

    Parameters
    ----------
    model : PoincareResNet
        The default configuration of a network, whose parameters are shared.
    """

    def __init__(self, model: PoincareResNet) -> None:
        super().__init__()
        self.model = model

    @property
    def _bound(self) -> float:
        return DEFAULT_MAX_DISTANCE / math.sqrt(self.model.ball.c.item())

    def _conv(self, layer: PoincareConv2d, x: Tensor) -> Tensor:
        return naive.poincare_conv2d(
            x, layer.normals(), layer.bias, layer.stride, layer.padding, c=layer.c, max_distance=self._bound
        )

    def _norm(self, layer: PoincareBatchNorm2d, x: Tensor) -> Tensor:
        y = naive.midpoint_batch_norm(
            x, gain=layer.gain(), center=layer.bias, c=layer.c, scale=layer.scale, eps=layer.eps, dim=1
        )
        return naive.convert(y, "ball", "ball", c=layer.c, dim=1, max_distance=self._bound)

    def _max_pool(self, x: Tensor) -> Tensor:
        """Of each window of the stem's pooling, the point farthest from the origin."""
        distance = self.model.ball.dist0(x, dim=1, keepdim=True)
        index = F.max_pool2d(distance, 3, 2, 1, return_indices=True)[1]
        chosen = x.flatten(2).gather(2, index.flatten(2).expand(-1, x.shape[1], -1))
        return chosen.view(*x.shape[:2], *index.shape[2:])

    def _block(self, block: PoincareBlock, x: Tensor) -> Tensor:
        c = self.model.ball.c
        *inner, (last, last_norm) = block.layers
        y = x
        for conv, norm in inner:
            y = naive.poincare_relu(self._norm(norm, self._conv(conv, y)), c=c)
        y = self._norm(last_norm, self._conv(last, y))
        shortcut = x if block.downsample is None else self._conv(block.downsample, x)
        if block.downsample_norm is not None:
            shortcut = self._norm(block.downsample_norm, shortcut)
        y = naive.mobius_residual(y, shortcut, c=c, dim=1)
        return naive.poincare_relu(naive.convert(y, "ball", "ball", c=c, dim=1, max_distance=self._bound), c=c)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(batch, channels, H, W)`` to logits."""
        c = self.model.ball.c
        x = naive.convert(images, "tangent", "ball", c=c, dim=1, max_distance=self._bound)
        x = naive.poincare_relu(self._norm(self.model.bn, self._conv(self.model.conv, x)), c=c)
        if self.model.maxpool is not None:
            x = self._max_pool(x)
        for group in self.model.groups:
            for block in group:
                x = self._block(cast(PoincareBlock, block), x)
        x = naive.poincare_adaptive_avg_pool2d(x, 1, c=c).flatten(1)
        head = cast(PoincareMLR, self.model.fc)
        return naive.poincare_mlr(x, head.normals(), head.bias, c=c)
