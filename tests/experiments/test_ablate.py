import csv
import json
import re

import pytest
import torch
from image_folders import write_digits
from manifold_resnet.optim.experiments.grid import Result
from manifold_resnet.optim.experiments.run import Outcome

from manifold_resnet._errors import UserError
from manifold_resnet.benchmark.naive import NaiveResNet
from manifold_resnet.cli import main
from manifold_resnet.experiments.ablate import SUBJECTS, Ablation, compare_backward
from manifold_resnet.experiments.ablate.measure import first_images, norms_at_start, seconds_per_step
from manifold_resnet.experiments.ablate.plot import plot_ablation, plot_backward
from manifold_resnet.experiments.ablate.report import shown_rows
from manifold_resnet.models.hyperbolic import PoincareBlock
from manifold_resnet.training import load_run

DIGITS = {"dataset": "digits", "epochs": 1}


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("images"), train=8)


@pytest.fixture
def tiny(images, tmp_path, monkeypatch):
    """Options of the command for trainings of a second each."""
    monkeypatch.chdir(tmp_path)
    return ["--dataset", f"folder:{images}", "--model", "hyperbolic-2-2-2-resnet-8", "--epochs", "1", "--batch-size",
            "12", "--device", "cpu"]  # fmt: skip


# -- what is varied --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SUBJECTS)
def test_every_subject_builds_its_networks(name):
    ablation = Ablation(name, DIGITS, SUBJECTS[name].varied, SUBJECTS[name].seeds)
    assert len({cell.id for cell in ablation.cells}) == len(ablation.cells)
    for cell in ablation.cells:
        config = ablation.config(cell)
        for setting, value in cell.values.items():
            if setting == "depth":
                assert config.model.endswith(f"-{value}")
            else:
                assert getattr(config, setting) == value
    assert Ablation.from_dict(json.loads(json.dumps(ablation.to_dict())), name, "x").cells == ablation.cells


def test_names_of_variants():
    varied = {"c": (0.01, 1.0), "learnable_c": (False, True), "depth": (8,), "max_distance": (None,)}
    ablation = Ablation("curvature", DIGITS, varied, (3,))
    assert ablation.labels[1:3] == ["c0.01-learnable-depth8-default", "c1-fixed-depth8-default"]
    assert [plain.label for plain in ablation.without_depth][0] == "c0.01-fixed-default"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["pool"], "invalid choice: 'pool'"),
        (["head", "--head", "mlr", "linear"], "head must be 'mlr' or 'fc', got 'linear'"),
        (["head", "--mean", "midpoint", "frechet"], "--mean takes one value: the ablation of head does not vary it"),
        (["head", "--model", "euclidean-8-16-32-resnet-8"], "--model must be a hyperbolic one"),
        (["head", "--val-fraction", "0"], "--val-fraction must be above 0"),
        (["head", "--epochs", "none"], "--epochs must be a whole number"),
        (["head", "--seeds", "a"], "--seeds must be whole numbers, 0 or more, got a"),
        (["head", "--depth", "9"], "depth of .*resnet-9' must be 6n . 2"),
        (["curvature", "--c", "0.1", "-1"], "expected at least one argument|unrecognized|--c must be"),
        (["head", "--limit", "0"], "--limit must be a whole number"),
        (["backward", "--model", "euclidean-8-16-32-resnet-8"], "--model must be a hyperbolic one"),
        (["backward", "--batch-size", "few"], "--batch-size must be a whole number"),
        (["backward", "--limit", "1"], "--limit is for ablations that train"),
    ],
)
def test_mistakes(arguments, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["ablate", *arguments]) == 2
    assert re.search(expected, capsys.readouterr().err)
    assert not list(tmp_path.rglob("*.json"))


# -- trainings -------------------------------------------------------------------------------------------


def test_norm(tiny, tmp_path, capsys):
    command = ["ablate", "norm", *tiny, "--scale", "channel", "--seeds", "0", "1", "--output", "out"]
    assert main([*command, "--limit", "1"]) == 0
    assert "3 of 4 trainings are left" in capsys.readouterr().out
    assert main(command) == 0
    out = capsys.readouterr().out
    assert re.search(r"midpoint +channel +2 ", out)
    folder = tmp_path / "out"
    table = rows(folder / "ablate.csv")
    assert [row["variant"] for row in table] == ["midpoint-channel", "frechet-channel"]
    assert all(float(row["seconds_per_step"]) > 0 for row in table)
    accuracies = []
    for seed in (0, 1):
        run = folder / "cells" / f"frechet-channel-seed{seed}"
        model, config = load_run(run)
        assert (config.mean, config.scale, config.seed, model.bn.mean) == ("frechet", "channel", seed, "frechet")
        accuracies.append(json.loads((run / "test.json").read_text())["test_accuracy"])
    assert float(table[1]["test_accuracy"]) == pytest.approx(sum(accuracies) / 2)
    assert float(table[1]["test_accuracy_std"]) == pytest.approx(abs(accuracies[0] - accuracies[1]) / 2**0.5)
    assert len(rows(folder / "trainings.csv")) == 4
    stored = json.loads((folder / "ablate.json").read_text())
    assert (stored["command"], stored["subject"], stored["missing"]) == ("ablate", "norm", 0)
    before = {path: path.stat().st_mtime_ns for path in (folder / "cells").rglob("*")}
    assert main(command) == 0
    assert before == {path: path.stat().st_mtime_ns for path in (folder / "cells").rglob("*")}
    assert "measuring" not in capsys.readouterr().out
    assert main([*command, "--epochs", "2"]) == 2
    assert re.search("epochs of the task is 1 in .* and 2 now", capsys.readouterr().err)


def test_init(tiny, tmp_path, capsys):
    command = ["ablate", "init", *tiny, "--init", "identity", "normal", "--depth", "8", "14", "--limit", "2"]
    assert main([*command, "--norm-depths", "8", "14"]) == 0
    table = rows(tmp_path / "experiments" / "ablate" / "init" / "ablate.csv")
    assert [row["variant"] for row in table] == ["identity-depth8", "identity-depth14"]
    assert float(table[1]["ratio"]) == pytest.approx(float(table[1]["last"]) / float(table[1]["first"]))
    assert (tmp_path / "experiments" / "ablate" / "init" / "ablate.png").stat().st_size > 10_000
    measured = json.loads((tmp_path / "experiments" / "ablate" / "init" / "measured.json").read_text())
    assert [(row["variant"], row["depth"]) for row in measured["norms"]] == [
        ("identity", 8), ("identity", 14), ("normal", 8), ("normal", 14),
    ]  # fmt: skip


def test_clipped_shares_and_curvatures_are_those_of_the_trained_networks(tiny, tmp_path):
    assert main(["ablate", "curvature", *tiny, "--c", "0.5", "--learnable-c", "--lr", "0.1", "--max-distance", "0.5",
                 "--seeds", "0", "--output", "c"]) == 0  # fmt: skip
    (row,) = rows(tmp_path / "c" / "ablate.csv")
    model, _ = load_run(tmp_path / "c" / "cells" / "c0.5-learnable-seed0")
    assert float(row["c"]) == pytest.approx(model.ball.c.item())
    assert float(row["c"]) != 0.5
    assert float(row["clipped"]) > 0.1  # a bound that many points sit on
    assert main(["ablate", "clip", *tiny, "--max-distance", "default", "0.5", "--seeds", "0", "--output", "d"]) == 0
    default, bounded = rows(tmp_path / "d" / "ablate.csv")
    assert default["variant"] == "default"
    assert float(default["clipped"]) < 0.01 < float(bounded["clipped"])


def test_variants_with_other_defaults_are_not_mixed(tiny, tmp_path, capsys):
    assert main(["ablate", "head", *tiny, "--seeds", "0", "--limit", "1"]) == 0
    (path,) = tmp_path.rglob("cells/*/config.yaml")
    path.write_text(path.read_text().replace("c: 0.025", "c: 0.1"))
    capsys.readouterr()
    assert main(["ablate", "head", *tiny, "--seeds", "0"]) == 2
    assert "c is 0.1 in" in capsys.readouterr().err


# -- measurements ----------------------------------------------------------------------------------------


def test_distances_are_those_of_the_blocks_points():
    ablation = Ablation("init", {**DIGITS, "model": "hyperbolic-4-4-4-resnet-14"}, {"init": ("gaussian",)}, (5,))
    (row,) = norms_at_start(ablation, (8,), count=4)
    config = ablation.config(type(ablation.cells[0])({"init": "gaussian", "depth": 8}, 5))
    facts, x, _ = first_images(config, 4)
    assert facts["channels"] == x.shape[1] == 1
    torch.manual_seed(5)
    model = type(config)(**{**config.to_dict(), "images": facts}).create_model()
    expected = []
    for block in (module for module in model.modules() if isinstance(module, PoincareBlock)):
        block.register_forward_hook(
            lambda block, args, u: expected.append(model.ball.dist0(model.ball.expmap0(u, dim=1), dim=1).mean().item())
        )
    model(x)
    assert row["distances"] == pytest.approx(expected, rel=1e-4)
    assert row["first"] == row["distances"][0]


def test_steps_take_turns():
    ablation = Ablation("norm", {**DIGITS, "model": "hyperbolic-2-2-2-resnet-8", "batch_size": 8},
                        {"mean": ("midpoint", "frechet")}, (0, 1))  # fmt: skip
    found = seconds_per_step(ablation, rounds=2)
    assert [row["variant"] for row in found] == ["midpoint", "frechet"]
    assert found[0]["ratio"] == 1
    assert all(row["seconds_low"] <= row["seconds"] <= row["seconds_high"] for row in found)


def test_backward(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["ablate", "backward", "--model", "hyperbolic-2-2-2-resnet-8", "--image-size", "8", "--batch-size", "2",
               "--device", "cpu"]  # fmt: skip
    assert main([*command, "--depth", "8"]) == 0
    path = tmp_path / "experiments" / "ablate" / "backward" / "ablate.json"
    first = json.loads(path.read_text())["rows"]
    assert [row["contender"] for row in first] == ["euclidean", "hand-written", "naive"]
    kept = {row["contender"]: row["kept_bytes"] for row in first}
    assert kept["naive"] > 10 * kept["hand-written"] > 10 * kept["euclidean"]
    assert max(row["difference"] for row in first) < 1e-9
    assert main([*command, "--depth", "8", "14"]) == 0
    again = json.loads(path.read_text())["rows"]
    assert again[:3] == first
    assert [row["depth"] for row in again] == [8] * 3 + [14] * 3
    assert again[5]["kept_bytes"] > 1.5 * again[2]["kept_bytes"]
    capsys.readouterr()
    assert main([*command, "--depth", "8", "--c", "2"]) == 2
    assert "with other settings; choose another --output" in capsys.readouterr().err
    axes = plot_backward(again).axes
    assert [list(line.get_xdata()) for line in axes[0].get_lines()] == [[8, 14]] * 3


def test_figures_of_what_is_done(tmp_path):
    ablation = Ablation("clip", {"dataset": "digits"}, {"max_distance": (2.0, None)}, (0, 1))
    curve = [{"epoch": 1, "val_accuracy": 0.5, "train_loss": 1.0, "seconds": 1.0}]
    finished = Result("finished", {"test_accuracy": 0.75}, curve, 1.0)
    outcome = Outcome(ablation, [(ablation.cells[0], finished), (ablation.cells[1], Result("diverged"))], 2)
    figure = plot_ablation(outcome)
    assert "resnet-20, digits, 16 epochs, 1 seed; 2 trainings to come" in figure.get_suptitle()
    assert [text.get_text() for text in figure.axes[1].get_yticklabels()] == ["max_distance2", "default"]
    assert "diverged" in [text.get_text() for text in figure.axes[1].texts]
    with pytest.raises(ValueError, match="no results to draw"):
        plot_ablation(Outcome(ablation, [], 4))


def test_no_result_where_passes_disagree(monkeypatch):
    forward = NaiveResNet.forward
    monkeypatch.setattr(NaiveResNet, "forward", lambda self, images: 1.001 * forward(self, images))
    with pytest.raises(UserError, match="differ by .*, relative; allowed are 1e-06"):
        compare_backward({**DIGITS, "model": "hyperbolic-2-2-2-resnet-8"}, (8,), count=2, rounds=1)


def test_tables():
    heads, cells = shown_rows(
        [
            {"c": 0.01, "learnable_c": False, "seeds": 1, "diverged": 0, "clipped": 0.5, "clipped_std": None},
            {"c": 1.0, "learnable_c": True, "seeds": 0, "diverged": 2, "clipped": None, "clipped_std": None},
        ]
    )
    assert heads == ["c", "learnable c", "seeds", "clipped %", "diverged"]
    assert cells == [["0.01", "no", "1", "50.0", "0"], ["1", "yes", "0", "-", "2"]]
