"""The benchmark command: what it measures is there, memory is counted right, disagreement is not hidden."""

import functools
import json

import pytest
import torch

import manifold_resnet as mr
from manifold_resnet.benchmark import Settings, benchmark, run
from manifold_resnet.benchmark.measure import interleave, kept_bytes, largest_difference, peak_rise, summarise
from manifold_resnet.benchmark.naive import NaiveResNet
from manifold_resnet.benchmark.report import table, write
from manifold_resnet.cli import main

SMALL = {"widths": "4-4-8", "depth": 8, "batch_size": 2, "image_size": 16, "rounds": 2}


@pytest.fixture(scope="module", autouse=True)
def one_peak_for_all():
    """A fresh process for each contender of each table takes a minute: one is measured, and taken for all."""
    measure = run._peak
    peak = functools.cache(lambda: measure(Settings(**SMALL), "compiled"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "_peak", lambda settings, name: peak())
        yield


@pytest.fixture(scope="module")
def results(one_peak_for_all):
    return benchmark(Settings(**SMALL))


def test_naive_network_is_the_same_function():
    torch.manual_seed(0)
    model = mr.models.create_model("hyperbolic-4-4-8-resnet-8", c=0.3).double()
    images = torch.randn(3, 3, 17, 17, dtype=torch.float64)
    torch.testing.assert_close(model(images), NaiveResNet(model)(images), rtol=1e-9, atol=1e-9)


def test_results(results, tmp_path):
    assert results["agrees"]
    assert all(difference < 1e-9 for difference in results["agreement"].values())
    for measured in (results["network"]["step"], results["network"]["inference"], *results["layers"].values()):
        assert measured["euclidean"]["ratio"] == 1
        assert all(m["seconds_low"] <= m["seconds"] <= m["seconds_high"] for m in measured.values())
    assert results["naive"]["step"]["naive"]["ratio"] > results["naive"]["step"]["compiled"]["ratio"]
    assert results["network"]["kept_bytes"]["compiled"] < results["naive"]["kept_bytes"]["naive"]
    text = table(results)
    assert "of that" in text
    write(results, tmp_path)
    assert json.loads((tmp_path / "benchmark.json").read_text())["settings"]["widths"] == "4-4-8"
    assert {p.name for p in tmp_path.iterdir()} == {"benchmark.json", "benchmark.png"}


def test_no_speed_up_where_results_differ(results):
    text = table({**results, "agrees": False, "agreement": {"eager": 1e-12, "compiled": 0.3}})
    assert "No speed-up to report" in text
    assert "compiled 3.0e-01" in text
    assert "of that" not in text


def test_disagreement_is_noticed(monkeypatch):
    monkeypatch.setattr(run, "NaiveResNet", lambda model: lambda images: 1.01 * NaiveResNet(model)(images))
    assert max(run._agreement(Settings(**SMALL)).values()) > run.AGREEMENT


def test_sweeps(tmp_path):
    settings = Settings(**SMALL, naive=False, sweeps=("depth",))
    run_sweeps = {"depth": [{"depth": 8}, {"depth": 14}]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "_SWEEPS", run_sweeps)
        results = benchmark(settings)
    rows = results["sweeps"]["depth"]
    assert [row["depth"] for row in rows] == [8, 14]
    assert rows[1]["kept_bytes"]["compiled"] > rows[0]["kept_bytes"]["compiled"]
    assert "by depth" in table(results)
    write(results, tmp_path)


def test_a_network_of_the_imagenet_family(tmp_path, capsys, monkeypatch):
    """Next to torchvision's, through the command; by default four images of 224 x 224."""
    pytest.importorskip("torchvision")
    monkeypatch.setattr(run, "_peak", lambda settings, name: 1)  # takes processes of their own
    arguments = ["--model", "resnet18", "--image-size", "32", "--batch-size", "2", "--rounds", "2"]
    assert main(["benchmark", *arguments, "--output", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "benchmark.json").read_text())
    assert results["agrees"]
    assert "naive" not in results
    assert results["network"]["step"]["compiled"]["ratio"] > 0
    assert results["network"]["kept_bytes"]["compiled"] > results["network"]["kept_bytes"]["euclidean"] > 0
    assert "training step" in capsys.readouterr().out
    settings = Settings(model="resnet50")
    assert (settings.batch_size, settings.image_size, settings.naive) == (4, 224, False)
    assert settings.name("euclidean") == "euclidean-resnet50"
    assert Settings().batch_size == 128


def test_contenders_take_turns():
    calls = []
    seconds = interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3, "cpu")
    assert calls == list("abababab")
    assert all(len(times) == 3 for times in seconds.values())
    ratios = summarise({"a": [1.0, 2.0, 4.0], "b": [2.0, 2.0, 12.0]}, "a")
    assert ratios["b"]["ratio"] == 2
    assert ratios["b"]["seconds"] == 2


def test_kept_bytes_counts_each_memory_once():
    layer = torch.nn.Linear(100, 50, bias=False)
    x = torch.randn(10, 100, requires_grad=True)
    # x for the product and for the sum of squares, but not the weight; the result for the sine
    assert kept_bytes(lambda: layer(x).sin().sum() + (x * x).sum(), layer) == 4 * (10 * 100 + 10 * 50)


def _allocate(mebibytes):
    return (lambda: None), (lambda: torch.ones(mebibytes << 18).sum())


def test_peak_rise():
    assert 60 << 20 < peak_rise(_allocate, 64) < 90 << 20


def test_largest_difference():
    a, b = [torch.tensor([1.0, 2.0]), torch.zeros(3)], [torch.tensor([1.0, 4.0]), torch.zeros(3)]
    assert largest_difference(a, b) == 0.5


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--depth", "21"], "depth"),
        (["--rounds", "0"], "rounds must be a positive integer, got 0"),
        (["--sweeps", "colour"], "unknown sweep 'colour'; choose from width, depth, batch, image"),
        (["--widths", "8-16"], "hyperbolic-8-16-resnet-20"),
        (["--device", "tpu"], "device must be cpu or cuda, got 'tpu'"),
        (["--c", "-1"], "positive"),
        (["--model", "resnet20"], "unknown model 'resnet20'; choose from resnet18, resnet34, resnet50"),
        (["--model", "resnet18", "--depth", "32"], "widths and depth do not go with model resnet18"),
        (["--model", "resnet18", "--naive"], "naive does not go with model resnet18"),
        (["--model", "resnet18", "--sweeps", "batch"], "sweeps does not go with model resnet18"),
    ],
)
def test_wrong_options(option, message, capsys, tmp_path):
    assert main(["benchmark", *option, "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_output_is_looked_at_before_measuring(capsys, tmp_path):
    (tmp_path / "file").touch()
    assert main(["benchmark", "--output", str(tmp_path / "file" / "out")]) == 2
    assert capsys.readouterr().err.startswith("manifold-resnet: error: --output must be a folder to write to, got ")
