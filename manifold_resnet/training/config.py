"""Every setting of a training, once: for the command line, for YAML files and for Python."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from manifold_resnet._errors import UserError
from manifold_resnet.data import ImageData, ImageFacts, recipe_for

__all__ = ["Config"]


def _number(kind: type, rule: str, holds: Callable[[Any], bool]) -> Callable[[Any], Any]:
    def convert(value: Any) -> Any:
        try:
            number = float(value)
            if isinstance(value, bool) or not math.isfinite(number) or not holds(number) or kind(number) != number:
                raise ValueError
        except (TypeError, ValueError):
            raise ValueError(f"must be {rule}") from None
        return kind(number)

    return convert


def _one_of(*names: str) -> Callable[[Any], str]:
    def convert(value: Any) -> str:
        if str(value) not in names:
            raise ValueError(f"must be one of {', '.join(names)}")
        return str(value)

    return convert


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("must be a name")
    return value


def _recorded(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a run, with those filled in that runs did not record while there was no choice."""
    kind = str(values.get("model", "hyperbolic")).partition("-")[0]
    if values.get("images") is None or kind == "euclidean":
        return dict(values)
    missing = {"c": 0.1, "bias": True} if kind == "hyperbolic" else {"c": 0.1}
    return {**values, **{name: value for name, value in missing.items() if values.get(name) is None}}


_above_zero = _number(float, "a number above 0", lambda value: value > 0)
_count = _number(int, "a whole number, 1 or more", lambda value: value >= 1)
_natural = _number(int, "a whole number, 0 or more", lambda value: value >= 0)


def _option(default: Any, group: str, convert: Callable[[Any], Any], metavar: str, text: str) -> Any:
    return field(default=default, metadata={"group": group, "convert": convert, "metavar": metavar, "help": text})


@dataclass(frozen=True)
class Config:
    """The settings of a training; ``--help`` of ``manifold-resnet train`` describes each.

    ``None`` leaves a setting to the data set (epochs, batch size, learning rate, weight decay, augmentation, curvature)
    or to ``create_model`` (everything about the network).

    Raises
    ------
    UserError
        If a value is out of range, or a data set unknown.

    Examples
    --------
    >>> from manifold_resnet.training import Config
    >>> Config(model="hyperbolic-8-16-32-resnet-20", epochs=5).epochs
    5
    >>> Config(epochs=0)
    Traceback (most recent call last):
        ...
    manifold_resnet._errors.UserError: --epochs must be a whole number, 1 or more, got 0
    """

    dataset: str = _option(
        "digits",
        "data",
        _text,
        "NAME",
        "digits (comes with scikit-learn); cifar10, cifar100, svhn, stl10, mnist, kmnist, fashionmnist "
        "(downloaded on first use); or folder:PATH, with one folder of images per class in PATH/train and in "
        "PATH/test or PATH/val",
    )
    data_dir: str = _option("data", "data", _text, "PATH", "where downloaded data sets are kept")
    image_size: int | None = _option(
        None,
        "data",
        _number(int, "a whole number, 8 or more", lambda value: value >= 8),
        "N",
        "resize the shorter side to N pixels and cut the centre square (default: images as they are)",
    )
    augment: str | None = _option(
        None,
        "data",
        _one_of("crop-flip", "crop", "none"),
        "HOW",
        "random changes of training images: crop-flip, crop or none (default: crop for digits of any kind, "
        "crop-flip for all else)",
    )
    train_fraction: float = _option(
        1.0,
        "data",
        _number(float, "above 0 and at most 1", lambda value: 0 < value <= 1),
        "F",
        "share of each class of the training set to use",
    )
    val_fraction: float = _option(
        0.1,
        "data",
        _number(float, "0 or more and below 1", lambda value: 0 <= value < 1),
        "F",
        "share of the training images kept apart to choose the best checkpoint, 0 for none; not used with a "
        "folder that has both val/ and test/",
    )
    workers: int | None = _option(
        None, "data", _natural, "N", "processes that load images, for each that trains (default: 0, with a GPU 4)"
    )
    model: str = _option(
        "hyperbolic-8-16-32-resnet-20",
        "network",
        _text,
        "NAME",
        "hyperbolic, euclidean or euclideanwhypclass (Euclidean with a hyperbolic classifier), then three "
        "widths, resnet, and a depth 6n+2; or then resnet18, resnet34 or resnet50",
    )
    variant: str | None = _option(
        None, "network", _text, "NAME", "paper for the published configuration (default: what learns best)"
    )
    c: float | None = _option(
        None,
        "network",
        _above_zero,
        "C",
        "the ball has curvature -C and radius 1/sqrt(C) (default: 0.025; for digits, and for the variant paper, 0.1)",
    )
    learnable_c: bool | None = _option(None, "network", _switch, "", "train the curvature too")
    max_distance: float | None = _option(
        None, "network", _above_zero, "D", "bound on the distance of activations from the origin"
    )
    init: str | None = _option(
        None, "network", _text, "NAME", "kernels at the start: gaussian, orthogonal, identity, paper, normal"
    )
    weight_on: str | None = _option(None, "network", _text, "WHERE", "where weights live: ball or tangent")
    bias: bool | None = _option(None, "network", _switch, "", "offsets of the convolutions, before their norms")
    mean: str | None = _option(None, "network", _text, "NAME", "batch norm's mean: midpoint or frechet")
    scale: str | None = _option(
        None, "network", _text, "NAME", "batch norm's variance: channel (one each) or scalar (one for all)"
    )
    residual: str | None = _option(
        None, "network", _text, "ORDER", "order of the residual addition: fr (f(x) + x) or rf (x + f(x))"
    )
    activation: str | None = _option(None, "network", _text, "NAME", "relu or none")
    norm_gain: float | None = _option(
        None,
        "network",
        _above_zero,
        "G",
        "distance at which norms put points at the start (default: 2, at most 1/sqrt(c))",
    )
    branch_gain: float | None = _option(
        None,
        "network",
        _above_zero,
        "G",
        "gain of the second norm of each block at the start, relative to the others (default: 1, with identity kernels "
        "0.5 / blocks)",
    )
    pooling: str | None = _option(
        None, "network", _text, "NAME", "mean of an image's pixels: midpoint, or tangent (of tangent vectors)"
    )
    head: str | None = _option(None, "network", _text, "NAME", "classifier: mlr (distances to hyperplanes) or fc")
    compat: str | None = _option(
        None, "network", _text, "NAME", "authors: compute what the published code computes, to check its results"
    )
    epochs: int | None = _option(
        None, "training", _count, "N", "passes over the training images (default: by data set)"
    )
    batch_size: int | None = _option(
        None, "training", _count, "N", "images per batch, over all processes together (default: by data set)"
    )
    accumulate: int = _option(
        1, "training", _count, "N", "batches per step of the optimizer, their gradients averaged; norms see one batch"
    )
    optimizer: str = _option("adam", "training", _one_of("adam", "sgd"), "NAME", "Riemannian adam or sgd")
    second_moment: str | None = _option(
        None,
        "training",
        _one_of("point", "coordinate"),
        "PER",
        "adam: one second moment per point of the ball or per coordinate (default: coordinate)",
    )
    amsgrad: bool = _option(False, "training", _switch, "", "adam: divide by the largest second moment so far")
    momentum: float | None = _option(
        None,
        "training",
        _number(float, "0 or more and below 1", lambda value: 0 <= value < 1),
        "M",
        "of sgd (default: 0.9, by the onecycle schedule varied from 0.95 to 0.85 and back)",
    )
    nesterov: bool = _option(False, "training", _switch, "", "sgd: Nesterov's momentum")
    decoupled_weight_decay: bool = _option(
        False, "training", _switch, "", "shrink weights directly, as AdamW does, not through the gradient"
    )
    max_grad_norm: float | None = _option(
        None,
        "training",
        _above_zero,
        "G",
        "shorten gradients to this Riemannian norm, those with and those without weight decay apart (default: off)",
    )
    lr: float | None = _option(None, "training", _above_zero, "LR", "peak learning rate (default: by data set)")
    weight_decay: float | None = _option(
        None,
        "training",
        _number(float, "0 or more", lambda value: value >= 0),
        "W",
        "of kernels and weight matrices, hyperbolic ones as normals of hyperplanes; never of offsets, scales, centres "
        "and curvature (default: by data set)",
    )
    schedule: str = _option(
        "onecycle",
        "training",
        _one_of("onecycle", "cosine", "constant"),
        "NAME",
        "of the learning rate: onecycle, cosine or constant",
    )
    seed: int = _option(0, "training", _natural, "N", "same seed, data and machine: same result")
    device: str = _option("auto", "training", _one_of("auto", "cpu", "cuda"), "NAME", "auto, cpu or cuda")
    devices: int | None = _option(
        None,
        "training",
        _count,
        "N",
        "processes on this machine, each on a GPU of its own or on the CPU, that share the batches (default: 1, under "
        "torchrun as it says)",
    )
    num_nodes: int | None = _option(None, "training", _count, "N", "machines (default: 1, under torchrun as it says)")
    precision: str = _option("32", "training", _one_of("32", "bf16", "64"), "BITS", "32, bf16 (mixed) or 64")
    images: Mapping[str, Any] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            if "convert" not in setting.metadata or (value is None and setting.default is None):
                continue
            try:
                object.__setattr__(self, setting.name, setting.metadata["convert"](value))
            except ValueError as error:
                flag = "--" + setting.name.replace("_", "-")
                raise UserError(f"{flag} {error}, got {value!r}") from None
        self._check_optimizer()
        recipe_for(self.dataset)

    def _check_optimizer(self) -> None:
        for owner, names in (("adam", ("second_moment", "amsgrad")), ("sgd", ("nesterov",))):
            for name in names:
                if self.optimizer != owner and getattr(self, name):
                    flag = "--" + name.replace("_", "-")
                    raise UserError(
                        f"{flag} is a setting of --optimizer {owner}, not of {self.optimizer}; leave it out"
                    )
        if self.nesterov and self.momentum == 0:
            raise UserError("--nesterov needs --momentum above 0, got 0")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "the configuration") -> Config:
        """Settings from a mapping such as a YAML file holds.

        Parameters
        ----------
        values : mapping
            Setting names, written with ``_`` or ``-``, to values.
        source : str
            Named in errors.

        Raises
        ------
        UserError
            If there is no such setting, or a value is out of range.
        """
        known = {setting.name for setting in fields(cls)}
        named = {str(key).replace("-", "_"): value for key, value in values.items()}
        for name in named:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                guess = f"; did you mean {close[0]}?" if close else ""
                raise UserError(f"{source} has an unknown setting {name!r}{guess}")
        return cls(**_recorded(named))

    @classmethod
    def read_dict(cls, path: str | Path) -> dict[str, Any]:
        """Settings of a YAML file, to override and hand to ``from_dict``, without what a run knew of its images.

        Raises
        ------
        UserError
            If the file can't be read or is no mapping.
        """
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {path}: {error}") from error
        except yaml.YAMLError as error:
            where = getattr(error, "problem_mark", None)
            line = f" near line {where.line + 1}" if where else ""
            raise UserError(f"{path} is not valid YAML{line}; each line should read `setting: value`") from error
        if not isinstance(values, dict):
            raise UserError(f"{path} holds no settings; each line should read `setting: value`")
        values = _recorded({str(key).replace("-", "_"): value for key, value in values.items()})
        values.pop("images", None)
        return values

    def to_yaml(self, comment: str = "") -> str:
        """Write the settings as a YAML file that ``--config`` reads."""
        head = f"# {comment}\n" if comment else ""
        return head + yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain numbers, strings, lists and dicts."""
        return asdict(self)

    def resolved(self) -> Config:
        """Return a copy in which what was left to the data set and to `create_model` is filled in.

        Raises
        ------
        UserError
            If the model or its variant is unknown.
        """
        from manifold_resnet.models import default_options

        recipe = asdict(recipe_for(self.dataset))
        try:
            network = default_options(self.model, self.variant)
        except ValueError as error:
            raise UserError(str(error)) from error
        network = {name: value for name, value in network.items() if name in self.__dataclass_fields__}
        c = recipe.pop("c")
        if c is not None and "c" in network and self.variant is None:
            network["c"] = c
        if self.optimizer == "adam":
            recipe["second_moment"] = "coordinate"  # learns best, see optim/README.md
        dataset = self.dataset
        if dataset.startswith("folder:"):  # a run stays usable from another working directory
            dataset = "folder:" + str(Path(dataset.removeprefix("folder:")).expanduser().absolute())
        return replace(
            self,
            dataset=dataset,
            data_dir=str(Path(self.data_dir).expanduser().absolute()),
            **{name: value for name, value in {**recipe, **network}.items() if getattr(self, name) is None},
        )

    def open_data(self) -> ImageData:
        """The data set of these settings, with the preprocessing of the run they come from, if any."""
        config = self.resolved()
        workers = config.workers
        if workers is None:
            workers = 4 if config.accelerator() == "gpu" else 0
        return ImageData(
            config.dataset,
            config.data_dir,
            batch_size=config.batch_size,
            image_size=config.image_size,
            augment=config.augment,
            train_fraction=config.train_fraction,
            val_fraction=config.val_fraction,
            seed=config.seed,
            workers=workers,
            facts=None if self.images is None else ImageFacts(**self.images),
        )

    def create_model(self) -> nn.Module:
        """The network of these settings, freshly initialised.

        Raises
        ------
        UserError
            If the name is unknown or the options don't go together, or ``images`` is not filled in.
        """
        from manifold_resnet.models import create_model

        if self.images is None:
            raise UserError("the images' size and classes are not known yet; open the data first")
        options = {
            setting.name: getattr(self, setting.name)
            for setting in fields(self)
            if setting.metadata.get("group") == "network" and setting.name != "model"
        }
        given = {name: value for name, value in options.items() if value is not None}
        if given.get("activation") == "none":
            given["activation"] = None
        try:
            return create_model(self.model, len(self.images["classes"]), in_channels=self.images["channels"], **given)
        except (TypeError, ValueError) as error:
            raise UserError(f"cannot build {self.model}: {error}") from error

    def accelerator(self) -> str:
        """Lightning's name of the device.

        Raises
        ------
        UserError
            If a GPU is asked for and there is none.
        """
        import torch

        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("--device cuda: this machine has no usable CUDA GPU; use --device cpu or auto")
        return "gpu" if self.device != "cpu" and torch.cuda.is_available() else "cpu"
