from dataclasses import replace

import pytest
import torch
from matplotlib.figure import Figure
from torch.utils.data import Subset

from manifold_resnet._errors import UserError
from manifold_resnet.experiments import load_runs
from manifold_resnet.experiments.figures import plot_fusion
from manifold_resnet.experiments.fusion import fuse, fusion_metrics
from manifold_resnet.experiments.outputs import Outputs


@pytest.fixture(scope="module")
def loaded(runs):
    return load_runs(runs)


def said(*logits, labels=(0, 0, 0, 1, 1)):
    return Outputs(torch.tensor(logits, dtype=torch.float64), torch.zeros(len(logits)), torch.tensor(labels))


def test_by_hand():
    #          both right  first      second     second     none
    first = said((2.0, 0.0), (3.0, 0.0), (0.0, 1.0), (9.0, 0.0), (1.0, 0.0))
    second = said((1.0, 0.0), (0.0, 1.0), (0.5, 0.0), (0.0, 3.0), (3.0, 0.0))
    metrics = fusion_metrics(first, second)
    # mean softmax of class 0: high; (.95 + .27)/2; (.27 + .62)/2; (1 + .05)/2; high: right are the first two
    # sums of logits, class 0 minus 1: 3; 2; -0.5; 6; 4: the same two
    assert metrics == pytest.approx({
        "first": 2 / 5, "second": 3 / 5, "mean_softmax": 2 / 5, "mean_logits": 2 / 5, "either": 4 / 5,
        "agreement": 2 / 5, "both_right": 1, "only_first_right": 1, "only_second_right": 2, "both_wrong": 1,
        "second_corrects_first": 2 / 3, "first_corrects_second": 1 / 2, "fixed_of_first": 0, "fixed_of_second": 1 / 2,
        "broken_of_first": 0, "broken_of_second": 2 / 3,
    })  # fmt: skip
    swapped = fusion_metrics(second, first)
    assert swapped["fixed_of_second"] == metrics["fixed_of_first"]
    assert swapped["only_first_right"] == metrics["only_second_right"]


def test_loud_logits_decide_and_softmax_does_not():
    quiet, loud = said((4.0, 0.0), labels=[0]), said((0.0, 5.0), labels=[0])
    louder = said((0.0, 50.0), labels=[0])
    assert fusion_metrics(quiet, quiet)["mean_logits"] == 1
    assert fusion_metrics(said((4.0, 0.0), labels=[0]), said((0.0, 3.0), labels=[0]))["mean_softmax"] == 1
    assert fusion_metrics(quiet, loud)["mean_logits"] == fusion_metrics(quiet, louder)["mean_logits"] == 0


def test_perfect_networks_have_nothing_to_correct():
    metrics = fusion_metrics(said((1.0, 0.0), labels=[0]), said((2.0, 0.0), labels=[0]))
    assert metrics["second_corrects_first"] == metrics["fixed_of_first"] == metrics["broken_of_first"] == 0


def test_on_runs(loaded, tmp_path):
    result = fuse(loaded, limit=90)
    pixels, labels = next(iter(loaded[0].loader(limit=90)))
    chances = sum(run.network(pixels).double().softmax(1) for run in loaded)
    assert result["mean_softmax"] == pytest.approx((chances.argmax(1) == labels).double().mean().item())
    assert (result["run_first"], result["run_second"], result["images"]) == ("hyperbolic", "euclidean", 90)
    counts = [result[name] for name in ("both_right", "only_first_right", "only_second_right", "both_wrong")]
    assert sum(counts) == 90
    figure = plot_fusion(result)
    assert isinstance(figure, Figure)
    figure.savefig(tmp_path / "fuse.png")


def with_test_images(run, images):
    other = replace(run)
    other.__dict__["test"] = images  # in place of the cached property
    return other


def test_only_two_runs_on_the_same_images(loaded):
    with pytest.raises(UserError, match="two runs can be fused, got 1"):
        fuse(loaded[:1])
    first, second = loaded
    with pytest.raises(UserError, match="hyperbolic has 360 test images and euclidean 10"):
        fuse([first, with_test_images(second, Subset(second.test, range(10)))])
    with pytest.raises(UserError, match="different labels; .* name them with --dataset"):
        fuse([first, with_test_images(second, Subset(second.test, range(359, -1, -1)))])
