"""Weights are points of the ball, and stay there."""

from __future__ import annotations

import math

import geoopt
import pytest
import torch
from covering import pairs
from geoopt.optim import RiemannianAdam, RiemannianSGD
from helpers import assert_close, generator, points, tangents

from manifold_resnet import nn
from manifold_resnet.functional import beta_ratio, project

CURVATURES = (1e-6, 0.1, 1.0, 10.0)


def make_ball(c, dtype=torch.float64, learnable=False):
    return geoopt.PoincareBall(torch.tensor(c, dtype=dtype), learnable=learnable)


LAYERS = {
    "linear": (lambda ball, **kw: nn.PoincareLinear(4, 5, ball=ball, **kw), (8, 4), -1),
    "mlr": (lambda ball, **kw: nn.PoincareMLR(4, 5, ball=ball, **kw), (8, 4), -1),
    "conv1d": (lambda ball, **kw: nn.PoincareConv1d(3, 4, 3, ball=ball, **kw), (2, 3, 6), 1),
    "conv2d": (lambda ball, **kw: nn.PoincareConv2d(3, 4, 3, ball=ball, **kw), (2, 3, 4, 4), 1),
    "conv3d": (lambda ball, **kw: nn.PoincareConv3d(3, 4, (1, 3, 2), ball=ball, **kw), (2, 3, 2, 3, 3), 1),
    "conv2d-groups": (lambda ball, **kw: nn.PoincareConv2d(4, 6, 3, groups=2, ball=ball, **kw), (2, 4, 4, 4), 1),
    "conv_transpose2d": (
        lambda ball, **kw: nn.PoincareConvTranspose2d(4, 4, 4, 2, 1, groups=2, ball=ball, **kw),
        (2, 4, 2, 2),
        1,
    ),
}
NORMS = {
    "norm1d": (lambda ball, **kw: nn.PoincareBatchNorm1d(4, ball=ball, **kw), (8, 4), -1),
    "norm2d": (lambda ball, **kw: nn.PoincareBatchNorm2d(4, ball=ball, scale="scalar", **kw), (3, 4, 2, 2), 1),
    "norm3d": (lambda ball, **kw: nn.PoincareBatchNorm3d(4, ball=ball, **kw), (3, 4, 2, 2, 1), 1),
}
weighted = pytest.mark.parametrize("name", LAYERS)
trained = pytest.mark.parametrize("name", [*LAYERS, *NORMS])


def make(name, ball, seed=0, **kwargs):
    torch.manual_seed(seed)
    return (LAYERS | NORMS)[name][0](ball, **kwargs)


def inputs(name, c, dtype=torch.float64):
    _, shape, dim = (LAYERS | NORMS)[name]
    return points(generator(), *shape, c=c, dim=dim).to(dtype)


def manifold_parameters(layer):
    return {n: p for n, p in layer.named_parameters() if isinstance(p, geoopt.ManifoldParameter)}


@weighted
def test_weight_is_a_manifold_parameter(name):
    ball = make_ball(0.7)
    layer = make(name, ball)
    out, fan_in = layer.normals().shape[0], layer.normals()[0].numel()
    assert isinstance(layer.weight, geoopt.ManifoldParameter)
    assert isinstance(layer.weight, torch.nn.Parameter)
    assert layer.weight.manifold is layer.ball is ball
    assert layer.weight.shape == (out, fan_in)
    assert layer.weight.dtype == layer.bias.dtype == torch.float64
    assert type(layer.bias) is torch.nn.Parameter
    assert layer.bias.shape == (out,)
    assert (layer.bias == 0).all()
    assert make(name, ball, bias=False).bias is None
    assert set(dict(layer.named_parameters())) == {"weight", "bias", "ball.isp_c"}
    expected = layer.weight_scale * ball.logmap0(layer.weight)
    assert_close(layer.normals().flatten(1), expected, 1e-12)


@pytest.mark.parametrize("name", NORMS)
def test_centre_is_a_manifold_parameter(name):
    layer = make(name, make_ball(0.7))
    assert isinstance(layer.bias, geoopt.ManifoldParameter)
    assert layer.bias.manifold is layer.ball
    assert layer.bias.shape == (4,)


@pairs
@trained
@pytest.mark.parametrize("c", [0.1, 10.0])
@pytest.mark.parametrize("optimizer", [RiemannianAdam, RiemannianSGD])
def test_on_the_ball_after_a_hundred_steps(name, c, optimizer):
    """At a decent learning rate and at one far too large, in float32."""
    lr = 1.0 if c == 10.0 and optimizer is RiemannianAdam else 0.03
    layer = make(name, make_ball(c, torch.float32))
    x = inputs(name, c, torch.float32)
    start = {n: p.detach().clone() for n, p in manifold_parameters(layer).items()}
    target = torch.randn(layer(x).shape, generator=generator(3)) / math.sqrt(c)
    opt = optimizer(layer.parameters(), lr=lr)
    losses = []
    for _ in range(100):
        opt.zero_grad()
        loss = (layer(x) - target).square().mean() * c
        loss.backward()
        opt.step()
        losses.append(loss.item())
    assert all(math.isfinite(loss) for loss in losses)
    if lr < 0.1:
        assert losses[-1] < losses[0]
    for n, p in manifold_parameters(layer).items():
        assert isinstance(p, geoopt.ManifoldParameter)
        assert layer.ball.check_point_on_manifold(p)
        assert p.isfinite().all()
        assert not torch.allclose(p, start[n])


NORM_PRESERVING = [(in_, kernel) for in_ in (1, 3, 16, 64) for kernel in (1, 3, 5)]


@pytest.mark.parametrize("c", CURVATURES)
@pytest.mark.parametrize(("channels", "kernel"), NORM_PRESERVING)
def test_the_ball_has_room_for_normals_that_preserve_norms(c, channels, kernel):
    """|z| = 0.5/s (1.5 for 3x3), and twice that, in float32: what goes in comes out."""
    layer = nn.PoincareConv2d(channels, 4, kernel, ball=make_ball(c, torch.float32))
    for factor in (0.5, 1.0):
        z = torch.randn(4, channels, kernel, kernel, generator=generator())
        z *= factor / beta_ratio(channels, kernel**2) / z.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        layer.set_normals(z)
        assert layer.ball.check_point_on_manifold(layer.weight)
        torch.testing.assert_close(layer.normals(), z, rtol=2e-5, atol=2e-6)


@weighted
@pytest.mark.parametrize("weight_on", ["ball", "tangent"])
def test_set_normals_round_trip(name, weight_on):
    layer = make(name, make_ball(0.7), weight_on=weight_on)
    z = 0.3 * torch.randn(layer.normals().shape, generator=generator(), dtype=torch.float64)
    layer.set_normals(z)
    assert_close(layer.normals().detach(), z, 1e-12)
    layer.set_normals(0.5 * z.flatten(1))
    assert_close(layer.normals().detach(), 0.5 * z, 1e-12)
    assert layer.weight.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_normals_that_do_not_fit_are_refused(dtype):
    """And leave the weight as it was; on the tangent space anything fits."""
    layer = nn.PoincareLinear(4, 3, ball=make_ball(1.0, dtype))
    before = layer.weight.detach().clone()
    for bad in (100.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"normal.*(200|nan|inf).*c=1.*weight_on='tangent'"):
            layer.set_normals(torch.full((3, 4), bad, dtype=dtype))
    assert torch.equal(layer.weight, before)
    tangent = nn.PoincareLinear(4, 3, ball=make_ball(1.0, dtype), weight_on="tangent")
    tangent.set_normals(torch.full((3, 4), 100.0, dtype=dtype))
    assert (tangent.normals() == 100).all()


@pytest.mark.parametrize("shape", [(4, 3), (2, 6), (3,), (3, 4, 1, 1, 2)])
def test_normals_of_another_shape_are_refused(shape):
    layer = nn.PoincareLinear(4, 3, ball=make_ball(1.0))
    with pytest.raises(ValueError, match=r"\(3, 4\), got"):
        layer.set_normals(torch.zeros(shape))


def test_normals_of_another_kernel_layout_are_refused():
    layer = nn.PoincareConv2d(2, 4, (3, 2), ball=make_ball(1.0))
    with pytest.raises(ValueError, match=r"\(4, 2, 3, 2\) .*got \(4, 2, 2, 3\)"):
        layer.set_normals(torch.zeros(4, 2, 2, 3))


@weighted
def test_weights_in_the_tangent_space_make_the_same_function(name):
    ball = make_ball(0.7)
    layer = make(name, ball)
    other = make(name, ball, seed=1, weight_on="tangent")
    assert not isinstance(other.weight, geoopt.ManifoldParameter)
    assert isinstance(other.weight, torch.nn.Parameter)
    other.set_normals(layer.normals())
    with torch.no_grad():
        for m in (layer, other):
            m.bias.copy_(torch.linspace(-0.3, 0.3, len(m.bias)))
    x = inputs(name, 0.7)
    assert_close(other(x), layer(x), 1e-12)
    # the chain rule through weight_scale * log0, for steps that follow each other
    cotangent = torch.randn(layer(x).shape, generator=generator(1), dtype=torch.float64)
    z = layer.normals()
    (by_normals,) = torch.autograd.grad(other(x), other.weight, cotangent)
    (expected,) = torch.autograd.grad(z.flatten(1), layer.weight, by_normals)
    (by_weight,) = torch.autograd.grad(layer(x), layer.weight, cotangent)
    assert_close(by_weight, expected, 1e-10)


def test_one_adam_step_moves_the_coordinates_of_normals_by_the_learning_rate():
    """The documented meaning of `weight_scale`: root mean square, whatever the layer's size."""
    for channels, kernel, c in ((16, 3, 0.1), (64, 1, 0.1), (3, 5, 1.0)):
        torch.manual_seed(0)
        layer = nn.PoincareConv2d(channels, 8, kernel, ball=make_ball(c))
        before = layer.normals().detach()
        opt = RiemannianAdam([layer.weight], lr=1e-3)
        x = points(generator(), 2, channels, 6, 6, c=c, dim=1)
        layer(x).square().sum().backward()
        opt.step()
        step = (layer.normals() - before).square().mean().sqrt().item()
        assert step == pytest.approx(1e-3, rel=0.2)


@weighted
def test_reset_parameters(name):
    layer = make(name, make_ball(0.7))
    before = layer.weight.detach().clone()
    with torch.no_grad():
        layer.bias.fill_(0.2)
    torch.manual_seed(1)
    layer.reset_parameters()
    assert not torch.equal(layer.weight, before)
    assert (layer.bias == 0).all()
    torch.manual_seed(0)
    layer.reset_parameters()
    assert torch.equal(layer.weight, before)
    assert isinstance(layer.weight, geoopt.ManifoldParameter)
    assert layer.weight.requires_grad


def test_seeds_reproduce():
    first, again, other = (make("conv2d", make_ball(0.7), seed=s).weight for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@weighted
@pytest.mark.parametrize("size", [0.996, 1.0, 1.5, 4.0])
def test_weights_on_or_beyond_the_boundary(name, size):
    """As after c grew: outputs and gradients are finite, and an optimizer's step brings the weights back."""
    layer = make(name, make_ball(1.0, torch.float32))
    with torch.no_grad():
        layer.weight.copy_(size * torch.nn.functional.normalize(layer.weight.as_subclass(torch.Tensor), dim=1))
    out = layer(inputs(name, 1.0, torch.float32))
    assert out.isfinite().all()
    out.sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters() if p.requires_grad)
    RiemannianSGD(layer.parameters(), lr=1e-2).step()
    assert layer.weight.isfinite().all()
    assert layer.ball.check_point_on_manifold(layer.weight)


@trained
@pytest.mark.parametrize("c", [0.1, 1.0])
def test_learnable_curvature(name, c):
    """c gets a gradient and stays positive and finite; all weights with it."""
    layer = make(name, make_ball(c, torch.float32, learnable=True))
    x = tangents(generator(), *(LAYERS | NORMS)[name][1], c=c, dim=(LAYERS | NORMS)[name][2]).float()
    chart = {"in_chart": "tangent"} | ({} if name == "mlr" else {"out_chart": "tangent"})
    target = torch.randn(layer(x, **chart).shape, generator=generator(3))
    opt = RiemannianSGD(layer.parameters(), lr=0.01)
    curvatures = [c]
    for _ in range(50):
        opt.zero_grad()
        (layer(x, **chart) - target).square().mean().backward()
        assert layer.ball.isp_c.grad is not None
        assert layer.ball.isp_c.grad.isfinite()
        opt.step()
        curvatures.append(layer.c.item())
    assert all(math.isfinite(v) and v > 0 for v in curvatures)
    assert len(set(curvatures)) > 1
    assert all(p.isfinite().all() for p in layer.parameters())


@trained
def test_growing_curvature_pushes_no_weight_off(name):
    """An SGD that drives c from 0.1 to 100 leaves the function finite."""
    layer = make(name, make_ball(0.1, torch.float32, learnable=True))
    x = inputs(name, 0.1, torch.float32)
    for isp_c in (1.0, 10.0, 100.0):
        with torch.no_grad():
            layer.ball.isp_c.fill_(isp_c)
            x = project(x, c=layer.ball.c, dim=layer.dim)
        out = layer(x)
        assert out.isfinite().all()
        gradients = torch.autograd.grad(out.sum(), list(layer.parameters()), materialize_grads=True)
        assert all(g.isfinite().all() for g in gradients)
