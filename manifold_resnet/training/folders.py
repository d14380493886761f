"""Folders of new runs."""

from __future__ import annotations

import platform
import re
from importlib import metadata
from pathlib import Path

from manifold_resnet._errors import UserError
from manifold_resnet.training.callbacks import write_atomically
from manifold_resnet.training.config import Config

__all__ = ["free_folder", "new_folder", "next_free_folder", "write_config"]


def write_config(folder: Path, config: Config) -> None:
    """The settings as ``config.yaml``, with the versions that used them."""
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "geoopt", "lightning"))
    comment = f"Python {platform.python_version()}, {packages}; manifold-resnet train --config reads this file"
    write_atomically(folder / "config.yaml", config.to_yaml(comment))


def free_folder(folder: Path) -> Path:
    """The folder if it is empty or not there yet; a UserError if not."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "holds a run already" if (folder / "config.yaml").exists() else "exists and is not an empty folder"
        raise UserError(f"{folder} {what}; choose another --output, or carry a run on with --resume")
    return folder


def new_folder(folder: Path) -> Path:
    """Create the folder; a UserError if that is not allowed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create {folder}: {error.strerror}; choose another --output") from error
    return folder


def next_free_folder(config: Config) -> Path:
    """Create the next of ``runs/<dataset>-<model>-<number>``."""
    name = config.dataset
    if name.startswith("folder:"):
        name = re.sub(r"[^\w.-]+", "_", Path(name.removeprefix("folder:")).name) or "folder"
    parent = new_folder(Path("runs").absolute())
    number = 1
    while True:
        folder = parent / f"{name}-{config.model}-{number}"
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder
