"""Data sets by name: where their images and labels come from, and how they are usually trained."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset
from torchvision import datasets

from manifold_resnet._errors import UserError

__all__ = ["DATASETS", "LabelledImages", "Recipe", "open_split", "recipe_for"]

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Recipe:
    """What training does with a data set unless told otherwise.

    Attributes
    ----------
    epochs, batch_size, lr, weight_decay :
        Length of the training, images per step, peak learning rate, weight decay.
    augment : {"crop-flip", "crop", "none"}
        Random changes of a training image; flips are for scenes that mean the same in a mirror.
    c : float, optional
        The ball has curvature ``-c``; None leaves it to the model.

    Examples
    --------
    >>> from manifold_resnet.data import Recipe
    >>> Recipe(epochs=20).batch_size
    64
    """

    epochs: int = 100
    batch_size: int = 64
    lr: float = 1e-2
    weight_decay: float = 1e-4
    augment: str = "crop-flip"
    c: float | None = None


class LabelledImages(Dataset):
    """Images that open when asked for, with labels known beforehand.

    Parameters
    ----------
    open_image : callable
        Index to ``PIL.Image``, in mode L or RGB.
    targets : sequence of int
        Class of each image.
    classes : sequence of str
        Name of each class.
    paths : sequence of str, optional
        File of each image, where there are files.

    Examples
    --------
    >>> from PIL import Image
    >>> from manifold_resnet.data import LabelledImages
    >>> grey = lambda i: Image.new("L", (8, 8), 100 * i)
    >>> images = LabelledImages(grey, targets=[0, 1], classes=["dark", "bright"])
    >>> image, label = images[1]
    >>> image.getpixel((0, 0)), images.classes[label]
    (100, 'bright')
    """

    def __init__(
        self,
        open_image: Callable[[int], Image.Image],
        targets: Sequence[int],
        classes: Sequence[str],
        paths: Sequence[str] | None = None,
    ):
        self.open_image = open_image
        self.targets = np.asarray(targets, dtype=np.int64)
        self.classes = [str(name) for name in classes]
        self.paths = paths

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.open_image(index), int(self.targets[index])


def _digits(split: str, data_dir: Path) -> LabelledImages | None:
    """Scikit-learn's 1,797 handwritten digits, 8x8; every class's share of 20 % is the test set."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    if split == "val":
        return None
    images, targets = load_digits(return_X_y=True)
    pixels = np.round(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    train, test = train_test_split(np.arange(len(targets)), test_size=0.2, stratify=targets, random_state=0)
    chosen = train if split == "train" else test
    return LabelledImages(_ArrayImages(pixels[chosen]), targets[chosen], [str(digit) for digit in range(10)])


@dataclass
class _ArrayImages:
    pixels: np.ndarray  # [N, H, W] or [N, H, W, 3], uint8

    def __call__(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index])


@dataclass
class _TorchvisionImages:
    base: Dataset

    def __call__(self, index: int) -> Image.Image:
        return self.base[index][0]


def _torchvision(cls: type, by_name: bool, split: str, data_dir: Path) -> LabelledImages | None:
    if split == "val":
        return None
    which = {"split": split} if by_name else {"train": split == "train"}
    try:
        base: Any = cls(str(data_dir), download=True, **which)
    except Exception as error:  # torchvision raises whatever its download, its unpickling or the disk raise
        raise UserError(
            f"cannot load {cls.__name__} in {data_dir}: {error}; check the connection, or remove what is "
            "there to download it again, or name a folder that has it with --data-dir"
        ) from error
    targets = base.targets if hasattr(base, "targets") else base.labels
    classes = getattr(base, "classes", None) or [str(label) for label in range(int(max(targets)) + 1)]
    return LabelledImages(_TorchvisionImages(base), targets, classes)


_Loader = Callable[[str, Path], LabelledImages | None]

DATASETS: dict[str, tuple[_Loader, Recipe]] = {
    "digits": (_digits, Recipe(epochs=16, batch_size=32, augment="crop", c=0.1)),
    "cifar10": (partial(_torchvision, datasets.CIFAR10, False), Recipe()),
    "cifar100": (partial(_torchvision, datasets.CIFAR100, False), Recipe()),
    "svhn": (partial(_torchvision, datasets.SVHN, True), Recipe(epochs=50, augment="crop")),
    "stl10": (partial(_torchvision, datasets.STL10, True), Recipe()),
    "mnist": (partial(_torchvision, datasets.MNIST, False), Recipe(epochs=20, augment="crop")),
    "kmnist": (partial(_torchvision, datasets.KMNIST, False), Recipe(epochs=20, augment="crop")),
    "fashionmnist": (partial(_torchvision, datasets.FashionMNIST, False), Recipe(epochs=50)),
}

_FOLDER = "folder:"


def recipe_for(name: str) -> Recipe:
    """How the data set ``name`` is trained unless told otherwise.

    Raises
    ------
    UserError
        If there is no such data set.

    Examples
    --------
    >>> from manifold_resnet.data import recipe_for
    >>> recipe_for("digits").epochs
    16
    """
    if name.startswith(_FOLDER) and name != _FOLDER:
        return Recipe()
    if name in DATASETS:
        return DATASETS[name][1]
    close = difflib.get_close_matches(name, DATASETS, n=1)
    guess = f" (did you mean {close[0]}?)" if close else ""
    raise UserError(f"unknown data set {name!r}{guess}; choose from {', '.join(DATASETS)}, folder:PATH")


def open_split(
    name: str, split: str, data_dir: str | Path, classes: Sequence[str] | None = None
) -> LabelledImages | None:
    """One split of a data set.

    Parameters
    ----------
    name : str
        A key of ``DATASETS`` or ``folder:PATH``, a folder with ``train/`` and ``test/`` or ``val/``, each
        with one folder of images per class.
    split : {"train", "val", "test"}
        A folder's ``val/`` is the test set where there is no ``test/``.
    data_dir : str or Path
        Where torchvision's data sets are kept, and downloaded to on first use.
    classes : sequence of str, optional
        For folders: the class names in the order of the labels; by default the sorted names of the folders.

    Returns
    -------
    LabelledImages or None
        ``None`` if the data set has no validation split of its own.

    Raises
    ------
    UserError
        If the name is unknown, or the images can't be found, downloaded or read.

    Examples
    --------
    >>> from manifold_resnet.data import open_split
    >>> test = open_split("digits", "test", "data")
    >>> len(test), test[0][0].size
    (360, (8, 8))
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    recipe_for(name)
    if name.startswith(_FOLDER):
        return _folder(Path(name.removeprefix(_FOLDER)).expanduser(), split, classes)
    return DATASETS[name][0](split, Path(data_dir).expanduser())


def _folder(root: Path, split: str, classes: Sequence[str] | None) -> LabelledImages | None:
    if not root.is_dir():
        raise UserError(f"no such folder: {root}; --dataset folder:PATH needs PATH/train and PATH/test")
    directory = root / split
    if split == "val" and not (root / "test").is_dir():
        return None  # val/ serves as the test set
    if split == "test" and not directory.is_dir():
        directory = root / "val"
    if not directory.is_dir():
        if split == "val":
            return None
        wanted = "test/ or val/" if split == "test" else f"{split}/"
        raise UserError(f"{root} has no {wanted} folder; put images there, one folder per class")
    try:
        found = _ClassFolders(str(directory), classes)
    except (FileNotFoundError, PermissionError) as error:
        raise UserError(f"cannot read the images in {directory}: {error}") from error
    present = np.bincount(found.targets, minlength=len(found.classes))
    if split == "train" or not len(found):
        empty = [name for name, count in zip(found.classes, present, strict=True) if not count]
        if empty:
            raise UserError(f"no images in {directory / empty[0]}; add some, or remove the folder")
    return LabelledImages(
        _FileImages([path for path, _ in found.samples]),
        found.targets,
        found.classes,
        paths=[path for path, _ in found.samples],
    )


class _ClassFolders(datasets.ImageFolder):
    """An ImageFolder whose labels follow the classes of the training set, whatever folders a split has."""

    def __init__(self, root: str, classes: Sequence[str] | None):
        self._expected = None if classes is None else list(classes)
        super().__init__(root, allow_empty=True)

    def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
        here = sorted(entry.name for entry in Path(directory).iterdir() if entry.is_dir() and entry.name[0] != ".")
        if not here:
            raise UserError(f"{directory} has no folders; it needs one folder of images per class")
        names = here if self._expected is None else self._expected
        unknown = sorted(set(here) - set(names))
        if unknown:
            raise UserError(f"{directory} has a class the training set lacks: {unknown[0]}")
        return names, {name: label for label, name in enumerate(names)}


@dataclass
class _FileImages:
    paths: list[str]

    def __call__(self, index: int) -> Image.Image:
        with open_image(self.paths[index]) as image:
            gray = image.mode in GRAY_MODES
            try:
                return image.convert("L" if gray else "RGB")
            except (OSError, SyntaxError, ValueError) as error:
                raise unreadable(self.paths[index], error) from error


GRAY_MODES = ("1", "L", "LA")


def open_image(path: str) -> Image.Image:
    """Open an image file, its header only; the pixels follow when they are used.

    Raises
    ------
    UserError
        If it is no image, or its pixels have more than 8 bits.
    """
    try:
        image = Image.open(path)
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise unreadable(path, error) from error
    if image.mode[0] in "IF":
        image.close()
        raise UserError(f"{path} has more than 8 bits per pixel (mode {image.mode}); convert it to 8 bits")
    return image


def unreadable(path: str, error: Exception) -> UserError:
    """Error for an image file that is damaged or none at all."""
    return UserError(f"cannot read image {path}: {error}; repair or remove it")
