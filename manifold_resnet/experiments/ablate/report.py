"""Results of an ablation: the table, and what is written."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from manifold_resnet._errors import UserError
from manifold_resnet.experiments.ablate.grid import DEPTH, SUBJECTS
from manifold_resnet.experiments.results import spread
from manifold_resnet.optim.experiments.run import Outcome
from manifold_resnet.training.callbacks import write_atomically

__all__ = ["read_measured", "rows_of", "save_figure", "shown_rows", "write", "write_csv", "write_json"]

_ACCURACIES = ("val_accuracy", "test_accuracy")


def rows_of(outcome: Outcome, measured: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """The table of an ablation, as numbers.

    Parameters
    ----------
    outcome : Outcome
        Results, of some trainings at least.
    measured : mapping, optional
        What was measured without training, see `measure`.

    Returns
    -------
    list of dict
        One for each variant: what is varied, ``seeds`` done and ``diverged``; means over seeds, each with its
        standard deviation ``..._std`` (None of a single seed), of accuracies, of seconds per epoch and of what the
        subject asks for; ``seconds_per_step`` and ``step_ratio``, ``first``, ``last`` and ``ratio`` of distances
        through the new network, where measured.
    """
    measured = measured or {}
    subject = SUBJECTS[outcome.experiment.name]
    rows = []
    for label in dict.fromkeys(cell.label for cell in outcome.experiment.cells):
        found = [(cell, result) for cell, result in outcome.results if cell.label == label]
        if not found:
            continue
        done = [result for _, result in found if result.status == "finished"]
        row: dict[str, Any] = {"variant": label, **found[0][0].values, "seeds": len(done)}
        row["diverged"] = len(found) - len(done)
        for name in (*_ACCURACIES, *subject.columns):
            values = [value for result in done if (value := result.metrics.get(name)) is not None]
            row[name], row[f"{name}_std"] = spread(values) if values else (None, None)
        epochs = [result.seconds / len(result.curve) for result in done]
        row["seconds_per_epoch"] = spread(epochs)[0] if epochs else None
        for step in measured.get("steps", ()):
            if step["variant"] == label:
                row |= {"seconds_per_step": step["seconds"], "step_ratio": step["ratio"]}
        for norm in measured.get("norms", ()):
            named = norm["variant"] if DEPTH not in found[0][0].values else f"{norm['variant']}-depth{norm['depth']}"
            if named == label:
                row |= {name: norm[name] for name in ("first", "last", "ratio")}
        rows.append(row)
    return rows


_TITLES = {
    "val_accuracy": "validation %",
    "test_accuracy": "test %",
    "clipped": "clipped %",
    "seconds_per_epoch": "s per epoch",
    "seconds_per_step": "ms per step",
    "step_ratio": "step ratio",
    "first": "distance, first block",
    "last": "last block",
    "ratio": "ratio",
    "kept_bytes": "MiB kept for backward",
    "seconds": "ms, forward and backward",
}
_FACTORS = {"val_accuracy": 100, "test_accuracy": 100, "clipped": 100, "seconds_per_step": 1e3, "seconds": 1e3,
            "kept_bytes": 2**-20}  # fmt: skip
_LEFT_OUT = ("variant", "difference", "seconds_low", "seconds_high", "ratio_low", "ratio_high", "diverged")


def shown_rows(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Rows of numbers as heads and cells of text, means with their standard deviations.

    Examples
    --------
    >>> shown_rows([{"head": "mlr", "seeds": 2, "test_accuracy": 0.95, "test_accuracy_std": 0.01}])
    (['head', 'seeds', 'test %'], [['mlr', '2', '95.0 ± 1.0']])
    """
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if not name.endswith("_std")]
    names = [name for name in names if name not in _LEFT_OUT]
    if any(row.get("diverged") for row in rows):
        names.append("diverged")
    cells = []
    for row in rows:
        line = []
        for name in names:
            text = _shown(name, row.get(name, "-"))
            deviation = row.get(f"{name}_std")
            line.append(text if deviation is None else f"{text} ± {_shown(name, deviation)}")
        cells.append(line)
    return [_TITLES.get(name, name.replace("_", " ")) for name in names], cells


def _shown(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "default" if name not in _TITLES else "-"
    if not isinstance(value, float):
        return str(value) if name not in _FACTORS or isinstance(value, str) else f"{_FACTORS[name] * value:.1f}"
    return f"{_FACTORS[name] * value:.1f}" if name in _FACTORS else f"{value:.3g}"


def read_measured(folder: Path) -> dict[str, Any]:
    """What was measured before, by kind.

    Raises
    ------
    UserError
        If the file is damaged.
    """
    path = folder / "measured.json"
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); remove it to measure again") from error


def write(outcome: Outcome, folder: Path, *, figure: bool) -> None:
    """Write the table, all trainings, their curves and, if asked for, the figure, each at once.

    Parameters
    ----------
    outcome : Outcome
        Results so far.
    folder : Path
        For ``ablate.json`` and ``ablate.csv`` (the table), ``trainings.csv``, ``curves.csv`` and ``ablate.png``;
        what was measured without training is read from ``measured.json`` in it.
    figure : bool
        Draw too.
    """
    from manifold_resnet.experiments.ablate.plot import plot_ablation

    if not outcome.results:
        return
    measured = read_measured(folder)
    rows = rows_of(outcome, measured)
    ablation = outcome.experiment
    about = {"subject": ablation.name, "text": SUBJECTS[ablation.name].text, "settings": ablation.to_dict()}
    write_json(folder / "ablate.json", {**about, "missing": outcome.missing, "rows": rows, **measured})
    write_csv(folder / "ablate.csv", rows)
    write_csv(
        folder / "trainings.csv",
        [
            {**cell.key, "status": result.status, **result.metrics, "seconds": round(result.seconds, 3)}
            for cell, result in outcome.results
        ],
    )
    write_csv(folder / "curves.csv", [{**cell.key, **row} for cell, result in outcome.results for row in result.curve])
    if figure:
        save_figure(plot_ablation(outcome, measured), folder / "ablate.png")


def save_figure(figure: Any, path: Path) -> None:
    """Write an image whole or not at all."""
    partial = path.with_name(path.stem + ".part" + path.suffix)
    figure.savefig(partial, dpi=150)
    partial.replace(path)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write results of an ablation, with the versions they were made with."""
    versions = {package: metadata.version(package) for package in ("manifold-resnet", "torch")}
    text = json.dumps({"command": "ablate", "versions": versions, **values}, indent=1, ensure_ascii=False)
    write_atomically(path, text + "\n")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows with the columns of all of them."""
    lines = io.StringIO()
    columns = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(lines, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, lines.getvalue())
