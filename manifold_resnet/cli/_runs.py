"""Options and output that the commands on runs share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from manifold_resnet._errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from manifold_resnet.experiments import Run

_SHARED = ("checkpoint", "dataset", "data_dir", "batch_size", "workers", "device")


def run_options(parser: argparse.ArgumentParser, output: str) -> None:
    """Add what all of them take; `output` is the default folder."""
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folders of runs, or checkpoint files")
    parser.add_argument("--output", metavar="FOLDER", default=output, help=f"where to write (default: {output})")
    parser.add_argument(
        "--limit", metavar="N", help="a quick look: at most N images, spread over the test set (default: all)"
    )
    parser.add_argument(
        "--checkpoint", choices=("best", "last"), default="best", help="which checkpoint (default: best)"
    )
    parser.add_argument(
        "--dataset", metavar="NAME", help="other test images with the same classes (default: each run's own)"
    )
    parser.add_argument("--data-dir", metavar="PATH", help="where downloaded data sets are kept (default: the runs')")
    parser.add_argument("--batch-size", metavar="N", help="images at a time (default: 128)")
    parser.add_argument("--workers", metavar="N", help="processes that load images (default: 0)")
    parser.add_argument("--device", metavar="NAME", help="auto, cpu or cuda (default: the runs')")


def whole_number(text: str | None, flag: str, default: int | None = None) -> int | None:
    """The number that was given for an option; a UserError for anything else."""
    if text is None:
        return default
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"{flag} must be a whole number, 1 or more, got {text!r}")
    return int(text)


def open_runs(options: argparse.Namespace, name: str) -> tuple[list[Run], dict[str, str], Path]:
    """The runs, the names of their groups, and the folder to write to."""
    from manifold_resnet.experiments import load_runs
    from manifold_resnet.experiments.results import check_folder, group_labels

    runs = load_runs(options.runs, **{name: getattr(options, name) for name in _SHARED})
    groups = {run.name: label for run, label in zip(runs, group_labels(runs), strict=True)}
    return runs, groups, check_folder(options.output, name, runs)


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write a figure beside its numbers, and say so."""
    figure.savefig(folder / f"{name}.png", dpi=150)
    print(f"written to {folder}: {name}.json, {name}.csv and {name}.png")


def titles_of(runs: list[Run], groups: dict[str, str]) -> dict[str, str]:
    """What figures call each run."""
    labels = list(groups.values())
    return {
        run.name: groups[run.name] if labels.count(groups[run.name]) == 1 else f"{groups[run.name]}, seed {run.seed}"
        for run in runs
    }
