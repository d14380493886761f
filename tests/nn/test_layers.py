"""What every layer must do: land on the ball, equal the function and the naive composition, take any chart."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import geoopt
import pytest
import torch
from helpers import CURVATURES, TOLERANCES, assert_close, generator, points
from layers import LAYERS, every_layer, make_ball
from torch import Tensor

import manifold_resnet.functional as F
from manifold_resnet import nn
from manifold_resnet.functional import naive

CHARTS = ("ball", "tangent", "hyperboloid")
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
            assert is_point(layer, out, kind.result_dim)
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
            assert is_point(layer, out, kind.result_dim)
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
            by_hand = F.convert(expected, "ball", dst, c=c, dim=kind.result_dim) if dst else expected
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
    "conv2d-depthwise": ("4, 4", "groups=4", "padding=1"),
    "conv_transpose1d": ("3, 4", "kernel_size=(3,)", "stride=(2,)", "padding=(1,)", "output_padding=(1,)"),
    "conv_transpose2d-groups": ("4, 4", "kernel_size=(2, 3)", "stride=(1, 2)", "groups=2", "dilation=(2, 1)"),
    "mlr-dim": ("4, 5", "dim=1"),
    "max_pool1d": ("kernel_size=(2,)", "stride=(1,)", "padding=(0,)", "dilation=(2,)"),
    "max_pool2d": ("kernel_size=(3, 2)", "stride=(3, 2)", "padding=(1, 1)", "ceil_mode=True"),
    "flatten-dim": ("start_dim=1", "end_dim=2", "dim=2"),
    "dropout": ("p=0.4", "dim=1"),
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


@every_layer
def test_channels_last(kind):
    """The same, values and gradients, in torch's other layout of images."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    layer, inputs = kind.layer(0.7), kind.x(0.7)
    if inputs[0].ndim not in formats or "dropout" in kind.label:
        return
    results = []
    for memory_format in (torch.contiguous_format, formats[inputs[0].ndim]):
        twin = copy.deepcopy(layer)
        given = [t.clone(memory_format=memory_format).requires_grad_() for t in inputs]
        out = twin(*given)
        out.sin().sum().backward()
        results.append([out, *[t.grad for t in (*given, *twin.parameters())]])
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-9)
