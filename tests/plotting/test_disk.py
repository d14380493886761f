"""Lines that are drawn are geodesics: geoopt's own, on circles that meet the boundary at right angles."""

import geoopt
import geoopt.layers.stereographic as stereographic
import numpy as np
import pytest
import torch
from helpers import CURVATURES, generator, points
from matplotlib.figure import Figure

from manifold_resnet import nn
from manifold_resnet.plotting import plot_disk, plot_geodesic, plot_hyperplane, plot_tessellation

every_curvature = pytest.mark.parametrize("c", CURVATURES)


def make_ball(c=1.0):
    return geoopt.PoincareBall(torch.tensor(c, dtype=torch.float64))


def axes():
    return Figure().subplots()


def curves(ax):
    """Coordinates [curves, points, 2] of what was drawn last, in units of the disk's radius."""
    return torch.tensor(np.array(ax.collections[-1].get_segments())) / ax.patches[0].get_radius()


def assert_orthogonal_to_boundary(lines):
    """2 <p, o> = |p|^2 + 1 holds on a circle about o orthogonal to the unit circle, <p, o> = 0 on a diameter."""
    for line in lines:
        equations = torch.cat([2 * line, (line * line).sum(1, keepdim=True) + 1], 1)
        assert torch.linalg.svdvals(equations)[-1] < 1e-9


def ends(c):
    g = generator(3)
    x, y = points(g, 20, 2, c=c), points(g, 20, 2, c=c)
    x[0] = 0  # a radius, a diameter, a line that is nearly one
    y[1] = -0.5 * x[1]
    y[2] = -0.5 * x[2] + 1e-9
    return x, y


@every_curvature
def test_segments_are_the_geodesics_of_geoopt(c):
    ball, (x, y) = make_ball(c), ends(c)
    drawn = curves(plot_geodesic(x, y, ball=ball, ax=axes())) / ball.c.sqrt()
    assert drawn.shape == (20, 65, 2)
    torch.testing.assert_close(drawn[:, 0], x, atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(drawn[:, -1], y, atol=1e-12, rtol=1e-9)
    length = ball.dist(x, y)[:, None]
    t = ball.dist(x[:, None], drawn) / length
    assert (t.diff(dim=1) > 0).all()
    expected = torch.stack([ball.geodesic(t[i, :, None], x[i], y[i]) for i in range(20)])
    torch.testing.assert_close(drawn, expected, atol=1e-8 * c**-0.5, rtol=1e-8)
    if c > 1e-3:
        assert_orthogonal_to_boundary(drawn * ball.c.sqrt())


@every_curvature
def test_whole_lines(c):
    ball, (x, y) = make_ball(c), ends(c)
    lines = curves(plot_geodesic(x, y, ball=ball, line=True, ax=axes()))
    assert_orthogonal_to_boundary(lines)
    torch.testing.assert_close(lines[:, [0, -1]].norm(dim=-1), torch.ones(20, 2, dtype=torch.float64))
    # the segment is part of it: its ends solve the same equation
    for line, *pair in zip(lines, x, y, strict=True):
        assert_orthogonal_to_boundary([torch.cat([line, torch.stack(pair) * ball.c.sqrt()])])


def test_points_infinitely_far_away():
    angle = torch.tensor([0.0, 1.0, 4.0], dtype=torch.float64)
    ideal = torch.stack([angle.cos(), angle.sin()], 1)
    triangle = curves(plot_geodesic(ideal, ideal.roll(1, 0), ball=make_ball(), ax=axes()))
    assert_orthogonal_to_boundary(triangle)
    torch.testing.assert_close(triangle[:, 0], ideal)
    torch.testing.assert_close(triangle[:, -1], ideal.roll(1, 0))
    half = curves(plot_geodesic([0.5, 0.0], ideal[1], ball=make_ball(), ax=axes()))
    torch.testing.assert_close(half[0, -1], ideal[1])


def test_equal_points():
    x = torch.tensor([[0.3, 0.2], [0.0, 0.0]])
    torch.testing.assert_close(
        curves(plot_geodesic(x, x, ball=make_ball(), ax=axes())), x.double()[:, None].expand(-1, 65, -1)
    )
    with pytest.raises(ValueError, match="x and y must differ"):
        plot_geodesic(x, x[0], ball=make_ball(), line=True, ax=axes())


@every_curvature
def test_hyperplanes_of_our_layers(c):
    ball = make_ball(c)
    mlr = nn.PoincareMLR(2, 6, ball=ball)
    torch.nn.init.uniform_(mlr.bias, -0.5 * c**-0.5, 0.5 * c**-0.5)
    lines = curves(plot_hyperplane(mlr.normals(), mlr.bias, ball=ball, ax=axes()))
    assert_orthogonal_to_boundary(lines)
    inner = lines[:, 10:-10] / ball.c.sqrt()
    logits = mlr(inner)
    assert max(logits[k, :, k].abs().max() for k in range(6)) < 1e-9 * logits.abs().max()


def test_hyperplanes_of_geoopt():
    ball = geoopt.PoincareBall(0.5)  # geoopt makes the layer in float32 only
    layer = stereographic.Distance2StereographicHyperplanes(2, 6, ball=ball).double()
    lines = curves(plot_hyperplane(layer.points, point=layer.points, ball=ball, ax=axes())) / ball.c.sqrt()
    distances = layer(lines[:, 10:-10].reshape(-1, 2)).view(6, -1, 6)
    assert max(distances[k, :, k].abs().max() for k in range(6)) < 1e-9


@pytest.mark.parametrize(("p", "q"), [(3, 7), (5, 4), (7, 3)])
def test_tiles_have_one_size(p, q):
    ball = make_ball(2.0)
    sides = curves(plot_tessellation(p, q, ball=ball, smallest=0.15, ax=axes()))[:, [0, -1]] / ball.c.sqrt()
    length = ball.dist(sides[:, 0], sides[:, 1])
    torch.testing.assert_close(length, length[:1].expand_as(length))
    assert_orthogonal_to_boundary(curves(plot_tessellation(p, q, ball=ball, smallest=0.15, ax=axes())))
    # q sides meet at each corner of the central tile
    corner = sides[:p].flatten(0, 1)[sides[:p].flatten(0, 1).norm(dim=1).argmin()]
    assert ((sides.flatten(0, 1) - corner).norm(dim=1) < 1e-6).sum() == q


def test_disk():
    ax = plot_disk(make_ball(0.25), axes(), grid=2.0)
    boundary, *circles = ax.patches
    assert boundary.get_radius() == pytest.approx(2)
    assert [round(2 * np.arctanh(p.get_radius() / 2) * 2, 6) for p in circles] == [2.0, 4.0, 6.0, 8.0, 10.0]
    assert ax.get_aspect() == 1
    assert not ax.axison
    patches = len(ax.patches)
    plot_geodesic([0.0, 1.0], [1.0, 0.0], ball=make_ball(0.25), ax=ax)
    assert len(ax.patches) == patches  # one boundary
    plot_disk(make_ball(0.04), ax)
    assert ax.get_xlim()[1] == pytest.approx(5.15)


def test_pyplot_is_the_default(monkeypatch):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    ax = axes()
    monkeypatch.setattr(pyplot, "gca", lambda: ax)
    assert plot_geodesic([0.0, 0.1], [0.1, 0.0], ball=make_ball(), color="red", label="path") is ax
    assert ax.collections[-1].get_label() == "path"
    assert ax.collections[-1].get_edgecolor().tolist() == [[1, 0, 0, 1]]


POINT = torch.tensor([0.3, -0.4], dtype=torch.float64)
WRAPPED = [
    POINT.requires_grad_(),
    POINT.detach().float(),
    POINT.detach().numpy(),
    POINT.tolist(),
    geoopt.ManifoldTensor(POINT.detach(), manifold=make_ball()),
    geoopt.ManifoldParameter(POINT.detach(), manifold=make_ball()),
    POINT.detach().half(),
]


@pytest.mark.parametrize("point", WRAPPED, ids=lambda p: type(p).__name__ + str(getattr(p, "dtype", "")))
def test_points_come_in_any_wrapping(point):
    drawn = curves(plot_geodesic(point, [0.0, 0.0], ball=make_ball(), ax=axes()))[0, 0]
    torch.testing.assert_close(drawn, POINT.detach(), atol=2e-4, rtol=0)


def test_no_points():
    assert len(plot_geodesic(np.empty((0, 2)), np.empty((0, 2)), ball=make_ball(), ax=axes()).collections) == 1


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda b: plot_disk(geoopt.Lorentz(), axes()), TypeError, "geoopt.PoincareBall, got Lorentz"),
        (lambda b: plot_disk(b, axes(), grid=-1.0), ValueError, "grid must be .*, got -1.0"),
        (lambda b: plot_geodesic([0.0, 0.0, 0.1], [0.1, 0.2], ball=b), ValueError,
         r"x must have shape \(\.\.\., 2\), got \(3,\): reduce_to_disk"),
        (lambda b: plot_geodesic([0.0, 0.0], [1.0, 0.2], ball=b), ValueError, "y must lie on the ball of c=1, .*1.02"),
        (lambda b: plot_geodesic([0.0, np.nan], [1.0, 0.2], ball=b), ValueError, "x must be finite"),
        (lambda b: plot_geodesic("ab", [0.1, 0.2], ball=b), TypeError, "x must be a tensor or an array of numbers"),
        (lambda b: plot_geodesic(0.1, [0.1, 0.2], ball=b), ValueError, r"x must have shape \(\.\.\., n\)"),
        (lambda b: plot_geodesic([True, False], [0.1, 0.2], ball=b), TypeError, "x must be real numbers"),
        (lambda b: plot_geodesic(np.zeros((3, 2)), np.zeros((4, 2)), ball=b), ValueError, r"\(3, 2\) and \(4, 2\)"),
        (lambda b: plot_hyperplane([0.0, 0.0], ball=b), ValueError, "normal must be finite and not zero"),
        (lambda b: plot_hyperplane([1.0, 0.0, 0.0], ball=b), ValueError, r"normal must have shape .*, got \(3,\)"),
        (lambda b: plot_hyperplane([1.0, 0.0], 0.5, point=[0.1, 0.2], ball=b), ValueError, "offset or point, not both"),
        (lambda b: plot_tessellation(4, 4, ball=b), ValueError, "p and q must be .*, got 4 and 4"),
        (lambda b: plot_tessellation(5, 4, ball=b, smallest=0), ValueError, "smallest must be .*, got 0"),
    ],
)  # fmt: skip
def test_wrong_arguments(call, kind, message):
    with pytest.raises(kind, match=message):
        call(make_ball())


def test_figure(tmp_path):
    ball, ax = make_ball(), axes()
    plot_tessellation(5, 4, ball=ball, smallest=0.1, ax=plot_disk(ball, ax, grid=True))
    plot_hyperplane([1.0, 0.3], 0.2, ball=ball, ax=ax, linestyle="--")
    ax.figure.savefig(tmp_path / "disk.png")
    assert (tmp_path / "disk.png").stat().st_size > 10_000
