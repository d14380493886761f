"""The figure of an experiment."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from manifold_resnet.optim.experiments.grid import Task
from manifold_resnet.optim.experiments.report import Group, best, groups, spread
from manifold_resnet.optim.experiments.run import Outcome
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, PercentFormatter, StrMethodFormatter

__all__ = ["plot_comparison"]

# colours that people with any colour vision tell apart (Okabe and Ito), yellow left out
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_LINES = {"ball": "-", "tangent": (0, (4, 1.6))}
_MARKERS = {"ball": "o", "tangent": "s"}


def plot_comparison(outcome: Outcome) -> Figure:
    """Draw the task's metric and the training loss at the best learning rates, and the metric against the rate.

    Parameters
    ----------
    outcome : Outcome
        Results, of some cells at least.

    Returns
    -------
    matplotlib.figure.Figure
        Four panels; lines are means over seeds, bands their standard deviation.

    Raises
    ------
    ValueError
        If there are no results.
    """
    if not outcome.results:
        raise ValueError("no results to draw")
    task = outcome.experiment.task
    figure = Figure(figsize=(10.5, 7.6), layout="constrained")
    (by_unit, by_seconds), (losses, rates) = figure.subplots(2, 2)
    optimizers = list(dict.fromkeys(cell.optimizer for cell in outcome.experiment.cells))
    colors = {name: _COLORS[index % len(_COLORS)] for index, name in enumerate(optimizers)}
    chosen = best(outcome)
    log_loss = all(
        value > 0 for g in chosen for r in g.finished for row in r.curve if (value := row["train_loss"]) is not None
    )
    for group in chosen:
        color, line = colors[group.variant[0]], _LINES[group.variant[1]]
        _band(by_unit, group, task.unit, task.metric, task.log, color, line)
        _band(by_seconds, group, "seconds", task.metric, task.log, color, line)
        _band(losses, group, task.unit, "train_loss", log_loss, color, line)
    _rates(rates, groups(outcome), task, colors)
    for axes, across, up, log in (
        (by_unit, task.unit, task.label, task.log),
        (by_seconds, "seconds of training", task.label, task.log),
        (losses, task.unit, "training loss", log_loss),
        (rates, "learning rate", task.label, task.log),
    ):
        _style(axes, across, up, log)
    _scale(by_unit, by_seconds, rates, task)
    for axes in (by_unit, losses):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (by_unit, by_seconds, losses):
        axes.set_xlim(left=0)
    handles = [
        Line2D([], [], color=colors[g.variant[0]], linestyle=_LINES[g.variant[1]], marker=_MARKERS[g.variant[1]],
               markersize=5, linewidth=2, label=f"{g.variant[0]}, {g.variant[1]} (lr {g.lr:g})")
        for g in chosen
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=min(3, len(handles)), frameon=False, fontsize=9.5)
    seeds = len({cell.seed for cell, _ in outcome.results})
    left = f", {outcome.missing} cells to come" if outcome.missing else ""
    figure.suptitle(f"{outcome.experiment.name}: best learning rates, mean and spread over {seeds} seeds{left}",
                    fontsize=12)  # fmt: skip
    return figure


def _scale(by_unit: Axes, by_seconds: Axes, rates: Axes, task: Task) -> None:
    if task.metric.endswith("accuracy"):
        for axes in (by_unit, by_seconds, rates):
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    rates.set_xscale("log")
    ticks = sorted({x for line in rates.get_lines() for x in line.get_xdata() if len(line.get_xdata())})
    if ticks and len(ticks) <= 8:
        rates.set_xticks(ticks)
        rates.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        rates.xaxis.set_minor_locator(NullLocator())


def _style(axes: Axes, across: str, up: str, log: bool) -> None:
    axes.set(xlabel=across, ylabel=up)
    if log:
        axes.set_yscale("log")
        if np.ptp(np.log10(axes.get_ylim())) < 1.5:  # powers of ten alone would label next to nothing
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.yaxis.set_minor_locator(LogLocator(subs=(2.0, 3.0, 5.0)))
            axes.yaxis.set_minor_formatter(StrMethodFormatter("{x:.2g}"))
            axes.tick_params(axis="y", which="minor", labelsize=8)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _band(axes: Axes, group: Group, across: str, up: str, log: bool, color: str, line: object) -> None:
    """Draw the mean over seeds; seconds are means too, of the seeds' clocks at the same epoch or step."""
    curves = [[(row[across], row[up]) for row in result.curve] for result in group.finished]
    shortest = min((len(curve) for curve in curves), default=0)
    if not shortest:
        return
    table = np.array([curve[:shortest] for curve in curves], dtype=float)  # None becomes NaN
    known = ~np.isnan(table[:, :, 1]).any(0)
    if not known.any():
        return
    grid, values = table[:, known, 0].mean(0), table[:, known, 1]
    if log:
        values = np.log(np.maximum(values, 1e-17))
    mean = values.mean(0)
    deviation = values.std(0, ddof=1) if len(curves) > 1 else np.zeros_like(mean)
    back = np.exp if log else np.asarray
    marker = "o" if len(grid) == 1 else ""
    axes.plot(grid, back(mean), color=color, linestyle=line, linewidth=1.9, marker=marker, zorder=3)
    axes.fill_between(grid, back(mean - deviation), back(mean + deviation), color=color, alpha=0.13, linewidth=0)


def _rates(axes: Axes, found: Sequence[Group], task: Task, colors: dict[str, str]) -> None:
    for variant in dict.fromkeys(group.variant for group in found):
        color = colors[variant[0]]
        mine = [group for group in found if group.variant == variant]
        points = [(g.lr, *spread(values, task.log)) for g in mine if (values := g.values(task.metric))]
        if points:
            x, mean, deviation = np.array(points).T
            low, high = (mean - mean / deviation, mean * deviation - mean) if task.log else (deviation, deviation)
            axes.errorbar(x, mean, [low, high], color=color, linestyle=_LINES[variant[1]], linewidth=1.7,
                          marker=_MARKERS[variant[1]], markersize=5, capsize=2.5, elinewidth=1, zorder=3)  # fmt: skip
        for group in mine:
            if len(group.finished) < len(group.results):  # a cross at the foot, whatever the scale
                axes.plot(group.lr, 0.03, "x", color=color, markersize=8, markeredgewidth=2, clip_on=False,
                          transform=axes.get_xaxis_transform())  # fmt: skip
    if any(len(group.finished) < len(group.results) for group in found):
        axes.text(0.01, 0.07, "× a seed diverged", transform=axes.transAxes, fontsize=8.5, color="0.35")
