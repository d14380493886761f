import copy

import geoopt
import numpy as np
import pytest
import torch
from geoopt.manifolds.base import Manifold
from hypothesis import given
from hypothesis import strategies as st
from manifold_resnet.optim.check import check_gradient, longest_linear_piece

import manifold_resnet as mr


class Scaled(torch.autograd.Function):
    """The identity; its backward pass multiplies by a number."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return ctx.factor * gradient, None


def product_manifold():
    return geoopt.ProductManifold(
        (geoopt.PoincareBall(c=0.5), 3),
        (geoopt.Sphere(), 4),
        (geoopt.CanonicalStiefel(), (4, 2)),
        (geoopt.Scaled(geoopt.PoincareBall(c=0.3), 2.0), 2),
        (geoopt.Euclidean(), 2),
    )


MANIFOLDS = {
    "ball": (lambda: geoopt.PoincareBall(c=0.5), (5, 4)),
    "one ball point": (lambda: geoopt.PoincareBall(c=3.0), (4,)),
    "images of ball points": (lambda: geoopt.PoincareBall(c=3.0), (2, 3, 4)),
    "exact ball": (lambda: geoopt.PoincareBallExact(c=0.5, learnable=True), (5, 4)),
    "canonical Stiefel": (geoopt.CanonicalStiefel, (5, 3)),
    "Euclidean Stiefel": (geoopt.EuclideanStiefel, (2, 5, 3)),
    "sphere": (geoopt.Sphere, (5, 4)),
    "subsphere": (lambda: geoopt.Sphere(intersection=torch.eye(5)[:, :3] + 0.1), (5,)),
    "SPD": (geoopt.SymmetricPositiveDefinite, (3, 3)),
    "Lorentz": (lambda: geoopt.Lorentz(k=2.0), (5, 4)),
    "product": (product_manifold, (3, 19)),
    "scaled ball": (lambda: geoopt.Scaled(geoopt.PoincareBall(c=0.5), 3.0, learnable=True), (5, 4)),
    "scaled twice": (lambda: geoopt.Scaled(geoopt.Scaled(geoopt.PoincareBall(c=0.5), 3.0), 0.5), (5, 4)),
    "scaled sphere": (lambda: geoopt.Scaled(geoopt.Sphere(), 2.0), (4,)),
    "projected sphere": (geoopt.SphereProjection, (3, 4)),
    "Birkhoff": (geoopt.BirkhoffPolytope, (3, 3)),
    "Euclidean": (geoopt.Euclidean, (3, 4)),
    "upper half": (geoopt.UpperHalf, (2, 2)),
}
every_manifold = pytest.mark.parametrize("name", MANIFOLDS)


def point_on(name):
    make, shape = MANIFOLDS[name]
    torch.manual_seed(0)
    manifold = make()
    if isinstance(manifold, geoopt.ProductManifold):
        x = manifold.projx(0.5 * torch.randn(shape))
    elif isinstance(manifold, geoopt.Euclidean):
        x = torch.randn(shape)
    elif isinstance(manifold, geoopt.Lorentz):
        x = manifold.projx(0.3 * torch.randn(shape))
    else:
        x = manifold.random(*shape)
    return geoopt.ManifoldParameter(x.as_subclass(torch.Tensor), manifold=manifold)


def function(shape, seed=0, factor=1.0):
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def fn(x):
        x = Scaled.apply(x, factor)
        if x.is_complex():
            x = x.real + 2 * x.imag
        return (weights * x).sin().sum() + (x**2).mean().exp()

    return fn


@every_manifold
def test_right_gradients_pass(name):
    point = point_on(name)
    for seed in range(3):
        check = check_gradient(function(point.shape, seed), point, seed=seed)
        assert check.ok, str(check)
        assert check.slope == pytest.approx(2, abs=0.1)
        assert check.tangent_residual < 1e-6
        assert not check.linear


@every_manifold
@pytest.mark.parametrize("factor", [1.01, -1.0, 0.0])
def test_wrong_gradients_fail(name, factor):
    point = point_on(name)
    check = check_gradient(function(point.shape, factor=factor), point)
    assert not check.ok, str(check)
    if factor != 1.01:
        assert check.slope == pytest.approx(1, abs=0.1)


@given(st.integers(0, 2**31), st.floats(0.1, 5), st.floats(0.05, 0.95), st.integers(1, 6))
def test_distances_on_balls(seed, c, radius, size):
    ball = geoopt.PoincareBall(torch.tensor(c, dtype=torch.float64))
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.nn.functional.normalize(torch.randn(2, size, 3, generator=generator, dtype=torch.float64), dim=-1)
    x, y = radius * x / ball.c.sqrt(), 0.5 * y / ball.c.sqrt()
    check = check_gradient(lambda p: (ball.dist(p, y) ** 2).sum(), x, ball, seed=seed)
    assert check.ok, str(check)
    wrong = check_gradient(lambda p: (ball.dist(Scaled.apply(p, 1.1), y) ** 2).sum(), x, ball, seed=seed)
    # unless the distance does not change along the direction
    assert not wrong.ok or abs(wrong.derivative) < 1e-3 * wrong.gradient_norm


@pytest.mark.parametrize("kind", ["weight", "input"])
def test_layers_of_this_package(kind):
    ball = geoopt.PoincareBall(c=0.7)
    layer = mr.nn.PoincareLinear(4, 3, ball=ball)
    mlr = mr.nn.PoincareMLR(3, 5, ball=ball)
    net = copy.deepcopy(torch.nn.Sequential(layer, mlr)).double()
    x = ball.random(6, 4).double().as_subclass(torch.Tensor)
    labels = torch.arange(6) % 5

    def loss(point):
        logits = net(point) if kind == "input" else torch.func.functional_call(net, {"0.weight": point}, (x,))
        return torch.nn.functional.cross_entropy(logits, labels)

    check = check_gradient(loss, x if kind == "input" else layer.weight, ball if kind == "input" else None)
    assert check.ok, str(check)
    assert check.manifold == "PoincareBall"


def test_derivative_and_norm_are_those_of_the_distance():
    """The distance from the origin grows by one per distance moved away from it, on a scaled ball too."""
    for manifold in (geoopt.PoincareBall(c=0.5), geoopt.Scaled(geoopt.PoincareBall(c=0.5), 3.0)):
        exact = copy.deepcopy(manifold).double()
        x = torch.tensor([0.3, 0.4], dtype=torch.float64)
        check = check_gradient(lambda p, exact=exact: exact.dist0(p), x, manifold)
        assert check.gradient_norm == pytest.approx(1, rel=1e-9)
        outwards = check_gradient(lambda p, exact=exact: exact.dist0(p), x, manifold, direction=x)
        length = exact.norm(x, x).item()
        assert outwards.derivative == pytest.approx(length, rel=1e-9)
        assert outwards.linear
        assert outwards.ok


def test_a_given_manifold_goes_before_that_of_the_point():
    point = point_on("ball")
    fn = function(point.shape)
    assert check_gradient(fn, point, geoopt.Euclidean()).manifold == "Euclidean"
    assert check_gradient(fn, point.as_subclass(torch.Tensor)).manifold == "Euclidean"
    assert check_gradient(fn, point).manifold == "PoincareBall"


def test_linear_functions():
    weights = torch.tensor([1.0, -2.0, 1e6], dtype=torch.float64)
    for fn in (lambda x: weights @ x + 5, lambda x: (0 * x).sum()):
        check = check_gradient(fn, torch.tensor([3.0, 1.5, 1e-6]))
        assert check.linear
        assert check.ok
        assert "linear" in str(check)
        check.plot()
    wrong = check_gradient(lambda x: weights @ Scaled.apply(x, 1 + 1e-4), torch.tensor([3.0, 1.5, 1e-6]))
    assert not wrong.linear
    assert not wrong.ok


def test_kinks_beyond_the_point_do_no_harm():
    check = check_gradient(lambda x: x.relu().sum(), torch.tensor([0.1, -0.1, 2.0]), seed=1)
    assert check.ok
    wrong = check_gradient(lambda x: Scaled.apply(x, 1.01).relu().sum(), torch.tensor([0.1, -0.1, 2.0]), seed=1)
    assert not wrong.ok


def test_slopes_above_two_are_right():
    check = check_gradient(lambda x: x.sin().sum(), torch.zeros(3))
    assert check.slope == pytest.approx(3, abs=0.1)
    assert check.ok


def test_kinks_at_the_point_fail():
    assert not check_gradient(lambda x: x.abs().sum(), torch.zeros(3)).ok


def test_noise_is_not_right():
    check = check_gradient(lambda x: (1e5 * x).float().double().sin().sum(), torch.ones(3))
    assert not check.ok


class Forgetful(geoopt.Sphere):
    """Leaves the gradient as it is; along tangent vectors, this cannot be seen."""

    def egrad2rgrad(self, x, u):
        return u


class NoExpmap(geoopt.Sphere):
    def expmap(self, x, u):
        raise NotImplementedError


def test_gradients_must_be_tangent():
    check = check_gradient(function((4,)), torch.eye(4)[0], Forgetful())
    assert check.slope == pytest.approx(2, abs=0.1)
    assert check.tangent_residual > 0.1
    assert not check.ok
    assert "outside the tangent space" in str(check)


def test_retractions_serve_where_there_is_no_exponential_map():
    for manifold in (NoExpmap(), geoopt.Scaled(NoExpmap(), 2.0)):
        assert isinstance(manifold, Manifold)
        assert check_gradient(function((4,)), torch.eye(4)[0], manifold).ok
        assert not check_gradient(function((4,), factor=1.1), torch.eye(4)[0], manifold).ok


@every_manifold
def test_nothing_of_the_callers_changes(name):
    point = point_on(name)
    point.grad = torch.ones_like(point)
    before, grad = point.detach().clone(), point.grad.clone()
    state = copy.deepcopy(point.manifold.state_dict())
    random = torch.get_rng_state()
    with torch.no_grad():  # also works where gradients are switched off
        check_gradient(function(point.shape), point)
    assert torch.equal(point, before)
    assert torch.equal(point.grad, grad)
    assert point.dtype == before.dtype
    assert torch.equal(torch.get_rng_state(), random)
    for key, value in point.manifold.state_dict().items():
        assert torch.equal(value, state[key])
        assert value.dtype == state[key].dtype
    assert all(p.grad is None for p in point.manifold.parameters())


def test_the_seed_picks_the_direction():
    point = point_on("ball")
    derivatives = [check_gradient(function(point.shape), point, seed=seed).derivative for seed in (0, 0, 1)]
    assert derivatives[0] == derivatives[1] != derivatives[2]


def test_steps_can_be_chosen():
    steps = np.logspace(-5, -2, 13)
    check = check_gradient(function((3,)), torch.ones(3), steps=steps.tolist())
    assert np.array_equal(check.steps, steps)
    assert check.errors.shape == (13,)
    assert check.ok
    first, last = check.piece
    assert last - first >= 8


@given(st.floats(0.6, 4), st.floats(-6, 3), st.integers(0, 25), st.integers(10, 25))
def test_linear_piece_is_found_between_noise_and_saturation(slope, level, first, length):
    x = np.linspace(-8, 0, 51)
    generator = np.random.default_rng(0)
    y = level + slope * (x - x[first])
    y[:first] = level - 3 + generator.uniform(0, 2, first)  # noise before it
    y[first + length :] = y[first + length - 1] - 1.0  # and a flat part
    piece, found = longest_linear_piece(10**x, 10**y, np.full(51, 1e-300))
    assert found == pytest.approx(slope, abs=0.1)
    assert abs(piece[0] - first) <= 2
    assert abs(piece[1] - (first + length - 1)) <= 2


def test_no_linear_piece_in_noise():
    errors = 10 ** np.random.default_rng(0).uniform(-3, 0, 51)
    assert longest_linear_piece(np.logspace(-8, 0, 51), errors, np.zeros(51))[0] is None


def test_values_that_are_not_finite_far_away_are_passed_over():
    check = check_gradient(lambda x: x.log().sum(), torch.full((3,), 0.1), direction=-torch.ones(3))
    assert not np.isfinite(check.errors).all()
    assert check.ok
    check.plot()


@pytest.mark.parametrize(
    ("fn", "error", "message"),
    [
        (lambda x: x, ValueError, r"one number, got a tensor of shape \(3,\)"),
        (lambda x: x.sum().item(), TypeError, "scalar tensor, got float"),
        (lambda x: x.detach().sum(), ValueError, "does not depend"),
        (lambda x: torch.ones((), dtype=torch.float64, requires_grad=True), ValueError, "does not depend"),
        (lambda x: x.float().sum(), TypeError, "got torch.float32"),
        (lambda x: torch.ones(2, 3) @ x, TypeError, "must compute in float64"),
        (lambda x: x.sum() / 0, ValueError, "finite at the point, got inf"),
        (lambda x: (x - x).sqrt().sum(), ValueError, "gradient at the point has entries"),
        (lambda x: (x * torch.rand(3)).sum(), ValueError, "same value for the same point"),
        ("sum", TypeError, "fn must be a function"),
    ],
)
def test_functions_that_cannot_be_checked(fn, error, message):
    with pytest.raises(error, match=message):
        check_gradient(fn, torch.ones(3))


def test_other_errors_of_the_function_are_left_alone():
    with pytest.raises(RuntimeError, match="size"):
        check_gradient(lambda x: (x + torch.ones(7)).sum(), torch.ones(3))


@pytest.mark.parametrize(
    ("point", "options", "error", "message"),
    [
        ([0.0], {}, TypeError, "point must be a tensor, got list"),
        (torch.ones(3, dtype=torch.int64), {}, TypeError, "floating point"),
        (torch.ones(0), {}, TypeError, "floating point"),
        (torch.ones(3), {"manifold": "sphere"}, TypeError, "geoopt manifold, got str"),
        (torch.ones(3), {"manifold": geoopt.Sphere()}, ValueError, "not on Sphere: projection moves it"),
        (torch.ones(3), {"manifold": geoopt.Stiefel()}, ValueError, "does not fit CanonicalStiefel"),
        (torch.tensor([0.0, torch.nan]), {}, ValueError, "infinite or NaN"),
        (torch.ones(3), {"direction": [1.0]}, TypeError, "direction must be a tensor, got list"),
        (torch.ones(3), {"direction": torch.ones(2)}, ValueError, r"shape \(3,\), got \(2,\)"),
        (torch.ones(3), {"direction": torch.zeros(3)}, ValueError, "not zero"),
        (
            torch.eye(3)[0],
            {"manifold": geoopt.Sphere(), "direction": torch.ones(3)},
            ValueError,
            r"not tangent to Sphere .* manifold.proju",
        ),
        (torch.ones(3), {"steps": [1.0, 0.1]}, ValueError, "increasing"),
        (torch.ones(3), {"steps": np.linspace(0.1, 1, 20)}, ValueError, "at least 100 times"),
    ],
)
def test_bad_arguments(point, options, error, message):
    with pytest.raises(error, match=message):
        check_gradient(lambda x: (x**2).sum(), point, **options)


def test_sentence():
    point = point_on("ball")
    right, wrong = (str(check_gradient(function(point.shape, factor=f), point)) for f in (1.0, 2.0))
    assert right.startswith("The gradient on PoincareBall is right: ")
    assert "slope 2.0" in right
    assert wrong.startswith("The gradient on PoincareBall is wrong: ")
    assert "where a right gradient gives 2" in wrong


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_plot(factor, tmp_path):
    figure = pytest.importorskip("matplotlib.figure")
    point = point_on("ball")
    check = check_gradient(function(point.shape, factor=factor), point)
    axes = check.plot()
    assert axes.get_xscale() == axes.get_yscale() == "log"
    points, piece, reference = axes.get_lines()
    assert np.array_equal(points.get_xdata(), check.steps)
    assert len(piece.get_xdata()) == check.piece[1] - check.piece[0] + 1
    x, y = (np.log(values) for values in reference.get_data())
    np.testing.assert_allclose(np.diff(y) / np.diff(x), 2, rtol=1e-6)
    axes.figure.savefig(tmp_path / "check.png")
    own = figure.Figure().subplots()
    assert check.plot(own) is own
