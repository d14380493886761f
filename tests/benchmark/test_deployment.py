import json

from manifold_resnet.cli import main


def test_latency_of_exported_networks(tmp_path, capsys):
    options = ["--deployment", "--widths", "2-2-2", "--depth", "8", "--image-size", "8", "--batch-size", "3"]
    assert main(["benchmark", *options, "--rounds", "2", "--output", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "deployment.json").read_text())
    ways = {"euclidean", "euclidean_onnx", "eager", "compiled", "export", "onnx"}
    assert set(results["latency"]) == {"1", "3"}
    assert all(set(latency) == ways for latency in results["latency"].values())
    assert all(r["seconds"] > 0 for latency in results["latency"].values() for r in latency.values())
    assert max(results["differences"].values()) < 1e-5
    text = capsys.readouterr().out
    assert "batch of 3" in text
    assert "ours, ONNX" in text
    assert main(["benchmark", "--deployment", "--device", "cuda", "--output", str(tmp_path)]) == 2
