"""Layers beside everything else that geoopt has: values agree, gradients reach every parameter, points stay put."""

import geoopt
import pytest
import torch
from geoopt.layers.stereographic import Distance2StereographicHyperplanes
from helpers import CURVATURES, assert_close, generator, points, tangents
from manifold_resnet.optim import RiemannianAdam, RiemannianSGD

import manifold_resnet.functional as F
from manifold_resnet import models, nn

BALLS = [geoopt.PoincareBall, geoopt.PoincareBallExact]


def make_ball(c=0.7, learnable=True, kind=geoopt.PoincareBall):
    return kind(torch.tensor(c, dtype=torch.float64), learnable=learnable)


def network(ball):
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        nn.PoincareConv2d(3, 4, 3, padding=1, ball=ball),
        nn.PoincareBatchNorm2d(4, ball=ball),
        nn.PoincareReLU(ball=ball),
        nn.PoincareAdaptiveAvgPool2d(1, ball=ball),
        torch.nn.Flatten(),
        nn.PoincareLinear(4, 5, ball=ball),
        nn.PoincareMLR(5, 2, ball=ball),
    )
    return net.double()


def assert_all_have_gradients(*modules):
    for module in modules:
        for name, p in module.named_parameters():
            if p.requires_grad:
                assert p.grad is not None, f"no gradient reached {name}"
                assert p.grad.isfinite().all(), name
                assert p.grad.ne(0).any() or p.ndim == 0, f"the gradient of {name} is zero"


def assert_all_on_their_manifolds(module):
    for name, p in module.named_parameters():
        if isinstance(p, geoopt.ManifoldParameter):
            assert p.manifold.check_point_on_manifold(p, atol=1e-5), name


# -- points in geoopt's wrappings ------------------------------------------------------------------------


def test_manifold_tensors_are_points():
    ball = make_ball()
    net = network(ball)
    x = points(generator(), 2, 3, 6, 6, c=0.7, dim=1)
    expected = net(x)
    # geoopt checks points along the last dimension; as for any tensor, permuting gives a plain view
    wrapped = geoopt.ManifoldTensor(x.movedim(1, -1), manifold=ball)
    assert torch.equal(net(wrapped.movedim(-1, 1)), expected)
    p = geoopt.ManifoldParameter(points(generator(), 6, 4, c=0.7), manifold=ball)
    y = net[5](p)
    assert torch.equal(y, net[5](p.detach().as_subclass(torch.Tensor)))
    y.sum().backward()
    assert type(y) is torch.Tensor
    assert p.grad is not None
    out = geoopt.ManifoldTensor(y, manifold=ball)  # raises unless they are on the ball
    assert out.manifold is ball


@pytest.mark.parametrize("kind", BALLS)
def test_either_ball_is_a_ball(kind):
    x = points(generator(), 2, 3, 6, 6, c=0.7, dim=1)
    plain, other = network(make_ball()), network(make_ball(kind=kind))
    for net in (plain, other):
        net(x).square().sum().backward()
    for p, q in zip(plain.parameters(), other.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
    # the exact one makes optimizers follow geodesics: geoopt's own steps
    weight = other[5].weight
    expected = weight.manifold.retr(weight, -0.1 * weight.manifold.egrad2rgrad(weight, weight.grad)).detach()
    RiemannianSGD(other.parameters(), lr=0.1).step()
    assert_close(weight.detach().as_subclass(torch.Tensor), expected, 1e-12)


@pytest.mark.parametrize(
    ("manifold", "advice"),
    [
        (geoopt.Stereographic(-0.25), r"pass geoopt.PoincareBall\(c=0.25\)"),
        (geoopt.StereographicExact(-2.0, learnable=True), r"pass geoopt.PoincareBallExact\(c=2\)"),
        (geoopt.StereographicExact(1.0), r"pass geoopt.PoincareBall\(c=1.0\)"),
        (geoopt.SphereProjection(), r"pass geoopt.PoincareBall\(c=1.0\)"),
    ],
)
def test_other_stereographic_manifolds_are_refused(manifold, advice):
    with pytest.raises(TypeError, match=f"must be a geoopt.PoincareBall, got .*: {advice}"):
        nn.PoincareLinear(2, 3, ball=manifold)


def test_points_of_a_stereographic_exact_manifold():
    manifold = geoopt.StereographicExact(torch.tensor(-0.7, dtype=torch.float64))
    ball, x = make_ball(0.7), points(generator(), 5, 3, c=0.7)
    p = geoopt.ManifoldParameter(x.clone(), manifold=manifold)
    assert_close(manifold.dist(x[0], x[1:]), ball.dist(x[0], x[1:]).detach(), 1e-12)
    nn.PoincareLinear(3, 4, ball=ball)(p).square().sum().backward()
    RiemannianAdam([p], lr=0.1).step()
    assert manifold.check_point_on_manifold(p)
    assert not torch.equal(p, x)


# -- geoopt's layers -------------------------------------------------------------------------------------


def geoopt_layer(ball, *sizes, **options):
    layer = Distance2StereographicHyperplanes(*sizes, ball=geoopt.PoincareBall(0.7), **options).double()
    layer.ball = layer.points.manifold = ball  # geoopt makes the layer in float32 only
    return layer


@pytest.mark.parametrize("c", [0.1, 0.7, 3.0])
def test_our_distances_are_geoopts(c):
    ball = make_ball(c)
    layer = geoopt_layer(ball, 4, 6)
    with torch.no_grad():
        layer.points.copy_(points(generator(1), 6, 4, c=c, distance=2.0))
    mlr = nn.PoincareMLR(4, 6, ball=ball)
    u = F.logmap0(layer.points.detach(), c=ball.c.detach())
    mlr.set_normals(u / (2 * u.norm(dim=1, keepdim=True)))
    with torch.no_grad():
        mlr.bias.copy_(u.norm(dim=1))
    x = points(generator(2), 20, 4, c=c).requires_grad_()
    assert_close(mlr(x), layer(x), 1e-10)
    (ours,) = torch.autograd.grad(mlr(x).square().sum(), x)
    (theirs,) = torch.autograd.grad(layer(x).square().sum(), x)
    assert_close(ours, theirs, 1e-8)


def test_before_and_after_geoopts_layers():
    ball = make_ball()
    first = nn.PoincareConv2d(3, 4, 3, padding=1, ball=ball)
    after = geoopt_layer(ball, 4, 5, ndim=2)  # distances: Euclidean features
    then = torch.nn.Sequential(
        torch.nn.Conv2d(5, 6, 3).double(), nn.ExpMap0(ball=ball, dim=1), nn.PoincareConv2d(6, 2, 3, ball=ball)
    )
    x = points(generator(), 2, 3, 6, 6, c=0.7, dim=1)
    out = then(after(first(x)))
    assert out.shape == (2, 2, 2, 2)
    out.square().sum().backward()
    assert_all_have_gradients(first, after, then, ball)
    # one curvature, used by both: finite differences
    step = 1e-6
    with torch.no_grad():
        values = []
        for sign in (1, -1):
            ball.isp_c += sign * step
            values.append(then(after(first(x))).square().sum())
            ball.isp_c -= sign * step
    assert ball.isp_c.grad.item() == pytest.approx(((values[0] - values[1]) / (2 * step)).item(), rel=1e-5)


def test_poincare_resnet_features_feed_a_geoopt_layer():
    torch.manual_seed(0)
    trunk = models.create_model("hyperbolic-4-8-8-resnet-8", c=0.5, learnable_c=True)
    layer = Distance2StereographicHyperplanes(8, 3, ball=trunk.ball)
    images, labels = torch.randn(8, 3, 12, 12), torch.arange(8) % 3
    trained = torch.nn.ModuleDict({"trunk": trunk, "layer": layer})
    del trunk.fc  # the trunk's own classifier
    optimizer = RiemannianAdam(trained.parameters(), lr=3e-2)
    losses = []
    for _ in range(15):
        loss = torch.nn.functional.cross_entropy(layer(trunk.features(images)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert_all_have_gradients(trained)
    assert_all_on_their_manifolds(trained)
    assert losses[-1] < 0.7 * losses[0]


def test_torchvision_backbone_with_a_hyperbolic_head():
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    ball = geoopt.PoincareBall(c=0.1, learnable=True)
    backbone = torchvision.models.squeezenet1_1(num_classes=16)
    model = torch.nn.Sequential(backbone, nn.ExpMap0(ball=ball), nn.PoincareMLR(16, 10, ball=ball))
    logits = model(torch.randn(4, 3, 64, 64))
    assert logits.shape == (4, 10)
    torch.nn.functional.cross_entropy(logits, torch.arange(4)).backward()
    assert_all_have_gradients(model[2], ball)
    assert backbone.features[0].weight.grad.abs().max() > 0


# -- other models of hyperbolic space, products ----------------------------------------------------------


@pytest.mark.parametrize("c", CURVATURES)
@pytest.mark.parametrize("dim", [-1, 1])
def test_lorentz_points_and_back(c, dim):
    ball, lorentz = make_ball(c), geoopt.Lorentz(torch.tensor(1 / c, dtype=torch.float64))
    x = points(generator(), 6, 3, 5, c=c, dim=dim)
    p = F.to_lorentz(x, c=c, dim=dim)
    assert p.shape[dim] == x.shape[dim] + 1
    assert_close(F.from_lorentz(p, c=c, dim=dim), x, 1e-12 * c**-0.5)
    q = p.movedim(dim, -1)
    assert lorentz.check_point_on_manifold(q, atol=1e-9 / c)
    # the same space: distances, and what geoopt puts on its hyperboloid comes back in place
    y = x.movedim(dim, -1)
    ours, theirs = ball.dist(y[:, :1], y[:, 1:]).detach(), lorentz.dist(q[:, :1], q[:, 1:])
    assert_close(theirs * c**0.5, ours * c**0.5, 1e-10)
    u = torch.nn.functional.pad(tangents(generator(2), 7, 4, c=c), (1, 0))
    there = lorentz.expmap0(2 * u)  # their unit of length at the origin is twice ours
    back = F.from_lorentz(there, c=c)
    assert_close(back * c**0.5, F.expmap0(u[:, 1:], c=c) * c**0.5, 1e-10)
    assert_close(F.to_lorentz(back, c=c) * c**0.5, there * c**0.5, 1e-10)


@pytest.mark.parametrize("c", [0.1, 1.0, 10.0])
def test_gradients_through_lorentz(c):
    ball, lorentz = make_ball(c, learnable=False), geoopt.Lorentz(torch.tensor(1 / c, dtype=torch.float64))
    x = points(generator(), 4, 3, c=c, distance=2.0).requires_grad_()
    target = F.to_lorentz(points(generator(5), 3, c=c, distance=2.0), c=c)
    p = F.to_lorentz(x, c=c).detach().requires_grad_()
    lorentz.dist(p, target).square().sum().backward()
    lorentz.dist(F.to_lorentz(x, c=c), target).square().sum().backward()
    # an isometry: Riemannian gradients have the same length on either side
    there = lorentz.egrad2rgrad(p.detach(), p.grad)
    here = ball.egrad2rgrad(x.detach(), x.grad)
    assert_close(ball.norm(x.detach(), here), lorentz.norm(there), 1e-8)
    curvature = torch.tensor(c, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, c: F.to_lorentz(x, c=c), (x, curvature))
    assert torch.autograd.gradcheck(lambda p, c: F.from_lorentz(p, c=c), (p, curvature))


def test_a_lorentz_model_with_our_layers():
    """Points trained on the hyperboloid, classified on the ball."""
    torch.manual_seed(0)
    ball, lorentz = make_ball(1.0, learnable=False), geoopt.Lorentz(torch.tensor(1.0, dtype=torch.float64))
    model = torch.nn.Module()
    model.embedding = geoopt.ManifoldParameter(lorentz.random_normal(12, 4, dtype=torch.float64), manifold=lorentz)
    model.mlr = nn.PoincareMLR(3, 3, ball=ball)
    labels = torch.arange(12) % 3
    optimizer = RiemannianAdam(model.parameters(), lr=0.05)
    losses = []
    for _ in range(40):
        loss = torch.nn.functional.cross_entropy(model.mlr(F.from_lorentz(model.embedding, c=ball.c)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    assert_all_on_their_manifolds(model)


def test_a_factor_of_a_product():
    torch.manual_seed(0)
    ball = make_ball(0.7, learnable=False)
    product = geoopt.ProductManifold((ball, 4), (geoopt.Sphere(), 3), (geoopt.Euclidean(), 2))
    start = torch.cat(
        [points(generator(), 9, 4, c=0.7), torch.nn.functional.normalize(torch.randn(9, 3).double(), dim=1),
         torch.randn(9, 2).double()], 1,
    )  # fmt: skip
    model = torch.nn.Module()
    model.points = geoopt.ManifoldParameter(start.clone(), manifold=product)
    model.layers = torch.nn.Sequential(nn.PoincareLinear(4, 4, ball=ball), nn.PoincareMLR(4, 3, ball=ball))
    model.rest = torch.nn.Linear(5, 3).double()
    on_ball = product.take_submanifold_value(model.points, 0)
    rest = torch.cat([product.take_submanifold_value(model.points, i) for i in (1, 2)], 1)
    expected = model.layers(start[:, :4])
    assert torch.equal(model.layers(on_ball), expected)
    loss = torch.nn.functional.cross_entropy(model.layers(on_ball) + model.rest(rest), torch.arange(9) % 3)
    loss.backward()
    assert_all_have_gradients(model)
    RiemannianAdam(model.parameters(), lr=0.05).step()
    assert_all_on_their_manifolds(model)
    assert (model.points - start).abs().amax(0).gt(0).all()
