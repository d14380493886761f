"""Batch normalisation: the statistics after it, the running ones, and evaluation."""

import copy
import math

import geoopt
import pytest
import torch
from covering import pairs
from helpers import assert_close, generator, points

import manifold_resnet.functional as F
from manifold_resnet import nn

SHAPES = {1: (16, 4), 2: (4, 4, 3, 2), 3: (2, 4, 2, 3, 2)}
dims = pytest.mark.parametrize("n", SHAPES)
means = pytest.mark.parametrize("mean", ["midpoint", "frechet"])
scales = pytest.mark.parametrize("scale", ["scalar", "channel"])


def norm(n=2, c=0.5, dtype=torch.float64, channels=4, **options):
    ball = geoopt.PoincareBall(torch.tensor(c, dtype=dtype), learnable=True)
    return getattr(nn, f"PoincareBatchNorm{n}d")(channels, ball=ball, **options)


def images(n=2, c=0.5, seed=0, shift=0.4):
    """Points around one away from the origin."""
    g = generator(seed)
    x = points(g, *SHAPES[n], c=c, dim=1, distance=2.0)
    centre = shift * torch.ones(4, dtype=torch.float64).view(-1, *[1] * n) if n > 1 else shift * torch.ones(4)
    return F.mobius_add(centre.double().view(1, 4, *[1] * (len(SHAPES[n]) - 2)).expand_as(x), x, c=c, dim=1)


def rows(x):
    return x.movedim(1, -1).reshape(-1, x.shape[1])


def mean_of(x, kind, c):
    return (F.midpoint if kind == "midpoint" else F.frechet_mean)(rows(x), c=c)


@dims
@means
def test_scalar_statistics_after_normalising(n, mean):
    """The mean squared distance to the centre is the gain's square; the Fréchet mean is the centre."""
    layer = norm(n, scale="scalar", mean=mean, eps=1e-12)
    x = images(n)
    assert F.frechet_variance(rows(x), c=0.5) > 1.2  # not normalised before
    y = rows(layer(x))
    origin = torch.zeros(4, dtype=torch.float64)
    assert F.frechet_variance(y, origin, c=0.5).item() == pytest.approx(1, abs=1e-9)
    if mean == "frechet":
        assert_close(F.frechet_mean(y, c=0.5), origin, 1e-8)
    with torch.no_grad():
        layer.log_scale.fill_(math.log(0.6))
        layer.bias.copy_(torch.tensor([0.3, 0.0, -0.4, 0.1]))
    y = rows(layer(x))
    assert F.frechet_variance(y, layer.bias.detach(), c=0.5).item() == pytest.approx(0.36, abs=1e-9)
    if mean == "frechet":
        assert_close(F.frechet_mean(y, c=0.5), layer.bias.detach(), 1e-8)
    elif n == 2:  # the midpoint moves along where the scale is one
        with torch.no_grad():
            variance = F.frechet_variance(rows(x), F.midpoint(rows(x), c=0.5), c=0.5)
            layer.log_scale.fill_(0.5 * math.log(variance))
        assert_close(F.midpoint(rows(layer(x)), c=0.5), layer.bias.detach(), 1e-9)


@dims
@means
def test_channel_statistics_after_normalising(n, mean):
    """Coordinates of the tangent vectors at the centre have the gain as standard deviation about zero."""
    layer = norm(n, scale="channel", mean=mean, eps=1e-12)
    x = images(n)
    y = rows(layer(x))
    squares = F.logmap0(y, c=0.5).square().mean(0)
    assert_close(squares, torch.full((4,), 0.25 / 4).double(), 1e-9)
    # so the mean squared distance is one, whatever the width
    assert F.frechet_variance(y, torch.zeros(4).double(), c=0.5).item() == pytest.approx(1, abs=1e-9)
    gain = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    with torch.no_grad():
        layer.log_scale.copy_((gain / layer.base_gain).log())
        layer.bias.copy_(torch.tensor([0.3, 0.0, -0.4, 0.1]))
    assert_close(layer.gain().detach(), gain, 1e-12)
    w = F.logmap0(F.mobius_add(-layer.bias.detach(), rows(layer(x)), c=0.5), c=0.5)
    assert_close(w.square().mean(0), gain**2, 1e-9)
    if mean == "frechet":
        assert_close(w.mean(0), torch.zeros(4).double(), 1e-7)


@pytest.mark.parametrize("channels", [1, 8, 64])
@scales
def test_starts_at_distance_one_for_any_width(channels, scale):
    x = points(generator(), 64, channels, c=1.0, distance=1.0)
    y = norm(1, 1.0, channels=channels, scale=scale, eps=1e-12)(x)
    assert F.frechet_variance(y, torch.zeros(channels).double(), c=1.0).item() == pytest.approx(1, abs=1e-6)


@means
@scales
def test_running_statistics_with_momentum(mean, scale):
    """After one batch: (1 - m) times the start plus m times the batch, whose variance is the unbiased one."""
    layer = norm(scale=scale, mean=mean, momentum=0.3)
    start = layer.running_var.clone()
    x = images()
    layer(x)
    m = mean_of(x, mean, 0.5)
    count = len(rows(x))
    if scale == "scalar":
        variance = F.frechet_variance(rows(x), m, c=0.5)
    else:
        variance = F.logmap0(F.mobius_add(-m, rows(x), c=0.5), c=0.5).square().mean(0)
    assert_close(layer.running_var, 0.7 * start + 0.3 * variance * count / (count - 1), 1e-12)
    points_ = rows(x) if mean == "midpoint" else m[None]
    p = F.to_lorentz(points_, c=0.5).mean(0) * math.sqrt(0.5)
    assert_close(layer.running_sums, 0.3 * torch.cat([p[1:], p[:1] - 1]), 1e-9)
    assert layer.num_batches_tracked == 1
    assert layer.ball.check_point_on_manifold(layer.running_mean)


@scales
@dims
def test_cumulative_mean_is_the_joint_midpoint(n, scale):
    layer = norm(n, scale=scale, momentum=None)
    batches = [images(n, seed=seed, shift=0.1 * seed) for seed in range(4)]
    variances = []
    for i, x in enumerate(batches, 1):
        single = norm(n, scale=scale, momentum=1.0)
        single(x)
        variances.append(single.running_var)
        layer(x)
        joint = F.midpoint(torch.cat([rows(b) for b in batches[:i]]), c=0.5)
        assert_close(layer.running_mean, joint, 1e-12)
        assert_close(layer.running_var, torch.stack(variances).mean(0), 1e-12)
    assert layer.num_batches_tracked == 4


def test_momentum_zero_and_one():
    still, last = norm(momentum=0.0), norm(momentum=1.0)
    before = {k: v.clone() for k, v in still.state_dict().items() if k.startswith("running")}
    for seed in range(3):
        x = images(seed=seed)
        still(x), last(x)
    assert all(torch.equal(still.state_dict()[k], v) for k, v in before.items())
    assert_close(last.running_mean, F.midpoint(rows(x), c=0.5), 1e-12)


@means
@scales
def test_evaluation_agrees_with_training_on_identical_batches(mean, scale):
    """Once the running statistics have settled: exactly, but for the unbiased variance."""
    layer = norm(scale=scale, mean=mean, momentum=0.5)
    x = images()
    for _ in range(60):
        trained = layer(x)
    layer.eval()
    count = len(rows(x))
    close = F.dist(layer(x), trained, c=0.5, dim=1).max()
    assert 0 < close < 3 / count
    layer.running_var.mul_((count - 1) / count)
    assert_close(layer(x), trained, 1e-9)


@means
@scales
@pytest.mark.parametrize("track", [True, False])
def test_evaluation_and_the_batch(mean, scale, track):
    """Statistics kept: one image's output does not depend on the others. Not kept: the batch's are used."""
    layer = norm(scale=scale, mean=mean, track_running_stats=track)
    x = images()
    layer(x)
    layer.eval()
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    together, alone = layer(x)[:1], layer(x[:1])
    assert torch.allclose(together, alone, atol=1e-12) is track
    assert all(torch.equal(layer.state_dict()[k], v) for k, v in before.items())
    assert (layer.running_mean is None) is not track
    if not track:
        assert_close(layer(x), layer.train()(x), 0.0)
        assert set(layer.state_dict()) == {"log_scale", "bias", "ball.isp_c"}


@scales
def test_a_fresh_norm_in_evaluation_changes_nothing(scale):
    layer = norm(scale=scale, eps=1e-12).eval()
    assert_close(layer(images()), images(), 1e-9)
    assert_close(layer.running_mean, torch.zeros(4).double(), 0.0)
    trained = layer.train()
    trained(images())
    with torch.no_grad():
        trained.log_scale.fill_(0.3)
        trained.bias.fill_(0.1)
    trained.reset_parameters()
    assert_close(trained.eval()(images()), images(), 1e-9)
    assert trained.num_batches_tracked == 0


@pairs
@means
@scales
@dims
@pytest.mark.parametrize("training", [True, False])
def test_empty_batch(n, mean, scale, training):
    layer = norm(n, mean=mean, scale=scale).train(training)
    layer(images(n))
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    x = images(n)[:0].requires_grad_()
    for chart in ("ball", "tangent", "hyperboloid"):
        y = layer(x, out_chart=chart)
        assert y.shape == x.shape
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert all(torch.equal(layer.state_dict()[k], v) for k, v in before.items())


@pairs
@means
@scales
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("batch", ["one", "constant", "origin"])
def test_batches_without_variance(mean, scale, dtype, batch):
    """A batch of one point, of copies of a point, of nothing but the origin: all at the centre; finite gradients."""
    layer = norm(1, mean=mean, scale=scale, dtype=dtype)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([0.3, 0.0, -0.4, 0.1]))
    point = points(generator(), 1, 4, c=0.5).to(dtype)
    x = {"one": point, "constant": point.expand(8, 4), "origin": torch.zeros(8, 4, dtype=dtype)}[batch]
    x = x.clone().requires_grad_()
    y = layer(x)
    tolerance = 1e-9 if dtype == torch.float64 else 2e-3  # rounding of the mean, divided by sqrt(eps)
    torch.testing.assert_close(y, layer.bias.detach().expand_as(y), atol=tolerance, rtol=0)
    gradients = torch.autograd.grad(y.sum(), [x, *layer.parameters()], materialize_grads=True)
    assert all(g.isfinite().all() for g in gradients)
    assert all(b.isfinite().all() for b in layer.buffers())
    assert layer.eval()(x).isfinite().all()


@scales
@pytest.mark.parametrize("log_scale", [-200.0, -5.0, 3.0, 20.0])
def test_scale_is_positive_by_construction(scale, log_scale):
    """Whatever an optimizer does to the parameter: the order of points along a ray stays, all finite."""
    layer = norm(1, scale=scale, dtype=torch.float32)
    with torch.no_grad():
        layer.log_scale.fill_(log_scale)
    assert (layer.gain() >= 0).all()
    x = images(1).float().requires_grad_()
    y = layer(x)
    assert y.isfinite().all()
    assert layer.ball.check_point_on_manifold(y.detach())
    gradients = torch.autograd.grad(y.sum(), [x, *layer.parameters()], materialize_grads=True)
    assert all(g.isfinite().all() for g in gradients)
    if log_scale == 3.0:  # larger, never mirrored
        small = copy.deepcopy(layer)
        with torch.no_grad():
            small.log_scale.fill_(0.0)
        inner = (F.logmap0(y, c=0.5) * F.logmap0(small(x), c=0.5)).sum(1)
        assert (inner > 0).all()


@scales
@means
def test_without_affine_parameters(scale, mean):
    plain, affine = norm(affine=False, scale=scale, mean=mean), norm(scale=scale, mean=mean)
    x = images()
    assert_close(plain(x), affine(x).detach(), 1e-12)
    assert [n for n, _ in plain.named_parameters()] == ["ball.isp_c"]
    assert plain.gain() is None
    plain.reset_parameters()
    assert plain.num_batches_tracked == 0


def test_half_precision_and_double_inputs_keep_the_statistics_dtype():
    layer = norm(1, dtype=torch.float32)
    layer(images(1))
    layer(images(1).bfloat16())
    assert layer.running_sums.dtype == layer.running_var.dtype == torch.float32
    assert layer.num_batches_tracked == 2


def test_points_far_apart_in_single_precision():
    """Half the batch at distance 6 on one side, half on the other."""
    ball = geoopt.PoincareBall(1.0)
    x = torch.zeros(2, 3, 4, 4)
    x[0, 0], x[1, 0] = 0.995, -0.995
    for mean in ("midpoint", "frechet"):
        for scale in ("scalar", "channel"):
            layer = nn.PoincareBatchNorm2d(3, ball=ball, mean=mean, scale=scale)
            z = x.clone().requires_grad_()
            y = layer(z)
            gradients = torch.autograd.grad(y.square().sum(), [z, layer.bias, layer.log_scale])
            assert all(t.isfinite().all() for t in [y, *gradients, *layer.buffers()])
            assert_close(layer.running_mean, torch.zeros(3), 1e-4)
