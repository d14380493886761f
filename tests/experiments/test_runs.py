import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from manifold_resnet._errors import UserError
from manifold_resnet.data import LabelledImages
from manifold_resnet.experiments import load_run, load_runs
from manifold_resnet.experiments.runs import PixelImages, evenly
from manifold_resnet.training import load_run as load_model


def test_pixels_and_normalisation_are_those_of_the_training(runs):
    run = load_run(runs[0])
    model, config = load_model(runs[0])
    data = config.open_data()
    data.setup("test")
    pixels = torch.cat([images for images, _ in run.loader()])
    labels = torch.cat([labels for _, labels in run.loader()])
    assert 0 <= pixels.min() < pixels.max() <= 1
    images = torch.cat([images for images, _ in data.test_dataloader()])
    torch.testing.assert_close(run.network.normalise(pixels), images, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(run.network(pixels), model(images).detach(), rtol=1e-4, atol=1e-4)
    assert torch.equal(labels, torch.cat([labels for _, labels in data.test_dataloader()]))
    assert (run.seed, run.kind, run.classes) == (0, "hyperbolic", [str(digit) for digit in range(10)])


def test_a_moved_run_works_and_keeps_its_digest(runs, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(runs[0], moved)
    here, there = load_run(runs[0]), load_run(moved)
    assert (there.name, there.digest) == ("elsewhere", here.digest)
    assert load_run(moved / "checkpoints" / "best.ckpt").name == "elsewhere"
    pixels, _ = next(iter(here.loader(limit=5)))
    assert torch.equal(here.network(pixels), there.network(pixels))


def test_limits_are_spread_over_all_images(runs):
    run = load_run(runs[0], batch_size=7)
    batches = list(run.loader(limit=10))
    assert [len(labels) for _, labels in batches] == [7, 3]
    assert len(run.loader(limit=10_000).dataset) == len(run.test)
    assert evenly(100, 4).tolist() == [0, 25, 50, 75]
    assert len(set(evenly(360, 359).tolist())) == 359


@pytest.mark.parametrize(("height", "width"), [(8, 12), (20, 11), (5, 3), (16, 24)])
@pytest.mark.parametrize("channels", [1, 3])
def test_other_images_take_size_and_colours(height, width, channels):
    pixels = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    images = LabelledImages(lambda index: Image.fromarray(pixels[index]), [0, 1], ["a", "b"])
    view = PixelImages(images, channels, [8, 12])
    image, label = view[1]
    assert image.shape == (channels, 8, 12)
    assert label == 1
    assert 0 <= image.min() < image.max() <= 1
    if (height, width, channels) == (8, 12, 3):
        np.testing.assert_allclose(image.permute(1, 2, 0) * 255, pixels[1], atol=1e-4)


def test_runs_that_do_not_compare(runs, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no run given"):
        load_runs([])
    with pytest.raises(UserError, match="given twice"):
        load_runs([runs[0], runs[0] / "checkpoints" / "best.ckpt"])
    with pytest.raises(UserError, match="no such run"):
        load_runs([tmp_path / "none"])
    broken = tmp_path / "broken"
    shutil.copytree(runs[0], broken)
    (broken / "checkpoints" / "best.ckpt").write_bytes(b"no checkpoint")
    with pytest.raises(UserError, match="damaged, or no checkpoint"):
        load_runs([broken])
    stored = torch.load(runs[1] / "checkpoints" / "last.ckpt", weights_only=True)
    stored["hyper_parameters"]["config"]["images"]["classes"] = ["cat", "dog"]
    for name in ("fc.weight", "fc.bias"):
        stored["state_dict"][f"model.{name}"] = stored["state_dict"][f"model.{name}"][:2]
    torch.save(stored, tmp_path / "pets.ckpt")
    with pytest.raises(UserError, match=r"pets knows 2 classes \(cat, dog, \.\.\.\) and hyperbolic 10"):
        load_runs([runs[0], tmp_path / "pets.ckpt"])


def test_names_tell_runs_apart(runs, tmp_path):
    for parent in ("a", "b"):
        shutil.copytree(runs[0], tmp_path / parent / "run")

    def names(*given):
        return [run.name for run in load_runs([tmp_path / path for path in given])]

    assert names("a/run") == ["run"]
    assert names("a/run", "b/run") == ["a/run", "b/run"]
    checkpoints = [f"a/run/checkpoints/{name}.ckpt" for name in ("best", "last")]
    assert names(*checkpoints) == ["run/best", "run/last"]
    assert len(set(names(*checkpoints, "b/run"))) == 3
