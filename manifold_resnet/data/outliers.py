"""Images that a network was not trained to know, by name: for out-of-distribution detection."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import ConcatDataset
from torchvision import datasets
from torchvision.datasets.folder import IMG_EXTENSIONS

from manifold_resnet._errors import UserError
from manifold_resnet.data.sources import DATASETS, LabelledImages, open_image, open_split, unreadable

__all__ = ["OUTLIERS", "open_outliers"]

_PATCH, _STRIDE = 48, 32  # pixels


def _images(open_one: Callable[[int], Image.Image], count: int, paths: list[str] | None = None) -> LabelledImages:
    return LabelledImages(open_one, np.zeros(count, dtype=np.int64), ["outlier"], paths)


def _patches(data_dir: Path) -> LabelledImages:
    """Overlapping squares of the two photographs that come with scikit-learn."""
    from sklearn.datasets import load_sample_images

    squares = [
        photo[top : top + _PATCH, left : left + _PATCH]
        for photo in load_sample_images().images
        for top in range(0, photo.shape[0] - _PATCH + 1, _STRIDE)
        for left in range(0, photo.shape[1] - _PATCH + 1, _STRIDE)
    ]
    return _images(lambda index: Image.fromarray(squares[index]), len(squares))


def _textures(data_dir: Path) -> LabelledImages:
    parts = [_download(datasets.DTD, data_dir, split=split) for split in ("train", "val", "test")]
    return _of(ConcatDataset(parts))


def _places365(data_dir: Path) -> LabelledImages:
    return _of(_download(datasets.Places365, data_dir, split="val", small=True))


def _of(base: Any) -> LabelledImages:
    return _images(lambda index: base[index][0], len(base))


def _download(cls: type, data_dir: Path, **options: Any) -> Any:
    """Open torchvision's data set; fetch it only where it is not there, since some refuse to fetch twice."""
    try:
        return cls(str(data_dir), **options)
    except (RuntimeError, OSError):
        pass
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        return cls(str(data_dir), download=True, **options)
    except Exception as error:  # torchvision raises whatever its download, its unpacking or the disk raise
        raise UserError(
            f"cannot load {cls.__name__} in {data_dir}: {error}; check the connection, or name a folder that has it "
            "with --data-dir, or use any folder of images: --ood folder:PATH"
        ) from error


#: Names of outliers that are no data sets to train on.
OUTLIERS: dict[str, Callable[[Path], LabelledImages]] = {
    "textures": _textures,
    "places365": _places365,
    "patches": _patches,
}


def open_outliers(name: str, data_dir: str | Path) -> LabelledImages:
    """Images to tell from those a network was trained on.

    Parameters
    ----------
    name : str
        ``"patches"`` (squares of 48 x 48 from the two photographs that come with scikit-learn, no download),
        ``"textures"`` (all of DTD, downloaded on first use: 600 MB), ``"places365"`` (its validation images, 500 MB),
        a key of ``DATASETS`` (its test images), or ``folder:PATH`` (all images below a folder).
    data_dir : str or Path
        Where downloaded data sets are kept.

    Returns
    -------
    LabelledImages
        In a fixed order; the labels mean nothing.

    Raises
    ------
    UserError
        If the name is unknown, or the images can't be found, downloaded or read.

    Examples
    --------
    >>> from manifold_resnet.data import open_outliers
    >>> images = open_outliers("patches", "data")
    >>> len(images), images[0][0].size
    (456, (48, 48))
    """
    if name.startswith("folder:"):
        return _folder(Path(name.removeprefix("folder:")).expanduser())
    if name in OUTLIERS:
        return OUTLIERS[name](Path(data_dir).expanduser())
    if name in DATASETS:
        return open_split(name, "test", data_dir)
    raise UserError(
        f"unknown images {name!r}; choose from {', '.join([*OUTLIERS, *DATASETS])}, or folder:PATH for all images "
        "below a folder"
    )


def _folder(root: Path) -> LabelledImages:
    if not root.is_dir():
        raise UserError(f"no such folder: {root}; folder:PATH takes all images below PATH")
    paths = sorted(str(path) for path in root.rglob("*") if path.suffix.lower() in IMG_EXTENSIONS and path.is_file())
    if not paths:
        raise UserError(f"no images below {root}; their names must end in one of {', '.join(IMG_EXTENSIONS)}")

    def open_one(index: int) -> Image.Image:
        with open_image(paths[index]) as image:
            try:
                return image.convert("RGB")
            except (OSError, SyntaxError, ValueError) as error:
                raise unreadable(paths[index], error) from error

    return _images(open_one, len(paths), paths)
