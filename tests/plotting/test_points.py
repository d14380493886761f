"""Embeddings and trajectories: the right places, the right colours, thumbnails that leave one another room."""

import geoopt
import numpy as np
import pytest
import torch
from helpers import generator, points
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from manifold_resnet.plotting import plot_points, plot_trajectory

BALL = geoopt.PoincareBall(torch.tensor(0.25, dtype=torch.float64))
POINTS = points(generator(), 60, 2, c=0.25)
LABELS = torch.arange(60) % 3


def axes():
    return Figure().subplots()


@pytest.mark.parametrize("labels", [LABELS, LABELS.numpy(), LABELS.tolist(), [["a", "b", "c"][k] for k in LABELS]])
def test_classes(labels):
    ax = plot_points(POINTS, labels, ball=BALL, ax=axes())
    assert len(ax.collections) == 3
    for k, collection in enumerate(ax.collections):
        np.testing.assert_allclose(collection.get_offsets(), POINTS[k == LABELS])
    assert len({tuple(collection.get_facecolor()[0]) for collection in ax.collections}) == 3


def test_a_missing_class_does_not_shift_colours():
    everyone = plot_points(POINTS, LABELS, ball=BALL, names=["x", "y", "z"], ax=axes())
    some = plot_points(POINTS[LABELS > 0], LABELS[LABELS > 0], ball=BALL, names=["x", "y", "z"], ax=axes())
    for a, b in zip(everyone.collections[1:], some.collections, strict=True):
        assert a.get_facecolor().tolist() == b.get_facecolor().tolist()
        assert a.get_label() == b.get_label()


def test_without_labels_and_many_classes():
    ax = plot_points(POINTS.float().numpy(), ball=BALL, color="red", s=3, ax=axes())
    assert ax.collections[0].get_facecolor().tolist() == [list(to_rgba("red"))]
    assert ax.get_legend() is None
    many = plot_points(POINTS, torch.arange(60), ball=BALL, legend=False, ax=axes())
    assert len({tuple(c.get_facecolor()[0]) for c in many.collections}) == 60
    assert plot_points(np.empty((0, 2)), [], ball=BALL, ax=axes()).get_legend() is None


@pytest.mark.parametrize("shape", [(60, 10, 5), (60, 1, 10, 5), (60, 3, 10, 5), (60, 10, 5, 4), (60, 10, 5, 1)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_thumbnails_do_not_overlap(shape, dtype):
    images = (255 * torch.rand(shape, generator=generator())).to(dtype)
    ax = plot_points(POINTS, LABELS, ball=BALL, thumbnails=images, thumbnail_size=0.2, ax=axes())
    assert ax.get_xlim() == ax.get_ylim() == pytest.approx((-2.06, 2.06))
    boxes = [image.get_extent() for image in ax.images]
    assert 5 < len(boxes) < 60
    for i, (left, right, bottom, top) in enumerate(boxes):
        centre = torch.tensor([(left + right) / 2, (bottom + top) / 2], dtype=torch.float64)
        assert (POINTS - centre).norm(dim=1).min() < 1e-9
        assert (right - left, top - bottom) == pytest.approx((0.2, 0.4))
        for other in boxes[:i]:
            assert right < other[0] or other[1] < left or top < other[2] or other[3] < bottom
    # every point without an image had no room for it
    shown = torch.tensor([[(b[0] + b[1]) / 2, (b[2] + b[3]) / 2] for b in boxes], dtype=torch.float64)
    near = (POINTS[:, None] - shown).abs() < torch.tensor([0.21, 0.42])
    assert near.all(2).any(1).all()


@pytest.mark.parametrize("several", [False, True])
def test_trajectories(several):
    steps = torch.linspace(0, 1, 11, dtype=torch.float64)[:, None, None]
    way = (steps * POINTS[:5]) if several else (steps * POINTS[:1])[:, 0]
    ax = plot_trajectory(way.requires_grad_(), ball=BALL, ax=axes())
    lines, ends = ax.collections
    drawn = torch.tensor(np.array(lines.get_segments()))
    flat = way.detach().reshape(11, -1, 2)
    torch.testing.assert_close(drawn[:, 0], flat[:-1].reshape(-1, 2))
    torch.testing.assert_close(drawn[:, -1], flat[1:].reshape(-1, 2))
    assert lines.get_array().reshape(10, -1).T.tolist() == [list(range(1, 11))] * flat.shape[1]
    np.testing.assert_allclose(ends.get_offsets(), flat[-1])


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: plot_points(POINTS[0], ball=BALL), ValueError, r"points must have shape \(N, 2\), got \(2,\)"),
        (lambda: plot_points(torch.zeros(5, 3), ball=BALL), ValueError, r"got \(5, 3\): reduce_to_disk"),
        (lambda: plot_points(POINTS, LABELS[:5], ball=BALL), ValueError, r"labels must have shape \(60,\).*\(5,\)"),
        (lambda: plot_points(POINTS, LABELS - 1, ball=BALL), ValueError, "labels must be integers from 0"),
        (lambda: plot_points(POINTS, LABELS.double(), ball=BALL), ValueError, "labels must be .*, got float64"),
        (lambda: plot_points(POINTS, LABELS, names=["a"], ball=BALL), ValueError, "each of 3 classes, got 1"),
        (lambda: plot_points(POINTS, ["a"] * 60, names=["a"], ball=BALL), ValueError, "these are strings already"),
        (lambda: plot_points(POINTS, LABELS, color="r", ball=BALL), ValueError, "pass colors="),
        (lambda: plot_points(POINTS, LABELS, colors=["r"], ball=BALL, ax=axes()), ValueError, "3 classes, got 1"),
        (lambda: plot_points(POINTS, thumbnails=torch.rand(60, 5), ball=BALL), ValueError, r"N = 60 .* got \(60, 5\)"),
        (lambda: plot_points(POINTS, thumbnails=torch.rand(6, 5, 5), ball=BALL), ValueError, r"got \(6, 5, 5\)"),
        (lambda: plot_points(POINTS, thumbnails=torch.rand(60, 5, 5), thumbnail_size=0, ball=BALL, ax=axes()),
         ValueError, "thumbnail_size must be positive, got 0"),
        (lambda: plot_trajectory(POINTS[:1], ball=BALL), ValueError, r"at least two times T, got \(1, 2\)"),
        (lambda: plot_trajectory(torch.zeros(2, 2, 2, 2), ball=BALL), ValueError, "points must have shape"),
    ],
)  # fmt: skip
def test_wrong_arguments(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def test_figure(tmp_path):
    ax = plot_points(POINTS, LABELS, ball=BALL, thumbnails=torch.rand(60, 8, 8), ax=axes())
    plot_trajectory(POINTS.view(6, 10, 2), ball=BALL, ax=ax)
    ax.figure.savefig(tmp_path / "points.png")
    assert (tmp_path / "points.png").stat().st_size > 10_000
