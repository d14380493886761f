"""The truth of the other tests is itself what geoopt, the papers and (in the flat limit) torch say."""

import geoopt
import pytest
import torch
from helpers import CURVATURES, assert_close, generator, points, unit
from operations import Arg

from manifold_resnet.functional import naive

curvatures = pytest.mark.parametrize("c", CURVATURES)


def ball_of(c):
    return geoopt.PoincareBall(c=torch.tensor(c, dtype=torch.float64))


def sample(c, *shapes, dim=-1, distance=3.0):
    g = generator()
    return [points(g, *shape, c=c, dim=dim, distance=distance) for shape in shapes]


@curvatures
def test_ball_methods(c):
    ball = ball_of(c)
    x, y, v, z = sample(c, (5, 4), (5, 4), (5, 4), (5, 4))
    u = v / 10
    w = torch.rand(5, generator=generator(), dtype=torch.float64)
    for actual, expected in (
        (naive.mobius_add(x, y, c=c), ball.mobius_add(x, y)),
        (naive.expmap0(u, c=c), ball.expmap0(u)),
        (naive.logmap0(x, c=c), ball.logmap0(x)),
        (naive.expmap(x, u, c=c), ball.expmap(x, u)),
        (naive.logmap(x, y, c=c), ball.logmap(x, y)),
        (naive.lambda_x(x, c=c), ball.lambda_x(x)),
        (naive.gyration(x, y, z, c=c), ball.gyration(x, y, z)),
        (naive.transp(x, y, v, c=c), ball.transp(x, y, v)),
        (naive.dist(x, y, c=c), ball.dist(x, y)),
        (naive.project(10 * x, c=c), ball.projx(10 * x)),
        (naive.midpoint(x, c=c), ball.weighted_midpoint(x)),
        (naive.midpoint(x, w, c=c), ball.weighted_midpoint(x, w)),
        (naive.midpoint(x[None], c=c, reducedim=[1]), ball.weighted_midpoint(x[None], reducedim=[1])),
        (naive.midpoint(x.T[None], w[None], c=c, reducedim=[2], dim=1), ball.weighted_midpoint(x, w)[None]),
    ):
        assert_close(actual, expected, 1e-10 * max(1.0, unit(c)))  # geoopt's midpoint is that exact


@curvatures
def test_hyperplane_distances(c):
    """The closed form of Hyperbolic neural networks++, sec. 3.1."""
    (x,) = sample(c, (6, 4))
    g = generator()
    z = Arg("normal", (5, 4)).make(g, c)
    r = Arg("offset", (5,)).make(g, c)
    lam = 2 / (1 - c * x.square().sum(-1, keepdim=True))
    root, length = c**0.5, z.norm(dim=-1)
    inner = root * lam * (x @ z.T) / length
    v = 2 * length / root * torch.asinh(inner * torch.cosh(2 * root * r) - (lam - 1) * torch.sinh(2 * root * r))
    assert_close(naive.poincare_mlr(x, z, r, c=c), v, 1e-10)


@curvatures
def test_frechet_mean_is_stationary(c):
    (x,) = sample(c, (6, 4), distance=4.0)
    w = torch.rand(6, generator=generator(), dtype=torch.float64)
    m = naive.frechet_mean(x, w, c=c)
    total = (w[:, None] * ball_of(c).logmap(m, x)).sum(0)
    assert_close(total, torch.zeros_like(total), 1e-11)


def test_frechet_mean_gradient():
    x = sample(1.0, (5, 3), distance=4.0)[0].requires_grad_()
    w = torch.rand(5, generator=generator(), dtype=torch.float64, requires_grad=True)
    c = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w, c: naive.frechet_mean(x, w, c=c), (x, w, c), atol=1e-7)


@curvatures
def test_lorentz(c):
    (x,) = sample(c, (5, 4))
    p = naive.to_lorentz(x, c=c)
    manifold = geoopt.Lorentz(k=torch.tensor(1 / c, dtype=torch.float64))
    for point in p:
        assert manifold.check_point_on_manifold(point)
    assert_close(naive.from_lorentz(p, c=c), x, 1e-12)


FLAT = 1e-4  # flatter, geoopt's sabs would show: a relative error of 1e-15 / c


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 2},
        {"kernel_size": (2, 3), "stride": (1, 2), "padding": 1},
        {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True},
        {"kernel_size": 2, "stride": 3, "padding": 1, "ceil_mode": True, "count_include_pad": False},
        {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False},
    ],
)
def test_pooling_windows_are_torchs(options):
    image = 1e-3 * torch.randn(2, 3, 7, 8, generator=generator(), dtype=torch.float64)
    pooled = naive.poincare_avg_pool2d(image, c=FLAT, **options)
    assert_close(pooled, torch.nn.functional.avg_pool2d(image, **options), 1e-12)


def test_adaptive_pooling_windows_are_torchs():
    image = 1e-3 * torch.randn(2, 3, 7, 8, generator=generator(), dtype=torch.float64)
    pooled = naive.poincare_adaptive_avg_pool2d(image, (3, 5), c=FLAT)
    assert_close(pooled, torch.nn.functional.adaptive_avg_pool2d(image, (3, 5)), 1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1},
        {"stride": (1, 3), "padding": (2, 0), "dilation": (2, 1)},
        {"padding": "same", "dilation": (2, 2)},
        {"padding": "valid"},
    ],
)
def test_convolution_windows_are_torchs(options):
    g = generator()
    image = 1e-3 * torch.randn(2, 3, 7, 8, generator=g, dtype=torch.float64)
    kernel = Arg("normal", (4, 3, 2, 3)).make(g, FLAT)
    one = torch.tensor(1.0, dtype=torch.float64)
    beta = lambda n: (torch.lgamma(n / 2 * one) - torch.lgamma((n + 1) / 2 * one)).exp()  # noqa: E731
    expected = 2 * torch.nn.functional.conv2d(image, beta(18) / beta(3) * kernel, **options)
    assert_close(naive.poincare_conv2d(image, kernel, c=FLAT, **options), expected, 1e-12)
