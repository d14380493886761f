"""Poincaré residual network for images: everything from the pixels to the logits on the ball."""

from __future__ import annotations

from typing import Literal

import geoopt
from torch import Tensor, nn

from manifold_resnet.functional._checks import Chart
from manifold_resnet.functional.batch_norm import Mean, Scale
from manifold_resnet.nn import (
    ExpMap0,
    PoincareAdaptiveAvgPool2d,
    PoincareBatchNorm2d,
    PoincareConv2d,
    PoincareLinear,
    PoincareMLR,
    PoincareReLU,
    PoincareResidual,
)
from manifold_resnet.nn.hyperplanes import WeightOn


class PoincareBlock(nn.Module):
    """Two convolutions with norms, added to the input with a Möbius residual connection, and a tangent ReLU.

    Between blocks, points travel as tangent vectors at the origin.

    Parameters
    ----------
    conv1, conv2 : PoincareConv2d
        The convolutions.
    bn1, bn2 : PoincareBatchNorm2d
        Their norms.
    residual : PoincareResidual
        The connection.
    relu : PoincareReLU or None
        The activation.
    downsample : PoincareConv2d or None
        What the shortcut goes through where the shape changes.
    """

    def __init__(
        self,
        conv1: PoincareConv2d,
        bn1: PoincareBatchNorm2d,
        conv2: PoincareConv2d,
        bn2: PoincareBatchNorm2d,
        residual: PoincareResidual,
        relu: PoincareReLU | None,
        downsample: PoincareConv2d | None,
    ) -> None:
        super().__init__()
        self.conv1, self.bn1, self.conv2, self.bn2 = conv1, bn1, conv2, bn2
        self.residual, self.relu, self.downsample = residual, relu, downsample

    def forward(self, u: Tensor) -> Tensor:
        """Map tangent vectors at the origin ``(batch, in, H, W)`` to ``(batch, out, H_out, W_out)``."""
        relu = self.relu is not None
        h = self.conv1(u, in_chart="tangent", out_chart="hyperboloid")
        v = self.bn1(h, in_chart="hyperboloid", out_chart="tangent", relu=relu)
        h = self.conv2(v, in_chart="tangent", out_chart="hyperboloid")
        h = self.bn2(h, in_chart="hyperboloid", out_chart="hyperboloid")
        shortcut, chart = u, "tangent"
        if self.downsample is not None:
            shortcut, chart = self.downsample(u, in_chart="tangent", out_chart="hyperboloid"), "hyperboloid"
        return self.residual(h, shortcut, in_chart="hyperboloid", shortcut_chart=chart, out_chart="tangent", relu=relu)


class PoincareResNet(nn.Module):
    """Poincaré residual network of the CIFAR family (van Spengler et al. 2023, sec. 3 and 4).

    Images of pixels, taken as tangent vectors at the origin, are mapped onto the ball; a convolution, three groups of
    residual blocks (the second and third halve the image), midpoint pooling, and a hyperbolic classifier follow.

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
    ball : geoopt.PoincareBall
        The manifold, shared by all layers.
    residual : {"fr", "rf"}
        Order of the Möbius sum: ``f(x) (+) shortcut`` (the paper) or ``shortcut (+) f(x)``.
    activation : {"relu", None}
        Tangent ReLU or none.
    mean : {"midpoint", "frechet"}
        What the norms centre at.
    scale : {"channel", "scalar"}
        What the norms divide by, see `PoincareBatchNorm2d`.
    head : {"mlr", "fc"}
        Distances to hyperplanes, or the paper's fully connected layer with its output's tangent coordinates as logits.
    init : str
        Initialisation of the hyperplanes, see `manifold_resnet.nn.init`.
    weight_on : {"ball", "tangent"}
        Whether weights are ball points or tangent vectors.
    bias : bool
        Learn the hyperplanes' offsets.
    max_distance : float, optional
        Bound on the points' geodesic distance from the origin; None: ``DEFAULT_MAX_DISTANCE / sqrt(c)``.

    Raises
    ------
    ValueError
        If an option has an unknown value.
    """

    def __init__(
        self,
        widths: tuple[int, int, int],
        blocks: int,
        num_classes: int = 10,
        *,
        in_channels: int = 3,
        ball: geoopt.PoincareBall,
        residual: Literal["fr", "rf"] = "fr",
        activation: Literal["relu"] | None = "relu",
        mean: Mean = "midpoint",
        scale: Scale = "channel",
        head: Literal["mlr", "fc"] = "mlr",
        init: str = "gaussian",
        weight_on: WeightOn = "ball",
        bias: bool = True,
        max_distance: float | None = None,
    ) -> None:
        super().__init__()
        if activation not in ("relu", None):
            raise ValueError(f"activation must be 'relu' or None, got {activation!r}")
        if head not in ("mlr", "fc"):
            raise ValueError(f"head must be 'mlr' or 'fc', got {head!r}")
        self.ball = ball
        relu = PoincareReLU(ball=ball, dim=1) if activation == "relu" else None

        def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> PoincareConv2d:
            return PoincareConv2d(
                inputs, outputs, kernel, stride, kernel // 2,
                ball=ball, bias=bias, init=init, weight_on=weight_on, max_distance=max_distance,
            )  # fmt: skip

        def norm(channels: int) -> PoincareBatchNorm2d:
            return PoincareBatchNorm2d(channels, ball=ball, mean=mean, scale=scale, max_distance=max_distance)

        def block(inputs: int, outputs: int, stride: int) -> PoincareBlock:
            return PoincareBlock(
                conv(inputs, outputs, 3, stride),
                norm(outputs),
                conv(outputs, outputs, 3),
                norm(outputs),
                PoincareResidual(ball=ball, order=residual, max_distance=max_distance),
                relu,
                conv(inputs, outputs, 1, stride) if stride != 1 or inputs != outputs else None,
            )

        def group(inputs: int, outputs: int, stride: int) -> nn.Sequential:
            return nn.Sequential(*(block(outputs if i else inputs, outputs, 1 if i else stride) for i in range(blocks)))

        self.expmap0 = ExpMap0(ball=ball, dim=1, max_distance=max_distance)
        self.conv = conv(in_channels, widths[0], 3)
        self.bn = norm(widths[0])
        self.relu = relu
        self.group1 = group(widths[0], widths[0], 1)
        self.group2 = group(widths[0], widths[1], 2)
        self.group3 = group(widths[1], widths[2], 2)
        self.pool = PoincareAdaptiveAvgPool2d(1, ball=ball)
        if head == "mlr":
            self.fc: nn.Module = PoincareMLR(widths[2], num_classes, ball=ball, init=init, weight_on=weight_on)
        else:
            self.fc = PoincareLinear(
                widths[2], num_classes, ball=ball, init=init, weight_on=weight_on, max_distance=max_distance
            )
        self.in_channels, self.num_classes, self.head = in_channels, num_classes, head

    def features(self, images: Tensor, out_chart: Chart = "ball") -> Tensor:
        """The pooled points before the classifier.

        Parameters
        ----------
        images : Tensor
            ``(batch, in_channels, H, W)``, pixel values as tangent vectors at the origin (normalised images, say).
        out_chart : {"ball", "tangent", "hyperboloid"}
            Chart of the result.

        Returns
        -------
        Tensor
            Points ``(batch, widths[2])``.

        Raises
        ------
        ValueError
            If `images` does not have that shape.
        """
        if images.ndim != 4 or images.shape[1] != self.in_channels:
            raise ValueError(
                f"images must have shape (batch, {self.in_channels}, H, W), got {tuple(images.shape)}: "
                f"create the model with in_channels= the images' number of channels"
            )
        u = self.expmap0(images, out_chart="tangent")
        h = self.conv(u, in_chart="tangent", out_chart="hyperboloid")
        u = self.bn(h, in_chart="hyperboloid", out_chart="tangent", relu=self.relu is not None)
        u = self.group3(self.group2(self.group1(u)))
        return self.pool(u, in_chart="tangent", out_chart=out_chart).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(batch, in_channels, H, W)`` to logits ``(batch, num_classes)``."""
        u = self.features(images, out_chart="tangent")
        if self.head == "mlr":
            return self.fc(u, in_chart="tangent")
        return self.fc(u, in_chart="tangent", out_chart="tangent")
