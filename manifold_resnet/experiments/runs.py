"""Trained runs, ready to be measured: their networks, and their test images as pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.transforms import v2

from manifold_resnet._errors import UserError
from manifold_resnet.data import LabelledImages
from manifold_resnet.training import Config
from manifold_resnet.training.checkpoints import load_weights, open_run
from manifold_resnet.training.module import Classifier

__all__ = ["Normalised", "PixelImages", "Run", "evenly", "load_run", "load_runs", "short_name"]


class Normalised(nn.Module):
    """A network that takes pixels in [0, 1] and normalises them itself.

    Parameters
    ----------
    model : torch.nn.Module
        Takes normalised images ``(batch, C, H, W)``.
    mean, std : sequence of float
        Of each channel, in pixels between 0 and 1; the network sees ``(pixel - mean) / std``.

    Examples
    --------
    >>> import torch
    >>> network = Normalised(torch.nn.Flatten(), mean=[0.5], std=[0.25])
    >>> network(torch.tensor([[[[0.0, 1.0]]]]))
    tensor([[-2.,  2.]])
    """

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.model = model
        like = next(model.parameters(), torch.empty(0))
        for name, values in (("mean", mean), ("std", std)):
            shaped = torch.tensor(values, dtype=like.dtype, device=like.device).view(-1, 1, 1)
            self.register_buffer(name, shaped, persistent=False)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixels ``(batch, C, H, W)`` in [0, 1] as the network inside sees them, in its own dtype."""
        return (pixels.to(self.mean.dtype) - self.mean) / self.std

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels ``(batch, C, H, W)`` in [0, 1] to logits ``(batch, classes)``."""
        return self.model(self.normalise(pixels))


class PixelImages(Dataset):
    """Any images, brought to the size and colours that a network was trained on: pixels in [0, 1] and labels.

    Parameters
    ----------
    images : LabelledImages
        Of any sizes; larger sides are scaled to cover `size`, and the centre is cut out.
    channels : int
        1 (grey) or 3 (RGB).
    size : sequence of int
        Height and width in pixels.
    """

    def __init__(self, images: LabelledImages, channels: int, size: Sequence[int]):
        self.images, self.mode, self.size = images, "L" if channels == 1 else "RGB", list(size)
        self._to_pixels = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.images[index]
        image = image.convert(self.mode)
        ratio = max(self.size[0] / image.height, self.size[1] / image.width)
        if [image.height, image.width] != self.size:
            # no smaller than the size asked for, whatever the rounding; otherwise as training resizes
            scaled = [max(side, int(ratio * old)) for side, old in zip(self.size, image.size[::-1], strict=True)]
            image = v2.functional.to_image(image)
            image = v2.functional.center_crop(v2.functional.resize(image, scaled, antialias=True), self.size)
        return self._to_pixels(image), label


def evenly(length: int, limit: int | None) -> np.ndarray:
    """Indices of at most `limit` images, evenly over all: folders are sorted by class, so the first would be of one.

    Parameters
    ----------
    length : int
        Number of images there are.
    limit : int, optional
        Number of images wanted; all by default.

    Returns
    -------
    array of int
        Sorted indices, without repetition.

    Examples
    --------
    >>> evenly(10, 4).tolist()
    [0, 2, 5, 7]
    """
    if limit is None or limit >= length:
        return np.arange(length)
    return np.arange(limit) * length // limit


def short_name(dataset: str) -> str:
    """Name of a data set as tables and files show it: of a folder, its last part alone.

    Examples
    --------
    >>> short_name("folder:some/where/photos"), short_name("cifar10")
    ('folder:photos', 'cifar10')
    """
    return f"folder:{Path(dataset.removeprefix('folder:')).name}" if dataset.startswith("folder:") else dataset


@dataclass(frozen=True)
class Run:
    """A trained network and the test images it belongs to.

    Attributes
    ----------
    name : str
        The name of the run's folder, or a longer one where several runs would have the same.
    path : Path
        The checkpoint file.
    config : Config
        The settings it was trained with; data set and its folder are those it is measured on.
    model : torch.nn.Module
        Takes normalised images, returns logits; in evaluation mode, on `device`, its parameters without gradients.
    device : torch.device
        Where the network is.
    batch_size, workers : int
        Images at a time, and processes that load them.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from manifold_resnet.experiments import load_run
    >>> from manifold_resnet.training import Config, train
    >>> config = Config(model="hyperbolic-2-2-2-resnet-8", epochs=1, train_fraction=0.1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = load_run(train(config, Path(folder) / "run", progress=False))
    >>> run.kind, len(run.classes)
    ('hyperbolic', 10)
    >>> pixels, labels = next(iter(run.loader(limit=5)))
    >>> run.network(pixels).shape
    torch.Size([5, 10])
    """

    name: str
    path: Path
    config: Config
    model: nn.Module
    device: torch.device
    batch_size: int = 128
    workers: int = 0

    @property
    def classes(self) -> list[str]:
        """Class names in the order of the labels."""
        return list(self.config.images["classes"])

    @property
    def seed(self) -> int:
        """The seed it was trained with."""
        return self.config.seed

    @property
    def kind(self) -> str:
        """The first word of the model's name, such as hyperbolic or euclidean."""
        return self.config.model.partition("-")[0]

    @cached_property
    def digest(self) -> str:
        """What tells this checkpoint from others, wherever its file is: 16 hexadecimal digits."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()[:16]

    @cached_property
    def network(self) -> Normalised:
        """The network on pixels in [0, 1] instead of normalised images: ``(batch, C, H, W)`` to logits."""
        return Normalised(self.model, self.config.images["mean"], self.config.images["std"]).eval()

    @cached_property
    def test(self) -> Dataset:
        """The test images, prepared as in training but not normalised: pixels in [0, 1] and labels.

        Raises
        ------
        UserError
            If they are missing, unreadable, or not of the run's classes and size.
        """
        channels = self.config.images["channels"]
        identity = {"mean": [0.0] * channels, "std": [1.0] * channels}
        data = replace(self.config, images={**self.config.images, **identity}).open_data()
        data.setup("test")
        return data.test

    def view(self, images: LabelledImages) -> PixelImages:
        """Other images in the size and colours of this run's, as pixels in [0, 1]."""
        return PixelImages(images, self.config.images["channels"], self.config.images["size"])

    def loader(self, images: Dataset | None = None, limit: int | None = None) -> DataLoader:
        """Batches of pixels ``(batch, C, H, W)`` in [0, 1] and labels ``(batch,)``, in a fixed order, on the CPU.

        Parameters
        ----------
        images : Dataset, optional
            Of pixels and labels, such as `view` gives; by default the test images.
        limit : int, optional
            At most so many of them, spread `evenly` over all.
        """
        images = self.test if images is None else images
        chosen = Subset(images, evenly(len(images), limit))
        return DataLoader(chosen, batch_size=self.batch_size, num_workers=self.workers)


def load_run(
    run: str | Path,
    *,
    checkpoint: str = "best",
    dataset: str | None = None,
    data_dir: str | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    device: str | None = None,
) -> Run:
    """Load a trained network for measurements; its test images are opened when they are asked for.

    Parameters
    ----------
    run : str or Path
        A run's folder, wherever it is now, or a checkpoint file.
    checkpoint : {"best", "last"}
        Which of a folder's checkpoints; a run without validation images has only the last one.
    dataset, data_dir, device : str, optional
        Instead of the run's own; another data set must have the same classes.
    batch_size, workers : int, optional
        Images at a time (default: 128), and processes that load them (default: 0).

    Returns
    -------
    Run
        Network, settings and test images.

    Raises
    ------
    UserError
        If the run is missing, damaged or not this version's, or a setting is out of range.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from manifold_resnet.experiments import load_run
    >>> from manifold_resnet.training import Config, train
    >>> config = Config(model="hyperbolic-2-2-2-resnet-8", epochs=1, train_fraction=0.1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = load_run(train(config, Path(folder) / "mine", progress=False))
    >>> run.name, run.seed
    ('mine', 0)
    """
    path, stored = open_run(run, checkpoint)
    trained = Config.from_dict(stored["hyper_parameters"]["config"], str(path))
    changes = {"dataset": dataset, "data_dir": data_dir}
    config = replace(trained, **{key: value for key, value in changes.items() if value is not None}).resolved()
    given = {"batch_size": batch_size, "workers": workers, "device": device}
    use = replace(
        config, **{"batch_size": 128, "workers": 0} | {key: value for key, value in given.items() if value is not None}
    )  # checks the values
    where = torch.device("cuda" if use.accelerator() == "gpu" else "cpu")
    classifier = Classifier(config.to_dict())
    load_weights(classifier, stored, path)
    model = classifier.model.eval().requires_grad_(False).to(where)
    return Run(_folder(path).name, path.absolute(), config, model, where, use.batch_size, use.workers)


def load_runs(runs: Sequence[str | Path], **options: str | int | None) -> list[Run]:
    """Load runs that are to be compared.

    Parameters
    ----------
    runs : sequence of str or Path
        Folders or checkpoint files.
    **options
        See `load_run`.

    Returns
    -------
    list of Run
        With names that tell them apart, and the test images of each open.

    Raises
    ------
    UserError
        If one can't be loaded, is given twice, or was trained on other classes than the first.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from manifold_resnet.experiments import load_runs
    >>> from manifold_resnet.training import Config, train
    >>> config = Config(model="hyperbolic-2-2-2-resnet-8", epochs=1, train_fraction=0.1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     first = train(config, Path(folder) / "first", progress=False)
    ...     second = train(config, Path(folder) / "second", progress=False)
    ...     runs = load_runs([first, second])
    >>> [run.name for run in runs]
    ['first', 'second']
    """
    if not runs:
        raise UserError("no run given; name the folder of one or more, as `manifold-resnet train` prints it")
    loaded = [load_run(run, **options) for run in runs]
    paths = [run.path.resolve() for run in loaded]
    for index, path in enumerate(paths):
        if path in paths[:index]:
            raise UserError(f"the run {runs[index]} is given twice; name each once")
    first = loaded[0]
    for run in loaded[1:]:
        if run.classes != first.classes:
            raise UserError(
                f"{run.name} knows {len(run.classes)} classes ({', '.join(run.classes[:3])}, ...) and {first.name} "
                f"{len(first.classes)} ({', '.join(first.classes[:3])}, ...); compare runs of the same data set"
            )
    loaded = [replace(run, name=name) for run, name in zip(loaded, _names(loaded), strict=True)]
    for run in loaded:
        _ = run.test
    return loaded


def _folder(path: Path) -> Path:
    """The folder of the run a checkpoint belongs to; a checkpoint that lies elsewhere stands for itself."""
    path = path.absolute()
    return path.parent.parent if path.parent.name == "checkpoints" else path.with_suffix("")


def _names(runs: Sequence[Run]) -> list[str]:
    """The shortest names that tell runs apart: of folders, with the folders' parents, with the checkpoints."""
    short = [run.name for run in runs]
    parents = [f"{_folder(run.path).parent.name}/{run.name}" for run in runs]
    files = [f"{name}/{run.path.stem}" for name, run in zip(short, runs, strict=True)]
    for names in (short, parents, files):
        if len(set(names)) == len(names):
            return names
    return [str(run.path) for run in runs]
