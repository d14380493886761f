"""The table of layers: how to make each, inputs for it, and the same from functions.

Tests that hold for every layer are parametrised over these rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import geoopt
import pytest
import torch
from helpers import generator, points, tangents, unit
from torch import Tensor

from manifold_resnet import nn
from manifold_resnet.functional import naive


def make_ball(c: float, dtype: torch.dtype = torch.float64) -> geoopt.PoincareBall:
    return geoopt.PoincareBall(torch.tensor(c, dtype=dtype), learnable=True)


def hyperplanes(layer: Any) -> tuple[Tensor, Tensor | None]:
    """Normals and offsets, from the parameters as the documentation of the layers says."""
    normals = layer.weight_scale * naive.logmap0(layer.weight.as_subclass(Tensor), c=layer.c)
    return normals.view(layer.normals().shape), layer.bias


def gain_and_center(layer: Any) -> dict[str, Tensor]:
    shape = () if layer.scale == "scalar" else (layer.num_features,)
    base = 1.0 if layer.scale == "scalar" else 0.5 / layer.num_features**0.5
    return {"gain": layer.log_scale.exp().view(shape) * base, "center": layer.bias.as_subclass(Tensor)}


@dataclass(frozen=True)
class Layer:
    """How to make one, inputs for it, and the same from functions."""

    label: str
    make: Callable[[geoopt.PoincareBall], Any]
    shape: tuple[int, ...]
    function: Callable[..., Tensor]  # (module of functions, layer, x, *others)
    inputs: int = 1
    dim: int = 1
    takes: str = "points"
    returns: str = "points"
    out_dim: int | None = None  # where the results run along another dimension

    @property
    def result_dim(self) -> int:
        return self.dim if self.out_dim is None else self.out_dim

    def __str__(self) -> str:
        return self.label

    def layer(self, c: float, dtype: torch.dtype = torch.float64) -> Any:
        """A layer with every parameter somewhere at random."""
        layer = self.make(make_ball(c, dtype))
        g = generator(7)
        with torch.no_grad():
            for name, p in layer.named_parameters():
                if name == "weight":  # a layer that roughly keeps distances
                    z = torch.randn(p.shape, generator=g, dtype=torch.float64)
                    layer.set_normals(
                        z / z.norm(dim=1, keepdim=True) * (0.25 + 0.5 * torch.rand(len(p), 1, generator=g))
                    )
                elif isinstance(p, geoopt.ManifoldParameter):
                    p.copy_(points(g, *p.shape, c=c, distance=1.0))
                elif name == "log_scale":  # small enough for no point to reach the bound
                    p.copy_(torch.rand(p.shape, generator=g, dtype=torch.float64) - 1.5)
                elif name == "bias":
                    p.copy_((torch.rand(p.shape, generator=g, dtype=torch.float64) - 0.5) * unit(c))
        return layer

    def x(self, c: float, seed: int = 0) -> list[Tensor]:
        g = generator(seed)
        random = points if self.takes == "points" else tangents
        return [random(g, *self.shape, c=c, dim=self.dim) for _ in range(self.inputs)]


def conv(make: Callable[..., Any], channels: int, *args: Any, **kwargs: Any) -> Callable[[geoopt.PoincareBall], Any]:
    return lambda ball: make(channels, 4, *args, ball=ball, **kwargs)


def conv_function(functions: Any, layer: Any, x: Tensor) -> Tensor:
    z, r = hyperplanes(layer)
    return functions.poincare_conv(x, z, r, layer.stride, layer.padding, layer.dilation, layer.groups, c=layer.c)


def conv_transpose_function(functions: Any, layer: Any, x: Tensor) -> Tensor:
    geometry = layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation
    return functions.poincare_conv_transpose(x, *hyperplanes(layer), *geometry, c=layer.c)


def seeded(dropout: Any) -> Any:
    """A layer that drops the same coordinates every time."""
    dropout.register_forward_pre_hook(_seed)
    return dropout


def _seed(*_: Any) -> None:
    torch.manual_seed(0)


def dropout_function(functions: Any, layer: Any, x: Tensor) -> Tensor:
    _seed()
    return functions.poincare_dropout(x, layer.p, c=layer.c)


def norm_function(functions: Any, layer: Any, x: Tensor) -> Tensor:
    options = {"about": layer.mean, "scale": layer.scale, "eps": layer.eps, "c": layer.c}
    return functions.midpoint_batch_norm(x, **gain_and_center(layer), **options)


LAYERS = [
    Layer(
        "linear",
        lambda ball: nn.PoincareLinear(4, 5, ball=ball),
        (6, 4),
        lambda f, m, x: f.poincare_linear(x, *hyperplanes(m), c=m.c),
        dim=-1,
    ),
    Layer(
        "linear-no_bias",
        lambda ball: nn.PoincareLinear(4, 3, ball=ball, bias=False),
        (2, 3, 4),
        lambda f, m, x: f.poincare_linear(x, *hyperplanes(m), c=m.c),
        dim=-1,
    ),
    Layer(
        "mlr",
        lambda ball: nn.PoincareMLR(4, 5, ball=ball),
        (6, 4),
        lambda f, m, x: f.poincare_mlr(x, *hyperplanes(m), c=m.c),
        dim=-1,
        returns="logits",
    ),
    Layer(
        "mlr-dim",
        lambda ball: nn.PoincareMLR(4, 5, ball=ball, dim=1),
        (2, 4, 3),
        lambda f, m, x: f.poincare_mlr(x, *hyperplanes(m), c=m.c, dim=1),
        returns="logits",
    ),
    Layer("conv1d", conv(nn.PoincareConv1d, 3, 3, padding=1), (2, 3, 6), conv_function),
    Layer("conv2d", conv(nn.PoincareConv2d, 3, 3, stride=2, padding=1), (2, 3, 5, 4), conv_function),
    Layer(
        "conv2d-rectangular",
        conv(nn.PoincareConv2d, 2, (3, 2), padding=(0, 1), dilation=(1, 2), bias=False),
        (2, 2, 4, 5),
        conv_function,
    ),
    Layer("conv2d-same", conv(nn.PoincareConv2d, 2, (2, 3), padding="same"), (2, 2, 4, 3), conv_function),
    Layer("conv3d", conv(nn.PoincareConv3d, 2, (2, 1, 3), padding=(0, 0, 1)), (2, 2, 3, 2, 3), conv_function),
    Layer("conv1d-groups", conv(nn.PoincareConv1d, 6, 3, padding="same", groups=2), (2, 6, 5), conv_function),
    Layer("conv2d-depthwise", conv(nn.PoincareConv2d, 4, 3, 2, 1, groups=4), (2, 4, 5, 4), conv_function),
    Layer("conv3d-groups", conv(nn.PoincareConv3d, 2, 2, groups=2, bias=False), (2, 2, 3, 2, 3), conv_function),
    Layer(
        "conv_transpose1d",
        conv(nn.PoincareConvTranspose1d, 3, 3, 2, 1, 1),
        (2, 3, 4),
        conv_transpose_function,
    ),
    Layer(
        "conv_transpose2d",
        conv(nn.PoincareConvTranspose2d, 3, 4, stride=2, padding=1),
        (2, 3, 3, 2),
        conv_transpose_function,
    ),
    Layer(
        "conv_transpose2d-groups",
        conv(nn.PoincareConvTranspose2d, 4, (2, 3), (1, 2), groups=2, dilation=(2, 1), bias=False),
        (2, 4, 3, 2),
        conv_transpose_function,
    ),
    Layer("conv_transpose3d", conv(nn.PoincareConvTranspose3d, 2, 2, 2), (2, 2, 1, 2, 2), conv_transpose_function),
    *(
        Layer(
            f"norm{n}d-{scale}-{mean}",
            lambda ball, n=n, scale=scale, mean=mean: getattr(nn, f"PoincareBatchNorm{n}d")(
                4, ball=ball, scale=scale, mean=mean
            ),
            shape,
            norm_function,
        )
        for n, shape, scale, mean in (
            (1, (6, 4), "channel", "midpoint"),
            (1, (3, 4, 2), "scalar", "frechet"),
            (2, (3, 4, 2, 2), "scalar", "midpoint"),
            (2, (3, 4, 2, 2), "channel", "frechet"),
            (3, (2, 4, 2, 1, 2), "channel", "midpoint"),
        )
    ),
    Layer("relu", lambda ball: nn.PoincareReLU(ball=ball), (2, 4, 3), lambda f, m, x: f.poincare_relu(x, c=m.c)),
    Layer(
        "relu-dim",
        lambda ball: nn.PoincareReLU(ball=ball, dim=-1),
        (5, 4),
        lambda f, m, x: f.poincare_relu(x, c=m.c, dim=-1),
        dim=-1,
    ),
    Layer(
        "pool",
        lambda ball: nn.PoincareAvgPool2d((3, 2), (2, 1), 1, True, False, ball=ball),
        (2, 3, 5, 4),
        lambda f, m, x: f.poincare_avg_pool2d(x, (3, 2), (2, 1), 1, True, False, c=m.c),
    ),
    Layer(
        "adaptive_pool",
        lambda ball: nn.PoincareAdaptiveAvgPool2d((2, 1), ball=ball),
        (2, 3, 5, 4),
        lambda f, m, x: f.poincare_adaptive_avg_pool2d(x, (2, 1), c=m.c),
    ),
    *(
        Layer(
            f"max_pool{n}d",
            lambda ball, n=n, options=options: getattr(nn, f"PoincareMaxPool{n}d")(**options, ball=ball),
            shape,
            lambda f, m, x: getattr(f, f"poincare_max_pool{x.ndim - 2}d")(
                x, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, c=m.c
            ),
        )
        for n, shape, options in (
            (1, (2, 3, 6), {"kernel_size": 2, "stride": 1, "dilation": 2}),
            (2, (2, 3, 5, 4), {"kernel_size": (3, 2), "padding": 1, "ceil_mode": True}),
            (3, (2, 3, 2, 3, 4), {"kernel_size": 2, "stride": (1, 2, 2)}),
        )
    ),
    Layer(
        "flatten",
        lambda ball: nn.PoincareFlatten(ball=ball),
        (2, 3, 2, 2),
        lambda f, m, x: f.poincare_flatten(x, c=m.c),
    ),
    Layer(
        "flatten-dim",
        lambda ball: nn.PoincareFlatten(1, 2, ball=ball, dim=2),
        (3, 2, 4),
        lambda f, m, x: f.poincare_flatten(x, 1, 2, c=m.c, dim=2),
        dim=2,
        out_dim=1,
    ),
    Layer("dropout", lambda ball: seeded(nn.PoincareDropout(0.4, ball=ball)), (2, 4, 3), dropout_function),
    *(
        Layer(
            f"residual-{order}",
            lambda ball, order=order: nn.PoincareResidual(ball=ball, order=order),
            (2, 3, 4),
            lambda f, m, x, y, order=order: f.mobius_residual(x, y, c=m.c, order=order),
            inputs=2,
        )
        for order in ("fr", "rf")
    ),
    Layer(
        "expmap0",
        lambda ball: nn.ExpMap0(ball=ball, dim=1),
        (2, 3, 4),
        lambda f, m, x: f.expmap0(x, c=m.c, dim=1),
        takes="tangents",
    ),
    Layer(
        "logmap0",
        lambda ball: nn.LogMap0(ball=ball, dim=1),
        (2, 3, 4),
        lambda f, m, x: f.logmap0(x, c=m.c, dim=1),
        returns="tangents",
    ),
]
every_layer = pytest.mark.parametrize("kind", LAYERS, ids=str)
