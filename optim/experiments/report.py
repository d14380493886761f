"""Results of an experiment: tables, the best learning rates, and what to print."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manifold_resnet.optim.experiments.grid import Result, Task
from manifold_resnet.optim.experiments.run import Outcome

from manifold_resnet.training.callbacks import write_atomically

__all__ = ["Group", "best", "groups", "spread", "summary", "write"]

_FLOOR = 1e-17  # logarithms of exact zeros


@dataclass(frozen=True)
class Group:
    """The cells that differ in their seed alone."""

    variant: tuple[str, str]
    lr: float
    results: list[Result]

    @property
    def finished(self) -> list[Result]:
        """Those that did not diverge."""
        return [result for result in self.results if result.status == "finished"]

    def values(self, metric: str) -> list[float]:
        """A metric of the finished cells."""
        return [value for result in self.finished if (value := result.metrics.get(metric)) is not None]


def groups(outcome: Outcome) -> list[Group]:
    """Group cells by optimizer, parametrisation and learning rate, in this order."""
    found: dict[tuple[tuple[str, str], float], list[Result]] = {}
    for cell, result in outcome.results:
        found.setdefault((cell.variant, cell.lr), []).append(result)
    order = list(dict.fromkeys(cell.variant for cell in outcome.experiment.cells))
    keys = sorted(found, key=lambda key: (order.index(key[0]), key[1]))
    return [Group(*key, found[key]) for key in keys]


def spread(values: Sequence[float], log: bool = False) -> tuple[float, float]:
    """Mean and standard deviation; geometric ones (the second a factor) if `log`."""
    if log:
        mean, deviation = spread([math.log(max(value, _FLOOR)) for value in values])
        return math.exp(mean), math.exp(deviation)
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def best(outcome: Outcome) -> list[Group]:
    """For each optimizer and parametrisation, the cells of the learning rate with the best mean.

    Learning rates at which a seed diverged come last, those with fewer seeds done after those with more.
    """
    task = outcome.experiment.task
    chosen: dict[tuple[str, str], Group] = {}

    def rank(group: Group) -> tuple[int, int, float]:
        values = group.values(task.metric)
        mean = spread(values, task.log)[0] if values else -math.inf if task.higher else math.inf
        return len(group.finished) - len(group.results), len(values), mean if task.higher else -mean

    for group in groups(outcome):
        if group.variant not in chosen or rank(group) > rank(chosen[group.variant]):
            chosen[group.variant] = group
    return list(chosen.values())


def summary(outcome: Outcome) -> str:
    """The best learning rate of each optimizer and parametrisation, as lines of text.

    Examples
    --------
    >>> import tempfile
    >>> from manifold_resnet.optim.experiments import Experiment, run_experiment, summary
    >>> grid = {"optimizer": {"adam": {"class": "RiemannianAdam"}}, "lr": [0.1]}
    >>> experiment = Experiment.from_dict({"task": {"kind": "frechet-mean", "steps": 5}, "grid": grid}, "mine")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     print(summary(run_experiment(experiment, folder)).splitlines()[0])
    optimizer  weights  best lr  seeds  distance        steps to 1e-6  seconds  diverged
    """
    task = outcome.experiment.task
    if not outcome.results:
        return "no cell is done yet"
    total: dict[tuple[str, str], list[Result]] = {}
    for cell, result in outcome.results:
        total.setdefault(cell.variant, []).append(result)
    heads = ["optimizer", "weights", "best lr", "seeds", *(_title(name) for name in (task.metric, *task.also))]
    table = [[*heads, "seconds", "diverged"]]
    for group in best(outcome):
        everything = total[group.variant]
        diverged = sum(result.status == "diverged" for result in everything)
        seconds = [result.seconds for result in group.finished]
        table.append(
            [
                *group.variant,
                f"{group.lr:g}",
                str(len(group.finished)),
                *(_shown(group.values(name), name, task) for name in (task.metric, *task.also)),
                f"{spread(seconds)[0]:.1f}" if seconds else "-",
                f"{diverged} of {len(everything)}" if diverged else "-",
            ]
        )
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    what = "geometric mean ×/÷ standard deviation" if task.log else "mean ± standard deviation"
    lines.append(f"{what} over seeds at the learning rate with the best {_title(task.metric)}")
    return "\n".join(lines)


def _title(name: str) -> str:
    return name.replace("_", " ")


def _shown(values: Sequence[float], name: str, task: Task) -> str:
    if not values:
        return "-"
    mean, deviation = spread(values, log := task.log and name == task.metric)
    if log:
        return f"{mean:.2e} ×/÷ {deviation:.2g}"
    if name.endswith("accuracy"):
        return f"{mean:.2%} ± {deviation:.2%}"
    return f"{mean:.4g} ± {deviation:.2g}"


def write(outcome: Outcome, folder: Path, *, figure: bool) -> None:
    """Write ``results.csv``, ``curves.csv`` and, if asked for, ``comparison.png``, each at once."""
    rows = [
        {**cell.key, "status": result.status, **result.metrics, "seconds": round(result.seconds, 3)}
        for cell, result in outcome.results
    ]
    if not rows:
        return
    write_atomically(folder / "results.csv", _csv(rows, last="seconds"))
    curves = [{**cell.key, **row} for cell, result in outcome.results for row in result.curve]
    first = [*outcome.results[0][0].key, outcome.experiment.task.unit, "seconds", "train_loss"]
    write_atomically(folder / "curves.csv", _csv(curves, first))
    if figure:
        from manifold_resnet.optim.experiments.plot import plot_comparison

        image = folder / "comparison.part.png"
        plot_comparison(outcome).savefig(image, dpi=150)
        image.replace(folder / "comparison.png")


def _csv(rows: Iterable[Mapping[str, Any]], first: Sequence[str] = (), last: str | None = None) -> str:
    rows = list(rows)
    columns = list(dict.fromkeys([*first, *(name for row in rows for name in row)]))
    if last is not None:
        columns.remove(last)
        columns.append(last)
    table = io.StringIO()
    writer = csv.DictWriter(table, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return table.getvalue()
