"""What a training writes while it runs: the table of metrics and the checkpoints."""

from __future__ import annotations

import csv
import io
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar

__all__ = ["Checkpoint", "MetricsTable", "ProgressBar", "read_metrics", "write_atomically"]

_log = logging.getLogger(__name__)

COLUMNS = ("epoch", "step", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr", "seconds")


def write_atomically(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def read_metrics(path: Path) -> list[dict[str, float | None]]:
    """Rows of a ``metrics.csv``, one per epoch; ``None`` where there was no validation."""
    with path.open(newline="", encoding="utf-8") as file:
        return [{key: float(value) if value else None for key, value in row.items()} for row in csv.DictReader(file)]


class MetricsTable(lightning.Callback):
    """One row of ``metrics.csv`` per epoch; a resumed training carries on below the epochs it keeps.

    Only the first process writes. Lightning's CSVLogger starts the file anew on resuming and spreads an epoch over
    several rows.

    Parameters
    ----------
    path : Path
        The CSV file.
    """

    def __init__(self, path: Path):
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self._started = 0.0

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Keep the rows of the epochs that the checkpoint has behind it."""
        if trainer.is_global_zero and self.path.exists():
            self.rows = [row for row in read_metrics(self.path) if row["epoch"] <= trainer.current_epoch]
            for row in self.rows:
                row.update(epoch=int(row["epoch"]), step=int(row["step"]))

    def on_train_epoch_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Add the epoch's row."""
        if not trainer.is_global_zero:
            return
        row: dict[str, Any] = {key: float(value) for key, value in trainer.callback_metrics.items()}
        row |= {
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "seconds": round(time.perf_counter() - self._started, 3),
        }
        self.rows.append(row)
        table = io.StringIO()
        writer = csv.DictWriter(table, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomically(self.path, table.getvalue())


class Checkpoint(ModelCheckpoint):
    """A ModelCheckpoint that keeps its memory of the best epoch when the run's folder has moved."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Read paths as relative to where the folder is now."""

        def here(path: str) -> str:
            return str(Path(self.dirpath) / Path(path).name) if path else path

        state = dict(state_dict, dirpath=self.dirpath)
        for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
            state[key] = here(state[key])
        state["best_k_models"] = {here(path): score for path, score in state["best_k_models"].items()}
        super().load_state_dict(state)


class ProgressBar(TQDMProgressBar):
    """A bar that counts epochs from 1, one line for each; where there is no terminal, plain lines instead."""

    def __init__(self) -> None:
        super().__init__(leave=True)
        self._plain = not (sys.stdout.isatty() or "ipykernel" in sys.modules)
        if self._plain:
            self.disable()

    def get_metrics(
        self, trainer: lightning.Trainer, module: lightning.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Loss and accuracy to three decimals."""
        metrics = super().get_metrics(trainer, module)
        metrics.pop("v_num", None)
        return {key: f"{value:.3f}" if isinstance(value, float) else value for key, value in metrics.items()}

    def init_test_tqdm(self) -> Any:
        """Create a bar that goes when it is done."""
        bar = super().init_test_tqdm()
        bar.leave = False
        return bar

    def on_train_start(self, *_: Any) -> None:
        """Leave it to the epochs to create bars."""
        super().on_train_start(*_)
        self.train_progress_bar.leave = False
        self.train_progress_bar.close()

    def on_train_epoch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Say which epoch of how many begins."""
        super().on_train_epoch_start(trainer, *_)
        self.train_progress_bar.set_description(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}")

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Show the epoch's figures."""
        super().on_train_epoch_end(trainer, module)
        if self._plain and trainer.is_global_zero:
            values = (f"{key} {float(value):.3f}" for key, value in sorted(trainer.callback_metrics.items()))
            _log.info("epoch %d/%d: %s", trainer.current_epoch + 1, trainer.max_epochs, ", ".join(values))
