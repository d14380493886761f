"""Results of experiments: grouped over seeds, as tables to read, and as files."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib import metadata
from pathlib import Path
from typing import Any

from manifold_resnet._errors import UserError
from manifold_resnet.experiments.runs import Run, short_name
from manifold_resnet.training import Config
from manifold_resnet.training.callbacks import write_atomically

__all__ = ["check_folder", "group_labels", "percent", "read_results", "spread", "table", "write_results"]

# settings that two trainings of one model may differ in
_FREE = {"seed", "dataset", "data_dir", "workers", "device", "images", "model"}


def group_labels(runs: Sequence[Run]) -> list[str]:
    """For each run, what it has in common with the runs that differ from it in their seed alone.

    Parameters
    ----------
    runs : sequence of Run
        Trained networks.

    Returns
    -------
    list of str
        The model's name; where several groups have the same model, with the settings that tell them apart.
    """
    names = [setting.name for setting in fields(Config) if setting.name not in _FREE]
    labels = []
    for run in runs:
        same = [other for other in runs if other.config.model == run.config.model]
        differ = [
            name for name in names if len({repr(getattr(other.config, name)) for other in same}) > 1
        ]  # repr: lists are not hashable
        labels.append(", ".join([run.config.model, *(f"{name} {getattr(run.config, name)}" for name in differ)]))
    return labels


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation; of one value there is none.

    Examples
    --------
    >>> spread([1.0, 2.0, 3.0]), spread([1.0])
    ((2.0, 1.0), (1.0, None))
    """
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def percent(mean: float, deviation: float | None = None) -> str:
    """Write a share as percent, with its standard deviation if there is one.

    Examples
    --------
    >>> percent(0.5), percent(0.5, 0.071)
    ('50.0', '50.0 ± 7.1')
    """
    return f"{100 * mean:.1f}" + ("" if deviation is None else f" ± {100 * deviation:.1f}")


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns aligned on the left, as lines of text.

    Examples
    --------
    >>> print(table(["run", "accuracy"], [["a", 1], ["long name", 2]]))
    run        accuracy
    a          1
    long name  2
    """
    cells = [[str(cell) for cell in row] for row in [heads, *rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heads))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )


def read_results(path: Path) -> dict[str, Any] | None:
    """What an earlier command wrote; None if there is nothing.

    Raises
    ------
    UserError
        If the file is damaged or no results.
    """
    if not path.exists():
        return None
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        stored["runs"], stored["rows"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged, or not written by this program; remove it, or choose another --output") \
            from error  # fmt: skip
    return stored


def check_folder(folder: str | Path, name: str, runs: Sequence[Run]) -> Path:
    """Make sure, before anything is measured, that results can be written and those of other runs stay.

    Parameters
    ----------
    folder : str or Path
        To write to; `write_results` creates it.
    name : str
        Of the command: results go to ``<name>.json``.
    runs : sequence of Run
        What will be measured.

    Returns
    -------
    Path
        The folder, made absolute.

    Raises
    ------
    UserError
        If the folder can't be written to, or holds results of a run that is not among these.
    """
    folder = Path(folder).expanduser().absolute()
    earlier = read_results(folder / f"{name}.json")
    given = {run.digest for run in runs}
    lost = [] if earlier is None else [run["name"] for run in earlier["runs"] if run["digest"] not in given]
    if lost:
        raise UserError(f"{folder} holds the {name} results of other runs ({', '.join(lost)}); choose another --output")
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UserError(f"cannot write to {there}; choose another --output")
    return folder


def write_results(
    folder: Path, name: str, runs: Sequence[Run], settings: Mapping[str, Any], rows: Sequence[Mapping[str, Any]],
    **more: Any,
) -> None:  # fmt: skip
    """Write ``<name>.json``, with everything needed to tell what was measured, and ``<name>.csv``, the rows alone.

    Parameters
    ----------
    folder : Path
        Created if need be.
    name : str
        Of the command.
    runs : sequence of Run
        What was measured.
    settings : mapping
        How it was measured.
    rows : sequence of mapping
        One measurement each, of plain numbers and strings, all with the same keys.
    **more
        Further entries of the JSON file.
    """
    about = [
        {
            "name": run.name,
            "model": run.config.model,
            "group": group,
            "seed": run.seed,
            "dataset": short_name(run.config.dataset),
            "digest": run.digest,
        }
        for run, group in zip(runs, group_labels(runs), strict=True)
    ]
    versions = {package: metadata.version(package) for package in ("manifold-resnet", "torch")}
    results = {"command": name, "versions": versions, "settings": dict(settings), "runs": about, "rows": list(rows)}
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_plain(results | more), indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(folder / f"{name}.json", text + "\n")
    lines = io.StringIO()
    writer = csv.DictWriter(lines, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(folder / f"{name}.csv", lines.getvalue())


def _plain(value: Any) -> Any:
    """Leave out what JSON has no word for."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
