from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from manifold_resnet._errors import UserError
from manifold_resnet.experiments import load_runs
from manifold_resnet.experiments.figures import plot_scores
from manifold_resnet.experiments.ood import SCORES, detection_metrics, ood, ood_summary
from manifold_resnet.experiments.outputs import Outputs, outputs
from manifold_resnet.models import create_model


@pytest.fixture(scope="module")
def loaded(runs):
    return load_runs(runs)


def precision_recall_area(positive, negative, weight):
    """Sum over thresholds, from the top down, of precision times the step in recall."""
    area, before = 0.0, 0.0
    for threshold in sorted({*positive, *negative}, reverse=True):
        caught, false = sum(positive >= threshold), weight * sum(negative >= threshold)
        recall = caught / len(positive)
        area += (recall - before) * caught / (caught + false)
        before = recall
    return area


@pytest.mark.parametrize("decimals", [0, 1, 8])  # with many ties, some, none
def test_metrics_by_counting(decimals):
    rng = np.random.default_rng(decimals)
    inside, outside = rng.normal(0, 1, 41).round(decimals), rng.normal(1, 1.5, 29).round(decimals)
    metrics = detection_metrics(inside, outside)
    wins = sum((a > b) + (a == b) / 2 for a, b in product(outside, inside))
    assert metrics["auroc"] == pytest.approx(wins / 41 / 29, abs=1e-12)
    shares = [(np.mean(inside <= threshold), np.mean(outside <= threshold)) for threshold in inside]
    assert metrics["fpr95"] == pytest.approx(min(passed for kept, passed in shares if kept >= 0.95), abs=1e-12)
    ratio = 41 / 29 / 5  # five test images per outlier
    assert metrics["aupr"] == pytest.approx(precision_recall_area(-inside, -outside, ratio), abs=1e-12)
    assert metrics["aupr_out"] == pytest.approx(precision_recall_area(outside, inside, 1 / ratio), abs=1e-12)


def test_metrics_of_perfect_and_of_turned_around_scores():
    low, high = np.zeros(10), np.ones(2)
    assert detection_metrics(low, high) == {"fpr95": 0, "auroc": 1, "aupr": 1, "aupr_out": 1}
    assert detection_metrics(high, low)["auroc"] == 0
    assert detection_metrics(high, low)["fpr95"] == 1
    assert detection_metrics(low, low)["aupr"] == pytest.approx(5 / 6)
    with pytest.raises(ValueError, match="got 0 of test images"):
        detection_metrics([], high)
    with pytest.raises(ValueError, match="1 of 12 scores are not a number"):
        detection_metrics([*low[:9], np.nan], high)


def test_scores_are_what_they_are_called():
    logits = torch.tensor([[2.0, 0.0, -1.0], [30.0, -30.0, 0.0]], dtype=torch.float64)
    seen = Outputs(logits, torch.tensor([1.0, 2.0]), torch.tensor([0, 0]))
    chances = logits.exp() / logits.exp().sum(1, keepdim=True)
    expected = {
        "energy": -logits.exp().sum(1).log(),
        "softmax": -chances.amax(1),
        "distance": torch.tensor([-1.0, -2.0]),
        "maxlogit": torch.tensor([-2.0, -30.0]),
    }
    assert expected.keys() == SCORES.keys()
    for name, score in SCORES.items():
        torch.testing.assert_close(score(seen), expected[name], check_dtype=False)


@pytest.mark.parametrize("variant", [None, "paper"])
@pytest.mark.parametrize("kind", ["hyperbolic", "euclideanwhypclass", "euclidean"])
def test_distances_are_those_of_the_features(loaded, kind, variant):
    torch.manual_seed(0)
    model = create_model(f"{kind}-4-4-8-resnet-8", in_channels=1, c=0.5, variant=variant).eval()
    run = replace(loaded[0], model=model)
    pixels, labels = next(iter(run.loader(limit=20)))
    seen = outputs(run, [(pixels[:12], labels[:12]), (pixels[12:], labels[12:])])
    with torch.no_grad():
        features = model.features(run.network.normalise(pixels))
        logits = model(run.network.normalise(pixels))
    torch.testing.assert_close(seen.logits.float(), logits, rtol=1e-4, atol=1e-5)  # batches sum in another order
    ball = getattr(model, "ball", None) or getattr(model.expmap0, "ball", None)
    expected = features.norm(dim=1) if ball is None else ball.dist0(features)
    torch.testing.assert_close(seen.distance, expected.double(), rtol=1e-4, atol=1e-5)
    assert torch.equal(seen.labels, labels)
    assert not model.fc._forward_pre_hooks


def test_on_runs(loaded, tmp_path):
    found = ood(loaded, ["patches", "inverted", "noise", "upside-down"], limit=60)
    assert {(row["run"], row["score"], row["ood"]) for row in found.rows} == set(
        product(
            ("hyperbolic", "euclidean"),
            ("energy", "softmax", "distance"),
            ("patches", "inverted", "noise", "upside-down", "mean"),
        )
    )
    for run, score in product(("hyperbolic", "euclidean"), ("energy", "distance")):
        rows = {row["ood"]: row for row in found.rows if (row["run"], row["score"]) == (run, score)}
        mean = rows.pop("mean")
        for metric in ("fpr95", "auroc", "aupr", "aupr_out"):
            assert mean[metric] == pytest.approx(np.mean([row[metric] for row in rows.values()]))
        expected = detection_metrics(found.scores[run, score, "test"], found.scores[run, score, "noise"])
        assert rows["noise"]["auroc"] == expected["auroc"]
        assert all(row["test_images"] == row["ood_images"] == 60 for row in rows.values())
    again = ood(loaded[:1], ["noise"], limit=60)  # the same noise, whatever else is measured
    key = ("hyperbolic", "energy", "noise")
    np.testing.assert_allclose(again.scores[key], found.scores[key], rtol=1e-6)
    figure = plot_scores(found.scores, found.rows, {"hyperbolic": "a", "euclidean": "b"}, ["euclidean"])
    assert isinstance(figure, Figure)
    assert len(figure.axes) == 6
    figure.savefig(tmp_path / "ood.png")


def test_summary_over_seeds():
    values = {"fpr95": 0.5, "auroc": 0.5, "aupr": 0.5, "aupr_out": 0.5}
    rows = [{"run": run, "score": "energy", "ood": "svhn", **values, "auroc": auroc}
            for run, auroc in (("a", 0.7), ("b", 0.9), ("c", 0.6))]  # fmt: skip
    two, one = ood_summary(rows, {"a": "x", "b": "x", "c": "y"})
    assert (two["group"], two["seeds"], one["group"], one["seeds"]) == ("x", 2, "y", 1)
    assert two["auroc"] == pytest.approx(0.8)
    assert two["auroc_std"] == pytest.approx(0.2 / 2**0.5)
    assert one["auroc_std"] is None


@pytest.mark.parametrize(
    ("sets", "options", "expected"),
    [
        (["digits"], {}, "digits is what hyperbolic was trained on"),
        (["noise", "noise"], {}, "noise are given twice"),
        (
            ["svnh"],
            {},
            r"unknown outliers 'svnh' \(did you mean svhn\?\); choose from inverted, .*textures, .*svhn, .*folder:PATH",
        ),
        (["folder:none"], {}, "no such folder: none"),
        ([], {}, "no outliers given"),
        (["noise"], {"scores": ["odin"]}, "unknown score 'odin'; choose from energy"),
        (["noise"], {"scores": []}, "no score given"),
    ],
)
def test_mistakes(loaded, sets, options, expected):
    with pytest.raises(UserError, match=expected):
        ood(loaded, sets, **options)
