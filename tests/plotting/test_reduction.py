"""Recentring keeps distances; reduction to the disk keeps what it says it keeps."""

import geoopt
import pytest
import torch
from helpers import CURVATURES, generator, points

import manifold_resnet.functional as F
from manifold_resnet.plotting import recenter, reduce_to_disk


def make_ball(c=1.0, dtype=torch.float64):
    return geoopt.PoincareBall(torch.tensor(c, dtype=dtype))


def distances(x, c):
    return F.dist(x[:, None], x[None], c=c)


@pytest.mark.parametrize("c", CURVATURES)
def test_recentring_is_an_isometry(c):
    x = points(generator(), 30, 5, c=c)
    moved = recenter(x, x[3], ball=make_ball(c))
    torch.testing.assert_close(moved[3], torch.zeros(5, dtype=torch.float64))
    torch.testing.assert_close(distances(moved, c), distances(x, c), atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(moved, make_ball(c).mobius_add(-x[3], x), atol=1e-8, rtol=1e-8)
    middle = F.midpoint(recenter(x, ball=make_ball(c)), c=c)
    assert middle.norm() < 1e-10 * c**-0.5


def test_recentring_far_away():
    # each at distance 5.9 on opposite sides: within geoopt's reach in float32, but their distance is not
    x = F.expmap0(torch.tensor([[2.95, 0.0], [-2.95, 0.0]]), c=1.0)
    moved = recenter(x, x[0], ball=make_ball(1.0, torch.float32))
    assert moved.dtype == torch.float32
    assert 2 * torch.atanh(moved[1].double().norm()) == pytest.approx(11.8, rel=5e-3)


def test_recentring_in_any_wrapping():
    x = points(generator(), 4, 6, 3, c=1.0)
    ball = make_ball()
    expected = recenter(x, ball=ball)
    assert expected.shape == x.shape
    for same in (x.numpy(), x.tolist(), geoopt.ManifoldTensor(x, manifold=ball)):
        moved = recenter(same, ball=ball)
        assert type(moved) is torch.Tensor
        torch.testing.assert_close(moved, expected)
    inputs = x.clone().requires_grad_(), x[0, 0].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, a: recenter(x, a, ball=ball), inputs)


@pytest.mark.parametrize("c", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("n", [2, 5])
def test_points_in_a_plane_are_drawn_exactly(c, n):
    g = generator(5)
    rotation, _ = torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64))
    plane = torch.nn.functional.pad(points(g, 40, 2, c=c), (0, n - 2)) @ rotation
    x = F.mobius_add(points(g, n, c=c, distance=2.0), plane, c=c)
    z = reduce_to_disk(x, ball=make_ball(c))
    assert z.shape == (40, 2)
    torch.testing.assert_close(distances(z, c), distances(x, c), atol=1e-6, rtol=1e-6)


def test_distances_from_the_mean_never_grow():
    x = points(generator(), 50, 8, c=1.0)
    z = reduce_to_disk(x, ball=make_ball())
    from_mean = F.dist(x, F.frechet_mean(x, c=1.0), c=1.0)
    assert (2 * F.logmap0(z, c=1.0).norm(dim=1) <= from_mean + 1e-9).all()
    trained = geoopt.PoincareBall(torch.tensor(1.0, dtype=torch.float64), learnable=True)
    again = reduce_to_disk(x.clone().requires_grad_(), ball=trained)
    assert torch.equal(z, again)
    assert not again.requires_grad


def test_one_dimension_and_types():
    line = torch.tensor([[0.5], [0.2], [-0.7]])
    z = reduce_to_disk(line, ball=make_ball(1.0, torch.float32))
    assert z.dtype == torch.float32
    assert (z[:, 1] == 0).all()
    torch.testing.assert_close(distances(z, 1.0), distances(line, 1.0), atol=1e-5, rtol=1e-5)
    assert reduce_to_disk(torch.zeros(2, 4), ball=make_ball()).tolist() == [[0, 0], [0, 0]]


def test_umap_keeps_clusters():
    pytest.importorskip("umap")
    g = generator()
    centres = points(g, 4, 6, c=1.0, distance=2.0) + 0.0
    x = F.mobius_add(centres.repeat_interleave(15, 0), points(g, 60, 6, c=1.0, distance=0.3), c=1.0)
    z = reduce_to_disk(x, ball=make_ball(0.5), method="umap", seed=1)
    assert z.shape == (60, 2)
    nearest = distances(z, 0.5).fill_diagonal_(torch.inf).argmin(1)
    assert (nearest // 15 == torch.arange(60) // 15).float().mean() > 0.95


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda b: recenter(torch.zeros(3, 2), torch.zeros(3), ball=b),
            r"about of shape \(3,\) does not fit .*\(3, 2\)",
        ),
        (lambda b: recenter(torch.zeros(2), torch.zeros(3, 2), ball=b), "does not fit"),
        (lambda b: recenter(torch.zeros(0, 2), ball=b), r"\(0, 2\) have no midpoint"),
        (lambda b: recenter(torch.ones(3, 2), ball=b), "points must lie on the ball"),
        (lambda b: recenter(torch.zeros(3, 2), torch.ones(2), ball=b), "about must lie on the ball"),
        (lambda b: reduce_to_disk(torch.zeros(3), ball=b), r"points must have shape \(N, n\), got \(3,\)"),
        (lambda b: reduce_to_disk(torch.zeros(1, 3), ball=b), "'pca' needs at least 2 points, got 1"),
        (lambda b: reduce_to_disk(torch.zeros(9, 3), ball=b, method="umap"), "'umap' needs at least 16 points, got 9"),
        (lambda b: reduce_to_disk(torch.zeros(3, 3), ball=b, method="tsne"), "method must be .*, got 'tsne'"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call(make_ball())
