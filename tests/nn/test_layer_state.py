"""Layers keep their manifold and c when they are copied, stored, loaded, or change precision."""

import copy
import io
import pickle

import geoopt
import pytest
import torch
from covering import pairs
from geoopt.optim import RiemannianSGD
from helpers import assert_close, generator, points

from manifold_resnet import nn


class Lookup(nn.PoincareEmbedding):
    """As many points as there are inputs."""

    def forward(self, x):
        return super().forward(torch.arange(len(x)), out_chart="tangent")


LAYERS = {
    "linear": (lambda ball: nn.PoincareLinear(4, 5, ball=ball), (6, 4)),
    "linear-tangent": (lambda ball: nn.PoincareLinear(4, 5, ball=ball, weight_on="tangent", bias=False), (6, 4)),
    "mlr": (lambda ball: nn.PoincareMLR(4, 5, ball=ball), (6, 4)),
    "conv1d": (lambda ball: nn.PoincareConv1d(4, 5, 3, padding="same", ball=ball), (2, 4, 5)),
    "conv2d": (lambda ball: nn.PoincareConv2d(4, 5, 3, padding=1, ball=ball, max_distance=3.0), (2, 4, 3, 3)),
    "conv3d": (lambda ball: nn.PoincareConv3d(4, 5, 2, ball=ball), (2, 4, 2, 3, 2)),
    "conv2d-groups": (lambda ball: nn.PoincareConv2d(4, 6, 3, groups=2, ball=ball), (2, 4, 3, 3)),
    "conv_transpose1d": (lambda ball: nn.PoincareConvTranspose1d(4, 5, 2, stride=2, ball=ball), (2, 4, 3)),
    "conv_transpose2d": (lambda ball: nn.PoincareConvTranspose2d(4, 6, 3, groups=2, ball=ball), (2, 4, 2, 2)),
    "embedding": (lambda ball: Lookup(8, 3, padding_idx=0, ball=ball), (6, 4)),
    "norm1d": (lambda ball: nn.PoincareBatchNorm1d(4, ball=ball, mean="frechet"), (6, 4)),
    "norm2d": (lambda ball: nn.PoincareBatchNorm2d(4, ball=ball, scale="scalar"), (2, 4, 3, 3)),
    "norm3d": (lambda ball: nn.PoincareBatchNorm3d(4, ball=ball, affine=False), (2, 4, 2, 3, 2)),
    "sequential": (
        lambda ball: torch.nn.Sequential(
            nn.ExpMap0(ball=ball, dim=1),
            nn.PoincareConv2d(4, 4, 3, padding=1, ball=ball),
            nn.PoincareBatchNorm2d(4, ball=ball),
            nn.PoincareReLU(ball=ball),
            nn.PoincareAvgPool2d(2, ball=ball),
            nn.PoincareConvTranspose2d(4, 4, 2, stride=2, ball=ball),
            nn.PoincareMaxPool2d(2, ball=ball),
            nn.PoincareDropout2d(0.0, ball=ball),
            nn.PoincareFlatten(ball=ball),
            nn.PoincareDropout(0.0, ball=ball),
            nn.PoincareMLR(16, 3, ball=ball),
        ),
        (2, 4, 4, 4),
    ),
}
every_layer = pytest.mark.parametrize("name", LAYERS)
COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "torch.save": lambda m: torch.load(stored(m), weights_only=False),
}


def stored(thing):
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    buffer.seek(0)
    return buffer


def make(name, c=0.4, learnable=False, dtype=torch.float64, seed=0):
    """A layer that has been trained for one step."""
    torch.manual_seed(seed)
    layer = LAYERS[name][0](geoopt.PoincareBall(torch.tensor(c, dtype=dtype), learnable=learnable))
    out = layer(inputs(name, c, dtype=dtype))
    trained = [p for p in layer.parameters() if p.requires_grad]
    if trained:
        out.square().mean().backward()
        RiemannianSGD(trained, lr=0.01).step()
        layer.zero_grad()
    return layer


def inputs(name, c=0.4, dtype=torch.float64):
    return points(generator(), *LAYERS[name][1], c=c, dim=1).to(dtype)


def balls(module):
    return {id(m.ball): m.ball for m in module.modules() if hasattr(m, "ball")}


def assert_manifolds(module, like=None):
    """One ball; every manifold parameter is still one, of the layer's own ball."""
    (ball,) = balls(module).values()
    for m in module.modules():
        for n, p in m._parameters.items():
            if isinstance(p, geoopt.ManifoldParameter):
                assert p.manifold is m.ball is ball
                assert p.manifold.check_point_on_manifold(p)
            if n == "weight" and getattr(m, "weight_on", "ball") == "ball":
                assert isinstance(p, geoopt.ManifoldParameter)
            if n == "bias" and "Norm" in type(m).__name__ and p is not None:
                assert isinstance(p, geoopt.ManifoldParameter)
    if like is not None:
        for (n, p), (other, q) in zip(module.named_parameters(), like.named_parameters(), strict=True):
            assert n == other
            assert type(p) is type(q)
            assert p.requires_grad == q.requires_grad


@pairs
@every_layer
@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("learnable", [False, True])
def test_copies(name, how, learnable):
    """The same function, and independent: training the copy leaves the original alone."""
    layer = make(name, learnable=learnable)
    twin = COPIES[how](layer)
    assert_manifolds(twin, like=layer)
    assert not set(balls(twin)) & set(balls(layer))
    x = inputs(name)
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    assert_close(twin.eval()(x), copy.deepcopy(layer).eval()(x), 0.0)
    if any(p.requires_grad for p in twin.parameters()):
        twin.train()(x).square().mean().backward()
    RiemannianSGD(twin.parameters(), lr=1.0).step()
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())
    assert_manifolds(twin)


@pairs
@every_layer
@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("through_a_file", [False, True])
def test_state_dict(name, assign, through_a_file):
    """Weights, statistics and c move to another layer, which keeps its types, also with `assign=True`."""
    layer = make(name)
    state = layer.state_dict()
    assert any(k.endswith("isp_c") for k in state)
    if through_a_file:
        state = torch.load(stored(state), weights_only=True)
    other = make(name, c=2.0, seed=1)
    assert other.load_state_dict(state, assign=assign).missing_keys == []
    (ball,) = balls(other).values()
    assert ball.c.item() == pytest.approx(0.4)
    assert_manifolds(other, like=layer)
    x = inputs(name)
    assert_close(other.eval()(x), layer.eval()(x), 0.0)
    trained = [p for p in other.parameters() if p.requires_grad]
    if trained:
        other.train()(x).square().mean().backward()
        RiemannianSGD(trained, lr=0.01).step()
        assert_manifolds(other)


@every_layer
def test_assigning_does_not_touch_the_state_dict(name):
    """It may be loaded into several layers."""
    layer = make(name)
    state = layer.state_dict()
    types = {k: type(v) for k, v in state.items()}
    first, second = make(name, seed=1), make(name, seed=2)
    first.load_state_dict(state, assign=True)
    assert {k: type(v) for k, v in state.items()} == types
    second.load_state_dict(state, assign=True)
    assert_manifolds(first), assert_manifolds(second)


@every_layer
def test_state_dicts_that_do_not_fit(name):
    layer = make(name)
    state = {k: v.new_zeros(2, 7, 3) if v.dim() else v for k, v in layer.state_dict().items()}
    for assign in (False, True):
        with pytest.raises(RuntimeError, match="size mismatch"):
            make(name).load_state_dict(state, assign=assign)
    with pytest.raises(RuntimeError, match="Missing key"):
        make(name).load_state_dict({})


@every_layer
@pytest.mark.parametrize("move", ["double", "to", "cpu"])
def test_precision_and_device(name, move):
    layer = make(name, dtype=torch.float32)
    same = {"double": lambda: layer.double(), "to": lambda: layer.to(torch.float64), "cpu": lambda: layer.cpu()}[move]()
    dtype = torch.float32 if move == "cpu" else torch.float64
    assert same is layer
    assert_manifolds(layer)
    (ball,) = balls(layer).values()
    assert ball.c.dtype == dtype
    assert ball.c.item() == pytest.approx(0.4, rel=1e-6)
    assert all(t.dtype == dtype for t in layer.state_dict().values() if t.is_floating_point())
    assert layer(inputs(name, dtype=dtype)).dtype == dtype
    assert layer.float()(inputs(name).float()).dtype == torch.float32


@every_layer
def test_a_single_precision_curvature_in_a_double_layer(name):
    """c is taken as the number it is."""
    layer = make(name)
    (ball,) = balls(layer).values()
    ball.float()
    x = inputs(name)
    out = layer(x)
    assert out.dtype == torch.float64
    exact = copy.deepcopy(layer)
    (other,) = balls(exact).values()
    other.double()
    with torch.no_grad():
        other.isp_c.copy_(torch.log(torch.expm1(ball.c.double())))
    assert_close(out, exact(x), 1e-10)
    if any(p.requires_grad for p in layer.parameters()):
        out.square().mean().backward()


@every_layer
def test_learnable_curvature_is_trained_in_any_precision(name):
    layer = make(name, learnable=True)
    (ball,) = balls(layer).values()
    ball.float()
    layer(inputs(name)).square().mean().backward()
    assert ball.isp_c.grad.dtype == torch.float32
    assert ball.isp_c.grad.isfinite()
    if "norm" not in name:
        assert ball.isp_c.grad != 0


@every_layer
def test_a_copy_of_a_layer_whose_weights_left_the_ball(name):
    """As after c grew: copying and storing do not object."""
    layer = make(name)
    (ball,) = balls(layer).values()
    with torch.no_grad():
        ball.isp_c.fill_(60.0)
    for how in COPIES.values():
        twin = how(layer)
        assert twin(inputs(name, ball.c.item())).isfinite().all()
    other = make(name, seed=1)
    other.load_state_dict(layer.state_dict(), assign=True)


def test_frozen_parameters_stay_frozen():
    layer = make("linear")
    layer.weight.requires_grad_(False)
    layer.load_state_dict(make("linear", seed=1).state_dict(), assign=True)
    assert not layer.weight.requires_grad
    assert layer.bias.requires_grad
    assert not copy.deepcopy(layer).weight.requires_grad


def test_one_ball_is_shared():
    """By layers given the same ball, after copies too; state dicts hold it once per layer."""
    ball = geoopt.PoincareBall(1.0, learnable=True)
    model = torch.nn.Sequential(nn.PoincareLinear(3, 3, ball=ball), nn.PoincareLinear(3, 3, ball=ball))
    assert [n for n, _ in model.named_parameters()].count("0.ball.isp_c") == 1
    assert len(list(model.parameters())) == 5
    twin = copy.deepcopy(model)
    assert twin[0].ball is twin[1].ball is twin[1].weight.manifold
    assert twin[0].ball is not ball
