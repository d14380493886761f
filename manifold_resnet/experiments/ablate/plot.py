"""The figures of ablations."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from manifold_resnet.experiments.ablate.grid import DEPTH
from manifold_resnet.optim.experiments.run import Outcome

__all__ = ["plot_ablation", "plot_backward"]

# colours that people with any colour vision tell apart (Okabe and Ito), yellow left out
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_LINES = ("-", (0, (4, 1.6)), (0, (1, 1.2)), "-.")
_MARKERS = ("o", "s", "^", "D")


def plot_ablation(outcome: Outcome, measured: Mapping[str, Any] | None = None) -> Figure:
    """Draw validation accuracy over epochs, test accuracy of each variant, and what was measured without training.

    Parameters
    ----------
    outcome : Outcome
        Results, of some trainings at least.
    measured : mapping, optional
        ``norms`` and ``steps``, see `measure`.

    Returns
    -------
    matplotlib.figure.Figure
        Two panels or more; lines are means over seeds, bands and bars their standard deviation, dots single seeds.

    Raises
    ------
    ValueError
        If there are no results.
    """
    if not outcome.results:
        raise ValueError("no results to draw")
    measured = measured or {}
    norms, steps = measured.get("norms", ()), measured.get("steps", ())
    depths = list(dict.fromkeys(row["depth"] for row in norms))
    labels = list(dict.fromkeys(cell.label for cell, _ in outcome.results))
    styles = _styles(outcome)
    columns = 3 if depths or steps else 2
    rows = 2 if depths else 1
    figure = Figure(figsize=(4.4 * columns + 0.4, 3.9 * rows + 0.25 * ((len(labels) + 3) // 4)), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    _curves(grid[0, 0], outcome, styles)
    by_depth = len({cell.values[DEPTH] for cell, _ in outcome.results if DEPTH in cell.values}) > 1
    (_against_depth if by_depth else _accuracies)(grid[0, 1], outcome, styles)
    if steps:
        _steps(grid[0, 2], steps, styles)
    elif depths:
        _ratios(grid[0, 2], norms, styles)
    for axes, depth in zip(grid[1] if depths else (), depths, strict=False):
        _norms(axes, [row for row in norms if row["depth"] == depth], depth, styles)
    if depths:
        top = max(axes.get_ylim()[1] for axes in grid[1])
        for axes in grid[1]:
            axes.set_ylim(0, top)
        for axes in grid[1, len(depths) :]:
            axes.set_visible(False)
    handles = [
        Line2D([], [], color=color, linestyle=line, marker=marker, markersize=5, linewidth=2, label=label)
        for label, (color, line, marker) in styles.items()
        if label in labels
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)), frameon=False,
                  handlelength=3.2)  # fmt: skip
    seeds = len({cell.seed for cell, _ in outcome.results})
    left = f"; {outcome.missing} trainings to come" if outcome.missing else ""
    config = outcome.experiment.config(outcome.experiment.cells[0])
    model, depths = config.model, outcome.experiment.varied.get(DEPTH)
    if depths:
        model = re.sub(r"\d+$", " and ".join(map(str, depths)), model)
    figure.suptitle(
        f"{outcome.experiment.name}: {model}, {config.dataset.rpartition('/')[2]}, {config.epochs} epochs, "
        f"{seeds} seed{'s' if seeds > 1 else ''}{left}",
        fontsize=11,
    )
    return figure


def _styles(outcome: Outcome) -> dict[str, tuple[Any, Any, str]]:
    """Of each variant: the first thing that is varied gives the colour, the others line and marker."""
    styles: dict[str, tuple[Any, Any, str]] = {}
    firsts: list[Any] = []
    others: list[Any] = []
    for cell in outcome.experiment.cells:
        first, *rest = cell.values.values()
        without_depth = type(cell)({k: v for k, v in cell.values.items() if k != DEPTH}, 0).label
        for value, seen in ((first, firsts), (rest, others)):
            if value not in seen:
                seen.append(value)
        color = _COLORS[firsts.index(first) % len(_COLORS)]
        k = others.index(rest)
        styles[cell.label] = (color, _LINES[k % len(_LINES)], _MARKERS[k % len(_MARKERS)])
        styles.setdefault(without_depth, (color, "-", "o"))
    return styles


def _style(axes: Axes, title: str, across: str, up: str) -> None:
    axes.set_title(title, fontsize=10.5)
    axes.set(xlabel=across, ylabel=up)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _finished(outcome: Outcome, label: str) -> list[Any]:
    return [result for cell, result in outcome.results if cell.label == label and result.status == "finished"]


def _curves(axes: Axes, outcome: Outcome, styles: Mapping[str, Any]) -> None:
    for label in dict.fromkeys(cell.label for cell, _ in outcome.results):
        color, line, _ = styles[label]
        curves = [[row["val_accuracy"] for row in result.curve] for result in _finished(outcome, label)]
        shortest = min(map(len, curves), default=0)
        if not shortest:
            continue
        table = np.array([curve[:shortest] for curve in curves], dtype=float)
        epochs, mean = np.arange(1, shortest + 1), table.mean(0)
        axes.plot(epochs, mean, color=color, linestyle=line, linewidth=1.9, marker="o" if shortest == 1 else "")
        if len(table) > 1:
            deviation = table.std(0, ddof=1)
            axes.fill_between(epochs, mean - deviation, mean + deviation, color=color, alpha=0.12, linewidth=0)
    _style(axes, "while training", "epoch", "validation accuracy")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))


def _accuracies(axes: Axes, outcome: Outcome, styles: Mapping[str, Any]) -> None:
    labels = list(dict.fromkeys(cell.label for cell, _ in outcome.results))
    for place, label in enumerate(labels):
        color, _, marker = styles[label]
        values = [result.metrics["test_accuracy"] for result in _finished(outcome, label)]
        if not values:
            axes.text(0.02, place, "diverged", color=color, va="center", transform=axes.get_yaxis_transform())
            continue
        axes.plot(values, [place] * len(values), marker, color=color, alpha=0.35, markersize=5, linestyle="")
        axes.errorbar(
            np.mean(values), place, xerr=np.std(values, ddof=1) if len(values) > 1 else None, color=color,
            marker=marker, markersize=8, capsize=3, elinewidth=1.4,
        )  # fmt: skip
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    _style(axes, "best epoch, on the test set", "test accuracy", "")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    axes.xaxis.set_major_locator(MaxNLocator(5))


def _against_depth(axes: Axes, outcome: Outcome, styles: Mapping[str, Any]) -> None:
    lines: dict[str, dict[int, list[float]]] = {}
    for cell, result in outcome.results:
        if result.status == "finished":
            values = {name: value for name, value in cell.values.items() if name != DEPTH}
            line = lines.setdefault(type(cell)(values, 0).label, {})
            line.setdefault(cell.values[DEPTH], []).append(result.metrics["test_accuracy"])
    for label, line in lines.items():
        depths = sorted(line)
        deviation = [np.std(line[d], ddof=1) if len(line[d]) > 1 else 0.0 for d in depths]
        axes.errorbar(depths, [np.mean(line[d]) for d in depths], deviation, color=styles[label][0], marker="o",
                      linewidth=1.9, capsize=3)  # fmt: skip
    _style(axes, "best epoch, on the test set", "depth", "test accuracy")
    axes.set_xticks(sorted({depth for line in lines.values() for depth in line}))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))


def _steps(axes: Axes, steps: Sequence[Mapping[str, Any]], styles: Mapping[str, Any]) -> None:
    for place, row in enumerate(steps):
        milliseconds = 1e3 * row["seconds"]
        ends = [[milliseconds - 1e3 * row["seconds_low"]], [1e3 * row["seconds_high"] - milliseconds]]
        axes.barh(place, milliseconds, xerr=ends, color=styles[row["variant"]][0], height=0.6, capsize=3, alpha=0.85,
                  error_kw={"elinewidth": 1.2})  # fmt: skip
        axes.text(0, place - 0.36, f" {row['ratio']:.2f}x", va="bottom", fontsize=8.5, color="0.3")
    axes.set_yticks(range(len(steps)), [row["variant"] for row in steps])
    axes.set_ylim(len(steps) - 0.4, -0.75)
    _style(axes, "a training step: median, quartiles", "milliseconds", "")


def _norms(axes: Axes, norms: Sequence[Mapping[str, Any]], depth: int, styles: Mapping[str, Any]) -> None:
    for row in norms:
        distances = row["distances"]
        axes.plot(range(1, len(distances) + 1), distances, color=styles[row["variant"]][0], linewidth=1.9,
                  marker="o" if len(distances) < 5 else "")  # fmt: skip
    _style(axes, f"new network of depth {depth}", "residual block", "mean distance from the origin")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _ratios(axes: Axes, norms: Sequence[Mapping[str, Any]], styles: Mapping[str, Any]) -> None:
    axes.axhspan(0.5, 2, color="0.94", zorder=0)
    for label in dict.fromkeys(row["variant"] for row in norms):
        points = [(row["depth"], row["ratio"]) for row in norms if row["variant"] == label]
        axes.plot(*zip(*points, strict=True), color=styles[label][0], marker="o", linewidth=1.9)
    _style(axes, "new networks (grey: a factor of 2)", "depth", "distance, last block to first")
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_xticks(sorted({row["depth"] for row in norms}))


def plot_backward(rows: Sequence[Mapping[str, Any]], title: str = "") -> Figure:
    """Draw memory and time of a training step against depth, for each contender of `compare_backward`.

    Parameters
    ----------
    rows : sequence of dict
        From `compare_backward`.
    title : str
        Of the figure.

    Returns
    -------
    matplotlib.figure.Figure
        Two panels on logarithmic scales; bars are quartiles.

    Raises
    ------
    ValueError
        If there are no rows.
    """
    if not rows:
        raise ValueError("no results to draw")
    figure = Figure(figsize=(9.2, 4.1), layout="constrained")
    memory, time = figure.subplots(1, 2)
    names = {"euclidean": "Euclidean network", "hand-written": "hand-written backward",
             "naive": "geoopt calls, automatic backward"}  # fmt: skip
    for k, (name, label) in enumerate(names.items()):
        mine = [row for row in rows if row["contender"] == name]
        depths = [row["depth"] for row in mine]
        style = {"color": _COLORS[k], "marker": _MARKERS[k], "linewidth": 1.9, "label": label}
        memory.plot(depths, [row["kept_bytes"] / 2**20 for row in mine], **style)
        middle = np.array([1e3 * row["seconds"] for row in mine])
        low, high = (np.array([1e3 * row[end] for row in mine]) for end in ("seconds_low", "seconds_high"))
        time.errorbar(depths, middle, [middle - low, high - middle], capsize=3, **style)
    _style(memory, "kept for the backward pass", "depth", "MiB")
    _style(time, "forward and backward pass", "depth", "milliseconds")
    for axes in (memory, time):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.set_xticks(sorted({row["depth"] for row in rows}))
    figure.legend(*memory.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure
