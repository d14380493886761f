import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from manifold_resnet.cli import main

QUICK = ["--limit", "40", "--batch-size", "32", "--device", "cpu"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Whatever a command leaves behind without being told to shows up in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MANIFOLD_RESNET_DEBUG", raising=False)


def fails(capsys, arguments, expected):
    """The command ends with code 2 and one line that says what to do, and leaves nothing behind."""
    before = set(Path.cwd().rglob("*"))
    assert main([str(argument) for argument in arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert re.search(expected, lines[0]), lines[0]
    assert set(Path.cwd().rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "files", "expected"),
    [
        (["ood"], "ood/ood", r"hyperbolic-4-4-8-resnet-8 +distance +mean( +\d+\.\d){4}"),
        (["ood", "--ood", "upside-down", "--score", "maxlogit"], "ood/ood", "maxlogit +upside-down"),
        (["attack", "--epsilon", "4/255,8/255"], "attack/fgsm", r"model +clean  4/255  8/255\n"),
        (["attack", "--attack", "pgd", "--steps", "2", "--epsilon", "0.1"], "attack/pgd", "40 test images under pgd"),
        (["gradcam", "--count", "3"], "gradcam/gradcam", r"hyperbolic  euclidean  -?[01]\.\d\d\n"),
        (["gradcam", "--count", "2", "--errors-only", "--layer", "group2"], "gradcam/gradcam", "2 images of"),
        (["fuse"], "fuse/fuse", r"accuracy of the mean softmax +\d+\.\d\n"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_every_command_runs_on_digits(runs, capsys, arguments, files, expected):
    assert main([*arguments, *map(str, runs), *QUICK]) == 0
    printed = capsys.readouterr()
    assert re.search(expected, printed.out), printed.out
    for end in ("json", "csv", "png"):
        assert Path(f"experiments/{files}.{end}").stat().st_size > 100
    stored = json.loads(Path(f"experiments/{files}.json").read_text())
    assert [run["name"] for run in stored["runs"]] == ["hyperbolic", "euclidean"]
    assert stored["settings"]["limit"] == 40


def test_a_moved_run_on_moved_images(runs, tmp_path, capsys):
    """The run's own images are gone; others are named, and everything works."""
    stored = torch.load(runs[0] / "checkpoints" / "best.ckpt", weights_only=True)
    stored["hyper_parameters"]["config"]["dataset"] = "folder:/gone/photos"
    torch.save(stored, tmp_path / "moved.ckpt")
    for command in ("ood", "attack", "gradcam"):
        fails(capsys, [command, "moved.ckpt"], "no such folder: /gone/photos; --dataset")
        assert main([command, "moved.ckpt", "--dataset", "digits", *QUICK, "--output", f"out/{command}"]) == 0
    assert main(["fuse", "moved.ckpt", str(runs[1]), "--dataset", "digits", *QUICK]) == 0


def test_mistakes(runs, capsys, tmp_path):
    hyperbolic, euclidean = runs
    broken = tmp_path / "broken"
    shutil.copytree(hyperbolic, broken)
    (broken / "checkpoints" / "best.ckpt").write_bytes(b"")
    for arguments, expected in (
        (["ood"], "required: RUN"),
        (["ood", "none"], "no such run"),
        (["ood", broken], "damaged, or no checkpoint of this program"),
        (["ood", hyperbolic, hyperbolic], "given twice"),
        (["ood", hyperbolic, "--ood", "folder:none"], "no such folder: none"),
        (["ood", hyperbolic, "--ood", "digits"], "digits is what hyperbolic was trained on"),
        (["ood", hyperbolic, "--limit", "0"], "--limit must be a whole number, 1 or more, got '0'"),
        (["ood", hyperbolic, "--batch-size", "0"], "--batch-size must be a whole number, 1 or more, got '0'"),
        (["attack", hyperbolic, "--epsilon", "2"], r"got 2; did you mean 2/255\?"),
        (["attack", hyperbolic, "--epsilon", "0"], "above 0 and at most 1; got 0"),
        (["attack", hyperbolic, "--attack", "cw"], "--attack must be one of fgsm, pgd, got 'cw'"),
        (["attack", hyperbolic, "--steps", "3"], "--steps is a setting of --attack pgd"),
        (["attack", hyperbolic, "--device", "tpu"], "--device must be one of"),
        (["gradcam", hyperbolic, "--count", "100"], "--count must be from 1 to 48, got 100"),
        (["fuse", hyperbolic], "two runs can be fused, got 1"),
        (["fuse", hyperbolic, euclidean, "--dataset", "cifar"], "did you mean cifar10"),
    ):
        fails(capsys, arguments, expected)


def test_results_are_not_overwritten_by_those_of_other_runs(runs, capsys):
    for limit in ("20", "30"):  # the same runs again are welcome
        assert main(["fuse", *map(str, runs), "--limit", limit]) == 0
    assert main(["ood", str(runs[0]), "--limit", "20", "--output", "experiments/fuse", "--ood", "noise"]) == 0
    capsys.readouterr()
    fails(
        capsys,
        ["ood", runs[1], "--output", "experiments/fuse"],
        r"holds the ood results of other runs \(hyperbolic\); choose another --output",
    )
