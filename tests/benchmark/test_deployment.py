import json

import geoopt
from torch import nn

from manifold_resnet.benchmark import deployment
from manifold_resnet.cli import main
from manifold_resnet.nn import ExpMap0, PoincareAdaptiveAvgPool2d, PoincareMLR


def small(name, **options):
    """Exporting whole networks takes long, and tests/test_export.py does."""
    if name.startswith("euclidean"):
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
    ball = geoopt.PoincareBall(1.0)
    layers = (
        ExpMap0(ball=ball, dim=1),
        PoincareAdaptiveAvgPool2d(1, ball=ball),
        nn.Flatten(),
        PoincareMLR(3, 4, ball=ball),
    )
    return nn.Sequential(*layers)


def test_latency_of_exported_networks(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(deployment, "create_model", small)
    options = ["--deployment", "--image-size", "8", "--batch-size", "3", "--rounds", "2"]
    assert main(["benchmark", *options, "--output", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "deployment.json").read_text())
    ways = {"euclidean", "euclidean_onnx", "eager", "compiled", "export", "onnx"}
    assert set(results["latency"]) == {"1", "3"}
    assert all(set(latency) == ways for latency in results["latency"].values())
    assert all(r["seconds"] > 0 for latency in results["latency"].values() for r in latency.values())
    assert max(results["differences"].values()) < 1e-5
    text = capsys.readouterr().out
    assert "batch of 3" in text
    assert "ours, ONNX" in text
