"""The Euclidean twin of the Poincaré residual network, and the twin with a hyperbolic classifier."""

from __future__ import annotations

from typing import Literal

import geoopt
import torch.nn.functional as F
from torch import Tensor, nn

from manifold_resnet.functional._checks import Chart
from manifold_resnet.models.compat import check_compat, fully_connected
from manifold_resnet.nn import ExpMap0, PoincareMLR
from manifold_resnet.nn.hyperplanes import WeightOn


class EuclideanBlock(nn.Module):
    """Basic residual block; where the shape changes, the shortcut goes through a 1x1 convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Conv2d(inputs, outputs, 1, stride) if stride != 1 or inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """Map features ``(batch, in, H, W)`` to ``(batch, out, H_out, W_out)``."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class EuclideanResNet(nn.Module):
    """The residual network of the CIFAR family with the structure of `PoincareResNet`, layer by layer.

    Parameters
    ----------
    widths : tuple of int
        Channels of the three groups.
    blocks : int
        Residual blocks per group; the depth is ``6 * blocks + 2``.
    num_classes : int
        Number of logits.
    in_channels : int
        Channels of the images.
    ball : geoopt.PoincareBall, optional
        If given, the classifier is hyperbolic: features, taken as tangent vectors at the origin, are mapped onto this
        ball, and the logits are distances to hyperplanes.
    init, weight_on, max_distance
        Of the hyperbolic classifier, see `PoincareMLR` and `ExpMap0`.
    compat : {None, "authors"}
        "authors" makes the hyperbolic classifier what it is in the code published with the paper: a fully connected
        layer with another conformal factor, its output's tangent coordinates as logits; see
        `manifold_resnet.models.compat`.

    Raises
    ------
    ValueError
        If an option has an unknown value.

    Examples
    --------
    >>> import torch
    >>> import manifold_resnet as mr
    >>> model = mr.models.EuclideanResNet((4, 6, 8), blocks=1, num_classes=5)
    >>> model(torch.zeros(2, 3, 16, 16)).shape
    torch.Size([2, 5])
    """

    def __init__(
        self,
        widths: tuple[int, int, int],
        blocks: int,
        num_classes: int = 10,
        *,
        in_channels: int = 3,
        ball: geoopt.PoincareBall | None = None,
        init: str = "gaussian",
        weight_on: WeightOn = "ball",
        max_distance: float | None = None,
        compat: Literal["authors"] | None = None,
    ) -> None:
        super().__init__()

        def group(inputs: int, outputs: int, stride: int) -> nn.Sequential:
            return nn.Sequential(
                *(EuclideanBlock(outputs if i else inputs, outputs, 1 if i else stride) for i in range(blocks))
            )

        self.conv = nn.Conv2d(in_channels, widths[0], 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(widths[0])
        self.group1 = group(widths[0], widths[0], 1)
        self.group2 = group(widths[0], widths[1], 2)
        self.group3 = group(widths[1], widths[2], 2)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
        if ball is None:
            self.expmap0: nn.Module = nn.Identity()
            self.fc: nn.Module = nn.Linear(widths[2], num_classes)
        else:
            self.expmap0 = ExpMap0(ball=ball, max_distance=max_distance)
            self.fc = PoincareMLR(widths[2], num_classes, ball=ball, init=init, weight_on=weight_on)
        self.in_channels, self.num_classes = in_channels, num_classes
        self.compat: Literal["authors"] | None = None
        self.set_compat(compat)

    def set_compat(self, compat: Literal["authors"] | None) -> None:
        """Compute from now on what the published code computes ("authors"), or what is right (None).

        Raises
        ------
        ValueError
            If `compat` is unknown.
        """
        check_compat(compat)
        self.compat = compat

    def features(self, images: Tensor, out_chart: Chart = "ball") -> Tensor:
        """Pooled features ``(batch, widths[2])`` before the classifier: points in `out_chart` if that is hyperbolic."""
        if images.ndim != 4 or images.shape[1] != self.in_channels:
            raise ValueError(
                f"images must have shape (batch, {self.in_channels}, H, W), got {tuple(images.shape)}: "
                f"create the model with in_channels= the images' number of channels"
            )
        x = F.relu(self.bn(self.conv(images)))
        x = self.group3(self.group2(self.group1(x)))
        x = x.mean((2, 3))
        return self.expmap0(x, out_chart=out_chart) if isinstance(self.expmap0, ExpMap0) else x

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(batch, in_channels, H, W)`` to logits ``(batch, num_classes)``."""
        if self.compat is not None and isinstance(self.fc, PoincareMLR):
            return fully_connected(self.fc, self.features(images, out_chart="tangent"))
        return self.fc(self.features(images))
