import builtins
import csv
import itertools
import json
import math
import re
import signal
import subprocess
import sys

import lightning
import pytest
import torch
import yaml
from image_folders import write_digits
from manifold_resnet.optim.experiments import Cell, Experiment, read_experiment, run_experiment, shipped, summary
from manifold_resnet.optim.experiments.frechet import FrechetMean
from manifold_resnet.optim.experiments.grid import Result
from manifold_resnet.optim.experiments.report import best, groups, spread
from manifold_resnet.optim.experiments.run import Outcome
from manifold_resnet.optim.experiments.tree import (
    TreeEmbedding,
    distortion,
    exceptions,
    mean_average_precision,
    tree_distances,
)

from manifold_resnet import functional
from manifold_resnet._errors import UserError
from manifold_resnet.cli import main
from manifold_resnet.training import TrainingInterrupted, train
from manifold_resnet.training.module import Classifier

TOY = {"kind": "frechet-mean", "steps": 20, "every": 5, "means": 3, "pairs": 4, "dim": 3}
ADAM = {"adam": {"class": "RiemannianAdam"}}


def experiment(task=None, **grid):
    grid = {"optimizer": ADAM, "lr": [0.1], "parametrisation": ["ball"], "seed": [0], **grid}
    return Experiment.from_dict({"task": task or TOY, "grid": grid}, "toy")


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def cell(**other):
    return Cell(**({"optimizer": "adam", "kind": "RiemannianAdam", "arguments": {}, "lr": 0.1,
                    "parametrisation": "ball", "seed": 0} | other))  # fmt: skip


# -- tasks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("c", [0.5, 1.0, 2.0])
def test_the_known_mean_is_the_mean(c):
    points, means = FrechetMean(c=c, radius=3.0).points(seed=1)
    found = functional.frechet_mean(points, c=c, reducedim=1)
    assert functional.dist(found, means, c=c).max() < 1e-12
    x = means.clone().requires_grad_()
    FrechetMean(c=c, radius=3.0).problem(1).loss(x).backward()
    assert (x.grad.norm(dim=-1) / functional.lambda_x(means, c=c).squeeze(-1)).max() < 1e-12
    assert FrechetMean(c=c, radius=3.0).problem(1).measure(means)["distance"] < 1e-15
    far = functional.dist(means[-1], torch.zeros_like(means[-1]), c=c) * c**0.5
    assert float(far) == pytest.approx(3.0)


@pytest.mark.parametrize("parametrisation", ["ball", "tangent"])
def test_optimizers_find_the_mean(parametrisation):
    task = FrechetMean(steps=150, every=10, radius=2.0, means=4)
    result = task.run(cell(parametrisation=parametrisation, lr=0.3), None, lambda text: None)
    assert result.status == "finished"
    assert [row["step"] for row in result.curve] == list(range(0, 151, 10))
    assert result.curve[0]["seconds"] == 0
    assert result.curve[0]["distance"] > 0.5
    assert result.metrics["distance"] < 1e-3


def test_parametrisations_start_at_the_same_points():
    for task in (FrechetMean(steps=1), TreeEmbedding(steps=1)):
        first, second = (
            task.run(cell(parametrisation=p), None, lambda text: None).curve[0] for p in ("ball", "tangent")
        )
        assert first["train_loss"] == pytest.approx(second["train_loss"], rel=1e-12)


def test_the_tree_of_exceptions():
    names, edges = exceptions()
    assert names[0] == "BaseException"
    assert 60 <= len(names) <= 70
    assert len(edges) == len(names) - 1
    for child, parent in edges:
        assert getattr(builtins, names[child]).__base__.__name__ == names[parent]
    assert bool(tree_distances(len(names), edges).isfinite().all())


def brute_force_precision(embedded, tree):
    n, total = len(tree), 0.0
    for u in range(n):
        neighbours = [v for v in range(n) if tree[u, v] == 1]
        precision = 0.0
        for v in neighbours:
            close = [w for w in range(n) if w != u and embedded[u, w] <= embedded[u, v]]
            precision += sum(w in neighbours for w in close) / len(close)
        total += precision / len(neighbours)
    return total / n


def brute_force_distortion(embedded, tree):
    pairs = list(itertools.combinations(range(len(tree)), 2))
    scales = [float(tree[a, b] / embedded[a, b]) for a, b in pairs]  # one of these is optimal
    return min(
        sum(abs(s * float(embedded[a, b]) - float(tree[a, b])) / float(tree[a, b]) for a, b in pairs) / len(pairs)
        for s in scales
    )


@pytest.mark.parametrize("seed", range(5))
def test_tree_metrics_are_the_brute_force_ones(seed):
    tree = tree_distances(6, [(1, 0), (2, 0), (3, 1), (4, 1), (5, 2)])
    assert tree[3, 5] == 4
    assert tree[3, 4] == 2
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    embedded = torch.cdist(x, x)
    assert mean_average_precision(embedded, tree) == pytest.approx(brute_force_precision(embedded, tree), abs=1e-12)
    assert distortion(embedded, tree) == pytest.approx(brute_force_distortion(embedded, tree), abs=1e-12)
    assert mean_average_precision(tree, tree) == 1
    assert distortion(3 * tree, tree) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("negatives", [None, 10])
def test_the_tree_is_learnt(negatives):
    task = TreeEmbedding(steps=100, every=50, negatives=negatives)
    result = task.run(cell(lr=0.1), None, lambda text: None)
    assert result.metrics["mean_average_precision"] > 0.5 > result.curve[0]["mean_average_precision"]
    assert result.metrics["distortion"] < result.curve[0]["distortion"]
    again = task.run(cell(lr=0.1), None, lambda text: None)
    assert again.metrics == result.metrics


# -- the grid --------------------------------------------------------------------------------------------


def test_cells_are_ordered_by_seed_and_restrictions_hold():
    grid = experiment(
        optimizer={
            "adam": {"class": "RiemannianAdam", "betas": [0.8, 0.9], "eps": "1e-6"},
            "sgd": {"class": "RiemannianSGD", "lr": ["1e-2", 1], "parametrisation": "ball"},
        },
        parametrisation=["ball", "tangent"],
        seed=[0, 1],
    )
    expected = ["adam-ball-lr0.1", "adam-tangent-lr0.1", "sgd-ball-lr0.01", "sgd-ball-lr1"]
    assert [c.id for c in grid.cells] == [f"{name}-seed{seed}" for seed in (0, 1) for name in expected]
    assert grid.cells[0].arguments == {"betas": [0.8, 0.9], "eps": 1e-6}
    assert Experiment.from_dict(yaml.safe_load(yaml.safe_dump(grid.to_dict())), "toy").cells == grid.cells


@pytest.mark.parametrize("name", shipped())
def test_shipped_experiments_are_sound(name):
    found = read_experiment(name)
    assert len({c.id for c in found.cells}) == len(found.cells)
    assert {c.arguments.get("second_moment") for c in found.cells if c.parametrisation == "tangent"} <= {None, "point"}
    assert shipped()[name]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (None, "the configuration should hold `name: value` lines, got nothing"),
        ({"tasks": {}}, "unknown setting 'tasks'; did you mean task?"),
        ({"task": {"steps": 3}}, "has no kind; choose from classification"),
        ({"task": {"kind": "clasification"}}, "unknown kind 'clasification'; did you mean classification?"),
        ({"task": TOY}, "grid of the configuration should hold"),
        ({"task": TOY, "grid": {"optimiser": ADAM}}, "unknown setting 'optimiser'; did you mean optimizer?"),
        ({"task": TOY, "grid": {"lr": 1}}, "optimizer in grid .* should hold"),
        ({"task": TOY, "grid": {"optimizer": ADAM}}, "optimizer adam .* has no lr"),
        ({"task": TOY, "grid": {"optimizer": {"a": {"lr": 1}}}}, "has no class; choose from RiemannianAdam"),
        ({"task": TOY, "grid": {"optimizer": {"a/b": {"lr": 1}}}}, "names are made of letters"),
        (
            {"task": TOY, "grid": {"optimizer": {"a": {"class": "RiemanianAdam", "lr": 1}}}},
            "unknown class 'RiemanianAdam'; did you mean RiemannianAdam?",
        ),
        (
            {"task": TOY, "grid": {"optimizer": {"a": {"class": "RiemannianSGD", "momentun": 1, "lr": 1}}}},
            "unknown argument 'momentun'; did you mean momentum?",
        ),
        (
            {"task": TOY, "grid": {"optimizer": {"a": {"class": "RiemannianSGD", "nesterov": True, "lr": 1}}}},
            "optimizer a: RiemannianSGD refuses its arguments: ",
        ),
        ({"task": TOY, "grid": {"optimizer": ADAM, "lr": [0.1, -1]}}, "must be numbers above 0, got -1"),
        ({"task": TOY, "grid": {"optimizer": ADAM, "lr": []}}, "is empty"),
        ({"task": TOY, "grid": {"optimizer": ADAM, "lr": 1, "seed": 0.5}}, "whole numbers, 0 or more, got 0.5"),
        ({"task": TOY, "grid": {"optimizer": ADAM, "lr": 1, "parametrisation": "bal"}}, "did you mean ball?"),
        ({"task": {**TOY, "step": 3}, "grid": {"optimizer": ADAM, "lr": 1}}, "'step'; did you mean steps?"),
        ({"task": {**TOY, "steps": 0}, "grid": {"optimizer": ADAM, "lr": 1}}, "steps of frechet-mean must be a whole"),
        ({"task": {**TOY, "schedule": "step"}, "grid": {"optimizer": ADAM, "lr": 1}}, "constant or cosine"),
        (
            {"task": {"kind": "classification", "epoch": 1}, "grid": {"optimizer": ADAM, "lr": 1}},
            "unknown setting 'epoch'; did you mean epochs?",
        ),
        (
            {"task": {"kind": "classification", "lr": 1}, "grid": {"optimizer": ADAM, "lr": 1}},
            "lr differs between cells: move it from task to grid",
        ),
        (
            {"task": {"kind": "classification", "epochs": 0}, "grid": {"optimizer": ADAM, "lr": 1}},
            "--epochs must be a whole number",
        ),
        (
            {"task": {"kind": "classification", "val_fraction": 0}, "grid": {"optimizer": ADAM, "lr": 1}},
            "val_fraction must be above 0",
        ),
        (
            {
                "task": {"kind": "classification"},
                "grid": {"optimizer": {"a": {"class": "RiemannianAdam", "eps": 1e-6, "lr": 1}}},
            },
            "optimizer a of a task classification has an unknown argument 'eps'",
        ),
    ],
)
def test_mistakes_in_a_configuration(values, expected):
    with pytest.raises(UserError, match=expected):
        Experiment.from_dict(values, "toy")


def test_optimizers_reach_the_training():
    grid = Experiment.from_dict(
        {
            "task": {"kind": "classification", "weight_decay": 0.1},
            "grid": {
                "optimizer": {
                    "a": {"class": "RiemannianAdam", "second_moment": "coordinate", "max_grad_norm": 2},
                    "b": {"class": "RiemannianSGD", "weight_decay": 0.2, "parametrisation": "tangent"},
                },
                "lr": 0.5,
                "seed": 3,
            },
        },
        "x",
    )
    first, second = map(grid.task.config, grid.cells)
    assert (first.optimizer, first.second_moment, first.max_grad_norm, first.weight_decay) == (
        "adam", "coordinate", 2.0, 0.1,
    )  # fmt: skip
    assert (first.weight_on, second.weight_on, first.lr, first.seed) == ("ball", "tangent", 0.5, 3)
    assert (second.optimizer, second.momentum, second.weight_decay) == ("sgd", 0.0, 0.2)


# -- running ---------------------------------------------------------------------------------------------


def test_a_folder_holds_what_it_promises(tmp_path):
    grid = experiment(lr=[0.01, 0.1], parametrisation=["ball", "tangent"], seed=[0, 1])
    outcome = run_experiment(grid, tmp_path / "out")
    assert outcome.missing == 0
    names = {"cells", "comparison.png", "config.yaml", "curves.csv", "log.txt", "results.csv"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    results = rows(tmp_path / "out" / "results.csv")
    assert [row["id"] for row in results] == [c.id for c in grid.cells]
    assert set(results[0]) >= {"optimizer", "lr", "parametrisation", "seed", "status", "distance", "seconds"}
    assert {row["status"] for row in results} == {"finished"}
    curves = rows(tmp_path / "out" / "curves.csv")
    assert len(curves) == 8 * 5
    assert list(curves[0]) == ["id", "optimizer", "lr", "parametrisation", "seed", "step", "seconds", "train_loss",
                               "distance"]  # fmt: skip
    for c, row in zip(grid.cells, results, strict=True):
        mine = [r for r in curves if r["id"] == c.id]
        assert mine[-1]["distance"] == row["distance"]
        seconds = [float(r["seconds"]) for r in mine]
        assert seconds == sorted(seconds)
    log = (tmp_path / "out" / "log.txt").read_text()
    assert all(c.id in log for c in grid.cells)
    assert "\n" in summary(outcome)


def test_a_killed_experiment_carries_on(tmp_path):
    grid = experiment(seed=[0, 1, 2])
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(grid.to_dict()))
    code = (
        "import os, signal, sys\n"
        "from manifold_resnet.optim.experiments import read_experiment, run_experiment\n"
        "from manifold_resnet.optim.experiments.toys import Toy\n"
        "run = Toy.run\n"
        "def cut(self, cell, folder, tell):\n"
        "    if cell.seed == 2:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return run(self, cell, folder, tell)\n"
        "Toy.run = cut\n"
        "run_experiment(read_experiment('c.yaml'), 'out')\n"
    )
    killed = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False)
    assert killed.returncode == -signal.SIGKILL
    out = tmp_path / "out"
    assert len(rows(out / "results.csv")) == 2
    before = {path: path.stat().st_mtime_ns for path in (out / "cells").rglob("cell.json")}
    assert len(before) == 2
    assert run_experiment(grid, out).missing == 0
    assert before.items() <= {path: path.stat().st_mtime_ns for path in (out / "cells").rglob("cell.json")}.items()
    assert len(rows(out / "results.csv")) == 3


def test_limit_and_more_cells(tmp_path, caplog):
    grid = experiment(seed=[0, 1])
    assert run_experiment(grid, tmp_path, limit=1).missing == 1
    assert run_experiment(grid, tmp_path, limit=1).missing == 0
    with pytest.raises(UserError, match="--limit must be"):
        run_experiment(grid, tmp_path, limit=0)
    more = experiment(seed=[0, 1, 2], optimizer={**ADAM, "sgd": {"class": "RiemannianSGD"}})
    assert len(run_experiment(more, tmp_path).results) == 6


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({"seed": [0]}, "the cell adam-ball-lr0.1-seed1 is in .*config.yaml, and not in the grid now"),
        ({"task": {**TOY, "steps": 30}}, "steps of the task is 20 in .*config.yaml and 30 now"),
        ({"optimizer": {"adam": {"class": "RiemannianAdam", "amsgrad": True}}}, "the cell adam-.*seed0 is .* now"),
    ],
)
def test_a_changed_experiment_is_refused(tmp_path, other, expected):
    run_experiment(experiment(seed=[0, 1]), tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(UserError, match=expected + ".*choose another --output"):
        run_experiment(experiment(**({"seed": [0, 1]} | other)), tmp_path)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(UserError, match="not a folder of an experiment"):
        run_experiment(experiment(), tmp_path)
    with pytest.raises(UserError, match="cannot create|not a folder"):
        run_experiment(experiment(), tmp_path / "mine.txt")


def test_a_damaged_cell_says_so(tmp_path):
    run_experiment(experiment(), tmp_path)
    (tmp_path / "cells" / "adam-ball-lr0.1-seed0" / "cell.json").write_text("{")
    with pytest.raises(UserError, match="cell.json is damaged .*; remove its folder"):
        run_experiment(experiment(), tmp_path)


def test_divergence_is_a_result(tmp_path, monkeypatch):
    real = FrechetMean.problem

    def spoilt(self, seed):
        problem = real(self, seed)
        if seed != 1:
            return problem
        return type(problem)(problem.start, lambda x: problem.loss(x) * math.nan, problem.measure)

    monkeypatch.setattr(FrechetMean, "problem", spoilt)
    outcome = run_experiment(experiment(lr=[0.01, 0.1], seed=[0, 1, 2]), tmp_path)
    assert [r["status"] for r in rows(tmp_path / "results.csv")] == ["finished"] * 2 + ["diverged"] * 2 + [
        "finished"
    ] * 2
    assert "2 of 6" in summary(outcome)
    stored = json.loads((tmp_path / "cells" / "adam-ball-lr0.1-seed1" / "cell.json").read_text())
    assert stored["reason"] == "the loss became nan at step 0"
    assert (tmp_path / "comparison.png").exists()


def outcome_of(values, task=None):
    grid = experiment(task, lr=sorted({lr for lr, _ in values}), seed=sorted({seed for _, seed in values}))
    results = []
    for c in grid.cells:
        value = values[c.lr, c.seed]
        metrics = {} if value is None else {grid.task.metric: value}
        results.append((c, Result("diverged" if value is None else "finished", metrics)))
    return Outcome(grid, results, 0)


def test_the_best_learning_rate():
    lower = outcome_of({(0.1, 0): 1e-8, (0.1, 1): 1e-2, (1.0, 0): 1e-4, (1.0, 1): 1e-4})
    assert [g.lr for g in groups(lower)] == [0.1, 1.0]
    assert best(lower)[0].lr == 0.1  # 1e-5 in the geometric mean
    higher = outcome_of({(0.1, 0): 0.5, (1.0, 0): 0.7}, {"kind": "tree-embedding"})
    assert best(higher)[0].lr == 1.0
    unsafe = outcome_of({(0.1, 0): 0.5, (0.1, 1): 0.5, (1.0, 0): 0.7, (1.0, 1): None}, {"kind": "tree-embedding"})
    assert best(unsafe)[0].lr == 0.1
    assert spread([1e-2, 1e-4], log=True)[0] == pytest.approx(1e-3)
    assert spread([1.0, 3.0]) == pytest.approx((2.0, 2**0.5))
    assert spread([1.0]) == (1.0, 0.0)
    assert "- " in summary(outcome_of({(0.1, 0): None}))


# -- classification --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("images"))


def classification(images, **grid):
    task = {"kind": "classification", "dataset": f"folder:{images}", "model": "hyperbolic-2-2-2-resnet-8",
            "epochs": 2, "batch_size": 12}  # fmt: skip
    return experiment(task, **{"lr": [0.01], **grid})


def test_trainings_carry_on(images, tmp_path):
    class Stop(lightning.Callback):
        def on_train_epoch_start(self, trainer, module):
            if trainer.current_epoch == 1:
                raise KeyboardInterrupt

    grid = classification(images, seed=[0, 1])
    whole = run_experiment(grid, tmp_path / "whole")
    parts = tmp_path / "parts"
    run_experiment(grid, parts, limit=1)
    (parts / "cells" / grid.cells[0].id / "cell.json").unlink()  # as after a kill just before it was written
    with pytest.raises(TrainingInterrupted):  # what a kill in the second epoch leaves
        train(grid.task.config(grid.cells[1]), parts / "cells" / grid.cells[1].id, progress=False, callbacks=[Stop()])
    first = rows(parts / "cells" / grid.cells[1].id / "metrics.csv")
    assert len(first) == 1
    again = run_experiment(grid, parts)
    assert rows(parts / "cells" / grid.cells[1].id / "metrics.csv")[0] == first[0]
    assert [r.metrics for _, r in again.results] == [r.metrics for _, r in whole.results]
    row = rows(parts / "results.csv")[0]
    test = json.loads((parts / "cells" / grid.cells[0].id / "test.json").read_text())
    assert float(row["test_accuracy"]) == test["test_accuracy"]
    assert int(float(row["best_epoch"])) == test["epoch"]
    assert len(rows(parts / "curves.csv")) == 4


def test_trainings_with_other_defaults_are_not_mixed(images, tmp_path):
    run_experiment(classification(images), tmp_path)
    path = tmp_path / "cells" / "adam-ball-lr0.01-seed0" / "config.yaml"
    recorded = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**recorded, "c": 0.3, "data_dir": "elsewhere"}))  # as an earlier version might
    more = classification(images, seed=[0, 1])
    with pytest.raises(UserError, match=r"c is 0\.3 in .*config.yaml and 0\.025 now.*choose another --output"):
        run_experiment(more, tmp_path)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["grid"]["seed"] == [0]
    path.write_text(yaml.safe_dump({**recorded, "data_dir": "elsewhere"}))
    assert run_experiment(more, tmp_path).missing == 0


def test_a_training_cut_off_in_its_first_epoch_starts_again(images, tmp_path):
    grid = classification(images)
    folder = tmp_path / "cells" / grid.cells[0].id
    (folder / "checkpoints").mkdir(parents=True)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(grid.to_dict()))
    (folder / "config.yaml").write_text("")
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"cut off")
    assert run_experiment(grid, tmp_path).results[0][1].status == "finished"


def test_a_training_that_diverges_is_a_result(images, tmp_path, monkeypatch):
    start = Classifier.on_train_epoch_start

    def spoil(self):
        start(self)
        if self.current_epoch == 1:
            next(self.parameters()).data.fill_(math.nan)

    monkeypatch.setattr(Classifier, "on_train_epoch_start", spoil)
    (result,) = [result for _, result in run_experiment(classification(images), tmp_path).results]
    assert result.status == "diverged"
    assert "training loss became nan in epoch 2" in result.reason
    assert run_experiment(classification(images), tmp_path).missing == 0


def test_other_images(images, tmp_path, monkeypatch):
    monkeypatch.chdir(images.parent)
    grid = read_experiment("digits").override(dataset=f"folder:{images.name}", device="cpu")
    assert grid.settings["dataset"] == f"folder:{images}"
    assert "device" not in grid.to_dict()["task"]
    assert grid.task.config(grid.cells[0]).device == "cpu"
    with pytest.raises(UserError, match="--dataset goes with a task of kind classification"):
        experiment().override(dataset="digits")
    with pytest.raises(UserError, match="unknown data set 'digit'"):
        grid.override(dataset="digit")


# -- the command -----------------------------------------------------------------------------------------


def test_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(experiment(seed=[0, 1]).to_dict()))
    assert main(["compare-optimizers", "mine.yaml", "--limit", "1"]) == 0
    out = capsys.readouterr().out
    assert "[1/2] adam-ball-lr0.1-seed0: distance" in out
    assert "1 of 2 cells are left" in out
    assert main(["compare-optimizers", "mine.yaml"]) == 0
    assert re.search(r"adam +ball +0\.1 +2 ", capsys.readouterr().out)
    assert (tmp_path / "optimizers" / "mine" / "comparison.png").exists()
    assert main(["compare-optimizers", "--list"]) == 0
    assert "frechet-mean" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "name a CONFIG: a YAML file, or one of cifar10-fifth"),
        (["digit"], "unknown experiment 'digit'; did you mean digits?"),
        (["none.yaml"], "cannot read none.yaml"),
        (["digits", "--dataset", "folder:"], "unknown data set"),
        (["frechet-mean", "--limit", "0"], "--limit must be a whole number"),
        (["frechet-mean", "--data-dir", "x"], "--data-dir goes with a task of kind classification"),
    ],
)
def test_mistakes_with_the_command(arguments, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["compare-optimizers", *arguments]) == 2
    assert re.search(expected, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_digits(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    values = read_experiment("digits").to_dict()
    values["task"] |= {"model": "hyperbolic-2-2-2-resnet-8", "epochs": 1, "train_fraction": 0.2, "batch_size": 64}
    (tmp_path / "digits.yaml").write_text(yaml.safe_dump(values))
    assert main(["compare-optimizers", "digits.yaml", "--limit", "2", "--output", "out"]) == 0
    assert "test accuracy" in capsys.readouterr().out
    assert len(rows(tmp_path / "out" / "results.csv")) == 2
