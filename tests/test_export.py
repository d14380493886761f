"""Exported networks compute what the network does, whatever the batch, and say what they are."""

import json
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from image_folders import write_digits
from PIL import Image

import manifold_resnet as mr
from manifold_resnet._errors import UserError
from manifold_resnet.cli import main
from manifold_resnet.export import export_model, export_run, load_exported, read_metadata
from manifold_resnet.training import Config, load_run, train

TINY = "hyperbolic-2-2-2-resnet-8"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    config = Config(dataset=f"folder:{images}", model=TINY, epochs=1, batch_size=12, learnable_c=True)
    return train(config, tmp_path_factory.mktemp("runs") / "run", progress=False)


def pixels(images):
    """The test images as a user reads them, between 0 and 1."""
    files = sorted((images / "test").glob("*/*.png"))
    return torch.from_numpy(np.stack([np.asarray(Image.open(file), np.float32)[None] / 255 for file in files]))


@pytest.mark.parametrize("ending", ["onnx", "pt2"])
def test_a_run_as_a_file(images, run, tmp_path, capsys, ending):
    """From the command line; the file takes pixels and has what is needed to use it."""
    path = tmp_path / f"digits.{ending}"
    assert main(["export", str(run), "-o", str(path)]) == 0
    assert "12 test images" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [path]
    model, config = load_run(run)
    x = pixels(images)
    mean, std = (torch.tensor(config.images[name]).view(-1, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        expected = model((x - mean) / std)
    exported = load_exported(path)
    for size in (1, 5, 12):
        torch.testing.assert_close(exported(x[:size]), expected[:size], atol=1e-5, rtol=0)
    assert exported(x[:0]).shape == (0, 3)
    about = read_metadata(path)
    assert about["classes"] == ["0", "1", "2"]
    assert about["image_size"] == [1, 8, 8]
    assert about["normalisation"] == {"mean": config.images["mean"], "std": config.images["std"]}
    assert (about["model"], about["manifold_resnet"]) == (TINY, mr.__version__)
    assert about["c"] == pytest.approx(model.ball.c.item())
    if ending == "onnx":  # without this library
        session = onnxruntime.InferenceSession(path)
        assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == ["0", "1", "2"]
        assert session.get_inputs()[0].shape[1:] == [1, 8, 8]


def test_the_published_network(tmp_path):
    """Scalar norms, a fully connected head, tangent weights; in training mode before and after."""
    model = mr.models.create_model(TINY, 3, variant="paper")
    exported = export_model(model, tmp_path / "paper.pt2", torch.rand(3, 3, 9, 8))
    assert exported.difference < 1e-5
    assert all(module.training for module in model.modules())


class TwoFaced(torch.nn.Module):
    def forward(self, images):
        return images.mean((2, 3)) * (2 if torch.compiler.is_compiling() else 1)


def test_a_file_that_computes_something_else_is_not_kept(tmp_path):
    path = tmp_path / "model.pt2"
    path.write_bytes(b"before")
    with pytest.raises(UserError, match="differs from the network by 5.*was not written"):
        export_model(TwoFaced(), path, torch.ones(2, 3, 8, 8) / 2)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"before"
    assert export_model(TwoFaced(), path, torch.ones(1, 3, 8, 8), check=False).difference is None
    assert path.read_bytes() != b"before"


def test_what_cannot_be_exported(run, tmp_path, monkeypatch, capsys):
    with pytest.raises(UserError, match=r"model.pt must end in \.onnx or \.pt2"):
        export_run(run, tmp_path / "model.pt")
    with pytest.raises(UserError, match="there is no folder"):
        export_run(run, tmp_path / "none" / "model.pt2")
    with pytest.raises(UserError, match="no such run"):
        export_run(tmp_path / "none", tmp_path / "model.pt2")
    with pytest.raises(UserError, match="no such file"):
        load_exported(tmp_path / "model.pt2")
    with pytest.raises(ValueError, match=r"\(batch, C, H, W\) .* got \(3, 8, 8\)"):
        export_model(TwoFaced(), tmp_path / "model.pt2", torch.ones(3, 8, 8))
    with pytest.raises(ValueError, match="mean and std must have 3 numbers"):
        export_model(TwoFaced(), tmp_path / "model.pt2", torch.ones(2, 3, 8, 8), mean=[0.5])
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert main(["export", str(run), "-o", str(tmp_path / "model.onnx"), "--no-check"]) == 2
    assert 'pip install "manifold-resnet[export]"' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
