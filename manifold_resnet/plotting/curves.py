"""Loss and accuracy over the epochs of a training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, PercentFormatter, StrMethodFormatter

__all__ = ["plot_curves"]

_TRAIN, _VAL = "#8a8f98", "#0b6fa4"


def plot_curves(rows: Sequence[Mapping[str, float | None]], title: str = "") -> Figure:
    """Draw training and validation loss and accuracy.

    Parameters
    ----------
    rows : sequence of mapping
        One per epoch, as in a run's ``metrics.csv``: ``epoch``, ``train_loss``, ``train_accuracy`` and,
        where there was a validation, ``val_loss`` and ``val_accuracy`` (accuracies between 0 and 1).
    title : str
        Of the figure.

    Returns
    -------
    matplotlib.figure.Figure
        Two panels.

    Raises
    ------
    ValueError
        If there are no rows.

    Examples
    --------
    >>> from manifold_resnet.plotting import plot_curves
    >>> losses = [{"epoch": e, "train_loss": 2 / e, "val_loss": 2.2 / e} for e in (1, 2, 3)]
    >>> figure = plot_curves([{**row, "train_accuracy": 0.5, "val_accuracy": 0.4} for row in losses])
    >>> [axes.get_ylabel() for axes in figure.axes]
    ['cross-entropy', 'accuracy']
    """
    if not rows:
        raise ValueError("no epochs to draw: rows is empty")
    figure = Figure(figsize=(9.6, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    _panel(left, rows, "loss", "cross-entropy")
    losses = [value for row in rows for key in ("train_loss", "val_loss") if (value := row.get(key)) is not None]
    if all(0 < loss < math.inf for loss in losses):
        left.set_yscale("log")
        left.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        few_decades = max(losses) < 20 * min(losses)  # then powers of ten alone would label next to nothing
        left.yaxis.set_minor_locator(LogLocator(subs=(2.0, 5.0) if few_decades else (1.0,), numticks=12))
        left.yaxis.set_minor_formatter(StrMethodFormatter("{x:g}"))
    _panel(right, rows, "accuracy", "accuracy")
    right.yaxis.set_major_formatter(PercentFormatter(1.0))
    measured = [row for row in rows if row.get("val_accuracy") is not None]
    if measured:
        best = max(measured, key=lambda row: row["val_accuracy"])  # the first of equals, as the checkpoint
        label = f"best: {best['val_accuracy']:.1%}, epoch {best['epoch']:.0f}"
        right.plot(best["epoch"], best["val_accuracy"], "o", color=_VAL, markersize=7, zorder=3, label=label)
    right.legend(loc="lower right", frameon=False)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def _panel(axes: Axes, rows: Sequence[Mapping[str, float | None]], kind: str, label: str) -> None:
    for split, name, color, width in (("train", "training", _TRAIN, 1.5), ("val", "validation", _VAL, 2.0)):
        points = [(row["epoch"], row[f"{split}_{kind}"]) for row in rows if row.get(f"{split}_{kind}") is not None]
        if points:
            marker = "o" if len(points) == 1 else ""  # a line of one point is invisible
            axes.plot(*zip(*points, strict=True), color=color, linewidth=width, marker=marker, label=name)
    axes.set(xlabel="epoch", ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
