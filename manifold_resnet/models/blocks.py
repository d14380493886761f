"""Residual blocks of Poincaré networks."""

from __future__ import annotations

from torch import Tensor, nn

from manifold_resnet.functional._checks import Chart
from manifold_resnet.nn import PoincareBatchNorm2d, PoincareConv2d, PoincareReLU, PoincareResidual


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
    downsample_norm : PoincareBatchNorm2d or None
        The norm after that.
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
        downsample_norm: PoincareBatchNorm2d | None = None,
    ) -> None:
        super().__init__()
        self.conv1, self.bn1, self.conv2, self.bn2 = conv1, bn1, conv2, bn2
        self.residual, self.relu = residual, relu
        self.downsample, self.downsample_norm = downsample, downsample_norm

    @property
    def layers(self) -> list[tuple[PoincareConv2d, PoincareBatchNorm2d]]:
        """The convolutions, each with its norm, in order; the shortcut's are not among them."""
        return [(self.conv1, self.bn1), (self.conv2, self.bn2)]

    def _shortcut(self, u: Tensor) -> tuple[Tensor, Chart]:
        if self.downsample is None:
            return u, "tangent"
        h = self.downsample(u, in_chart="tangent", out_chart="hyperboloid")
        if self.downsample_norm is not None:
            h = self.downsample_norm(h, in_chart="hyperboloid", out_chart="hyperboloid")
        return h, "hyperboloid"

    def forward(self, u: Tensor) -> Tensor:
        """Map tangent vectors at the origin ``(batch, in, H, W)`` to ``(batch, out, H_out, W_out)``."""
        relu = self.relu is not None
        *inner, (last, last_norm) = self.layers
        v = u
        for conv, norm in inner:
            h = conv(v, in_chart="tangent", out_chart="hyperboloid")
            v = norm(h, in_chart="hyperboloid", out_chart="tangent", relu=relu)
        h = last(v, in_chart="tangent", out_chart="hyperboloid")
        h = last_norm(h, in_chart="hyperboloid", out_chart="hyperboloid")
        shortcut, chart = self._shortcut(u)
        return self.residual(h, shortcut, in_chart="hyperboloid", shortcut_chart=chart, out_chart="tangent", relu=relu)


class PoincareBottleneck(PoincareBlock):
    """Three convolutions with norms, 1x1, 3x3 and 1x1 (He et al. 2016, sec. 4.1); otherwise as `PoincareBlock`.

    Parameters
    ----------
    conv1, conv2, conv3 : PoincareConv2d
        The convolutions.
    bn1, bn2, bn3 : PoincareBatchNorm2d
        Their norms.
    residual, relu, downsample, downsample_norm
        As of `PoincareBlock`.
    """

    def __init__(
        self,
        conv1: PoincareConv2d,
        bn1: PoincareBatchNorm2d,
        conv2: PoincareConv2d,
        bn2: PoincareBatchNorm2d,
        conv3: PoincareConv2d,
        bn3: PoincareBatchNorm2d,
        residual: PoincareResidual,
        relu: PoincareReLU | None,
        downsample: PoincareConv2d | None,
        downsample_norm: PoincareBatchNorm2d | None = None,
    ) -> None:
        super().__init__(conv1, bn1, conv2, bn2, residual, relu, downsample, downsample_norm)
        self.conv3, self.bn3 = conv3, bn3

    @property
    def layers(self) -> list[tuple[PoincareConv2d, PoincareBatchNorm2d]]:
        """The convolutions, each with its norm, in order; the shortcut's are not among them."""
        return [*super().layers, (self.conv3, self.bn3)]
