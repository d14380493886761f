"""Weights from the code published with the paper, and from HypLL's modules, into ours."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from geoopt import PoincareBall
from torch import Tensor, nn

from manifold_resnet.functional import expmap0
from manifold_resnet.models.compat import EPS
from manifold_resnet.models.euclidean import EuclideanResNet
from manifold_resnet.models.hyperbolic import PoincareResNet
from manifold_resnet.nn import PoincareMLR, PoincareResidual
from manifold_resnet.nn.base import PoincareModule
from manifold_resnet.nn.batch_norm import _PoincareBatchNorm
from manifold_resnet.nn.hyperplanes import _Hyperplanes
from manifold_resnet.nn.max_pool import PoincareMaxPool2d

Source = Literal["authors", "hypll"]
_NAMES = {"authors": "the authors' code", "hypll": "HypLL"}
_MARKS = {
    "authors": re.compile(r"(^|\.)(isp_c|norm\.(mean|var|running_mean|running_var))$"),
    "hypll": re.compile(r"(^|\.)(manifold\.c\.value|norm\.(weight|bias))$"),
}
#: what the others' state dicts hold and ours have no use for: curvatures are read apart, their statistics are unused
_IGNORED = re.compile(r"(^|\.)(isp_c|manifold\.c\.value|norm\.running_mean|norm\.running_var)$")


@dataclass(frozen=True)
class Conversion:
    """What was read, and where it means something else here.

    Attributes
    ----------
    source : {"authors", "hypll"}
        Whose layout the state dict has.
    c : float or None
        The curvature of the ball is ``-c``, as read; None for a Euclidean network.
    differences : tuple of str
        Why the model's outputs differ from theirs, one sentence each.

    Examples
    --------
    >>> import manifold_resnet as mr
    >>> mr.models.Conversion("authors", c=0.1, differences=()).c
    0.1
    """

    source: Source
    c: float | None
    differences: tuple[str, ...]


def load_reference_state_dict(
    model: nn.Module,
    state_dict: Mapping[str, Any],
    source: Literal["auto", "authors", "hypll"] = "auto",
    compat: Literal["authors"] | None = None,
    *,
    c: float | None = None,
) -> Conversion:
    """Put weights of the authors' code or of HypLL's modules into a model of ours.

    Layers are matched by their names. The columns of their weight matrices ``(fan_in, out)`` are the normals of
    hyperplanes, tangent vectors at the origin; they become rows of ours, as points of the ball or not, by the layer's
    ``weight_on``. The model's balls get the curvature of the state dict. The model changes only if everything fits.

    Parameters
    ----------
    model : torch.nn.Module
        For a network, one made with ``create_model(name, variant="paper")``; for single modules, ours of the same names
        (``PoincareConv2d`` for ``HConvolution2d``, norms with ``scale="scalar"``, and so on).
    state_dict : mapping
        The others' state dict, values tensors or HypLL's ``ManifoldTensor``.
    source : {"auto", "authors", "hypll"}
        Whose layout it is. "auto" tells from the names.
    compat : {None, "authors"}
        "authors" makes the model compute what the authors' code computes, see `manifold_resnet.models.compat`; only for
        their state dicts. None leaves the model computing what it did.
    c : float, optional
        The curvature was ``-c``: needed where the state dict does not tell, because curvatures were learned layer by
        layer, or the parametrisation of c was not the usual one.

    Returns
    -------
    Conversion
        Source, c, and the differences in meaning.

    Raises
    ------
    ValueError
        If the layout is unknown or not `source`; if keys are missing or unknown, or a shape is not the model's; if a
        norm's scale is not positive; or if c is not told. The message names the keys.
    TypeError
        If `state_dict` is not a mapping of names to tensors.

    Examples
    --------
    >>> import geoopt, torch, manifold_resnet as mr
    >>> layer = torch.nn.ModuleDict({"conv": mr.nn.PoincareConv2d(2, 3, 1, ball=geoopt.PoincareBall(1.0))})
    >>> theirs = {"conv.weights": 0.5 * torch.eye(2, 3), "conv.bias": torch.zeros(3)}
    >>> theirs["conv.ball.isp_c"] = torch.tensor(0.1)
    >>> mr.models.load_reference_state_dict(layer, theirs).source
    'authors'
    >>> layer["conv"].normals().flatten(1)
    tensor([[0.5000, 0.0000],
            [0.0000, 0.5000],
            [0.0000, 0.0000]], grad_fn=<ViewBackward0>)
    """
    if source not in ("auto", "authors", "hypll"):
        raise ValueError(f"source must be 'auto', 'authors' or 'hypll', got {source!r}")
    values = plain_state_dict(state_dict)
    found = identify(values)
    if source != "auto" and found is not None and found != source:
        raise ValueError(f"this is a state dict of {_NAMES[found]}, not of {_NAMES[source]}: pass source={found!r}")
    kind: Source | None = found if source == "auto" else source  # type: ignore[assignment]
    if kind is None:
        raise ValueError(
            "this state dict is neither of the authors' code (names such as conv.weights, bn.norm.mean, ball.isp_c) "
            f"nor of HypLL (manifold.c.value, norm.weight); its first names are {', '.join(list(values)[:3]) or 'none'}"
        )
    if compat is not None and kind != "authors":
        raise ValueError(f"compat={compat!r} is for state dicts of the authors' code; this one is of {_NAMES[kind]}")
    twin = copy.deepcopy(model)
    if compat is not None:
        if not isinstance(twin, PoincareResNet | EuclideanResNet):
            raise ValueError(f"compat={compat!r} is for networks made by create_model, got {type(model).__name__}")
        twin.set_compat(compat)
    balls = {id(m.ball): m.ball for m in twin.modules() if isinstance(m, PoincareModule)}
    effective = _curvature(values, kind, twin, c) if balls else None
    if effective is not None:
        for ball in balls.values():
            _set_curvature(ball, effective)
    _Reader(values, kind).fill(twin)
    model.load_state_dict(twin.state_dict())
    if isinstance(model, PoincareResNet | EuclideanResNet) and compat is not None:
        model.set_compat(compat)
    return Conversion(kind, effective, tuple(_differences(model, kind)))


def plain_state_dict(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state dict as tensors, without what wrappers put around names and values.

    Raises
    ------
    TypeError
        If it is no mapping of names to tensors.
    """
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"state_dict must be a mapping of names to tensors, got {type(state_dict).__name__}")
    values = {}
    for name, value in state_dict.items():
        tensor = value if isinstance(value, Tensor) else getattr(value, "tensor", None)
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}: pass the model's state_dict()")
        values[str(name).removesuffix(".tensor")] = tensor.detach().as_subclass(Tensor)
    if values and all(name.startswith("module.") for name in values):  # torch.nn.DataParallel
        values = {name.removeprefix("module."): value for name, value in values.items()}
    return values


def identify(values: Mapping[str, Tensor]) -> Source | None:
    """Whose layout a state dict has; None if nobody's.

    Raises
    ------
    ValueError
        If it is one of this package's.
    """
    if any(name.endswith((".log_scale", "running_sums")) for name in values):
        raise ValueError("this is a state dict of this package: load it with model.load_state_dict")
    for kind in ("hypll", "authors"):
        if any(_MARKS[kind].search(name) for name in values):
            return kind  # type: ignore[return-value]
    # their Euclidean network has no ball, but offsets before its norms, which nobody else has
    return "authors" if {"conv.weight", "conv.bias", "bn.running_mean", "group1.0.conv1.bias"} <= set(values) else None


def _curvature(values: Mapping[str, Tensor], kind: Source, model: nn.Module, given: float | None) -> float | None:
    if given is not None:
        if not 0 < given < float("inf"):
            raise ValueError(f"c must be positive and finite, got {given}")
        return given
    suffix = "isp_c" if kind == "authors" else "c.value"
    raw = {name: float(value) for name, value in values.items() if name.endswith(suffix)}
    if not raw:
        return None
    low, high = min(raw, key=raw.__getitem__), max(raw, key=raw.__getitem__)
    if raw[high] - raw[low] > 1e-6 * abs(raw[high]):
        raise ValueError(
            f"curvatures were learned layer by layer ({low} is {raw[low]:.6g}, {high} is {raw[high]:.6g}) and our "
            f"models have one for all: pass c= the one to use"
        )
    value = raw[low]
    # the authors take softplus of it only where it is learned, which it is not in their hyperbolic networks
    if kind == "hypll" or isinstance(model, EuclideanResNet):
        value = F.softplus(torch.tensor(value, dtype=torch.float64)).item()
    if not value > 0:
        raise ValueError(f"the state dict's c is {value:.6g} ({low}), and must be positive: pass c=")
    return value


@torch.no_grad()
def _set_curvature(ball: PoincareBall, c: float) -> None:
    value = torch.tensor(c, dtype=torch.float64)
    ball.isp_c.copy_(value + torch.log(-torch.expm1(-value)))  # geoopt takes its softplus


class _Reader:
    """Fills modules from a state dict, and knows what it has used."""

    def __init__(self, values: Mapping[str, Tensor], kind: Source) -> None:
        self._values, self._kind = values, kind
        self._used: set[str] = set()
        self._missing: list[str] = []

    def _take(self, *names: str, shape: tuple[int, ...], optional: bool = False) -> Tensor | None:
        """The first of the names that is there."""
        for name in names:
            if name in self._values:
                value = self._values[name]
                if tuple(value.shape) != shape:
                    raise ValueError(
                        f"{name} has shape {tuple(value.shape)} and the model needs {shape}: create the model with the "
                        f"widths, depth, channels and classes of the state dict"
                    )
                self._used.add(name)
                return value
        if not optional:
            self._missing.append(names[0])
        return None

    @torch.no_grad()
    def fill(self, model: nn.Module) -> None:
        """Fill all modules of a model; a ValueError if a key is missing or left over."""
        modules = dict(model.named_modules())
        for name, module in modules.items():
            prefix = f"{name}." if name else ""
            if isinstance(module, _Hyperplanes):
                self._fill_hyperplanes(module, prefix)
            elif isinstance(module, _PoincareBatchNorm):
                self._fill_norm(module, prefix)
            elif not isinstance(module, PoincareBall):
                self._fill_other(module, prefix)
        for name, module in modules.items():
            if isinstance(module, nn.Conv2d) and module.bias is None:
                self._absorb_bias(name, module, modules)
        if self._missing:
            raise ValueError(f"the state dict lacks {_listed(self._missing)}, which the model needs")
        left = [name for name in self._values if name not in self._used and not _IGNORED.search(name)]
        if left:
            raise ValueError(
                f"the model has no place for {_listed(left)}: create it with the depth of the state dict, and its "
                f"layers named alike"
            )

    def _fill_hyperplanes(self, layer: _Hyperplanes, prefix: str) -> None:
        outputs, fan_in = layer.weight.shape
        weight = self._take(prefix + "weights", prefix + "z", shape=(fan_in, outputs))
        bias = self._take(prefix + "bias", shape=(outputs,), optional=True)
        if weight is not None:
            try:
                layer.set_normals(weight.t())
            except ValueError as error:
                raise ValueError(f"{prefix}weights: {error}") from None
        if layer.bias is not None:
            layer.bias.zero_() if bias is None else layer.bias.copy_(bias)
        elif bias is not None:
            raise ValueError(f"{prefix}bias has no place in a layer without offsets: create the model with bias=True")

    def _fill_norm(self, layer: _PoincareBatchNorm, prefix: str) -> None:
        if layer.scale != "scalar" or layer.log_scale is None or layer.bias is None:
            raise ValueError(
                f"{prefix[:-1] or 'the norm'} must have scale='scalar' and affine=True, as {_NAMES[self._kind]} has: "
                f"create the model with variant='paper'"
            )
        center, scale = ("mean", "var") if self._kind == "authors" else ("bias", "weight")
        mean = self._take(f"{prefix}norm.{center}", prefix + center, shape=(layer.num_features,))
        variance = self._take(f"{prefix}norm.{scale}", prefix + scale, shape=())
        if mean is not None:
            layer.bias.copy_(expmap0(mean.to(layer.bias), c=layer.c))
        if variance is not None:
            if not variance > 0:
                raise ValueError(f"{prefix}norm.{scale} is {variance.item():.6g}, and a norm's scale must be positive")
            layer.log_scale.copy_(0.5 * variance.log())  # base_gain is 1
        layer.reset_running_stats()

    def _fill_other(self, module: nn.Module, prefix: str) -> None:
        own = {name: tensor for name, tensor in module.state_dict(keep_vars=True).items() if "." not in name}
        for name, tensor in own.items():
            value = self._take(prefix + name, shape=tuple(tensor.shape))
            if value is not None:
                tensor.copy_(value)

    def _absorb_bias(self, name: str, conv: nn.Conv2d, modules: Mapping[str, nn.Module]) -> None:
        """The authors' Euclidean convolutions have offsets before a norm, which takes them away: from its mean."""
        bias = self._take(f"{name}.bias", shape=(conv.out_channels,), optional=True)
        path, _, last = name.rpartition(".")
        norm = modules.get(f"{path}.{last.replace('conv', 'bn')}".lstrip("."))
        if bias is not None and isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None:
            norm.running_mean.sub_(bias)
        elif bias is not None:
            raise ValueError(f"{name}.bias has no place in a convolution without offsets")


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more


def _differences(model: nn.Module, kind: Source) -> Iterable[str]:
    modules = list(model.modules())
    norms = [m for m in modules if isinstance(m, _PoincareBatchNorm)]
    hyperplanes = any(isinstance(m, _Hyperplanes) for m in modules)
    if getattr(model, "compat", None) == "authors":
        if norms:
            yield "in evaluation too, norms use the statistics of the batch, as the authors' do"
        return
    if norms:
        yield (
            "in evaluation, norms here use running statistics, which the state dict does not have: run "
            "manifold_resnet.models.update_bn(training images, model) before evaluating; theirs use the batch's"
        )
        if any(m.eps != EPS for m in norms):
            yield f"norms add {norms[0].eps:g} to the variance here, {EPS:g} there"
    if kind == "authors":
        if hyperplanes:
            yield (
                "distances to hyperplanes: the conformal factor is 2/(1 - c|x|^2) here, and 2(1 - c|x|^2) there, equal "
                "only near the origin"
            )
        if any(isinstance(m, PoincareMLR) for m in modules):
            yield "logits are distances to hyperplanes here, and tangent coordinates of a fully connected layer there"
        if any(isinstance(m, PoincareResidual) for m in modules):
            yield "residual connections add along the channels here, and along the width of the image there"
        if isinstance(model, PoincareResNet):
            yield "features are pooled by the midpoint here, by the mean of tangent vectors over 8 x 8 pixels there"
    else:
        if any(m.mean == "midpoint" for m in norms):
            yield "norms centre at the midpoint here; there at the Fréchet mean, unless use_midpoint=True"
        if isinstance(model, PoincareResNet):
            yield (
                "features are pooled by the midpoint here; HAvgPool2d shrinks tangent vectors by the factor of the "
                "beta-concatenation first, and takes the Fréchet mean unless use_midpoint=True"
            )
            yield "logits are tangent coordinates of the classifier's output here, ball coordinates there: same order"
        if any(isinstance(m, PoincareMaxPool2d) for m in modules):
            yield "max pooling takes the farthest point here, the maximum of each tangent coordinate there"
    if norms or hyperplanes:
        yield "points are kept within max_distance of the origin here (by default 6/sqrt(c)), within 6.2/sqrt(c) there"
