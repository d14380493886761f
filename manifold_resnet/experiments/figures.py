"""Figures of the experiments on trained runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from manifold_resnet.experiments.gradcam import CamGrid

__all__ = ["plot_attack", "plot_cams", "plot_fusion", "plot_scores"]

# colours that people with any colour vision tell apart (Okabe and Ito), yellow left out
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")

# what a score's axis shows, and what turns an outlier score into it
_AXES: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "energy": ("energy (outliers high)", lambda score: score),
    "softmax": ("1 − largest softmax probability (outliers high)", lambda score: np.maximum(1 + score, 1e-12)),
    "distance": ("distance from the origin (outliers low)", np.negative),
    "maxlogit": ("largest logit (outliers low)", np.negative),
}
_EUCLIDEAN_DISTANCE = "norm of the features (outliers low)"
_BINS = 40


def plot_scores(
    scores: Mapping[tuple[str, str, str], np.ndarray],
    rows: Sequence[Mapping[str, Any]],
    titles: Mapping[str, str],
    euclidean: Sequence[str] = (),
) -> Figure:
    """Draw histograms of the scores of test images and outliers.

    Parameters
    ----------
    scores, rows :
        Of a `Detection`.
    titles : mapping
        Run name to what to call it; other runs are left out.
    euclidean : sequence of str
        Names of the runs whose features are Euclidean.

    Returns
    -------
    matplotlib.figure.Figure
        A row of panels for each run, a column for each score.
    """
    names = list(dict.fromkeys(score for _, score, _ in scores))
    sets = list(dict.fromkeys(label for _, _, label in scores if label != "test"))
    auroc = {(row["run"], row["score"], row["ood"]): row["auroc"] for row in rows}
    figure = Figure(figsize=(4.2 * len(names) + 0.4, 2.9 * len(titles) + 0.7), layout="constrained")
    panels = figure.subplots(len(titles), len(names), squeeze=False)
    colors = dict(zip(sets, _COLORS * len(sets), strict=False))
    for (run, title), line in zip(titles.items(), panels, strict=True):
        for score, axes in zip(names, line, strict=True):
            label, shown = _AXES[score]
            if score == "distance" and run in euclidean:
                label = _EUCLIDEAN_DISTANCE
            _histograms(axes, {part: shown(scores[run, score, part]) for part in ("test", *sets)}, colors,
                        log=score == "softmax")  # fmt: skip
            reached = [f"{part} {auroc[run, score, part]:.1%}" for part in sets]
            lines = [", ".join(reached[start : start + 3]) for start in range(0, len(reached), 3)]
            axes.set_title("AUROC: " + ",\n".join(lines), fontsize=8.5)
            axes.set_xlabel(label)
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
            _style(axes)
        line[0].set_ylabel(f"{title}\nshare of images")
    handles = [Patch(color="0.8", label="test images")]
    handles += [Line2D([], [], color=color, linewidth=1.8, label=part) for part, color in colors.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)), frameon=False)
    return figure


def _histograms(axes: Axes, values: Mapping[str, np.ndarray], colors: Mapping[str, str], log: bool) -> None:
    """Test images filled, outliers as lines; the half percent beyond either end goes into the last bin."""
    low = min(np.percentile(part, 0.5) for part in values.values())
    high = max(np.percentile(part, 99.5) for part in values.values())
    if log and high > 20 * low:  # within a decade, the logarithm only crowds the ticks
        axes.set_xscale("log")
        bins = np.geomspace(low, high, _BINS + 1)
    else:
        bins = np.linspace(low, high if high > low else low + 1, _BINS + 1)
    for part, found in values.items():
        inside = np.clip(found, bins[0], bins[-1])
        look = {"color": "0.8"} if part == "test" else {"histtype": "step", "color": colors[part], "linewidth": 1.6}
        axes.hist(inside, bins, weights=_shares(inside), **look)


def _shares(values: np.ndarray) -> np.ndarray:
    return np.full(len(values), 1 / len(values))


def plot_attack(summary: Sequence[Mapping[str, Any]], title: str = "") -> Figure:
    """Draw accuracy against the size of an attack: mean over seeds, and from the lowest to the highest.

    Parameters
    ----------
    summary : sequence of mapping
        From `attack_summary`.
    title : str
        Of the figure.

    Returns
    -------
    matplotlib.figure.Figure
        One panel, a line for each group.
    """
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    groups = list(dict.fromkeys(row["group"] for row in summary))
    for group, color in zip(groups, _COLORS * len(groups), strict=False):
        rows = sorted((row for row in summary if row["group"] == group), key=lambda row: row["epsilon"])
        x = [255 * row["epsilon"] for row in rows]
        seeds = rows[0]["seeds"]
        label = f"{group} ({seeds} seeds)" if seeds > 1 else group
        axes.plot(x, [row["accuracy"] for row in rows], "o-", color=color, markersize=5, linewidth=1.9, label=label)
        low, high = [row["lowest"] for row in rows], [row["highest"] for row in rows]
        axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
    axes.set(xlabel="epsilon: largest change of a pixel, in 1/255 of its range", ylabel="accuracy on test images")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    axes.legend(frameon=False)
    _style(axes)
    if title:
        axes.set_title(title, fontsize=11)
    return figure


def plot_cams(grid: CamGrid, titles: Mapping[str, str], classes: Sequence[str]) -> Figure:
    """Draw images, and the networks' Grad-CAM side by side.

    Parameters
    ----------
    grid : CamGrid
        From `gradcam`.
    titles : mapping
        Run name to what to call it.
    classes : sequence of str
        Class names.

    Returns
    -------
    matplotlib.figure.Figure
        For each image the image, with its class, and for each run its map over the image, with the predicted class and
        its probability; red where that is wrong.
    """
    count, columns = len(grid.indices), 1 + len(grid.maps)
    across = min(-(-count // 6), max(1, 12 // columns))  # blocks side by side
    down = -(-count // across)
    figure = Figure(figsize=(1.45 * across * (columns + 0.2), 1.62 * down + 0.5), layout="constrained")
    widths = ([1] * columns + [0.15]) * across  # a gap after each block
    cells = figure.add_gridspec(down, len(widths) - 1, width_ratios=widths[:-1])
    rows = {(row["image"], row["run"]): row for row in grid.rows}
    for place in range(count):
        line, block = place % down, place // down
        panels = [figure.add_subplot(cells[line, block * (columns + 1) + column]) for column in range(columns)]
        pixels = grid.images[place].permute(1, 2, 0).expand(-1, -1, 3).numpy()
        panels[0].imshow(pixels)
        panels[0].set_title(classes[grid.labels[place]], fontsize=8, pad=2)
        for axes, (run, maps) in zip(panels[1:], grid.maps.items(), strict=True):
            row = rows[grid.indices[place], run]
            axes.imshow(_overlay(pixels, maps[place].numpy()))
            axes.set_title(f"{row['predicted']} ({row['probability']:.0%})", fontsize=8, pad=2,
                           color="#2b2b2b" if row["right"] else "#c1121f")  # fmt: skip
        for axes, head in zip(panels, ["image", *(titles[run] for run in grid.maps)], strict=True):
            axes.set_axis_off()
            if line == 0:
                axes.annotate(head, (0.5, 1), (0, 16), xycoords="axes fraction", textcoords="offset points",
                              ha="center", va="bottom", fontsize=8.5, fontweight="bold")  # fmt: skip
    figure.supxlabel("what speaks for the predicted class: bright the most, dark nothing; red: wrong", fontsize=8)
    return figure


def _overlay(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Colours of the heat, and the grey image under them."""
    return 0.7 * colormaps["viridis"](heat)[:, :, :3] + 0.3 * pixels.mean(2, keepdims=True)


def plot_fusion(result: Mapping[str, Any]) -> Figure:
    """Draw accuracies of two networks alone and fused, and how their mistakes overlap.

    Parameters
    ----------
    result : mapping
        From `fuse`.

    Returns
    -------
    matplotlib.figure.Figure
        Two panels.
    """
    figure = Figure(figsize=(9.6, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.6, 1))
    bars = {
        result["run_first"]: ("first", _COLORS[0]),
        result["run_second"]: ("second", _COLORS[1]),
        "mean of softmax": ("mean_softmax", _COLORS[2]),
        "mean of logits": ("mean_logits", _COLORS[2]),
        "either is right": ("either", "0.75"),
    }
    values = [result[key] for key, _ in bars.values()]
    drawn = left.barh(list(bars), values, color=[color for _, color in bars.values()], height=0.62)
    left.bar_label(drawn, [f"{value:.1%}" for value in values], padding=4)
    left.invert_yaxis()
    left.set_xlim(0, 1.12 * max(values))  # room for the last label
    left.set_xlabel("accuracy on test images")
    left.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    _style(left)
    left.grid(visible=False, axis="y")
    counts = np.array(
        [[result["both_right"], result["only_first_right"]], [result["only_second_right"], result["both_wrong"]]]
    )
    share = counts / counts.sum()
    right.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        color = "white" if share[row, column] > 0.6 else "black"
        right.text(column, row, f"{count}\n({share[row, column]:.1%})", ha="center", va="center", color=color)
    right.set_xticks([0, 1], ["right", "wrong"])
    right.set_yticks([0, 1], ["right", "wrong"])
    right.set(xlabel=result["run_second"], ylabel=result["run_first"])
    right.set_title(f"agreement: {result['agreement']:.1%}", fontsize=10)
    return figure


def _style(axes: Axes) -> None:
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
