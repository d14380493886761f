"""What is varied: the ablations as data, and the trainings that each consists of."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from manifold_resnet._errors import UserError
from manifold_resnet.experiments.runs import load_run
from manifold_resnet.nn import monitor_clipping
from manifold_resnet.nn.init import INITIALISATIONS
from manifold_resnet.optim.experiments.classification import check_run, train_cell
from manifold_resnet.optim.experiments.grid import Result, check_names
from manifold_resnet.optim.experiments.run import Outcome
from manifold_resnet.training import Config

__all__ = ["DEPTH", "SUBJECTS", "Ablation", "Subject", "Variant", "with_depth"]

#: Not a setting of a training but part of the model's name; varied like one.
DEPTH = "depth"
#: Settings that say where a training runs, not what it computes.
MACHINE = ("data_dir", "device", "workers")


@dataclass(frozen=True)
class Subject:
    """What an ablation is about.

    Attributes
    ----------
    text : str
        In a few words.
    varied : mapping
        Settings of ``training.Config``, or ``depth``, to the values that are compared; their product is trained.
    columns : tuple of str
        Metrics for the table, beside accuracies and time.
    seeds : tuple of int
        Unless others are asked for.

    Examples
    --------
    >>> from manifold_resnet.experiments.ablate import SUBJECTS, Subject
    >>> isinstance(SUBJECTS["head"], Subject), SUBJECTS["head"].varied
    (True, {'head': ('mlr', 'fc')})
    """

    text: str
    varied: Mapping[str, tuple[Any, ...]]
    columns: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1)


#: The ablations that are trainings, by name.
SUBJECTS: dict[str, Subject] = {
    "init": Subject(
        "initialisations: distances through new networks, and accuracy against depth",
        {"init": tuple(INITIALISATIONS), DEPTH: (8, 14)},
        seeds=(0,),
    ),
    "norm": Subject(
        "batch norm about the midpoint or the Fréchet mean: accuracy and seconds per step",
        {"mean": ("midpoint", "frechet"), "scale": ("channel", "scalar")},
    ),
    "residual": Subject("order of the residual addition", {"residual": ("fr", "rf")}),
    "activation": Subject("tangent ReLU or none", {"activation": ("relu", "none")}),
    "curvature": Subject(
        "curvature of the ball, fixed and trained",
        {"c": (0.01, 0.1, 1.0), "learnable_c": (False, True)},
        ("c", "clipped"),
    ),
    "clip": Subject("bound on distances from the origin", {"max_distance": (1.0, 2.0, 4.0, None)}, ("clipped",)),
    "pooling": Subject("Poincaré midpoint or mean of tangent vectors", {"pooling": ("midpoint", "tangent")}),
    "head": Subject("distances to hyperplanes or a fully connected layer", {"head": ("mlr", "fc")}),
    "gain": Subject(
        "gain of the norms, and of the residual branches, at the start",
        {"norm_gain": (1.0, 2.0, 4.0), "branch_gain": (1.0, 0.3)},
    ),
}


def with_depth(model: str, depth: int) -> str:
    """The name of the same model with another depth.

    Examples
    --------
    >>> with_depth("hyperbolic-8-16-32-resnet-20", 56)
    'hyperbolic-8-16-32-resnet-56'
    """
    return re.sub(r"\d+$", str(depth), model)


@dataclass(frozen=True)
class Variant:
    """One training: the values of what is varied, and a seed.

    Examples
    --------
    >>> from manifold_resnet.experiments.ablate import Variant
    >>> Variant({"head": "mlr", "c": 0.1}, seed=0).id
    'mlr-c0.1-seed0'
    """

    values: Mapping[str, Any]
    seed: int

    @property
    def label(self) -> str:
        """Name of the variant, whatever its seed."""
        return "-".join(_word(name, value) for name, value in self.values.items())

    @property
    def id(self) -> str:
        """Name of the training and of its folder."""
        return f"{self.label}-seed{self.seed}"

    @property
    def key(self) -> dict[str, Any]:
        """The columns that say which training a row of a table is about."""
        return {"id": self.id, "variant": self.label, **self.values, "seed": self.seed}

    @property
    def about(self) -> dict[str, Any]:
        """What the name stands for."""
        return dict(self.values)


def _word(name: str, value: Any) -> str:
    if value is None:
        return "default"
    if isinstance(value, bool):
        return "learnable" if value else "fixed"
    return value if isinstance(value, str) else f"{name}{value:g}"


@dataclass(frozen=True)
class Ablation:
    """Variants of one network to be trained under one budget.

    Parameters
    ----------
    name : str
        One of `SUBJECTS`.
    settings : mapping
        Settings of ``training.Config`` that all variants share.
    varied : mapping
        Settings to the values that are compared.
    seeds : sequence of int
        For each variant.
    machine : mapping
        ``data_dir``, ``device`` and ``workers``: settings that don't change what is computed.

    Raises
    ------
    UserError
        If a setting is unknown or out of range, a network can't be built, or there is nothing to compare.

    Examples
    --------
    >>> from manifold_resnet.experiments.ablate import Ablation
    >>> ablation = Ablation("head", {"dataset": "digits", "epochs": 1}, {"head": ("mlr", "fc")}, (0, 1))
    >>> [variant.id for variant in ablation.cells]
    ['mlr-seed0', 'fc-seed0', 'mlr-seed1', 'fc-seed1']
    """

    name: str
    settings: Mapping[str, Any]
    varied: Mapping[str, Sequence[Any]]
    seeds: Sequence[int]
    machine: Mapping[str, Any] = field(default_factory=dict)

    command = "ablate"

    def __post_init__(self) -> None:
        check_names([self.name], SUBJECTS, "manifold-resnet ablate", "subject")
        if not self.seeds:
            raise UserError("--seeds is empty; give a whole number or several")
        if Config.from_dict({**self.settings, **self.machine}).val_fraction == 0:
            raise UserError("the best epoch of each variant is chosen in validation: --val-fraction must be above 0")
        for cell in self.cells:
            config = self.config(cell)
            if not config.model.startswith("hyperbolic"):
                raise UserError(f"{config.model} has nothing to ablate: --model must be a hyperbolic one")
            images = {"classes": ["a", "b"], "channels": 3, "size": [32, 32], "mean": [0.0] * 3, "std": [1.0] * 3}
            if cell.seed == self.seeds[0]:
                Config.from_dict({**config.to_dict(), "images": images}).create_model()

    @cached_property
    def cells(self) -> tuple[Variant, ...]:
        """All trainings, seed by seed: whatever has run so far compares all variants."""
        grid = [dict(zip(self.varied, values, strict=True)) for values in itertools.product(*self.varied.values())]
        return tuple(Variant(values, seed) for seed in dict.fromkeys(self.seeds) for values in grid)

    @property
    def labels(self) -> list[str]:
        """Names of the variants."""
        return list(dict.fromkeys(cell.label for cell in self.cells))

    @property
    def without_depth(self) -> list[Variant]:
        """The variants that differ in more than their depth, with the first seed and no depth."""
        found: dict[str, Variant] = {}
        for cell in self.cells:
            variant = Variant({name: value for name, value in cell.values.items() if name != DEPTH}, self.seeds[0])
            found.setdefault(variant.label, variant)
        return list(found.values())

    def config(self, variant: Variant) -> Config:
        """All settings of a training."""
        values = dict(variant.values)
        depth = values.pop(DEPTH, None)
        merged = {**self.settings, **self.machine, **values, "seed": variant.seed, "images": None}
        if depth is not None:
            merged["model"] = with_depth(Config.from_dict(merged).model, depth)
        return Config.from_dict(merged, f"variant {variant.label}").resolved()

    @classmethod
    def from_dict(cls, values: Any, name: str, source: str) -> Ablation:
        """The ablation that `to_dict` wrote."""
        try:
            return cls(values["ablation"], values["task"], values["varied"], values["seeds"])
        except (KeyError, TypeError):
            raise UserError(f"{source} is not of an ablation; choose another --output") from None

    def to_dict(self) -> dict[str, Any]:
        """The ablation as plain values, but for the machine."""
        varied = {name: list(values) for name, values in self.varied.items()}
        return {"ablation": self.name, "task": dict(self.settings), "varied": varied, "seeds": list(self.seeds)}

    def check_run(self, cell: Variant, folder: Path) -> None:
        """Raise a UserError if what there is of a variant was trained with other settings."""
        check_run(self.config(cell), folder)

    def run(self, cell: Variant, folder: Path, tell: Callable[[str], None]) -> Result:
        """Train a variant in a folder of its own, carrying on with what is there."""
        result = train_cell(self.config(cell), folder, self.machine, tell)
        if result.status == "finished":
            result.metrics |= _inspect(folder, self.machine)
        return result

    def write(self, outcome: Outcome, folder: Path, *, figure: bool) -> None:
        """Write what there is so far, see `report.write`."""
        from manifold_resnet.experiments.ablate.report import write

        write(outcome, folder, figure=figure)


@torch.no_grad()
def _inspect(folder: Path, machine: Mapping[str, Any], limit: int = 512) -> dict[str, float]:
    """The trained network's curvature, and the share of points of test images that sit on the bound."""
    run = load_run(folder, **machine)
    with monitor_clipping(run.model) as monitor:
        for pixels, _ in run.loader(limit=limit):
            run.network(pixels.to(run.device))
    return {"c": float(run.model.ball.c), "clipped": monitor.share()}
