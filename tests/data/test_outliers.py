import numpy as np
import pytest
from image_folders import write_digits
from PIL import Image
from torchvision import datasets

from manifold_resnet._errors import UserError
from manifold_resnet.data.outliers import OUTLIERS, open_outliers


def test_patches_are_cut_from_photographs():
    images = open_outliers("patches", "nowhere")
    assert len(images) == 456
    assert images[0][0].mode == "RGB"
    pixels = np.stack([np.asarray(images[index][0]) for index in range(0, 456, 5)])
    assert pixels.shape[1:] == (48, 48, 3)
    assert (pixels.std((1, 2, 3)) > 0).all()
    assert len(np.unique(pixels.mean((1, 2, 3)))) > 80


def test_folders_at_any_depth(tmp_path):
    write_digits(tmp_path / "a", train=2, test=1)
    Image.new("RGB", (20, 9)).save(tmp_path / "B.JPG")
    (tmp_path / "notes.txt").write_text("no image")
    images = open_outliers(f"folder:{tmp_path}", "nowhere")
    assert len(images) == 10
    assert images[0][0].size == (20, 9)
    assert images.paths == sorted(images.paths)


def test_data_sets_by_name():
    assert len(open_outliers("digits", "nowhere")) == 360


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("svnh", "unknown images 'svnh'; choose from textures, places365, patches, digits"),
        ("folder:none", "no such folder: none; folder:PATH takes all images below PATH"),
    ],
)
def test_mistakes(name, expected):
    with pytest.raises(UserError, match=expected):
        open_outliers(name, "nowhere")


def test_folders_without_images_or_with_damaged_ones(tmp_path):
    with pytest.raises(UserError, match="no images below"):
        open_outliers(f"folder:{tmp_path}", "nowhere")
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"cannot read image .*a\.png"):
        open_outliers(f"folder:{tmp_path}", "nowhere")[0]


def test_downloads_that_fail(tmp_path, monkeypatch):
    def broken(self, root, download=False, **options):
        raise RuntimeError("no connection" if download else "Dataset not found")

    for name, cls in (("textures", datasets.DTD), ("places365", datasets.Places365)):
        assert name in OUTLIERS
        monkeypatch.setattr(cls, "__init__", broken)
        with pytest.raises(UserError, match=f"cannot load {cls.__name__} in .*: no connection; .*--ood folder:PATH"):
            open_outliers(name, tmp_path / "data")


def test_textures_are_those_of_all_splits(tmp_path, monkeypatch):
    def three(self, root, split, download=False):
        self.images = [Image.new("RGB", (8, 8))] * {"train": 3, "val": 2, "test": 1}[split]

    monkeypatch.setattr(datasets.DTD, "__init__", three)
    monkeypatch.setattr(datasets.DTD, "__len__", lambda self: len(self.images))
    monkeypatch.setattr(datasets.DTD, "__getitem__", lambda self, index: (self.images[index], 0))
    images = open_outliers("textures", tmp_path)
    assert len(images) == 6
    assert images[5][0].size == (8, 8)
