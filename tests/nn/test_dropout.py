"""What dropout drops, what it keeps in expectation, and when it does nothing."""

import geoopt
import pytest
import torch
from helpers import assert_close, generator, points

import manifold_resnet.functional as F
from manifold_resnet import nn

C = 0.7
KINDS = {
    "elementwise": (nn.PoincareDropout, (2, 4, 3, 3)),
    "1d": (nn.PoincareDropout1d, (2, 4, 5)),
    "2d": (nn.PoincareDropout2d, (2, 4, 3, 3)),
    "3d": (nn.PoincareDropout3d, (2, 4, 2, 1, 3)),
}
every_kind = pytest.mark.parametrize("name", KINDS)


def make(name, p, **options):
    ball = geoopt.PoincareBall(torch.tensor(C, dtype=torch.float64))
    return KINDS[name][0](p, ball=ball, **options), points(generator(), *KINDS[name][1], c=C, dim=1, distance=2.0)


@every_kind
def test_coordinates_are_zero_or_scaled(name):
    """Of tangent vectors at the origin: in all points of a sample at once, or in each by itself."""
    layer, x = make(name, 0.25)
    torch.manual_seed(0)
    u, dropped = F.logmap0(x, c=C, dim=1), layer(x, out_chart="tangent")
    kept = dropped != 0
    assert_close(dropped, kept * u / 0.75, 1e-12)
    assert 0.4 < kept.double().mean() < 0.95
    same = (kept == kept[(..., *[slice(1)] * (x.ndim - 2))]).all()
    assert same == (name != "elementwise")


@every_kind
def test_the_expected_tangent_vector_is_kept(name):
    layer, x = make(name, 0.4)
    torch.manual_seed(0)
    many = x.repeat(2000, *[1] * (x.ndim - 1))
    mean = layer(many, out_chart="tangent").unflatten(0, (2000, -1)).mean(0)
    u = F.logmap0(x, c=C, dim=1)
    assert ((mean - u).abs() <= 5 * (0.4 / 0.6 / 2000) ** 0.5 * u.abs() + 1e-9).all()


@every_kind
@pytest.mark.parametrize("p", [0.0, 0.6])
def test_points_pass_unchanged(name, p):
    """In evaluation, and without dropping; in another chart if asked for."""
    layer, x = make(name, p)
    layer.train(p == 0)
    assert torch.equal(layer(x), x)
    assert_close(layer(x, out_chart="tangent"), F.logmap0(x, c=C, dim=1), 1e-12)


@every_kind
def test_everything_dropped_is_the_origin(name):
    layer, x = make(name, 1.0)
    x.requires_grad_()
    out = layer(x)
    assert (out == 0).all()
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert (gradient == 0).all()


@every_kind
def test_bound(name):
    """What dropout makes longer stays within the bound; points that pass in evaluation are left alone."""
    layer, x = make(name, 0.5, max_distance=0.5)
    torch.manual_seed(0)
    with nn.monitor_clipping(layer) as monitor:
        out = layer(x)
    assert (2 * F.logmap0(out, c=C, dim=1).norm(dim=1) <= 0.5 + 1e-12).all()
    assert 0 < monitor.share() <= 1
    assert torch.equal(layer.eval()(x), x)


def test_gradient():
    """Of the values that stay, scaled; gradcheck with the same drops every time."""
    layer, x = make("2d", 0.5)
    c = torch.tensor(C, dtype=torch.float64, requires_grad=True)

    def function(x, c, channelwise):
        torch.manual_seed(1)
        return F.poincare_dropout(x, 0.5, c=c, channelwise=channelwise)

    for channelwise in (False, True):
        assert torch.autograd.gradcheck(
            lambda *args, w=channelwise: function(*args, w), (x.requires_grad_(), c), fast_mode=True
        )
