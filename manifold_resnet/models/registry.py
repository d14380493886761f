"""From names to models."""

from __future__ import annotations

import inspect
import math
import re
from dataclasses import dataclass
from typing import Any

import geoopt
from torch import nn

from manifold_resnet.models.euclidean import EuclideanResNet
from manifold_resnet.models.hyperbolic import PoincareResNet
from manifold_resnet.models.imagenet import DEPTHS, euclidean_imagenet_resnet, imagenet_resnet

_KINDS = "(hyperbolic|euclidean|euclideanwhypclass)"
_NAME = re.compile(_KINDS + r"-(\d+)-(\d+)-(\d+)-resnet-(\d+)")
_IMAGENET_NAME = re.compile(_KINDS + r"-resnet(\d+)")
_SCHEME = (
    "hyperbolic|euclidean|euclideanwhypclass - three widths - resnet - depth, "
    "for example hyperbolic-8-16-32-resnet-20 (depth = 6n + 2), or hyperbolic-resnet18, 34 or 50"
)

#: Options that a variant stands for; options given explicitly win.
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {
        "c": 0.1,
        "init": "paper",
        "scale": "scalar",
        "head": "fc",
        "weight_on": "tangent",
        "bias": True,
        "norm_gain": 1.0,
    },
}

_C = 0.025
_OPTIONS = {
    "hyperbolic": {
        "residual",
        "activation",
        "mean",
        "scale",
        "pooling",
        "head",
        "init",
        "weight_on",
        "bias",
        "norm_gain",
        "branch_gain",
        "max_distance",
        "compat",
    },
    "euclideanwhypclass": {"init", "weight_on", "max_distance", "compat"},
    "euclidean": set(),
}


def default_options(name: str, variant: str | None = None) -> dict[str, Any]:
    """What `create_model` chooses for a name and a variant: record it with a run, so that it outlives other defaults.

    Parameters
    ----------
    name : str
        Name of a model, see `create_model`.
    variant : {None, "paper"}
        See `create_model`.

    Returns
    -------
    dict
        ``c``, unless the model is Euclidean, the options of the kind of model, and their values.

    Raises
    ------
    ValueError
        If the name or the variant is unknown.

    Examples
    --------
    >>> import manifold_resnet as mr
    >>> mr.models.default_options("hyperbolic-8-16-32-resnet-20", variant="paper")["init"]
    'paper'
    """
    kind = _parse(name).kind
    if variant is not None and variant not in VARIANTS:
        raise ValueError(f"variant must be None or one of {', '.join(VARIANTS)}; got {variant!r}")
    network = PoincareResNet if kind == "hyperbolic" else EuclideanResNet
    signature = inspect.signature(network).parameters
    chosen = VARIANTS.get(variant or "", {})
    options = {option: chosen.get(option, signature[option].default) for option in sorted(_OPTIONS[kind])}
    return options if kind == "euclidean" else {"c": chosen.get("c", _C), **options}


@dataclass(frozen=True)
class _Name:
    """What a name says: blocks per group, of three groups; or a depth of the ImageNet family."""

    kind: str
    widths: tuple[int, int, int] = (0, 0, 0)
    blocks: int = 0
    imagenet: int | None = None


def _parse(name: str) -> _Name:
    match = _IMAGENET_NAME.fullmatch(name)
    if match is not None:
        depth = int(match[2])
        if depth not in DEPTHS:
            raise ValueError(f"the depth of {name!r} must be one of {', '.join(map(str, DEPTHS))}")
        return _Name(match[1], imagenet=depth)
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"unknown model {name!r}: the scheme is {_SCHEME}")
    first, second, third, depth = (int(g) for g in match.groups()[1:])
    if min(first, second, third) < 1:
        raise ValueError(f"the widths of {name!r} must be positive")
    if depth < 8 or depth % 6 != 2:
        near = max(8, 6 * round((depth - 2) / 6) + 2)
        raise ValueError(f"the depth of {name!r} must be 6n + 2 with n >= 1 (8, 14, 20, 32, 56, 110, ...): try {near}")
    return _Name(match[1], (first, second, third), (depth - 2) // 6)


def create_model(
    name: str,
    num_classes: int = 10,
    *,
    in_channels: int = 3,
    c: float | None = None,
    learnable_c: bool = False,
    variant: str | None = None,
    **options: Any,
) -> nn.Module:
    """Create a model from its name, the scheme of the authors' code.

    Parameters
    ----------
    name : str
        ``hyperbolic-8-16-32-resnet-20``: a kind, the widths of three groups, and the depth ``6n + 2``. Kinds are
        "hyperbolic" (`PoincareResNet`), "euclidean" (its twin, `EuclideanResNet`) and "euclideanwhypclass" (the twin
        with a hyperbolic classifier). Or ``hyperbolic-resnet18``, 34 or 50: the ImageNet family, see
        `poincare_resnet18`, whose Euclidean kinds are torchvision's networks.
    num_classes : int
        Number of logits.
    in_channels : int
        Channels of the images; images of any size from 8 up are taken.
    c : float, optional
        The curvature of the ball is ``-c``; by default 0.025, with the variant "paper" 0.1. Without effect on
        "euclidean".
    learnable_c : bool
        Learn c.
    variant : {None, "paper"}
        The configuration that learns best, or the published one (half the identity over the flattened patch, one
        Fréchet variance, a fully connected head, weights as tangent vectors).
    **options
        Options of `PoincareResNet`, which win over the variant's. "euclideanwhypclass" takes ``init``, ``weight_on``,
        ``max_distance`` and ``compat``, "euclidean" none; the options of a variant that a kind does not have are left
        out.

    Returns
    -------
    torch.nn.Module
        Takes images ``(batch, in_channels, H, W)``, returns logits ``(batch, num_classes)``.

    Raises
    ------
    ValueError
        If the name, the variant, an option or its value is unknown, or `c` is not positive.
    ModuleNotFoundError
        If a network of torchvision is asked for and torchvision is missing.

    Examples
    --------
    >>> import torch, manifold_resnet as mr
    >>> model = mr.models.create_model("hyperbolic-8-16-32-resnet-20", num_classes=10)
    >>> model(torch.randn(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    parsed = _parse(name)
    kind = parsed.kind
    if num_classes < 1 or in_channels < 1:
        raise ValueError(f"num_classes and in_channels must be positive, got {num_classes} and {in_channels}")
    defaults = default_options(name, variant)
    unknown = sorted(set(options) - _OPTIONS[kind])
    if unknown:
        takes = ", ".join(sorted(_OPTIONS[kind])) or "none"
        raise ValueError(f"{kind} models do not take the option {', '.join(unknown)}; options: {takes}")
    default_c = defaults.pop("c", _C)
    c = default_c if c is None else c
    if not (c > 0 and math.isfinite(c)):
        raise ValueError(f"c must be positive and finite (the ball's sectional curvature is -c), got {c}")
    options = {**defaults, **options}
    if kind != "euclidean":
        options["ball"] = geoopt.PoincareBall(c, learnable=learnable_c)
    if parsed.imagenet is not None:
        create = imagenet_resnet if kind == "hyperbolic" else euclidean_imagenet_resnet
        return create(parsed.imagenet, num_classes, in_channels=in_channels, **options)
    network = PoincareResNet if kind == "hyperbolic" else EuclideanResNet
    return network(parsed.widths, parsed.blocks, num_classes, in_channels=in_channels, **options)
