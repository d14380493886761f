"""Networks on images, trained as ``manifold-resnet train`` does."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import lightning
from manifold_resnet.optim.experiments.grid import Cell, Result, check_names

from manifold_resnet._errors import UserError
from manifold_resnet.training import Config, resume, train
from manifold_resnet.training.callbacks import read_metrics
from manifold_resnet.training.checkpoints import checkpoint_path, read_checkpoint
from manifold_resnet.training.module import DivergedError

__all__ = ["Classification", "train_cell"]

_SHARED = {"weight_decay", "decoupled_weight_decay", "max_grad_norm"}
_ARGUMENTS = {
    "RiemannianAdam": ("adam", {"second_moment", "amsgrad", *_SHARED}),
    "RiemannianSGD": ("sgd", {"momentum", "nesterov", *_SHARED}),
}
_OF_THE_GRID = {"optimizer", "lr", "seed", "weight_on", "images"} | set().union(
    *(names for _, names in _ARGUMENTS.values())
) - {"weight_decay"}


class Classification:
    """A network on images; a cell's folder is a run, and its best epoch in validation is measured on the test set.

    Parameters
    ----------
    settings : mapping
        Settings of ``training.Config`` that all cells share.
    machine : mapping
        ``data_dir`` and ``device``, where given.

    Raises
    ------
    UserError
        If a setting is unknown, wrong or belongs into the grid.
    """

    unit = "epoch"
    metric = "val_accuracy"
    label = "validation accuracy"
    higher = True
    log = False
    also = ("test_accuracy",)

    def __init__(self, settings: Mapping[str, Any], machine: Mapping[str, Any]):
        check_names(settings, [setting.name for setting in fields(Config)], "task classification")
        for name in settings:
            if name in _OF_THE_GRID:
                raise UserError(f"{name} differs between cells: move it from task to grid or to an optimizer in it")
        self.settings, self.machine = {**settings, **machine}, dict(machine)
        if Config.from_dict(self.settings, "task classification").val_fraction == 0:
            raise UserError("task classification chooses by validation accuracy: val_fraction must be above 0")

    def check(self, cell: Cell) -> None:
        """Only what ``training.Config`` has a setting for can be given."""
        _, known = _ARGUMENTS.get(cell.kind, ("", set()))
        if not known:
            raise UserError(f"task classification trains with {' or '.join(_ARGUMENTS)}, got {cell.kind}")
        check_names(cell.arguments, sorted(known), f"optimizer {cell.optimizer} of a task classification", "argument")
        self.config(cell)

    def config(self, cell: Cell) -> Config:
        """All settings of a cell's training."""
        optimizer, _ = _ARGUMENTS[cell.kind]
        chosen = {"optimizer": optimizer, "lr": cell.lr, "weight_on": cell.parametrisation, "seed": cell.seed}
        # as the class has it, unless given
        chosen |= {"momentum": 0} if optimizer == "sgd" else {"second_moment": "point"}
        return Config.from_dict({**self.settings, **chosen, **cell.arguments}, f"cell {cell.id}")

    def check_run(self, cell: Cell, folder: Path) -> None:
        """Raise a UserError if what there is of the cell was trained with other settings."""
        check_run(self.config(cell), folder)

    def run(self, cell: Cell, folder: Path, tell: Callable[[str], None]) -> Result:
        """Train, or carry on after the last finished epoch."""
        return train_cell(self.config(cell), folder, self.machine, tell)


#: where a run is made, not what it is
_ELSEWHERE = {"data_dir", "device", "devices", "num_nodes", "workers", "images"}


def check_run(config: Config, folder: Path) -> None:
    """Check that a run, if there is one to read or to carry on, has these settings: defaults may have changed since.

    Raises
    ------
    UserError
        If it has others.
    """
    if not any((folder / name).exists() for name in ("cell.json", "test.json")) and not _can_resume(folder):
        return
    path, now = folder / "config.yaml", config.resolved().to_dict()
    for name, before in Config.read_dict(path).items():
        if name in now and name not in _ELSEWHERE and now[name] != before:
            raise UserError(
                f"{name} is {before!r} in {path} and {now[name]!r} now, a default that has changed; choose another "
                f"--output, or carry on with the version of manifold_resnet that began this"
            )


def train_cell(config: Config, folder: Path, machine: Mapping[str, Any], tell: Callable[[str], None]) -> Result:
    """Train a run of its own, or carry on after its last finished epoch; a finished one is only read.

    Parameters
    ----------
    config : Config
        Settings of the training, with validation images.
    folder : Path
        Of the run.
    machine : mapping
        ``data_dir`` and ``device``, where they may differ from those that a run was started with.
    tell : callable
        Takes a word on progress.

    Returns
    -------
    Result
        Accuracies of the epoch that is best in validation, and all epochs; or that the training diverged.

    Raises
    ------
    UserError
        If the training can't start, or there are no validation images.
    """
    options = {"progress": False, "callbacks": [_Tell(tell)]}
    if not (folder / "test.json").exists():
        try:
            if _can_resume(folder):
                resume(folder, **machine, **options)
            else:
                shutil.rmtree(folder, ignore_errors=True)
                train(config, folder, **options)
        except DivergedError as error:
            curve = _curve(folder)
            return Result("diverged", {}, curve, curve[-1]["seconds"] if curve else 0.0, str(error))
    curve = _curve(folder)
    measured = json.loads((folder / "test.json").read_text(encoding="utf-8"))
    if curve[-1]["val_accuracy"] is None:
        raise UserError("task classification chooses by validation accuracy, and this data set has no such images")
    best = max(curve, key=lambda row: row["val_accuracy"])  # the first of equals, as the checkpoint
    metrics = {
        "val_accuracy": best["val_accuracy"],
        "test_accuracy": measured["test_accuracy"],
        "best_epoch": best["epoch"],
        "last_val_accuracy": curve[-1]["val_accuracy"],
        "test_loss": measured["test_loss"],
        "train_loss": curve[-1]["train_loss"],
    }
    return Result("finished", metrics, curve, curve[-1]["seconds"])


def _can_resume(folder: Path) -> bool:
    path = checkpoint_path(folder, "last")
    if not path.exists():
        return False
    try:
        read_checkpoint(path)
    except UserError:  # killed while it was written
        return False
    return True


def _curve(folder: Path) -> list[dict[str, float | None]]:
    if not (folder / "metrics.csv").exists():
        return []
    rows, seconds = [], 0.0
    for row in read_metrics(folder / "metrics.csv"):
        seconds += row["seconds"]
        names = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")
        measured = {name: row[name] if row[name] is not None and math.isfinite(row[name]) else None for name in names}
        rows.append({"epoch": int(row["epoch"]), "seconds": round(seconds, 3), **measured})
    return rows


class _Tell(lightning.Callback):
    def __init__(self, tell: Callable[[str], None]):
        self.tell = tell

    def on_train_epoch_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self.tell(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}")
