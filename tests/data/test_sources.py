import functools

import pytest
from image_folders import CLASSES, write_digits
from PIL import Image

from manifold_resnet._errors import UserError
from manifold_resnet.data import DATASETS, open_split, recipe_for
from manifold_resnet.data.sources import _torchvision


def test_digits_are_split_by_class():
    train, test = (open_split("digits", split, "") for split in ("train", "test"))
    assert open_split("digits", "val", "") is None
    assert len(train) + len(test) == 1797
    assert (sorted(test.targets.tolist()).count(0), len(test)) == (36, 360)
    image, label = train[0]
    assert (image.mode, image.size, label) == ("L", (8, 8), int(train.targets[0]))


@pytest.mark.parametrize("name", ["cifar", "folder", "folder:", ""])
def test_unknown_names(name):
    with pytest.raises(UserError, match="choose from digits, .*folder:PATH"):
        recipe_for(name)


def test_a_near_miss_gets_a_hint():
    with pytest.raises(UserError, match="did you mean fashionmnist"):
        recipe_for("fashion-mnist")


def test_unknown_split():
    with pytest.raises(ValueError, match="train, val, test"):
        open_split("digits", "training", "")


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "digits"])
def test_failed_download(monkeypatch, tmp_path, name):
    loader, recipe = DATASETS[name]

    def fail(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(loader.args[0], "__init__", fail)
    with pytest.raises(UserError, match=r"no route to host.*--data-dir"):
        open_split(name, "train", tmp_path)


@pytest.mark.parametrize("labels", ["targets", "labels"])
@pytest.mark.parametrize("by_name", [False, True])
def test_both_habits_of_torchvision(tmp_path, labels, by_name):
    asked = []

    class Images:
        def __init__(self, root, download, **which):
            asked.append(which)
            setattr(self, labels, [1, 0, 2])

        def __getitem__(self, index):
            return Image.new("RGB", (8, 8), (index, 0, 0)), getattr(self, labels)[index]

    load = functools.partial(_torchvision, Images, by_name)
    images = load("train", tmp_path)
    assert asked == [{"split": "train"} if by_name else {"train": True}]
    assert images.classes == ["0", "1", "2"]
    image, label = images[2]
    assert (image.getpixel((0, 0))[0], label) == (2, 2)
    assert load("val", tmp_path) is None


def test_folder_labels_follow_the_training_classes(tmp_path):
    root = write_digits(tmp_path)
    (root / "train" / ".ipynb_checkpoints").mkdir()
    for file in (root / "test" / "0").iterdir():
        file.unlink()
    (root / "test" / "0").rmdir()
    test = open_split(f"folder:{root}", "test", "", CLASSES)
    assert set(test.targets) == {1, 2}
    assert open_split(f"folder:{root}", "train", "").classes == list(CLASSES)


def test_missing_folder(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        open_split(f"folder:{tmp_path / 'none'}", "train", "")


@pytest.mark.parametrize(("split", "wanted"), [("train", "train/"), ("test", "test/ or val/")])
def test_missing_split(tmp_path, split, wanted):
    other = {"train": "test", "test": "train"}[split]
    root = write_digits(tmp_path, **{split: 0, other: 2})
    with pytest.raises(UserError, match=f"has no {wanted}"):
        open_split(f"folder:{root}", split, "")


def test_class_the_training_lacks(tmp_path):
    root = write_digits(tmp_path, train=1)
    (root / "test" / "7").mkdir()
    with pytest.raises(UserError, match="training set lacks: 7"):
        open_split(f"folder:{root}", "test", "", CLASSES)


def test_empty_class(tmp_path):
    root = write_digits(tmp_path, train=1)
    (root / "train" / "empty").mkdir()
    with pytest.raises(UserError, match="no images in .*empty"):
        open_split(f"folder:{root}", "train", "")


def test_images_without_classes(tmp_path):
    (tmp_path / "train").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "train" / "a.png")
    with pytest.raises(UserError, match="one folder of images per class"):
        open_split(f"folder:{tmp_path}", "train", "")


@pytest.mark.parametrize("kind", ["text", "truncated", "16 bits"])
def test_unreadable_image(tmp_path, kind):
    root = write_digits(tmp_path, train=2)
    file = root / "train" / "1" / "0.png"
    if kind == "text":
        file.write_text("not an image")
    elif kind == "truncated":
        file.write_bytes(file.read_bytes()[:60])
    else:
        Image.new("I;16", (8, 8)).save(file)
    images = open_split(f"folder:{root}", "train", "")
    index = images.paths.index(str(file))
    with pytest.raises(UserError, match="1/0.png"):
        images[index]
