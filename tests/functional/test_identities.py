"""What has to hold on every ball, whoever computes it: gyrogroup laws, isometries, limits, statistics."""

import math

import geoopt
import pytest
import torch
from helpers import assert_close, generator, points, tangents
from hypothesis import given
from hypothesis import strategies as st

import manifold_resnet.functional as F

# lengths in units of 1/sqrt(c), c from all but flat to strongly curved
curvatures = st.floats(-6, 1).map(lambda e: 10**e)
seeds = st.integers(0, 10_000)


def true_unit(c):
    return 1 / math.sqrt(c)


def random_points(seed, *shapes, c, dim=-1, distance=3.0):
    """Points up to `distance` / sqrt(c) from the origin, at small c too."""
    g = generator(seed)
    return [points(g, *shape, c=1.0, dim=dim, distance=distance) * true_unit(c) for shape in shapes]


def equal(actual, expected, c, power=1, tolerance=1e-10):
    """Equal up to `tolerance`, with lengths in units of the curvature radius."""
    assert_close(actual / true_unit(c) ** power, expected / true_unit(c) ** power, tolerance)


# -- the gyrogroup ---------------------------------------------------------------------------------


@given(curvatures, seeds)
def test_gyrogroup(c, seed):
    x, y, z = random_points(seed, (5, 3), (5, 3), (5, 3), c=c)
    zero = torch.zeros_like(x)
    equal(F.mobius_add(x, zero, c=c), x, c)
    equal(F.mobius_add(zero, x, c=c), x, c)
    equal(F.mobius_add(-x, x, c=c), zero, c)
    equal(F.mobius_add(-x, F.mobius_add(x, y, c=c), c=c), y, c, tolerance=1e-9)  # left cancellation
    x, y, z = x / 2, y / 2, z / 2  # three in a row must stay where the ball has digits
    left = F.mobius_add(x, F.mobius_add(y, z, c=c), c=c)
    equal(left, F.mobius_add(F.mobius_add(x, y, c=c), F.gyration(x, y, z, c=c), c=c), c)  # gyroassociative
    equal(F.mobius_add(x, y, c=c), F.gyration(x, y, F.mobius_add(y, x, c=c), c=c), c)  # gyrocommutative


@given(curvatures, seeds)
def test_gyration_is_a_rotation(c, seed):
    a, b, u, v = random_points(seed, (5, 3), (5, 3), (5, 3), (5, 3), c=c)
    gu, gv = F.gyration(a, b, u, c=c), F.gyration(a, b, v, c=c)
    equal(gu.norm(dim=-1), u.norm(dim=-1), c)
    equal((gu * gv).sum(-1), (u * v).sum(-1), c, power=2)
    equal(F.gyration(b, a, gu, c=c), u, c)


@given(curvatures, seeds)
def test_exponential_and_logarithm(c, seed):
    x, y = random_points(seed, (5, 3), (5, 3), c=c, distance=2.0)
    u = F.logmap(x, y, c=c)
    equal(F.expmap(x, u, c=c), y, c)
    equal(F.logmap(x, F.expmap(x, u, c=c), c=c), u, c)
    equal(F.lambda_x(x, c=c) * u.norm(dim=-1), F.dist(x, y, c=c), c)
    equal(F.logmap0(F.expmap0(u, c=c), c=c), u, c)
    equal(F.expmap0(F.logmap0(x, c=c), c=c), x, c)
    equal(F.logmap0(x, c=c), F.logmap(torch.zeros_like(x), x, c=c), c)
    equal(2 * F.logmap0(x, c=c).norm(dim=-1), F.dist(x, torch.zeros_like(x), c=c), c)


@given(curvatures, seeds)
def test_transport(c, seed):
    x, y, v, w = random_points(seed, (5, 3), (5, 3), (5, 3), (5, 3), c=c, distance=2.0)
    moved, other = F.transp(x, y, v, c=c), F.transp(x, y, w, c=c)
    scale_x, scale_y = F.lambda_x(x, c=c, keepdim=True), F.lambda_x(y, c=c, keepdim=True)
    equal((scale_y * moved * scale_y * other).sum(-1), (scale_x * v * scale_x * w).sum(-1), c, power=2)
    equal(F.transp(y, x, moved, c=c), v, c)
    equal(F.transp(x, y, F.logmap(x, y, c=c), c=c), -F.logmap(y, x, c=c), c)  # the geodesic's own direction


@given(curvatures, seeds)
def test_distance(c, seed):
    x, y, z = random_points(seed, (5, 3), (5, 3), (5, 3), c=c)
    d = F.dist(x, y, c=c)
    equal(d, F.dist(y, x, c=c), c)
    equal(F.dist(x, x, c=c), torch.zeros_like(d), c)
    assert (F.dist(x, z, c=c) <= d + F.dist(y, z, c=c) + 1e-10 * true_unit(c)).all()


# -- isometries ------------------------------------------------------------------------------------


def isometry(seed, c):
    """A left translation after a rotation of the 3-dimensional ball."""
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator(seed), dtype=torch.float64))
    (a,) = random_points(seed + 1, (3,), c=c, distance=1.5)
    return lambda x: F.mobius_add(a, x @ rotation.T, c=c)


@given(curvatures, seeds)
def test_isometry_invariance(c, seed):
    x, y = random_points(seed, (6, 3), (6, 3), c=c, distance=2.0)
    weights = torch.rand(6, generator=generator(seed), dtype=torch.float64)
    move = isometry(seed, c)
    equal(F.dist(move(x), move(y), c=c), F.dist(x, y, c=c), c)
    for mean in (F.midpoint, F.frechet_mean):
        for w in (None, weights):
            equal(mean(move(x), w, c=c), move(mean(x, w, c=c)), c)
    equal(F.frechet_variance(move(x), c=c), F.frechet_variance(x, c=c), c, power=2)


@given(curvatures, seeds)
def test_means(c, seed):
    """Of two points both are the middle of the geodesic; the Frechet mean is where the logarithms cancel."""
    x, y, z = random_points(seed, (3,), (3,), (6, 3), c=c, distance=2.0)
    pair = torch.stack((x, y))
    for mean in (F.midpoint, F.frechet_mean):
        m = mean(pair, c=c)
        equal(F.dist(x, m, c=c), F.dist(x, y, c=c) / 2, c)
        equal(F.dist(y, m, c=c), F.dist(x, y, c=c) / 2, c)
        equal(mean(pair.flip(0), c=c), m, c)
        equal(mean(x.expand(4, 3), c=c), x, c)
        half = torch.tensor([0.5] * 6, dtype=torch.float64)
        equal(mean(z, half, c=c), mean(z, c=c), c)  # only ratios of weights matter
        only = torch.eye(6, dtype=torch.float64)[2]
        equal(mean(z, only, c=c), z[2], c)
    m = F.frechet_mean(z, c=c)
    equal(F.logmap(m, z, c=c).mean(0), torch.zeros_like(m), c)
    assert (F.frechet_variance(z, m, c=c) <= F.frechet_variance(z, c=c) + 1e-12 / c).all()


@given(curvatures, seeds)
def test_lorentz(c, seed):
    """Points of geoopt's hyperboloid, an isometry; geoopt's own arcosh is good to 1e-7."""
    x, y = random_points(seed, (5, 3), (5, 3), c=c)
    manifold = geoopt.Lorentz(k=torch.tensor(1 / c, dtype=torch.float64))
    p, q = F.to_lorentz(x, c=c), F.to_lorentz(y, c=c)
    for point in p:
        assert manifold.check_point_on_manifold(point)
    assert (p[:, 0] > 0).all()
    equal(manifold.dist(p, q), F.dist(x, y, c=c), c, tolerance=1e-6)
    equal(F.from_lorentz(p, c=c), x, c)


@given(curvatures, seeds)
def test_midpoint_is_the_lorentz_centroid(c, seed):
    (x,) = random_points(seed, (6, 3), c=c)
    p = F.to_lorentz(x, c=c).sum(0)
    p = p / math.sqrt(c) / (p[0] ** 2 - p[1:].square().sum()).sqrt()
    equal(F.to_lorentz(F.midpoint(x, c=c), c=c), p, c)


# -- layers ----------------------------------------------------------------------------------------


@given(curvatures, seeds)
def test_hyperplane_distances(c, seed):
    """A logit is 2|z| times the signed distance to the hyperplane, along the geodesic normal to it."""
    x, normal = random_points(seed, (3,), (1, 3), c=c, distance=2.0)
    z = normal / true_unit(c)
    r = torch.tensor([0.3], dtype=torch.float64) * true_unit(c)
    p = F.expmap0(r * z / z.norm(), c=c)[0]
    unit = z[0] / z.norm()
    along = x - (x @ unit) * unit  # a direction within the hyperplane at p
    on_plane = F.expmap(p, 0.2 * along, c=c)
    zero = torch.zeros(1, dtype=torch.float64)
    equal(F.poincare_mlr(p, z, r, c=c), zero, c)
    equal(F.poincare_mlr(on_plane, z, r, c=c), zero, c)
    # leave the plane at a right angle: the normal, carried to where we are
    for t in (-0.4, 0.4):
        step = F.transp(p, on_plane, unit * t * true_unit(c) / F.lambda_x(p, c=c), c=c)
        off_plane = F.expmap(on_plane, step, c=c)
        distance = F.dist(on_plane, off_plane, c=c).reshape(1)
        equal(F.poincare_mlr(off_plane, z, r, c=c), math.copysign(2, t) * z.norm() * distance, c)


@given(curvatures, seeds)
def test_linear_output(c, seed):
    """The layer's output lies at its logits' distances from the coordinate hyperplanes."""
    (x,) = random_points(seed, (4, 3), c=c, distance=2.0)
    z = 0.4 * torch.randn(5, 3, generator=generator(seed), dtype=torch.float64)
    r = 0.2 * torch.randn(5, generator=generator(seed + 1), dtype=torch.float64) * true_unit(c)
    y = F.poincare_linear(x, z, r, c=c)
    axes = torch.eye(5, dtype=torch.float64) / 2  # |z| = 1/2: logits are distances
    equal(F.poincare_mlr(y, axes, c=c), F.poincare_mlr(x, z, r, c=c), c)


@given(seeds)
def test_identity_layer(seed):
    """Normals e_k / 2 give back the point, in a linear layer and in a convolution with a 1x1 kernel."""
    (x,) = random_points(seed, (2, 3, 4, 5), c=1.0, dim=1)
    axes = torch.eye(3, dtype=torch.float64) / 2
    equal(F.poincare_linear(x.movedim(1, -1), axes, c=1.0), x.movedim(1, -1), 1.0)
    equal(F.poincare_conv2d(x, axes[:, :, None, None], c=1.0), x, 1.0)


@given(curvatures, seeds, st.sampled_from(["midpoint", "frechet"]))
def test_batch_norm_moves_the_mean(c, seed, about):
    """With the gain that undoes the scaling, the result is an isometric copy whose mean is the centre."""
    (x,) = random_points(seed, (4, 3, 2, 2), c=c, dim=1, distance=2.0)
    (center,) = random_points(seed + 1, (3,), c=c, distance=1.0)
    mean = (F.midpoint if about == "midpoint" else F.frechet_mean)(x, c=c, dim=1)
    variance = F.frechet_variance(x, mean, c=c, dim=1)
    y = F.midpoint_batch_norm(x, gain=variance.sqrt(), center=center, c=c, about=about, eps=0.0)
    mean_of = F.midpoint if about == "midpoint" else F.frechet_mean
    equal(mean_of(y, c=c, dim=1), center, c, tolerance=1e-9)
    flat_x, flat_y = x.movedim(1, -1).reshape(-1, 3), y.movedim(1, -1).reshape(-1, 3)
    equal(
        F.dist(flat_y[:, None], flat_y[None], c=c),
        F.dist(flat_x[:, None], flat_x[None], c=c),
        c,
        tolerance=1e-7,  # the distance of a point to itself is the root of a rounding error
    )


@given(curvatures, seeds, st.sampled_from(["midpoint", "frechet"]))
def test_batch_norm_statistics(c, seed, about):
    (x,) = random_points(seed, (4, 3, 2, 2), c=c, dim=1, distance=2.0)
    (center,) = random_points(seed + 1, (3,), c=c, distance=1.0)
    options = {"center": center, "c": c, "about": about, "eps": 0.0}
    gain = torch.tensor(0.8, dtype=torch.float64) * true_unit(c)
    y = F.midpoint_batch_norm(x, gain=gain, **options)
    equal(F.frechet_variance(y, center, c=c, dim=1), gain**2, c, power=2)
    if about == "frechet":  # scaling the logarithms keeps their mean at zero
        equal(F.frechet_mean(y, c=c, dim=1), center, c, tolerance=1e-9)
    gains = torch.tensor([0.2, 0.4, 0.8], dtype=torch.float64) * true_unit(c)
    y = F.midpoint_batch_norm(x, gain=gains, scale="channel", **options)
    w = F.logmap0(F.mobius_add(-center.view(3, 1, 1), y, c=c, dim=1), c=c, dim=1)
    equal(w.square().mean((0, 2, 3)), gains**2, c, power=2)


@given(seeds)
def test_batch_norm_given_its_own_statistics(seed):
    """Statistics passed in, as in evaluation, give what statistics taken from the batch gave."""
    (x,) = random_points(seed, (4, 3, 2, 2), c=1.0, dim=1)
    mean = F.midpoint(x, c=1.0, dim=1)
    variance = F.frechet_variance(x, mean, c=1.0, dim=1)
    equal(F.midpoint_batch_norm(x, mean, variance, c=1.0), F.midpoint_batch_norm(x, c=1.0), 1.0)
    w = F.logmap0(F.mobius_add(-mean.view(3, 1, 1), x, c=1.0, dim=1), c=1.0, dim=1)
    given_it = F.midpoint_batch_norm(x, mean, w.square().mean((0, 2, 3)), scale="channel", c=1.0)
    equal(given_it, F.midpoint_batch_norm(x, scale="channel", c=1.0), 1.0)


@given(curvatures, seeds)
def test_pooling_of_a_constant_image(c, seed):
    (x,) = random_points(seed, (1, 3, 1, 1), c=c, dim=1)
    image = x.expand(2, 3, 5, 6)
    equal(F.poincare_avg_pool2d(image, 2, c=c), x.expand(2, 3, 2, 3), c)
    padded = F.poincare_avg_pool2d(image, 3, 2, 1, ceil_mode=True, count_include_pad=False, c=c)
    equal(padded, x.expand_as(padded), c)
    equal(F.poincare_adaptive_avg_pool2d(image, (2, 4), c=c), x.expand(2, 3, 2, 4), c)
    corner = F.poincare_avg_pool2d(image, 3, 2, 1, c=c)[0, :, 0, 0]  # 5 of its 9 pixels are padding, the origin
    nine = torch.cat((torch.zeros(5, 3, dtype=torch.float64), x.view(1, 3).expand(4, 3)))
    equal(corner, F.midpoint(nine, c=c), c)


# -- the flat limit --------------------------------------------------------------------------------


@given(seeds)
def test_flat_limit(seed):
    """With c -> 0 everything becomes Euclidean, distances doubled (the metric is 2 dx at the origin).

    A hyperplane's logit becomes 4 (<x, z> - |z| r), and half of it the layer's coordinate.
    """
    c, g = 1e-12, generator(seed)

    def normal(*shape):
        return torch.randn(shape, generator=g, dtype=torch.float64)

    def flat(actual, expected):
        assert_close(actual, expected, 1e-7)  # the first correction is c |x|^3

    x, y, z, r = normal(6, 4), normal(6, 4), normal(5, 4), normal(5)
    flat(F.mobius_add(x, y, c=c), x + y)
    flat(F.expmap0(x, c=c), x)
    flat(F.logmap0(x, c=c), x)
    flat(F.expmap(x, y, c=c), x + y)
    flat(F.logmap(x, y, c=c), y - x)
    flat(F.transp(x, y, x, c=c), x)
    flat(F.gyration(x, y, x, c=c), x)
    flat(F.lambda_x(x, c=c), torch.full((6,), 2.0, dtype=torch.float64))
    flat(F.dist(x, y, c=c), 2 * (x - y).norm(dim=-1))
    flat(F.midpoint(x, c=c), x.mean(0))
    flat(F.frechet_mean(x, c=c), x.mean(0))
    flat(F.frechet_variance(x, c=c), 4 * (x - x.mean(0)).square().sum(-1).mean())
    flat(F.mobius_residual(x, y, c=c), x + y)
    flat(F.poincare_relu(x, c=c), x.relu())
    logits = 4 * (x @ z.T - z.norm(dim=1) * r)
    flat(F.poincare_mlr(x, z, r, c=c), logits)
    flat(F.poincare_linear(x, z, r, c=c), logits / 2)

    image, kernel = normal(2, 4, 5, 6), normal(5, 4, 3, 3)
    s = F.beta_ratio(4, 9)
    conv = torch.nn.functional.conv2d(image, s * kernel, stride=2, padding=1)
    offsets = (kernel.flatten(1).norm(dim=1) * r).view(5, 1, 1)
    flat(F.poincare_conv2d(image, kernel, r, stride=2, padding=1, c=c), 2 * (conv - offsets))
    flat(F.poincare_avg_pool2d(image, 3, 2, 1, c=c), torch.nn.functional.avg_pool2d(image, 3, 2, 1))
    flat(F.poincare_adaptive_avg_pool2d(image, 2, c=c), torch.nn.functional.adaptive_avg_pool2d(image, 2))
    gain, center = normal(4), normal(4)
    flat(
        F.midpoint_batch_norm(image, gain=gain, center=center, scale="channel", c=c),
        torch.nn.functional.batch_norm(image, None, None, gain, center, training=True),
    )
    centered = image - image.mean((0, 2, 3), keepdim=True)
    deviation = 2 * centered.square().sum(1).mean().sqrt()
    y = F.midpoint_batch_norm(image, gain=gain[0], center=center, c=c, eps=0.0)
    flat(y, gain[0] * centered / deviation + center.view(4, 1, 1))


@pytest.mark.parametrize(("channels", "pixels"), [(1, 1), (3, 9), (8, 9), (64, 9), (512, 49)])
def test_beta_ratio_keeps_norms(channels, pixels):
    """s is close to 1/sqrt(pixels): concatenating vectors of one norm gives about that norm."""
    s = F.beta_ratio(channels, pixels)
    log_beta = lambda n: math.lgamma(n / 2) + math.lgamma(0.5) - math.lgamma((n + 1) / 2)  # noqa: E731
    assert s == pytest.approx(math.exp(log_beta(pixels * channels) - log_beta(channels)), rel=1e-10)
    assert 0.75 / math.sqrt(pixels) < s <= 1 / math.sqrt(pixels) + 1e-12
    u = tangents(generator(), 1, channels, 1, c=1.0, dim=1).expand(1, channels, pixels)
    assert (s * u.reshape(-1)).norm() <= u[0, :, 0].norm() * (1 + 1e-12)
