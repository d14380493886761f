"""The bound on the distance from the origin, and the monitor that counts who sits on it."""

import copy
import math
import pickle

import geoopt
import pytest
import torch
from helpers import generator, points, tangents

import manifold_resnet.functional as F
from manifold_resnet import nn

C = 0.5
DEFAULT = F.DEFAULT_MAX_DISTANCE / math.sqrt(C)


def make(kind, max_distance, dtype=torch.float64):
    torch.manual_seed(0)
    options = {"ball": geoopt.PoincareBall(torch.tensor(C, dtype=dtype)), "max_distance": max_distance}
    if kind == "linear":
        layer = nn.PoincareLinear(3, 4, **options)
    elif kind == "conv":
        layer = nn.PoincareConv2d(3, 4, 3, padding=1, **options)
    elif kind == "conv_transpose":
        layer = nn.PoincareConvTranspose2d(3, 4, 4, 2, 1, **options)
    elif kind == "flatten":
        return nn.PoincareFlatten(**options)
    elif kind.startswith("norm"):
        return nn.PoincareBatchNorm2d(3, scale=kind[5:], **options)
    elif kind == "residual":
        return nn.PoincareResidual(**options)
    else:
        return nn.ExpMap0(dim=1, **options)
    with torch.no_grad():
        layer.set_normals(2 * layer.normals())
    return layer


def inputs(kind):
    if kind == "linear":
        return (points(generator(), 50, 3, c=C),)
    if kind == "expmap0":
        return (tangents(generator(), 4, 3, 5, 5, c=C, dim=1, distance=8.0),)
    x = points(generator(), 4, 3, 5, 5, c=C, dim=1)
    return (x, x) if kind == "residual" else (x,)


KINDS = ["linear", "conv", "conv_transpose", "flatten", "norm-scalar", "norm-channel", "residual", "expmap0"]
bounded = pytest.mark.parametrize("kind", KINDS)


def distances(layer, out, chart):
    """From the origin, by geoopt."""
    u = F.convert(out, chart, "tangent", c=C, dim=layer.dim)
    return 2 * u.norm(dim=layer.dim)


@bounded
@pytest.mark.parametrize("chart", ["ball", "tangent", "hyperboloid"])
def test_outputs_keep_within_the_bound(kind, chart):
    free = distances(make(kind, math.inf), make(kind, math.inf)(*inputs(kind), out_chart="tangent"), "tangent")
    bound = free.median().item()
    layer = make(kind, bound)
    out = layer(*inputs(kind), out_chart=chart)
    torch.testing.assert_close(distances(layer, out, chart), free.clamp(max=bound), rtol=1e-9, atol=1e-9)
    if chart == "ball":
        assert (layer.ball.dist0(out.movedim(layer.dim, -1)) <= bound * (1 + 1e-9)).all()


@bounded
def test_default_bound(kind):
    """Six curvature radii; it follows a c that is learnt."""
    layer = make(kind, None)
    assert layer.max_distance is None
    far = 1e3 if kind == "expmap0" else 1.0
    if "norm" in kind:
        with torch.no_grad():
            layer.log_scale.fill_(5.0)
    elif kind in ("linear", "conv", "conv_transpose"):
        with torch.no_grad():
            layer.set_normals(5 * layer.normals())
    for factor in (1.0, 3.0):
        with torch.no_grad():
            layer.ball.isp_c.copy_(torch.log(torch.expm1(torch.tensor(C * factor))))
        c = layer.c.item()
        out = layer(*(far * x / math.sqrt(factor) for x in inputs(kind)), out_chart="tangent")
        distance = 2 * out.norm(dim=layer.dim).max().item()
        assert distance <= 6 / math.sqrt(c) * (1 + 1e-9)
        if kind not in ("residual", "flatten"):
            assert distance == pytest.approx(6 / math.sqrt(c), rel=1e-9)


@bounded
def test_monitor_counts_what_a_direct_computation_counts(kind):
    free = distances(make(kind, math.inf), make(kind, math.inf)(*inputs(kind), out_chart="tangent"), "tangent")
    for bound in (free.quantile(0.3).item() * 1.0001, free.max().item() * 1.01):
        layer = make(kind, bound)
        with nn.monitor_clipping(layer) as monitor:
            layer(*inputs(kind))
            layer(*inputs(kind), out_chart="hyperboloid")
        expected = (free >= bound).double().mean().item()
        assert monitor.share() == expected
        assert monitor.shares() == {"": expected}


@bounded
def test_monitor_counts_far_points_in_single_precision(kind):
    """Also where the hyperboloid chart would overflow."""
    layer = make(kind, None, torch.float32)
    x = [torch.zeros_like(t, dtype=torch.float32) for t in inputs(kind)]
    for t in x:
        t.select(layer.dim, 0).fill_(1e4 if kind == "expmap0" else 1.41)
    with torch.no_grad():
        for p in layer.parameters():
            if p.dim() and not isinstance(p, geoopt.ManifoldParameter):
                p.fill_(3.0 if "norm" in kind else 4.0)
    with nn.monitor_clipping(layer) as monitor:
        out = layer(*x, out_chart="tangent")
    assert out.isfinite().all()
    beyond = distances(layer, out, "tangent") > DEFAULT * (1 - 1e-6)
    assert monitor.share() == beyond.double().mean().item()
    if kind == "expmap0":
        assert monitor.share() == 1.0


def test_monitor_counts_nothing_before_and_after():
    layer = make("conv", 0.1)
    layer(*inputs("conv"))
    with nn.monitor_clipping(layer) as monitor:
        assert monitor.share() == 0.0
        assert monitor.shares() == {}
        layer(*inputs("conv"))
    share = monitor.share()
    layer.set_normals(1e-3 * layer.normals())
    layer(*inputs("conv"))
    assert monitor.share() == share
    assert layer._counts is None


def test_monitors_may_be_nested_and_interrupted():
    layer, x = make("linear", 1.0), inputs("linear")
    with nn.monitor_clipping(layer) as outer:
        layer(*x)
        before = outer.share()
        with pytest.raises(RuntimeError, match="stop"), nn.monitor_clipping(layer) as inner:  # noqa: PT012
            layer(*x)
            raise RuntimeError("stop")
        assert inner.share() == before
        layer.set_normals(1e-3 * layer.normals())
        layer(*x)
        assert outer.share() < before
    assert layer._counts is None


def test_monitored_layers_can_be_copied():
    layer, x = make("linear", 1.0), inputs("linear")
    with nn.monitor_clipping(layer) as monitor:
        layer(*x)
        share = monitor.share()
        for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            twin.set_normals(1e-3 * twin.normals())
            twin(*x)
        assert monitor.share() == share


def test_monitor_names_layers():
    ball = geoopt.PoincareBall(torch.tensor(C, dtype=torch.float64))
    model = torch.nn.Sequential(
        nn.PoincareConv2d(3, 3, 1, ball=ball, max_distance=1e-3),
        nn.PoincareReLU(ball=ball),
        nn.PoincareConv2d(3, 3, 1, ball=ball, max_distance=100.0),
        nn.PoincareAdaptiveAvgPool2d(1, ball=ball),
        nn.PoincareResidual(ball=ball),
    )
    with nn.monitor_clipping(model) as monitor:
        model[:4](*inputs("conv"))
    assert monitor.shares() == {"0": 1.0, "2": 0.0}
    assert monitor.share() == 0.5


@bounded
def test_no_radial_gradient_on_the_bound(kind):
    layer = make(kind, 1e-2)
    x = [t.requires_grad_() for t in inputs(kind)]
    out = layer(*x, out_chart="tangent")
    on_bound = 2 * out.detach().norm(dim=layer.dim, keepdim=True) > 1e-2 * (1 - 1e-9)
    parameters = [p for p in layer.parameters() if p.requires_grad]
    gradients = torch.autograd.grad((out * out.detach() * on_bound).sum(), [*x, *parameters], allow_unused=True)
    assert on_bound.any()
    assert all(g.abs().max() < 1e-9 for g in gradients if g is not None)
