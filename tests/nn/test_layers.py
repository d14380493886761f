"""What every layer must do: land on the ball, equal the function and the naive composition, take any chart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import geoopt
import pytest
import torch
from helpers import CURVATURES, TOLERANCES, assert_close, generator, points, tangents, unit
from torch import Tensor

import manifold_resnet.functional as F
from manifold_resnet import nn
from manifold_resnet.functional import naive

CHARTS = ("ball", "tangent", "hyperboloid")


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
    return functions.poincare_conv(x, z, r, layer.stride, layer.padding, layer.dilation, c=layer.c)


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
curvature = pytest.mark.parametrize("c", CURVATURES)


def run(layer: Any, function: Callable[..., Tensor], inputs: list[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Value, and gradients of all inputs and parameters (that of c among them)."""
    leaves = {f"input {i}": x.detach().clone().requires_grad_() for i, x in enumerate(inputs)}
    out = function(*leaves.values())
    cotangent = torch.randn(out.shape, generator=generator(1), dtype=torch.float64)
    leaves |= dict(layer.named_parameters())
    gradients = torch.autograd.grad(out, list(leaves.values()), cotangent / cotangent.norm(), materialize_grads=True)
    return out.detach(), dict(zip(leaves, gradients, strict=True))


@every_layer
@curvature
def test_equals_the_function_and_the_naive_composition(kind, c):
    layer, inputs = kind.layer(c), kind.x(c)
    out, gradients = run(layer, layer, inputs)
    for functions in (F, naive):
        expected, others = run(layer, lambda *x, f=functions: kind.function(f, layer, *x), inputs)
        assert_close(out, expected, TOLERANCES[torch.float64].value)
        for name, gradient in gradients.items():
            assert_close(gradient, others[name], TOLERANCES[torch.float64].gradient, f"gradient of {name}")
    assert "ball.isp_c" in gradients
    assert gradients["input 0"].abs().max() > 0


def is_point(layer: Any, x: Tensor, dim: int) -> bool:
    return layer.ball.check_point_on_manifold(x.movedim(dim, -1).contiguous())


@every_layer
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_lands_on_the_ball(kind, dtype):
    """Whatever the batch size and the number format; half precision is computed in single."""
    full = torch.promote_types(dtype, torch.float32)
    for c in (0.1, 10.0):
        layer = kind.layer(c, full)
        out = layer(*(x.to(dtype) for x in kind.x(c)))
        assert out.dtype == full
        assert out.isfinite().all()
        if kind.returns == "points":
            assert is_point(layer, out, kind.dim)
        layer.eval()
        batches = [out.shape[0] for out in (layer(*(x[:n].to(dtype) for x in kind.x(c))) for n in (1, 0))]
        assert batches == [1, 0]


@every_layer
def test_points_far_out_stay_on_the_ball(kind):
    """Also where inputs are on the boundary, or beyond it by rounding."""
    layer = kind.layer(1.0, torch.float32)
    for size in (1.0, 1 + 1e-6):
        inputs = [(x / x.norm(dim=kind.dim, keepdim=True) * size).float().requires_grad_() for x in kind.x(1.0)]
        out = layer(*inputs)
        assert out.isfinite().all()
        if kind.returns == "points":
            assert is_point(layer, out, kind.dim)
        gradients = torch.autograd.grad(out.sum(), [*inputs, *layer.parameters()], materialize_grads=True)
        assert all(g.isfinite().all() for g in gradients)


@every_layer
def test_the_origin_has_finite_gradients(kind):
    layer = kind.layer(1.0, torch.float32)
    inputs = [torch.zeros_like(x, dtype=torch.float32).requires_grad_() for x in kind.x(1.0)]
    out = layer(*inputs)
    gradients = torch.autograd.grad(out.sum(), [*inputs, *layer.parameters()], materialize_grads=True)
    assert all(g.isfinite().all() for g in [out, *gradients])


@every_layer
def test_charts_change_nothing(kind):
    """Any chart in, any chart out: the same as converting by hand."""
    c = 0.5
    layer, inputs = kind.layer(c), kind.x(c)
    expected = layer(*inputs)
    sources = CHARTS if kind.takes == "points" else ("tangent",)
    targets = CHARTS if kind.returns == "points" else ("",)
    for src in sources:
        for dst in targets:
            charts = {"in_chart": src} if kind.takes == "points" else {}
            if dst:
                charts["out_chart"] = dst
            if kind.inputs == 2:
                charts["shortcut_chart"] = "hyperboloid"
            given = "ball" if kind.takes == "points" else "tangent"
            converted = [F.convert(x, given, src, c=c, dim=kind.dim) for x in inputs]
            if kind.inputs == 2:
                converted[1] = F.convert(inputs[1], "ball", "hyperboloid", c=c, dim=kind.dim)
            out = layer(*converted, **charts)
            by_hand = F.convert(expected, "ball", dst, c=c, dim=kind.dim) if dst else expected
            assert_close(out, by_hand, 1e-10, f"{src} to {dst}")


@pytest.mark.parametrize("kind", [k for k in LAYERS if k.label.startswith(("norm", "residual"))], ids=str)
def test_relu_in_the_same_pass(kind):
    layer, inputs = kind.layer(0.5), kind.x(0.5)
    expected = layer(*inputs, out_chart="tangent").relu()
    assert_close(layer(*inputs, out_chart="tangent", relu=True), expected, 1e-12)
    for chart in ("ball", "hyperboloid"):
        with pytest.raises(ValueError, match=f"relu.*tangent.*{chart}"):
            layer(*inputs, out_chart=chart, relu=True)


@every_layer
def test_takes_geoopt_tensors(kind):
    """A ManifoldTensor counts as the tensor it is."""
    layer, inputs = kind.layer(0.5), kind.x(0.5)
    wrapped = [geoopt.ManifoldTensor(x, manifold=layer.ball) for x in inputs]
    assert_close(layer(*wrapped).as_subclass(Tensor), layer(*inputs), 1e-12)


@every_layer
def test_inputs_are_not_modified(kind):
    layer, inputs = kind.layer(0.5), kind.x(0.5)
    copies = [x.clone() for x in inputs]
    layer(*inputs)
    assert all(torch.equal(x, copy) for x, copy in zip(inputs, copies, strict=True))


def test_logits_are_signed_distances():
    """With normals of length 1/2, to hyperplanes through exp0(r z/|z|)."""
    ball = make_ball(0.7)
    layer = nn.PoincareMLR(3, 1, ball=ball)
    z = torch.tensor([[0.5, 0.0, 0.0]], dtype=torch.float64)
    layer.set_normals(z)
    with torch.no_grad():
        layer.bias.fill_(0.3)
    on_plane = ball.expmap0(0.3 * 2 * z)
    assert_close(layer(on_plane), torch.zeros(1, 1, dtype=torch.float64), 1e-12)
    x = points(generator(), 6, 3, c=0.7)
    # the reflection at the plane swaps sides: distances to a point's mirror image are twice those to the plane
    b = ball.mobius_add(-on_plane, x)
    mirror = ball.mobius_add(on_plane, b * torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64))
    assert_close(2 * layer(x).abs().squeeze(1), ball.dist(x, mirror), 1e-9)


REPRS = {
    "linear": ("4, 5", "bias=True", "gaussian", "ball"),
    "linear-no_bias": ("4, 3", "bias=False"),
    "mlr": ("4, 5", "bias=True"),
    "conv2d": ("3, 4", "kernel_size=(3, 3)", "stride=(2, 2)", "padding=1", "weight_on='ball'", "init='gaussian'"),
    "conv2d-rectangular": ("(3, 2)", "padding=(0, 1)", "dilation=(1, 2)"),
    "conv3d": ("PoincareConv3d", "(2, 1, 3)"),
    "norm2d-scalar-midpoint": ("4", "eps=1e-05", "momentum=0.1", "scale='scalar'", "mean='midpoint'", "affine=True"),
    "relu-dim": ("dim=-1",),
    "pool": ("(3, 2)", "(2, 1)", "padding=1"),
    "adaptive_pool": ("(2, 1)",),
    "residual-rf": ("'rf'", "dim=1"),
    "expmap0": ("dim=1",),
    "logmap0": ("dim=1",),
}


@pytest.mark.parametrize("label", REPRS)
def test_repr_says_what_matters(label):
    (kind,) = (k for k in LAYERS if k.label == label)
    text = repr(kind.layer(1.0))
    assert all(part in text for part in REPRS[label]), text
    first = text.splitlines()[1]
    assert ", ," not in first
    assert not first.endswith(",")


@every_layer
def test_repr_says_c(kind):
    assert "c=0.5" in repr(kind.layer(0.5))


def test_repr_says_the_bound():
    assert "max_distance=2.5" in repr(nn.PoincareConv2d(3, 4, 3, ball=make_ball(1.0), max_distance=2.5))
    assert "max_distance=2.5" in repr(nn.PoincareResidual(ball=make_ball(1.0), max_distance=2.5))
    assert "max_distance=2.5" in repr(nn.PoincareBatchNorm2d(3, ball=make_ball(1.0), max_distance=2.5))
