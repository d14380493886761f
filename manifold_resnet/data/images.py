"""Batches of images: splits, augmentation, and an order that depends on nothing but seed and epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import lightning
import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler
from torchvision.transforms import v2

from manifold_resnet._errors import UserError
from manifold_resnet.data.sources import GRAY_MODES, LabelledImages, open_image, open_split, recipe_for

__all__ = ["ImageData", "ImageFacts", "balanced_share"]

_MIN_SIZE = 8  # what the networks take
_STATISTICS_FROM = 2000  # images; their pixels pin mean and std to three digits


@dataclass(frozen=True)
class ImageFacts:
    """What a network has to know about the images it was trained on.

    Attributes
    ----------
    classes : list of str
        Class names in the order of the labels.
    channels : int
        1 (grey) or 3 (RGB).
    size : list of int
        Height and width in pixels.
    mean, std : list of float
        Of each channel of the training images, pixels in [0, 1]; the network's input is (pixel - mean) / std.

    Examples
    --------
    >>> from manifold_resnet.data import ImageData
    >>> data = ImageData("digits")
    >>> data.setup("fit")
    >>> data.facts.size, data.facts.channels, len(data.facts.classes)
    ([8, 8], 1, 10)
    """

    classes: list[str]
    channels: int
    size: list[int]
    mean: list[float]
    std: list[float]


def balanced_share(targets: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Choose the same share of every class at random.

    Parameters
    ----------
    targets : array of int, shape [N]
        Class of each image.
    share : float
        Between 0 and 1; at least one image of each class is taken.
    seed : int
        The choice depends on it alone.

    Returns
    -------
    array of int
        Sorted indices.
    """
    rng = np.random.default_rng(seed)
    chosen = []
    for label in np.unique(targets):
        members = np.flatnonzero(targets == label)
        chosen.append(rng.permutation(members)[: max(1, round(share * len(members)))])
    return np.sort(np.concatenate(chosen))


class ImageData(lightning.LightningDataModule):
    """Training, validation and test batches of a data set.

    Two trainings with one seed see the same images in the same order with the same augmentation, whatever the
    number of workers, and also when one of them was stopped and resumed between two epochs. Several processes, that is
    a Trainer with several devices or nodes, share each batch, and each image of the other splits goes to one of them.

    Parameters
    ----------
    dataset : str
        A name in ``DATASETS`` or ``folder:PATH``.
    data_dir : str
        Where downloaded data sets are kept.
    batch_size : int
        Images per batch, over all processes.
    image_size : int, optional
        Resize the shorter side to this many pixels and cut the centre square; by default images stay as they
        are, and must then all have one size.
    augment : {"crop-flip", "crop", "none"}, optional
        Of training images: shift by up to an eighth of the size, mirror. By default what suits the data set.
    train_fraction : float
        Share of each class of the training set to use.
    val_fraction : float
        Share of that to keep apart for validation; of no effect where the data set comes with validation
        images.
    seed : int
        Seed of splits, order and augmentation.
    workers : int
        Processes that load images; 0 loads them in this one.
    facts : ImageFacts, optional
        Of the training images of an earlier run; by default they are taken from the data.

    Examples
    --------
    >>> from manifold_resnet.data import ImageData
    >>> data = ImageData("digits", batch_size=32)
    >>> data.setup("fit")
    >>> images, labels = next(iter(data.train_dataloader()))
    >>> images.shape, labels.shape
    (torch.Size([32, 1, 8, 8]), torch.Size([32]))
    """

    def __init__(
        self,
        dataset: str,
        data_dir: str = "data",
        *,
        batch_size: int = 128,
        image_size: int | None = None,
        augment: str | None = None,
        train_fraction: float = 1.0,
        val_fraction: float = 0.1,
        seed: int = 0,
        workers: int = 0,
        facts: ImageFacts | None = None,
    ):
        super().__init__()
        self.dataset, self.data_dir = dataset, data_dir
        self.batch_size, self.workers, self.seed = batch_size, workers, seed
        self.image_size = image_size
        self.augment = recipe_for(dataset).augment if augment is None else augment
        self.train_fraction, self.val_fraction = train_fraction, val_fraction
        self.facts = facts
        self.train: Views | None = None
        self.val: Views | None = None
        self.test: Views | None = None

    def setup(self, stage: str | None = None) -> None:
        """Open the splits a stage needs; ``None`` opens all. What is open already is left as it is.

        Parameters
        ----------
        stage : {"fit", "validate", "test"}, optional
            Lightning's name of what comes next.

        Raises
        ------
        UserError
            If images are missing, unreadable, too small or of different sizes.
        """
        if stage != "test" and self.train is None:
            self._setup_fit()
        if stage in (None, "test") and self.test is None:
            if self.facts is None:
                self._setup_fit()
            images = self._open("test")
            self.test = self._views(images, np.arange(len(images)))

    def _setup_fit(self) -> None:
        images = self._open("train")
        chosen = np.arange(len(images))
        if self.train_fraction < 1:
            chosen = balanced_share(images.targets, self.train_fraction, self.seed)
        val = self._open("val", images.classes)
        if val is not None:
            val_chosen = np.arange(len(val))
        elif self.val_fraction > 0:
            val, val_chosen = (
                images,
                chosen[balanced_share(images.targets[chosen], self.val_fraction, self.seed)],
            )
            chosen = np.setdiff1d(chosen, val_chosen)
        if set(images.targets[chosen]) != set(range(len(images.classes))):
            raise UserError(
                f"too few training images: {len(chosen)} are left for {len(images.classes)} classes, and "
                "some have none; raise --train-fraction or lower --val-fraction"
            )
        if self.facts is None:
            self.facts = self._find_facts(images, chosen)
        self.train = self._views(images, chosen, self.augment)
        if val is not None:
            self.val = self._views(val, val_chosen)

    def _open(self, split: str, classes: Sequence[str] | None = None) -> LabelledImages | None:
        if classes is None and self.facts is not None:
            classes = self.facts.classes
        images = open_split(self.dataset, split, self.data_dir, classes)
        if images is None:
            return None
        if classes is not None and images.classes != list(classes):
            raise UserError(
                f"{self.dataset} has {len(images.classes)} classes ({', '.join(images.classes[:3])}, ...), "
                f"but the network was trained on {len(classes)} ({', '.join(classes[:3])}, ...)"
            )
        known = None if self.facts is None else tuple(self.facts.size)
        if images.paths is not None and self.image_size is None:
            _one_size(images.paths, known)
        return images

    def _find_facts(self, images: LabelledImages, chosen: np.ndarray) -> ImageFacts:
        mode = "L" if _all_gray(images) else "RGB"
        to_pixels = v2.Compose([*self._to_size(), v2.ToDtype(torch.float64, scale=True)])
        step = max(1, len(chosen) // _STATISTICS_FROM)
        moments = []
        for index in chosen[::step]:
            pixels = to_pixels(images[int(index)][0].convert(mode))  # [C, H, W] in [0, 1]
            moments.append(torch.stack([pixels.mean((1, 2)), pixels.square().mean((1, 2))]))
        height, width = pixels.shape[1:]
        if min(height, width) < _MIN_SIZE:
            raise UserError(
                f"images of {height}x{width} pixels are too small, at least {_MIN_SIZE}x{_MIN_SIZE} are "
                f"needed; enlarge them with --image-size {_MIN_SIZE} or more"
            )
        mean, square = torch.stack(moments).mean(0)
        std = (square - mean.square()).clamp_min(0).sqrt().clamp_min(1 / 255)  # a constant channel stays finite
        return ImageFacts(
            classes=images.classes,
            channels=len(mean),
            size=[height, width],
            mean=[round(value, 4) for value in mean.tolist()],
            std=[round(value, 4) for value in std.tolist()],
        )

    def _to_size(self) -> list[Any]:
        steps: list[Any] = [v2.ToImage()]
        if self.image_size is not None:
            steps += [v2.Resize(self.image_size, antialias=True), v2.CenterCrop(self.image_size)]
        return steps

    def _views(self, images: LabelledImages, chosen: np.ndarray, augment: str = "none") -> Views:
        facts = self.facts
        steps = self._to_size()
        if augment != "none":
            # a border in the mean colour is zero after normalising: the origin, as the convolutions pad; the
            # background of grey images (digits, clothes) is black
            fill = 0 if facts.channels == 1 else [round(255 * value) for value in facts.mean]
            steps.append(v2.RandomCrop(facts.size, padding=[side // 8 for side in reversed(facts.size)], fill=fill))
        if augment == "crop-flip":
            steps.append(v2.RandomHorizontalFlip())
        steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(facts.mean, facts.std)]
        return Views(images, chosen, "L" if facts.channels == 1 else "RGB", v2.Compose(steps), self.seed)

    def _loader(self, views: Views, **options: Any) -> DataLoader:
        return DataLoader(
            views,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
            **options,
        )

    def _share(self) -> tuple[int, int]:
        """Number of this process, and how many there are."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def train_dataloader(self) -> DataLoader:
        """Shuffled, augmented batches ``(images [B, C, H, W], labels [B])``, all of the full size."""
        # a last batch of one or two images would make a poor batch norm
        enough = len(self.train) >= self.batch_size
        order = EpochShuffle(len(self.train), self.seed)
        return self._loader(self.train, batch_sampler=SharedBatches(order, self.batch_size, enough, *self._share()))

    def _in_order(self, views: Views, what: str) -> DataLoader:
        rank, processes = self._share()
        count = len(views)
        if count < processes:
            raise UserError(f"{count} {what} images can't be shared among {processes} processes; use fewer --devices")
        own = range(count * rank // processes, count * (rank + 1) // processes)
        return self._loader(views, sampler=own, batch_size=-(-self.batch_size // processes))

    def val_dataloader(self) -> DataLoader | list:
        """Validation batches in a fixed order; an empty list if there are no validation images."""
        return [] if self.val is None else self._in_order(self.val, "validation")

    def test_dataloader(self) -> DataLoader:
        """Test batches in a fixed order."""
        return self._in_order(self.test, "test")


class EpochShuffle(Sampler):
    """A new order in each epoch, from ``(seed, epoch)`` alone; yields pairs ``(epoch, index)``."""

    def __init__(self, length: int, seed: int):
        self.length, self.seed, self.epoch = length, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning says here which epoch begins."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.length)
        return ((self.epoch, int(index)) for index in order)


class SharedBatches(BatchSampler):
    """Batches of which this process gets its share: a part of each, sizes as equal as possible."""

    def __init__(self, sampler: Sampler, batch_size: int, drop_last: bool, rank: int = 0, processes: int = 1):
        super().__init__(sampler, batch_size, drop_last)
        self.rank, self.processes = rank, processes
        smallest = min(batch_size, len(sampler))
        if smallest < processes:
            raise UserError(
                f"batches of {smallest} training images can't be shared among {processes} processes; use fewer "
                "--devices"
            )

    def __iter__(self) -> Iterator[list[Any]]:
        for batch in super().__iter__():
            yield batch[len(batch) * self.rank // self.processes : len(batch) * (self.rank + 1) // self.processes]


class Views(Dataset):
    """Chosen images as the network sees them; random changes depend on seed, epoch and index alone."""

    def __init__(self, images: LabelledImages, chosen: np.ndarray, mode: str, transform: v2.Transform, seed: int):
        self.images, self.chosen, self.mode, self.transform, self.seed = images, chosen, mode, transform, seed

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[torch.Tensor, int]:
        if not isinstance(key, tuple):
            return self._view(key)
        state = torch.random.get_rng_state()
        try:
            words = np.random.SeedSequence((self.seed, *key)).generate_state(1, np.uint64)
            torch.random.default_generator.manual_seed(int(words[0]))
            return self._view(key[1])
        finally:
            torch.random.set_rng_state(state)

    def _view(self, index: int) -> tuple[torch.Tensor, int]:
        image, label = self.images[int(self.chosen[index])]
        return self.transform(image.convert(self.mode)), label


def _all_gray(images: LabelledImages) -> bool:
    if images.paths is None:
        return images[0][0].mode in GRAY_MODES
    for path in images.paths:
        with open_image(path) as image:
            if image.mode not in GRAY_MODES:
                return False
    return True


def _one_size(paths: Sequence[str], expected: tuple[int, int] | None) -> None:
    for path in paths:
        with open_image(path) as image:
            width, height = image.size
        if expected is None:
            expected = (height, width)
        if (height, width) != expected:
            raise UserError(
                f"{path} has {height}x{width} pixels, others have {expected[0]}x{expected[1]}; "
                "bring them to one size with --image-size"
            )
