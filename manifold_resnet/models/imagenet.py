"""The ImageNet family of residual networks, on the ball and, from torchvision, Euclidean."""

from __future__ import annotations

from typing import Any

import geoopt
from torch import nn

from manifold_resnet._errors import extra
from manifold_resnet.models.hyperbolic import Block, PoincareResNet
from manifold_resnet.nn import ExpMap0, PoincareMLR

#: kind of block and blocks per group, by depth (He et al. 2016, table 1)
DEPTHS: dict[int, tuple[Block, tuple[int, int, int, int]]] = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
}
WIDTHS = (64, 128, 256, 512)


def imagenet_resnet(
    depth: int, num_classes: int, *, in_channels: int, ball: geoopt.PoincareBall, **options: Any
) -> PoincareResNet:
    """Create a Poincaré network of depth 18, 34 or 50; `options` are those of `PoincareResNet`."""
    block, blocks = DEPTHS[depth]
    return PoincareResNet(
        WIDTHS, blocks, num_classes, stem="imagenet", block=block, in_channels=in_channels, ball=ball, **options
    )


def euclidean_imagenet_resnet(
    depth: int,
    num_classes: int,
    *,
    in_channels: int,
    ball: geoopt.PoincareBall | None = None,
    max_distance: float | None = None,
    compat: str | None = None,
    **options: Any,
) -> nn.Module:
    """Create torchvision's network of depth 18, 34 or 50, untrained.

    With a `ball`, its classifier is hyperbolic: `ExpMap0`, then `PoincareMLR` with `options`.

    Raises
    ------
    ModuleNotFoundError
        If torchvision is missing; names the extra that brings it.
    ValueError
        If `compat` is given: the published code has no such network.
    """
    if compat is not None:
        raise ValueError(f"compat={compat!r} is for networks with three widths, the published code's: leave it out")
    with extra("train"):
        import torchvision.models
    model: nn.Module = getattr(torchvision.models, f"resnet{depth}")(weights=None, num_classes=num_classes)
    if in_channels != 3:
        model.conv1 = nn.Conv2d(in_channels, WIDTHS[0], 7, 2, 3, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    if ball is not None:
        features: int = model.fc.in_features  # type: ignore[union-attr,assignment]
        model.fc = nn.Sequential(
            ExpMap0(ball=ball, max_distance=max_distance), PoincareMLR(features, num_classes, ball=ball, **options)
        )
    return model


def _poincare_resnet(depth: int, num_classes: int, **options: Any) -> PoincareResNet:
    from manifold_resnet.models.registry import create_model

    return create_model(f"hyperbolic-resnet{depth}", num_classes, **options)  # type: ignore[return-value]


def poincare_resnet18(
    num_classes: int = 1000,
    *,
    in_channels: int = 3,
    c: float | None = None,
    learnable_c: bool = False,
    variant: str | None = None,
    **options: Any,
) -> PoincareResNet:
    """Poincaré ResNet-18: torchvision's ``resnet18``, layer by layer on the ball.

    A 7x7 convolution of stride 2, norm, ReLU and 3x3 max pooling by distance from the origin; four groups of two basic
    blocks with 64, 128, 256 and 512 channels; midpoint pooling and distances to hyperplanes.

    Parameters
    ----------
    num_classes : int
        Number of logits.
    in_channels : int
        Channels of the images; images of any size are taken, 224 x 224 is usual.
    c : float, optional
        The curvature of the ball is ``-c``, by default as in `create_model`; the manifold runs along dimension 1 of
        images of points.
    learnable_c : bool
        Learn c.
    variant : {None, "paper"}
        See `create_model`.
    **options
        Options of `PoincareResNet`, which win over the variant's.

    Returns
    -------
    PoincareResNet
        Takes images ``(batch, in_channels, H, W)``, pixels as tangent vectors at the origin, returns logits
        ``(batch, num_classes)``.

    Raises
    ------
    ValueError
        If an option or its value is unknown, or `c` is not positive.

    Notes
    -----
    Structure: He, Zhang, Ren, Sun: Deep residual learning for image recognition. CVPR 2016, table 1. Layers: van
    Spengler, Berkhout, Mettes: Poincaré ResNet. ICCV 2023, sec. 3.

    Examples
    --------
    >>> import torch, manifold_resnet as mr
    >>> model = mr.models.poincare_resnet18(num_classes=10).eval()
    >>> model(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 10])
    """
    return _poincare_resnet(
        18, num_classes, in_channels=in_channels, c=c, learnable_c=learnable_c, variant=variant, **options
    )


def poincare_resnet34(
    num_classes: int = 1000,
    *,
    in_channels: int = 3,
    c: float | None = None,
    learnable_c: bool = False,
    variant: str | None = None,
    **options: Any,
) -> PoincareResNet:
    """Poincaré ResNet-34: three, four, six and three basic blocks. All else as `poincare_resnet18`.

    Examples
    --------
    >>> import manifold_resnet as mr
    >>> [len(group) for group in mr.models.poincare_resnet34(num_classes=10).groups]
    [3, 4, 6, 3]
    """
    return _poincare_resnet(
        34, num_classes, in_channels=in_channels, c=c, learnable_c=learnable_c, variant=variant, **options
    )


def poincare_resnet50(
    num_classes: int = 1000,
    *,
    in_channels: int = 3,
    c: float | None = None,
    learnable_c: bool = False,
    variant: str | None = None,
    **options: Any,
) -> PoincareResNet:
    """Poincaré ResNet-50: three, four, six and three bottleneck blocks. All else as `poincare_resnet18`.

    A group's 3x3 convolutions have 64, 128, 256 or 512 channels, and four times as many come out of its blocks.

    Examples
    --------
    >>> import manifold_resnet as mr
    >>> mr.models.poincare_resnet50(num_classes=10).fc.in_features
    2048
    """
    return _poincare_resnet(
        50, num_classes, in_channels=in_channels, c=c, learnable_c=learnable_c, variant=variant, **options
    )
