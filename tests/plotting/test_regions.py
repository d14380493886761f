"""Decision regions: the class of every point, and lines where logits tie."""

import geoopt
import numpy as np
import pytest
import torch
from helpers import generator, points
from matplotlib.figure import Figure

from manifold_resnet import nn
from manifold_resnet.plotting import plot_decision_regions, plot_hyperplane


def axes():
    return Figure().subplots()


def classifier(c, classes=5, dtype=torch.float64):
    torch.manual_seed(1)
    mlr = nn.PoincareMLR(2, classes, ball=geoopt.PoincareBall(torch.tensor(c, dtype=dtype)))
    torch.nn.init.uniform_(mlr.bias, -0.4 * c**-0.5, 0.4 * c**-0.5)
    return mlr


def split(ax):
    """Filled regions by class, and boundary lines."""
    regions = {int(s.get_gid()[6:]): s for s in ax.collections if str(s.get_gid()).startswith("class-")}
    return regions, [s for s in ax.collections if s not in regions.values()]


@pytest.mark.parametrize("c", [0.1, 1.0, 10.0])
def test_regions_hold_the_points_of_their_class(c):
    mlr = classifier(c)
    regions, lines = split(plot_decision_regions(mlr, axes()))
    x = points(generator(), 300, 2, c=c, distance=3.0)
    logits = mlr(x).detach()
    first, second = logits.topk(2).values.T
    clear = first - second > 0.05 * (first - second).mean()
    for k, region in regions.items():
        (path,) = region.get_paths()
        inside = torch.tensor(path.contains_points(x.numpy()))
        assert (inside == (logits.argmax(1) == k))[clear].all()
    assert set(logits.argmax(1).tolist()) <= set(regions)
    assert len(lines) == len(regions)


@pytest.mark.parametrize("c", [0.1, 1.0, 10.0])
def test_logits_tie_on_the_lines(c):
    mlr = classifier(c)
    _, lines = split(plot_decision_regions(mlr, axes(), resolution=401))
    radius = mlr.ball.c.item() ** -0.5
    ties = torch.tensor(np.concatenate([p.vertices for line in lines for p in line.get_paths()]))
    ties = ties[ties.norm(dim=1) < 0.95 * radius]
    assert len(ties) > 200
    first, second = mlr(ties).topk(2).values.T
    # off by the curvature of the logits between neighbours of the grid, and at corners, where three classes meet
    error = (first - second).detach() / mlr(ties).detach().abs().max()
    assert error.quantile(0.95) < 1e-3
    assert error.max() < 3e-2


def test_two_classes_are_divided_by_a_geodesic():
    mlr = classifier(1.0, classes=1)
    ax = plot_decision_regions(mlr, axes(), resolution=401)
    regions, lines = split(ax)
    assert set(regions) == {0, 1}
    drawn = lines[0].get_paths()[0].vertices
    plot_hyperplane(mlr.normals(), mlr.bias, ball=mlr.ball, ax=ax)
    (line,) = ax.collections[-1].get_segments()
    inside = drawn[np.linalg.norm(drawn, axis=1) < 0.99]
    assert max(np.linalg.norm(line - v, axis=1).min() for v in inside) < 0.03  # 65 points on the line
    flat = plot_decision_regions(lambda x: mlr(x)[:, 0], axes(), ball=mlr.ball)
    assert set(split(flat)[0]) == {0, 1}


def test_modules_keep_their_mode_and_statistics():
    ball = geoopt.PoincareBall(1.0)
    net = torch.nn.Sequential(nn.PoincareBatchNorm1d(2, ball=ball), nn.PoincareMLR(2, 3, ball=ball))
    net[1].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    plot_decision_regions(net, axes(), ball=ball, resolution=21)
    assert [m.training for m in (net, net[0], net[1])] == [True, True, False]
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_one_class_everywhere():
    ax = plot_decision_regions(lambda x: torch.stack([x[:, 0] * 0, x[:, 0] * 0 + 1], 1), axes(),
                               ball=geoopt.PoincareBall())  # fmt: skip
    regions, lines = split(ax)
    assert set(regions) == {1}
    assert not lines


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: plot_decision_regions(torch.nn.Linear(2, 3)), TypeError, "Linear has no ball of its own: pass ball="),
        (lambda: plot_decision_regions(classifier(1.0), resolution=1), ValueError, "resolution must be .*, got 1"),
        (lambda: plot_decision_regions(lambda x: x.sum(), axes(), ball=geoopt.PoincareBall()), ValueError,
         r"to logits \(90601, classes\), got \(\)"),
        (lambda: plot_decision_regions(lambda x: x.numpy(), axes(), ball=geoopt.PoincareBall()), TypeError,
         "must return a tensor of logits, got ndarray"),
        (lambda: plot_decision_regions(lambda x: x / 0, axes(), ball=geoopt.PoincareBall()), ValueError,
         "NaN or infinite"),
        (lambda: plot_decision_regions(classifier(1.0), axes(), colors=["r"]), ValueError, "5 classes, got 1"),
    ],
)  # fmt: skip
def test_wrong_arguments(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def test_figure(tmp_path):
    ax = plot_decision_regions(classifier(0.1, dtype=torch.float32), axes())
    ax.figure.savefig(tmp_path / "regions.png")
    assert (tmp_path / "regions.png").stat().st_size > 10_000
