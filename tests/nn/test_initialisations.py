"""Initialisations by name: what each one keeps, in one layer and through many."""

import math

import geoopt
import pytest
import torch
from helpers import generator, tangents

from manifold_resnet import nn
from manifold_resnet.functional import beta_ratio

NORM_PRESERVING = ("identity", "gaussian", "orthogonal")
SHAPES = [(8, 8, 3, 3), (4, 6, 3, 3), (12, 3, 3, 3), (5, 5, 1, 1), (6, 4), (4, 3, 5), (3, 2, 2, 3, 1)]


def fill(name, *shape, seed=0):
    torch.manual_seed(seed)
    return nn.init.INITIALISATIONS[name](torch.empty(shape, dtype=torch.float64))


def ratio(shape):
    return beta_ratio(shape[1], math.prod(shape[2:]))


@pytest.mark.parametrize("name", nn.init.INITIALISATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_fills_in_place(name, shape):
    z = torch.full(shape, math.nan)
    assert nn.init.initialisation(name)(z) is z
    assert z.isfinite().all()
    assert z.abs().sum() > 0


@pytest.mark.parametrize("name", nn.init.INITIALISATIONS)
@pytest.mark.parametrize("weight_on", ["ball", "tangent"])
def test_layers_take_them_by_name(name, weight_on):
    ball = geoopt.PoincareBall(torch.tensor(1.0, dtype=torch.float64))
    torch.manual_seed(0)
    layer = nn.PoincareConv2d(4, 6, 3, ball=ball, init=name, weight_on=weight_on)
    assert layer.init == name
    torch.testing.assert_close(layer.normals(), fill(name, 6, 4, 3, 3), atol=1e-10, rtol=0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_identity_is_a_dirac_kernel(shape):
    """Output k is input channel k (mod their number) at the centre, and nothing else."""
    z = fill("identity", *shape)
    out, in_ = shape[:2]
    assert (z != 0).flatten(1).sum(1).eq(1).all()
    length = 0.5 / ratio(shape) * min(1, math.sqrt(in_ / out))
    for k in range(out):
        assert z[(k, k % in_, *(n // 2 for n in shape[2:]))].item() == pytest.approx(length, rel=1e-12)


@pytest.mark.parametrize("shape", [(8, 8, 3, 3), (4, 6, 3, 3), (6, 4), (4, 3, 5)], ids=str)
def test_orthogonal_rows(shape):
    """Rows of length 0.5/s, orthogonal to each other; columns, where there are more rows."""
    z = fill("orthogonal", *shape).flatten(1)
    out, fan_in = z.shape
    gram = z @ z.T if out <= fan_in else z.T @ z * fan_in / out
    expected = 0.25 / ratio(shape) ** 2 * torch.eye(min(out, fan_in), dtype=torch.float64)
    torch.testing.assert_close(gram, expected, atol=1e-12, rtol=0)


def test_paper_is_half_the_identity_over_the_flattened_patch():
    z = fill("paper", 5, 4, 3, 3)
    assert torch.equal(z.flatten(1), 0.5 * torch.eye(5, 36, dtype=torch.float64))
    assert [z[k, 0].flatten()[k].item() for k in range(5)] == [0.5] * 5  # channel 0 at position k
    assert torch.equal(fill("paper", 5, 3).T, 0.5 * torch.eye(3, 5, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(64, 32, 3, 3), (200, 100)], ids=str)
def test_standard_deviations(shape):
    fan_in = math.prod(shape[1:])
    expected = {"normal": (2 * fan_in * shape[0]) ** -0.5, "gaussian": 0.5 / (ratio(shape) * math.sqrt(fan_in))}
    for name, std in expected.items():
        z = fill(name, *shape)
        assert z.std().item() == pytest.approx(std, rel=0.03)
        assert abs(z.mean().item()) < 0.03 * std


def image(channels, size, distance, constant, seed=0):
    """Tangent vectors to points at `distance` units from the origin, in every direction."""
    size_or_one = 1 if constant else size
    u = torch.randn(4, channels, size_or_one, size_or_one, generator=generator(seed), dtype=torch.float64)
    return (u / u.norm(dim=1, keepdim=True) * distance / 2).expand(4, channels, size, size)


def wrap(u, kernel):
    """Continue an image periodically, so that no pixel is at a border."""
    p = kernel // 2
    return torch.nn.functional.pad(u, (p, p, p, p), mode="circular") if p else u


def through(init, depth, *, width=64, size=4, kernel=3, distance=0.01, constant=False, seed=0):
    """Root mean square of the pixels' distances behind so many convolutions, relative to that before."""
    torch.manual_seed(seed)
    ball = geoopt.PoincareBall(1.0)
    u = image(width, size, distance, constant).float()
    layer = nn.PoincareConv2d(width, width, kernel, ball=ball, init=init)
    with torch.no_grad():
        for _ in range(depth):
            layer.reset_parameters()
            u = layer(wrap(u, kernel), in_chart="tangent", out_chart="tangent")
    return u.norm(dim=1).square().mean().sqrt().item() / (distance / 2)


@pytest.mark.parametrize("channels", [1, 8, 32])
def test_identity_passes_a_constant_image_on(channels):
    """Close to the origin: unchanged. Far out the box filter's norm bends with the space, and norms grow a little."""
    ball = geoopt.PoincareBall(torch.tensor(1.0, dtype=torch.float64))
    layer = nn.PoincareConv2d(channels, channels, 3, ball=ball, init="identity")
    near = image(channels, 3, 1e-3, constant=True)
    torch.testing.assert_close(layer(wrap(near, 3), "tangent", "tangent"), near, atol=1e-9, rtol=1e-6)
    far = image(channels, 3, 1.0, constant=True)
    factor = layer(wrap(far, 3), "tangent", "tangent").norm(dim=1) / far.norm(dim=1)
    assert (factor - 1).abs().max() < (0.2 if channels == 1 else 0.05)


@pytest.mark.parametrize("init", ["identity", "orthogonal"])
@pytest.mark.parametrize("distance", [0.01, 1.0, 5.0])
def test_isometries_of_one_pixel(init, distance):
    """1x1 kernels and linear layers, at any distance: exact."""
    ball = geoopt.PoincareBall(torch.tensor(0.5, dtype=torch.float64))
    torch.manual_seed(0)
    layer = nn.PoincareLinear(8, 8, ball=ball, init=init)
    u = tangents(generator(), 5, 8, c=0.5, distance=distance)
    torch.testing.assert_close(layer(u, "tangent", "tangent").norm(dim=1), u.norm(dim=1), rtol=1e-9, atol=1e-12)
    x, y = ball.expmap0(u[:1]), ball.expmap0(u[1:])
    torch.testing.assert_close(ball.dist(layer(x), layer(y)), ball.dist(x, y), rtol=1e-6, atol=1e-8)
    assert through(init, 110, kernel=1, width=16, distance=distance) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("init", ["gaussian", "orthogonal"])
@pytest.mark.parametrize(("channels", "outputs", "kernel"), [(32, 32, 3), (64, 32, 1), (16, 64, 3), (16, 16, 5)])
def test_norms_are_preserved_in_expectation(init, channels, outputs, kernel):
    """Averaged over kernels and pixels; twice the outputs have twice the square."""
    ball = geoopt.PoincareBall(1.0)
    u = image(channels, 6, 0.01, constant=False).float()
    squares = []
    torch.manual_seed(0)
    for _ in range(10):
        layer = nn.PoincareConv2d(channels, outputs, kernel, ball=ball, init=init)
        with torch.no_grad():
            v = layer(wrap(u, kernel), "tangent", "tangent")
        squares.append(v.square().sum(1).mean().item() / 0.005**2)
    fan_in = channels * kernel**2
    # orthogonal columns keep the norm of the whole patch
    expected = 1 if init == "orthogonal" and outputs > fan_in else outputs / channels
    s2k = (beta_ratio(channels, kernel**2) * kernel) ** 2
    assert sum(squares) / len(squares) == pytest.approx(expected, rel=0.05)
    assert s2k == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize("init", ["gaussian", "orthogonal"])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "groups"), [(4, 2, 1, 1), (3, 2, 1, 1), (2, 2, 0, 4), (3, 1, 1, 2)]
)
def test_norms_are_preserved_by_transposed_and_grouped_convolutions(init, kernel, stride, padding, groups):
    """Averaged over output pixels, whether or not equally many input pixels reach them."""
    ball = geoopt.PoincareBall(1.0)
    u = image(32, 10, 0.01, constant=False).float()
    torch.manual_seed(0)
    squares = []
    for _ in range(10):
        up = nn.PoincareConvTranspose2d(32, 32, kernel, stride, padding, groups=groups, ball=ball, init=init)
        conv = nn.PoincareConv2d(32, 32, kernel, stride, groups=groups, ball=ball, init=init)
        with torch.no_grad():
            inside = up(u, "tangent", "tangent")[..., 3:-3, 3:-3]  # away from borders
            squares.append([v.square().sum(1).mean() / 0.005**2 for v in (inside, conv(u, "tangent", "tangent"))])
    transposed, grouped = torch.tensor(squares).mean(0).tolist()
    assert transposed == pytest.approx(1, rel=0.06)
    assert grouped == pytest.approx(1, rel=0.06)


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_identity_passes_groups_on(groups):
    ball = geoopt.PoincareBall(torch.tensor(1.0, dtype=torch.float64))
    near = image(8, 3, 1e-3, constant=True)
    layer = nn.PoincareConv2d(8, 8, 3, groups=groups, ball=ball, init="identity")
    torch.testing.assert_close(layer(wrap(near, 3), "tangent", "tangent"), near, atol=1e-9, rtol=1e-6)
    up = nn.PoincareConvTranspose2d(8, 8, 2, 2, groups=groups, ball=ball, init="identity")
    assert up(near, "tangent", "tangent")[..., 1::2, 1::2].allclose(near, atol=1e-9)


@pytest.mark.parametrize("depth", [20, 56, 110])
@pytest.mark.parametrize("init", NORM_PRESERVING)
def test_norms_survive_many_layers(init, depth):
    """Close to the origin, in layers 64 wide: within a factor of two behind 110 convolutions without any norm.

    From a distance of 1 on curvature adds one to three per cent a layer; that is what the batch norm is for.
    """
    for constant in (True, False) if init == "identity" else (False,):
        assert 0.5 < through(init, depth, constant=constant) < 2


@pytest.mark.parametrize("depth", [20, 56, 110])
def test_norms_stay_on_the_bound_at_worst(depth):
    """From distance 1, no initialisation that preserves norms collapses; growth ends at the bound."""
    for init in NORM_PRESERVING:
        assert 0.5 < through(init, depth, distance=1.0, width=32) <= nn.base.DEFAULT_MAX_DISTANCE * 1.0001


@pytest.mark.parametrize("init", ["normal", "paper"])
def test_norms_collapse(init):
    """Why the others are there: HNN++'s Gaussian is too small, and the eye over the patch without 1/s as well."""
    factors = [through(init, depth) for depth in (1, 5, 20)]
    assert factors[0] < 0.5
    assert factors[1] < 0.02
    assert factors[2] < 1e-6


def test_unknown_name():
    with pytest.raises(ValueError, match="init must be one of identity, paper, normal, gaussian, orthogonal; got 'he'"):
        nn.init.initialisation("he")
