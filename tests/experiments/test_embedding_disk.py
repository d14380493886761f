import csv
import json
import re
from dataclasses import replace

import geoopt
import pytest
import torch

from manifold_resnet._errors import UserError
from manifold_resnet.cli import main
from manifold_resnet.experiments import load_run
from manifold_resnet.experiments.disk import disk_rows, disk_summary, embed, plot_embeddings
from manifold_resnet.models import create_model
from manifold_resnet.plotting import reduce_to_disk


def test_points_are_the_networks_features(runs):
    run = load_run(runs[0])
    found = embed(run, limit=40)
    pixels, labels = next(iter(run.loader(limit=40)))
    features = run.model.features(run.network.normalise(pixels)).double()
    ball = geoopt.PoincareBall(float(run.model.ball.c)).double()
    assert torch.equal(found.labels[: len(labels)], labels)
    torch.testing.assert_close(found.distance[: len(labels)], ball.dist0(features), rtol=1e-5, atol=1e-5)
    assert found.dimension == 8
    assert found.points.shape == (40, 2)
    assert float(found.ball.c) == pytest.approx(float(run.model.ball.c))
    assert (found.points.norm(dim=1) < float(found.ball.c) ** -0.5).all()
    logits = torch.cat([run.network(pixels) for pixels, _ in run.loader(limit=40)])
    assert torch.equal(found.predictions, logits.argmax(1))
    rows = disk_rows([found])
    assert [row["image"] for row in rows] == found.index.tolist()
    assert [rows[0]["x"], rows[0]["y"]] == found.points[0].tolist()
    (line,) = disk_summary([found])
    wrong = found.distance[found.predictions != found.labels]
    assert line["accuracy"] == pytest.approx(1 - len(wrong) / 40)
    assert line["distance_wrong"] == pytest.approx(float(wrong.mean()))


def test_two_dimensions_are_shown_as_they_are(runs):
    run = load_run(runs[0])
    model = create_model("hyperbolic-4-4-2-resnet-8", in_channels=1, c=2.0).eval()
    run = replace(run, model=model)
    found = embed(run, limit=30)
    assert found.dimension == 2
    expected = torch.cat([model.features(run.network.normalise(pixels)) for pixels, _ in run.loader(limit=30)])
    torch.testing.assert_close(found.points, expected.double(), rtol=1e-5, atol=1e-5)
    axes = plot_embeddings([found]).axes[0]
    assert axes.get_images() or len(axes.collections) > 10  # regions below the classes' points


def test_a_hyperbolic_classifier_on_a_euclidean_network(runs):
    run = load_run(runs[1])
    run = replace(run, model=create_model("euclideanwhypclass-4-4-8-resnet-8", in_channels=1).eval())
    found = embed(run, limit=20)
    pixels, _ = next(iter(run.loader(limit=20)))
    features = run.model.features(run.network.normalise(pixels)).double()
    expected = reduce_to_disk(features, ball=geoopt.PoincareBall(float(run.model.expmap0.ball.c)).double())
    torch.testing.assert_close(found.points.abs(), expected.abs(), rtol=1e-4, atol=1e-4)


def test_command(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["disk", str(runs[0]), "--limit", "50", "--thumbnails"]) == 0
    assert re.search(r"hyperbolic +8 +0\.1 +50 ", capsys.readouterr().out)
    folder = tmp_path / "experiments" / "disk"
    assert (folder / "disk.png").stat().st_size > 10_000
    with (folder / "disk.csv").open(newline="", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 50
    stored = json.loads((folder / "disk.json").read_text())
    assert stored["summary"][0]["images"] == 50
    assert stored["settings"]["method"] == "pca"


@pytest.mark.parametrize(
    ("which", "options", "expected"),
    [
        (1, [], "its features are Euclidean, and no points of a disk"),
        (0, ["--limit", "1"], "needs at least 2 points, got 1; choose a larger --limit"),
        (0, ["--limit", "none"], "--limit must be a whole number"),
        (0, ["--method", "tsne"], "invalid choice: 'tsne'"),
    ],
)
def test_mistakes(runs, which, options, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["disk", str(runs[which]), *options]) == 2
    assert re.search(expected, capsys.readouterr().err)
    assert not list(tmp_path.rglob("*.png"))
    with pytest.raises(UserError, match="no such run"):
        load_run(tmp_path / "none")
