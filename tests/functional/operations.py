"""The table of operations: one row per way of calling a function of `manifold_resnet.functional`.

Tests that hold for every operation are parametrised over these rows.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import pytest
import torch
from helpers import generator, points, tangents, unit
from torch import Tensor

import manifold_resnet.functional as functional
from manifold_resnet.functional import _backend, naive


@dataclass(frozen=True)
class Arg:
    """A random argument. `kind` says what it is and, in brackets, how it scales with a length."""

    kind: str
    shape: tuple[int, ...]
    dim: int = -1
    distance: float = 4.0

    POWERS = {
        "point": 1,
        "tangent": 1,
        "hyperboloid": 0,
        "lorentz": 1,
        "normal": 0,
        "offset": 1,
        "weight": 0,
    } | {
        "variance": 2,
        "gain": 1,
    }

    @property
    def power(self) -> int:
        return self.POWERS[self.kind]

    @property
    def is_vector(self) -> bool:
        """A point or a tangent vector, in any chart, as opposed to a parameter."""
        return self.kind in ("point", "tangent", "hyperboloid")

    def make(self, g: torch.Generator, c: float) -> Tensor:
        if self.kind in ("point", "hyperboloid", "lorentz"):
            x = points(g, *self.shape, c=c, dim=self.dim, distance=self.distance)
            if self.kind == "hyperboloid":
                x = naive.convert(x, "ball", "hyperboloid", c=c, dim=self.dim)
            return naive.to_lorentz(x, c=c, dim=self.dim) if self.kind == "lorentz" else x
        if self.kind == "tangent":
            return tangents(g, *self.shape, c=c, dim=self.dim, distance=self.distance)
        uniform = torch.rand(self.shape, generator=g, dtype=torch.float64)
        if self.kind == "normal":  # rows of length 1/4 to 3/4: a layer that roughly keeps distances
            z = torch.randn(self.shape, generator=g, dtype=torch.float64)
            length = 0.25 + 0.5 * torch.rand(self.shape[0], generator=g, dtype=torch.float64)
            return (z.flatten(1) * (length / z.flatten(1).norm(dim=1)).unsqueeze(1)).view_as(z)
        if self.kind == "offset":
            return (uniform - 0.5) * unit(c)
        return (0.3 + uniform) * unit(c) ** self.power


def P(*shape: int, dim: int = -1, distance: float = 4.0) -> Arg:
    return Arg("point", shape, dim, distance)


def T(*shape: int, dim: int = -1, distance: float = 4.0) -> Arg:
    return Arg("tangent", shape, dim, distance)


@dataclass(frozen=True)
class Operation:
    """One way of calling a function.

    Attributes
    ----------
    returns
        "point" (of the ball), or anything else.
    power
        How the result scales with a length.
    pointwise
        Rows of the first dimension do not depend on each other.
    adapt
        Makes a function of tensors that returns a tensor of one that takes or returns several.
    """

    name: str
    args: tuple[Arg, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    label: str = ""
    _: KW_ONLY
    returns: str = "point"
    power: int = 1
    pointwise: bool = True
    adapt: Callable[[Callable[..., Any]], Callable[..., Tensor]] = lambda function: function

    def __str__(self) -> str:
        return f"{self.name}-{self.label}" if self.label else self.name

    def tensors(self, c: float, seed: int = 0) -> list[Tensor]:
        g = generator(seed)
        return [arg.make(g, c) for arg in self.args]

    def fast(self, *tensors: Tensor, c: Tensor | float, **kwargs: Any) -> Tensor:
        return self.adapt(getattr(functional, self.name))(*tensors, c=c, **(self.kwargs | kwargs))

    def naive(self, *tensors: Tensor, c: Tensor | float) -> Tensor:
        return self.adapt(getattr(naive, self.name))(*tensors, c=c, **self.kwargs)

    @property
    def bounded(self) -> bool:
        """Has a length among its options."""
        return not {"max_distance", "eps"}.isdisjoint(self.kwargs)


IMAGE = P(3, 4, 2, 2, dim=1)
NORMALS = Arg("normal", (5, 4))
OFFSETS = Arg("offset", (5,))
KERNEL = Arg("normal", (4, 3, 3, 2))
CENTER = P(4, distance=1.0)


def _weights(*shape: int) -> Arg:
    return Arg("weight", shape)


BALL = [
    Operation("mobius_add", (P(5, 4), P(5, 4))),
    Operation("mobius_add", (P(3, 1, 4), P(2, 4)), label="broadcast", pointwise=False),
    Operation("mobius_add", (P(2, 4, 3, dim=1), P(4, 1, dim=0)), {"dim": -2}, label="dim", pointwise=False),
    Operation("expmap0", (T(6, 4),)),
    Operation("expmap0", (T(2, 4, 3, dim=1),), {"dim": 1}, label="dim"),
    Operation("logmap0", (P(6, 4),), returns="vector"),
    Operation("logmap0", (P(2, 4, 3, dim=1),), {"dim": 1}, label="dim", returns="vector"),
    Operation("expmap", (P(5, 4), T(5, 4, distance=0.3))),
    Operation("expmap", (P(4, 1, dim=0), T(2, 4, 3, dim=1, distance=0.3)), {"dim": -2}, label="dim", pointwise=False),
    Operation("logmap", (P(5, 4, distance=3.0), P(5, 4, distance=3.0)), returns="vector"),
    Operation(
        "logmap",
        (P(4, distance=3.0), P(5, 4, distance=3.0)),
        label="broadcast",
        returns="vector",
        pointwise=False,
    ),
    Operation("lambda_x", (P(5, 4),), returns="number", power=0),
    Operation("lambda_x", (P(2, 4, 3, dim=1),), {"dim": 1, "keepdim": True}, label="dim", returns="number", power=0),
    Operation("gyration", (P(5, 4), P(5, 4), T(5, 4)), returns="vector"),
    Operation("gyration", (P(4), P(5, 4), T(2, 1, 4)), label="broadcast", returns="vector", pointwise=False),
    Operation("transp", (P(5, 4, distance=3.0), P(5, 4, distance=3.0), T(5, 4)), returns="vector"),
    Operation("dist", (P(5, 4, distance=3.0), P(5, 4, distance=3.0)), returns="number"),
    Operation(
        "dist",
        (P(2, 4, 3, dim=1), P(4, 1, dim=0)),
        {"dim": -2, "keepdim": True},
        label="dim",
        returns="number",
        pointwise=False,
    ),
    Operation("project", (P(5, 4),)),
    Operation("project", (T(5, 4),), {"eps": 0.2}, label="outside"),
]
CHARTS = [
    Operation(
        "convert",
        (Arg({"ball": "point"}.get(src, src), (5, 4)),),
        {"src": src, "dst": dst} | options,
        label="-".join([src, dst, *options]),
        returns={"ball": "point"}.get(dst, "vector"),
        power=0 if dst == "hyperboloid" else 1,
    )
    for src in ("ball", "tangent", "hyperboloid")
    for dst in ("ball", "tangent", "hyperboloid")
    for options in ({}, {"max_distance": 1.0})
] + [
    Operation(  # a parameter: one point
        "convert",
        (P(4),),
        {"src": "ball", "dst": "hyperboloid"},
        label="ball-hyperboloid-one",
        returns="vector",
        power=0,
        pointwise=False,
    ),
    Operation("to_lorentz", (P(5, 4),), returns="lorentz"),
    Operation("to_lorentz", (P(2, 4, 3, dim=1),), {"dim": 1}, label="dim", returns="lorentz"),
    Operation("from_lorentz", (Arg("lorentz", (5, 4)),)),
    Operation("from_lorentz", (Arg("lorentz", (2, 4, 3), dim=1),), {"dim": 1}, label="dim"),
]
LINEAR = [
    Operation("poincare_mlr", (P(6, 4), NORMALS, OFFSETS), returns="number"),
    Operation("poincare_mlr", (P(2, 3, 4), NORMALS), label="no_bias", returns="number"),
    Operation("poincare_mlr", (P(2, 4, 3, dim=1), NORMALS, OFFSETS), {"dim": 1}, label="dim", returns="number"),
    Operation("poincare_linear", (P(6, 4), NORMALS, OFFSETS)),
    Operation("poincare_linear", (P(2, 3, 4), NORMALS), label="no_bias"),
    Operation("poincare_linear", (P(6, 4), NORMALS, OFFSETS), {"max_distance": 1.0}, label="max_distance"),
    Operation(
        "poincare_conv",
        (P(2, 3, 7, dim=1), Arg("normal", (4, 3, 3)), Arg("offset", (4,))),
        {"padding": 1},
        "1d",
    ),
    Operation("poincare_conv2d", (P(2, 3, 5, 4, dim=1), KERNEL, Arg("offset", (4,))), {"padding": 1}),
    Operation("poincare_conv2d", (P(2, 3, 5, 4, dim=1), KERNEL), {"stride": 2, "padding": (1, 0)}, label="no_bias"),
    Operation(
        "poincare_conv2d",
        (P(2, 3, 5, 4, dim=1), KERNEL, Arg("offset", (4,))),
        {"dilation": (1, 2), "max_distance": 1.0},
        label="max_distance",
    ),
    Operation(
        "poincare_conv",
        (P(2, 2, 3, 3, 4, dim=1), Arg("normal", (3, 2, 2, 1, 3)), Arg("offset", (3,))),
        {},
        "3d",
    ),
    *(
        Operation("poincare_conv", (P(2, inputs, *size, dim=1), Arg("normal", weight), *offsets), kwargs, label)
        for inputs, size, weight, offsets, kwargs, label in (
            (6, (5,), (4, 3, 3), (Arg("offset", (4,)),), {"groups": 2, "padding": "same", "dilation": 2}, "1d-groups"),
            (4, (5, 4), (8, 1, 3, 2), (), {"groups": 4, "stride": 2, "padding": (1, 0)}, "2d-depthwise"),
            (4, (2, 3, 3), (2, 2, 2, 1, 3), (Arg("offset", (2,)),), {"groups": 2, "max_distance": 1.0}, "3d-groups"),
        )
    ),
    Operation(
        "poincare_conv_transpose",
        (P(2, 3, 4, dim=1), Arg("normal", (4, 3, 3)), Arg("offset", (4,))),
        {"stride": 2, "padding": 1, "output_padding": 1},
        "1d",
    ),
    Operation("poincare_conv_transpose2d", (P(2, 3, 2, 3, dim=1), KERNEL, Arg("offset", (4,)))),
    Operation(
        "poincare_conv_transpose2d",
        (P(2, 3, 3, 2, dim=1), Arg("normal", (4, 3, 2, 4))),
        {"stride": (3, 2), "padding": (0, 1)},
        label="no_bias",
    ),
    Operation(
        "poincare_conv_transpose2d",
        (P(2, 4, 3, 2, dim=1), Arg("normal", (6, 2, 2, 3)), Arg("offset", (6,))),
        {"stride": 2, "dilation": (1, 3), "output_padding": (0, 2), "groups": 2, "max_distance": 1.0},
        label="groups",
    ),
    Operation(
        "poincare_conv_transpose",
        (P(2, 2, 2, 1, 2, dim=1), Arg("normal", (3, 2, 2, 1, 3)), Arg("offset", (3,))),
        {"stride": (2, 1, 1)},
        "3d",
    ),
]
MEANS = [
    Operation(name, args, kwargs, label=label, pointwise=False, returns=returns, power=power)
    for name, returns, power in (
        ("midpoint", "point", 1),
        ("frechet_mean", "point", 1),
        ("frechet_variance", "number", 2),
    )
    for args, kwargs, label in (
        ((P(6, 4),), {}, ""),
        ((P(2, 4, 3, 2, dim=1),), {"dim": 1}, "dim"),
        ((P(2, 3, 4, distance=2.0),), {"reducedim": [1], "keepdim": True}, "keepdim"),
    )
] + [
    Operation("midpoint", (P(6, 4), _weights(6)), label="weights", pointwise=False),
    Operation(
        "midpoint",
        (P(2, 4, 3, 2, dim=1), _weights(2, 3, 2)),
        {"dim": 1, "reducedim": [2, 3]},
        "weights-dim",
        pointwise=False,
    ),
    Operation("frechet_mean", (P(6, 4), _weights(6)), label="weights", pointwise=False),
    Operation(
        "frechet_mean",
        (P(2, 4, 3, 2, dim=1), _weights(2, 3, 2)),
        {"dim": 1, "reducedim": [2, 3]},
        "weights-dim",
        pointwise=False,
    ),
    Operation(
        "frechet_variance",
        (P(6, 4), P(4, distance=1.0), _weights(6)),
        label="weights",
        returns="number",
        power=2,
        pointwise=False,
    ),
]
NORM = [
    Operation("midpoint_batch_norm", args, kwargs, label=label, pointwise=len(args) > 2)
    for args, kwargs, label in (
        ((IMAGE,), {"eps": 0.0}, "batch"),
        ((IMAGE,), {"eps": 0.0, "about": "frechet"}, "batch-frechet"),
        ((IMAGE,), {"eps": 0.0, "scale": "channel"}, "batch-channel"),
        ((IMAGE,), {"eps": 0.0, "scale": "channel", "about": "frechet"}, "batch-channel-frechet"),
        ((IMAGE, CENTER, Arg("variance", ()), Arg("gain", ()), CENTER), {"eps": 1e-2}, "given"),
        (
            (IMAGE, CENTER, Arg("variance", (4,)), Arg("gain", (4,)), CENTER),
            {"scale": "channel", "eps": 1e-2},
            "given-channel",
        ),
        (
            (IMAGE, CENTER, Arg("variance", ()), Arg("gain", ()), CENTER),
            {"max_distance": 1.0},
            "given-max_distance",
        ),
        (
            (P(6, 4), CENTER, Arg("variance", ()), Arg("gain", ()), CENTER),
            {"dim": -1, "eps": 0.0},
            "given-dim",
        ),
    )
]
LAYERS = [
    Operation("mobius_residual", (P(2, 4, 3, dim=1), P(2, 4, 3, dim=1))),
    Operation("mobius_residual", (P(2, 4, 3, dim=1), P(2, 4, 3, dim=1)), {"order": "rf", "max_distance": 3.0}, "rf"),
    Operation("mobius_residual", (P(5, 4), P(5, 4)), {"dim": -1}, "dim"),
    Operation("poincare_relu", (P(2, 4, 3, dim=1),)),
    Operation("poincare_relu", (P(5, 4),), {"dim": -1}, "dim"),
    *(
        Operation("poincare_avg_pool2d", (P(2, 3, 5, 6, dim=1),), kwargs, label)
        for kwargs, label in (
            ({"kernel_size": 2}, ""),
            ({"kernel_size": (3, 2), "stride": (2, 1), "padding": 1}, "padding"),
            ({"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False}, "without_padding"),
            ({"kernel_size": 2, "stride": 3, "padding": 1, "ceil_mode": True}, "ceil"),
        )
    ),
    Operation("poincare_adaptive_avg_pool2d", (P(2, 3, 5, 6, dim=1),), {"output_size": 1}),
    Operation("poincare_adaptive_avg_pool2d", (P(2, 3, 5, 6, dim=1),), {"output_size": (3, 4)}, "uneven"),
]
LAYERS += [
    Operation(f"poincare_max_pool{len(size)}d", (P(2, 3, *size, dim=1),), kwargs, label)
    for size, kwargs, label in (
        ((7,), {"kernel_size": 2, "dilation": 2, "stride": 1}, ""),
        ((5, 6), {"kernel_size": 2}, ""),
        ((5, 6), {"kernel_size": (3, 2), "stride": (2, 3), "padding": 1, "ceil_mode": True}, "ceil"),
        ((2, 3, 4), {"kernel_size": (1, 3, 2), "padding": (0, 1, 1)}, ""),
    )
]


def _joined(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *points, **options: function(points, **options)


def _listed(function: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Tensor]:
    return lambda x, **options: torch.cat(function(x, **options), options.get("dim", -1))


LAYERS += [
    Operation("beta_concatenate", (P(2, 3, 4),), {}, "tensor"),
    Operation("beta_concatenate", (P(5, 4), P(5, 1), P(5, 2)), adapt=_joined),
    Operation("beta_concatenate", (P(2, 4, 3, dim=1), P(2, 2, 3, dim=1)), {"dim": 1}, "dim", adapt=_joined),
    Operation("beta_concatenate", (P(5, 4), P(5, 1)), {"max_distance": 1.0}, "max_distance", adapt=_joined),
    Operation("beta_split", (P(5, 6, distance=2.0),), {"sizes": 2}, adapt=_listed, returns="vector"),
    Operation("beta_split", (P(2, 6, 3, dim=1),), {"sizes": (4, 2), "dim": 1}, "dim", adapt=_listed, returns="vector"),
    Operation("poincare_flatten", (P(3, 4, 2, 2, dim=1, distance=3.0),)),
    Operation("poincare_flatten", (P(3, 2, 4, 2, dim=2),), {"start_dim": 1, "end_dim": 2, "dim": 2}, "pixels_first"),
]
OPERATIONS = [*BALL, *CHARTS, *LINEAR, *MEANS, *NORM, *LAYERS]

operation = pytest.mark.parametrize("op", OPERATIONS, ids=str)
curvature = pytest.mark.parametrize("c", [1e-6, 0.1, 1.0, 10.0])


@functools.cache
def backends_of(name: str) -> tuple[str, ...]:
    """The backends that make a difference to the operation of that name: one, if it never asks which is chosen."""
    asked = []

    def get_backend() -> str:
        asked.append(name)
        return "eager"

    (op,) = (op for op in OPERATIONS if str(op) == name)
    layer = op in (*LINEAR, *NORM, *LAYERS)
    charts = [{}, {"in_chart": "tangent"} | ({"out_chart": "hyperboloid"} if op.returns == "point" else {})]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_backend, "get_backend", get_backend)
        for options in charts if layer else charts[:1]:
            tensors = [t.requires_grad_() for t in op.tensors(0.1)]
            out = op.fast(*tensors, c=0.1, **options)
            if out.requires_grad:
                out.sum().backward()
    return ("eager", "compiled") if asked else ("eager",)


def scaled(op: Operation) -> Any:
    """`op` on the ball of curvature c, by a homothety a function on the ball of curvature 1."""

    def function(*tensors: Tensor, c: Tensor) -> Tensor:
        inputs = [t * c ** (-arg.power / 2) for t, arg in zip(tensors, op.args, strict=True)]
        return op.fast(*inputs, c=c) * c ** (op.power / 2)

    return function


def zeros(op: Operation, c: float) -> list[Tensor]:
    """The arguments of `op`, every point and vector at the origin."""
    return [torch.zeros_like(t) if arg.is_vector else t for t, arg in zip(op.tensors(c), op.args, strict=True)]


def boundary(op: Operation, c: float) -> list[Tensor]:
    """The arguments of `op`, every ball point a millionth of the radius from the boundary."""
    return [
        t / t.norm(dim=arg.dim, keepdim=True) * (1 - 1e-6) / math.sqrt(c) if arg.kind == "point" else t
        for t, arg in zip(op.tensors(c), op.args, strict=True)
    ]
