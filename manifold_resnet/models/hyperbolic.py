"""Poincaré residual networks for images: everything from the pixels to the logits on the ball."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, cast

import geoopt
import torch
from torch import Tensor, nn

from manifold_resnet.functional import convert
from manifold_resnet.functional._checks import Chart, check_floating
from manifold_resnet.functional.batch_norm import Mean, Scale
from manifold_resnet.models.blocks import PoincareBlock, PoincareBottleneck
from manifold_resnet.models.compat import check_compat, fully_connected
from manifold_resnet.models.compat import features as authors_features
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
from manifold_resnet.nn.base import check_ball
from manifold_resnet.nn.hyperplanes import WeightOn
from manifold_resnet.nn.max_pool import PoincareMaxPool2d

Stem = Literal["small", "imagenet"]
Block = Literal["basic", "bottleneck"]


def default_branch_gain(blocks: int, init: str) -> float:
    """Gain of a block's second norm at first, relative to the other norms'.

    Every norm starts with points at the same distance, and every block adds that to its shortcut. Under the identity
    initialisation all branches point the way their shortcut does: 54 blocks take distances to five times those after
    the first. A gain of ``0.5/blocks`` keeps them within a factor of two at any depth, and learns better. Branches of
    random kernels add up more slowly; networks of depth 20 learn natural images faster with their full size, those of
    depth 56 digits with ``blocks**-0.5``, which holds distances, too: ``manifold-resnet ablate gain`` measures it.

    Parameters
    ----------
    blocks : int
        Residual blocks of the network.
    init : str
        Initialisation of the convolutions, see `manifold_resnet.nn.init`.

    Returns
    -------
    float
        The gain, 1 but for "identity".

    Examples
    --------
    >>> default_branch_gain(10, "identity"), default_branch_gain(10, "gaussian")
    (0.05, 1.0)
    """
    return 0.5 / blocks if init == "identity" else 1.0


class PoincareResNet(nn.Module):
    """Poincaré residual network (van Spengler et al. 2023, sec. 3 and 4).

    Images of pixels, taken as tangent vectors at the origin, are mapped onto the ball; a stem, groups of residual
    blocks (each but the first halves the image), midpoint pooling, and a hyperbolic classifier follow.

    Parameters
    ----------
    widths : sequence of int
        Channels of the groups: three in the CIFAR family, four in the ImageNet family.
    blocks : int or sequence of int
        Residual blocks of each group. With three groups of n basic blocks each, the depth is ``6n + 2``.
    num_classes : int
        Number of logits.
    stem : {"small", "imagenet"}
        "small" is a 3x3 convolution with norm and ReLU, as in the paper. "imagenet" is the stem of He et al. (CVPR
        2016): a 7x7 convolution of stride 2 with norm and ReLU, then 3x3 max pooling of stride 2 by distance from the
        origin; it also puts a norm after the convolution of shortcuts, as that family has it.
    block : {"basic", "bottleneck"}
        Two 3x3 convolutions; or 1x1, 3x3 and 1x1 with four times the group's channels coming out.
    in_channels : int
        Channels of the images.
    ball : geoopt.PoincareBall
        The manifold, shared by all layers; it runs along dimension 1 of images of points.
    residual : {"fr", "rf"}
        Order of the Möbius sum: ``f(x) (+) shortcut`` (the paper) or ``shortcut (+) f(x)``.
    activation : {"relu", None}
        Tangent ReLU or none.
    mean : {"midpoint", "frechet"}
        What the norms centre at.
    scale : {"channel", "scalar"}
        What the norms divide by, see `PoincareBatchNorm2d`.
    pooling : {"midpoint", "tangent"}
        What the features of an image are: the Poincaré midpoint of its pixels, or the mean of their tangent vectors at
        the origin.
    head : {"mlr", "fc"}
        Distances to hyperplanes, or the paper's fully connected layer with its output's tangent coordinates as logits.
    init : str
        Initialisation of the hyperplanes, see `manifold_resnet.nn.init`.
    weight_on : {"ball", "tangent"}
        Whether weights are ball points or tangent vectors.
    bias : bool
        Learn offsets of the convolutions' hyperplanes (the paper). The norms' centres take their place otherwise, as in
        torchvision's networks: offsets drift far for their size, and running statistics cannot follow them.
    norm_gain : float, optional
        Gain of the norms at first, relative to their own: the root mean square distance from its centre at which a norm
        puts points. None: 2, but no more than the ball's radius of curvature, ``1/sqrt(c)``. Logits grow with the
        distance of the pooled points, so that with small gains the classifier's normals have far to go.
    branch_gain : float, optional
        Gain of each block's last norm at first, relative to the other norms': how far, in units of `norm_gain`,
        a block moves its shortcut. None: 1, and under the identity initialisation 0.5 over the number of
        blocks, which keeps distances in range at any depth.
    max_distance : float, optional
        Bound on the points' geodesic distance from the origin; None: ``DEFAULT_MAX_DISTANCE / sqrt(c)``.
    compat : {None, "authors"}
        "authors" computes what the code published with the paper computes, to check old results with; see
        `manifold_resnet.models.compat`. Needs the options of ``variant="paper"``.

    Raises
    ------
    ValueError
        If an option has an unknown value, or `widths` and `blocks` do not go together.

    Examples
    --------
    >>> import geoopt, torch, manifold_resnet as mr
    >>> ball = geoopt.PoincareBall(c=0.1)
    >>> model = mr.models.PoincareResNet((4, 8), (1, 2), num_classes=5, in_channels=1, ball=ball)
    >>> model(torch.zeros(2, 1, 9, 9)).shape
    torch.Size([2, 5])
    """

    def __init__(
        self,
        widths: Sequence[int],
        blocks: int | Sequence[int],
        num_classes: int = 10,
        *,
        stem: Stem = "small",
        block: Block = "basic",
        in_channels: int = 3,
        ball: geoopt.PoincareBall,
        residual: Literal["fr", "rf"] = "fr",
        activation: Literal["relu"] | None = "relu",
        mean: Mean = "midpoint",
        scale: Scale = "channel",
        pooling: Literal["midpoint", "tangent"] = "midpoint",
        head: Literal["mlr", "fc"] = "mlr",
        init: str = "gaussian",
        weight_on: WeightOn = "ball",
        bias: bool = False,
        norm_gain: float | None = None,
        branch_gain: float | None = None,
        max_distance: float | None = None,
        compat: Literal["authors"] | None = None,
    ) -> None:
        super().__init__()
        if activation not in ("relu", None):
            raise ValueError(f"activation must be 'relu' or None, got {activation!r}")
        if head not in ("mlr", "fc"):
            raise ValueError(f"head must be 'mlr' or 'fc', got {head!r}")
        if pooling not in ("midpoint", "tangent"):
            raise ValueError(f"pooling must be 'midpoint' or 'tangent', got {pooling!r}")
        if stem not in ("small", "imagenet"):
            raise ValueError(f"stem must be 'small' or 'imagenet', got {stem!r}")
        if block not in ("basic", "bottleneck"):
            raise ValueError(f"block must be 'basic' or 'bottleneck', got {block!r}")
        counts = [blocks] * len(widths) if isinstance(blocks, int) else list(blocks)
        if not widths or len(counts) != len(widths) or min([*widths, *counts]) < 1:
            raise ValueError(
                f"widths and blocks must be positive, one of each for every group; got {tuple(widths)} and {blocks}"
            )
        if branch_gain is None:
            branch_gain = default_branch_gain(sum(counts), init)
        check_ball(ball)
        if norm_gain is None:
            norm_gain = min(2.0, ball.c.item() ** -0.5)
        for name, value in (("norm_gain", norm_gain), ("branch_gain", branch_gain)):
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not 1e-9 < value < 1e9:
                raise ValueError(f"{name} must be a number above 0, got {value!r}")
        self.ball = ball
        relu = PoincareReLU(ball=ball, dim=1) if activation == "relu" else None

        def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> PoincareConv2d:
            return PoincareConv2d(
                inputs, outputs, kernel, stride, kernel // 2,
                ball=ball, bias=bias, init=init, weight_on=weight_on, max_distance=max_distance,
            )  # fmt: skip

        def norm(channels: int) -> PoincareBatchNorm2d:
            return PoincareBatchNorm2d(channels, ball=ball, mean=mean, scale=scale, max_distance=max_distance)

        def residual_block(inputs: int, width: int, stride: int) -> PoincareBlock:
            outputs = width * expansion
            changes = stride != 1 or inputs != outputs
            connection = PoincareResidual(ball=ball, order=residual, max_distance=max_distance)
            downsample = conv(inputs, outputs, 1, stride) if changes else None
            downsample_norm = norm(outputs) if changes and stem == "imagenet" else None
            shared = (connection, relu, downsample, downsample_norm)
            if block == "bottleneck":
                return PoincareBottleneck(
                    conv(inputs, width, 1), norm(width), conv(width, width, 3, stride), norm(width),
                    conv(width, outputs, 1), norm(outputs), *shared,
                )  # fmt: skip
            return PoincareBlock(
                conv(inputs, width, 3, stride), norm(width), conv(width, width, 3), norm(width), *shared
            )

        expansion = 4 if block == "bottleneck" else 1
        self.expmap0 = ExpMap0(ball=ball, dim=1, max_distance=max_distance)
        self.conv = conv(in_channels, widths[0], 7, 2) if stem == "imagenet" else conv(in_channels, widths[0], 3)
        self.bn = norm(widths[0])
        self.relu = relu
        self.maxpool = PoincareMaxPool2d(3, 2, 1, ball=ball) if stem == "imagenet" else None
        channels = widths[0]
        for i, (width, count) in enumerate(zip(widths, counts, strict=True)):
            group = nn.Sequential()
            for j in range(count):
                group.append(residual_block(channels, width, 2 if i > 0 and j == 0 else 1))
                channels = width * expansion
            self.add_module(f"group{i + 1}", group)
        self.pool = PoincareAdaptiveAvgPool2d(1, ball=ball)
        if head == "mlr":
            self.fc: nn.Module = PoincareMLR(channels, num_classes, ball=ball, init=init, weight_on=weight_on)
        else:
            self.fc = PoincareLinear(
                channels, num_classes, ball=ball, init=init, weight_on=weight_on, max_distance=max_distance
            )
        self.in_channels, self.num_classes, self.head, self.pooling = in_channels, num_classes, head, pooling
        self.stem, self.block, self.scale = stem, block, scale
        self.compat: Literal["authors"] | None = None
        self.set_compat(compat)
        self._groups = len(counts)
        with torch.no_grad():  # in the parameters: a checkpoint then says it all
            for module in self.modules():
                if isinstance(module, PoincareBatchNorm2d):
                    cast(Tensor, module.log_scale).fill_(math.log(norm_gain))
                    module.reset_running_stats()
            for module in self.modules():
                if isinstance(module, PoincareBlock):
                    _, last_norm = module.layers[-1]
                    cast(Tensor, last_norm.log_scale).add_(math.log(branch_gain))

    def set_compat(self, compat: Literal["authors"] | None) -> None:
        """Compute from now on what the published code computes ("authors"), or what is right (None).

        Raises
        ------
        ValueError
            If `compat` is unknown, or the network is not of the kind that the published code has.
        """
        needed = {"stem": "small", "block": "basic", "scale": "scalar", "head": "fc"}
        check_compat(compat, **{name: (getattr(self, name), value) for name, value in needed.items()})
        self.compat = compat

    @property
    def groups(self) -> list[nn.Sequential]:
        """The groups of blocks, ``group1`` and so on, in order."""
        return [cast(nn.Sequential, self.get_submodule(f"group{i + 1}")) for i in range(self._groups)]

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
            Points ``(batch, channels)``, the channels of the last group.

        Raises
        ------
        ValueError
            If `images` does not have that shape.
        """
        check_floating(images, "images")
        if images.ndim != 4 or images.shape[1] != self.in_channels:
            raise ValueError(
                f"images must have shape (batch, {self.in_channels}, H, W), got {tuple(images.shape)}: "
                f"create the model with in_channels= the images' number of channels"
            )
        if self.compat is not None:
            return convert(authors_features(self, images), "tangent", out_chart, c=self.ball.c, dim=1)
        u = self.expmap0(images, out_chart="tangent")
        h = self.conv(u, in_chart="tangent", out_chart="hyperboloid")
        u = self.bn(h, in_chart="hyperboloid", out_chart="tangent", relu=self.relu is not None)
        if self.maxpool is not None:
            u = self.maxpool(u, in_chart="tangent", out_chart="tangent")
        for group in self.groups:
            u = group(u)
        if self.pooling == "tangent":
            return convert(u.mean((2, 3)), "tangent", out_chart, c=self.ball.c)
        return self.pool(u, in_chart="tangent", out_chart=out_chart).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(batch, in_channels, H, W)`` to logits ``(batch, num_classes)``."""
        u = self.features(images, out_chart="tangent")
        if self.compat is not None:
            return fully_connected(cast(PoincareLinear, self.fc), u)
        if self.head == "mlr":
            return self.fc(u, in_chart="tangent")
        return self.fc(u, in_chart="tangent", out_chart="tangent")
