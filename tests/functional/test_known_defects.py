"""What other implementations of these layers were found to get wrong, one test each."""

import math

import pytest
import torch
from helpers import assert_close, generator, points, tangents

import manifold_resnet.functional as F


def test_hyperplane_distances_use_the_conformal_factor():
    """lambda is 2 / (1 - c|x|^2), not 2 (1 - c|x|^2): else distances shrink towards the boundary."""
    normal = torch.tensor([[0.5, 0.0]], dtype=torch.float64)  # |z| = 1/2: logits are distances
    x = torch.stack((torch.linspace(-0.99, 0.99, 41, dtype=torch.float64), torch.zeros(41)), dim=1)
    logits = F.poincare_mlr(x, normal, c=1.0)[:, 0]
    assert_close(logits, 2 * torch.atanh(x[:, 0]), 1e-12)
    assert (logits.diff() > 0).all()


@pytest.mark.parametrize(("x", "y", "c"), [(0.3, 0.5, 1.0), (-0.2, 0.9, 1.0), (0.5, 2.0, 0.2)])
def test_curvature_gradient_of_mobius_addition(x, y, c):
    """On a line x (+) y = (x + y) / (1 + c x y), whose derivative for c is no quotient upside down."""
    curvature = torch.tensor(c, dtype=torch.float64, requires_grad=True)
    point = lambda t: torch.tensor([t, 0.0], dtype=torch.float64)  # noqa: E731
    total = F.mobius_add(point(x), point(y), c=curvature)[0]
    (gradient,) = torch.autograd.grad(total, curvature)
    assert total.item() == pytest.approx((x + y) / (1 + c * x * y), abs=1e-14)
    assert gradient.item() == pytest.approx(-(x + y) * x * y / (1 + c * x * y) ** 2, abs=1e-14)


def test_residual_runs_along_the_channels():
    """Pixels do not mix: the sum at one pixel is the Moebius sum of that pixel's vectors."""
    g = generator()
    x, y = points(g, 2, 3, 4, 5, c=1.0, dim=1), points(g, 2, 3, 4, 5, c=1.0, dim=1)
    total = F.mobius_residual(x, y, c=1.0)
    assert_close(total[1, :, 2, 3], F.mobius_add(x[1, :, 2, 3], y[1, :, 2, 3], c=1.0), 1e-12)
    assert_close(F.mobius_residual(x, y, c=1.0, order="rf"), F.mobius_residual(y, x, c=1.0), 1e-12)
    assert not torch.allclose(F.mobius_residual(y, x, c=1.0), total)
    relu = F.poincare_relu(x, c=1.0)
    assert_close(relu[1, :, 2, 3], F.expmap0(F.logmap0(x[1, :, 2, 3], c=1.0).relu(), c=1.0), 1e-12)


def test_batch_mean_is_over_all_points():
    """Not the mean of per-image means."""
    x = points(generator(), 4, 3, 5, 5, c=1.0, dim=1)
    flat = x.movedim(1, -1).reshape(-1, 3)
    y = F.midpoint_batch_norm(x, gain=F.frechet_variance(flat, c=1.0).sqrt(), c=1.0, eps=0.0)
    expected = F.mobius_add(-F.midpoint(flat, c=1.0), flat, c=1.0)
    assert_close(y.movedim(1, -1).reshape(-1, 3).norm(dim=-1), expected.norm(dim=-1), 1e-10)


@pytest.mark.parametrize("scale", ["scalar", "channel"])
def test_one_image_does_not_depend_on_the_others(scale):
    x = points(generator(), 4, 3, 5, 5, c=1.0, dim=1)
    mean = points(generator(1), 3, c=1.0, distance=1.0)
    variance = torch.full(() if scale == "scalar" else (3,), 0.5, dtype=torch.float64)
    alone = F.midpoint_batch_norm(x[:1], mean, variance, scale=scale, c=1.0)
    assert_close(alone, F.midpoint_batch_norm(x, mean, variance, scale=scale, c=1.0)[:1], 1e-13)


@pytest.mark.parametrize("size", [32, 33])
@pytest.mark.parametrize("bias", [True, False])
def test_strided_convolution_of_odd_images(size, bias):
    x = points(generator(), 1, 2, size, size, c=1.0, dim=1)
    kernel = torch.full((3, 2, 3, 3), 0.1, dtype=torch.float64)
    offsets = torch.full((3,), 0.1, dtype=torch.float64) if bias else None
    out = F.poincare_conv2d(x, kernel, offsets, stride=2, padding=1, c=1.0)
    assert out.shape == torch.nn.functional.conv2d(x, kernel, offsets, stride=2, padding=1).shape
    if not bias:
        assert_close(out, F.poincare_conv2d(x, kernel, torch.zeros(3).double(), 2, 1, c=1.0), 1e-13)


def test_a_batch_of_one_keeps_its_dimensions():
    x = points(generator(), 1, 4, c=1.0)
    assert F.poincare_mlr(x, torch.ones(10, 4).double(), c=1.0).shape == (1, 10)
    assert F.midpoint(x[:, None], c=1.0, reducedim=1).shape == (1, 4)
    assert F.poincare_adaptive_avg_pool2d(x[..., None, None], 1, c=1.0).shape == (1, 4, 1, 1)


def test_long_tangent_vectors_keep_their_length():
    """No silent cap at a norm of 9.8 or 10: only the ball ends, in float32 at |u| = 3.1 / sqrt(c)."""
    u = tangents(generator(), 50, 3, c=0.1, distance=30.0).float()
    assert u.norm(dim=-1).max() > 20
    h = F.convert(u, "tangent", "hyperboloid", c=0.1)
    torch.testing.assert_close(F.convert(h, "hyperboloid", "tangent", c=0.1), u, rtol=1e-5, atol=1e-6)


def test_padded_pixels_are_the_origin():
    """Padding an image with the origin, then convolving it, is a convolution with padding."""
    x = points(generator(), 1, 2, 3, 3, c=1.0, dim=1)
    kernel = 0.2 * torch.randn(4, 2, 3, 3, generator=generator(), dtype=torch.float64)
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
    expected = F.poincare_conv2d(padded, kernel, torch.full((4,), 0.1).double(), c=1.0)
    assert_close(F.poincare_conv2d(x, kernel, torch.full((4,), 0.1).double(), padding=1, c=1.0), expected, 1e-13)


def test_c_is_the_curvature_itself():
    """Not its softplus, not a radius: a point at r is 2 artanh(sqrt(c) r) / sqrt(c) from the origin."""
    for c in (0.1, 1.0, 4.0):
        r = 0.4 / math.sqrt(c)
        expected = 2 * math.atanh(0.4) / math.sqrt(c)
        distance = F.dist(torch.zeros(2).double(), torch.tensor([r, 0.0], dtype=torch.float64), c=c)
        assert distance.item() == pytest.approx(expected, rel=1e-12)


def test_a_number_as_c_has_the_precision_of_the_points():
    """A Python number never passes through float32 on its way to float64 points."""
    x = points(generator(), 5, 3, c=0.1)
    exact = F.logmap0(x, c=torch.tensor(0.1, dtype=torch.float64))
    assert_close(F.logmap0(x, c=0.1), exact, 1e-15)
