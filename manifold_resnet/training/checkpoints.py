"""Checkpoints of runs: where they are, and networks out of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from manifold_resnet._errors import UserError
from manifold_resnet.training.config import Config
from manifold_resnet.training.module import Classifier

__all__ = ["checkpoint_path", "load_run", "load_weights", "open_run", "read_checkpoint", "run_folder"]


def load_run(run: str | Path, checkpoint: str = "best") -> tuple[nn.Module, Config]:
    """The trained network of a run, in evaluation mode on the CPU, and its settings.

    ``config.open_data()`` gives the run's data set, prepared as in training.

    Parameters
    ----------
    run : str or Path
        A run's folder, or a checkpoint file.
    checkpoint : {"best", "last"}
        Which of a folder's checkpoints; a run without validation images has only the last one.

    Returns
    -------
    model : torch.nn.Module
        Takes normalised images [B, C, H, W], returns logits [B, classes].
    config : Config
        ``config.images`` holds class names, size, mean and standard deviation of the images.

    Raises
    ------
    UserError
        If the run is missing or damaged.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import torch
    >>> from manifold_resnet.training import Config, load_run, train
    >>> config = Config(model="hyperbolic-2-2-2-resnet-8", epochs=1, train_fraction=0.1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model, settings = load_run(train(config, Path(folder) / "run", progress=False))
    >>> model(torch.zeros(1, 1, 8, 8)).shape, settings.epochs
    (torch.Size([1, 10]), 1)
    """
    path, stored = open_run(run, checkpoint)
    classifier = Classifier(stored["hyper_parameters"]["config"])
    load_weights(classifier, stored, path)
    return classifier.model.eval(), classifier.config


def checkpoint_path(folder: Path, which: str) -> Path:
    """Where a run keeps its ``"best"`` or ``"last"`` checkpoint."""
    return folder / "checkpoints" / f"{which}.ckpt"


def run_folder(run: str | Path) -> Path:
    """The folder of a run, made absolute; a UserError if it is none."""
    folder = Path(run).expanduser().absolute()
    if not folder.is_dir():
        raise UserError(f"no such run: {folder}")
    if not checkpoint_path(folder, "last").exists():
        raise UserError(f"{folder} holds no checkpoints/last.ckpt, so it is not a run that can be used")
    return folder


def open_run(run: str | Path, checkpoint: str) -> tuple[Path, dict[str, Any]]:
    """The checkpoint file of a run, or ``run`` itself if it is a file, and what it holds."""
    path = Path(run).expanduser()
    if not path.is_file():
        folder = run_folder(run)
        path = checkpoint_path(folder, checkpoint)
        if not path.exists():
            path = checkpoint_path(folder, "last")
    return path, read_checkpoint(path)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, on the CPU; a UserError if it is damaged or a stranger's."""
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
        stored["hyper_parameters"]["config"], stored["state_dict"], stored["epoch"]
    except Exception as error:  # damaged files fail in zip, pickle, tensor and key errors alike
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(
            f"{path} is damaged, or no checkpoint of this program ({reason}); use the other of best and "
            "last, or train again"
        ) from error
    return stored


def load_weights(classifier: Classifier, stored: dict[str, Any], path: Path) -> None:
    """Put the weights read from ``path`` into a network; a UserError if they don't fit."""
    if classifier.config.precision == "64":
        classifier.double()
    try:
        classifier.load_state_dict(stored["state_dict"])
    except RuntimeError as error:
        raise UserError(
            f"{path} does not fit {classifier.config.model}; it is damaged or from another version"
        ) from error
