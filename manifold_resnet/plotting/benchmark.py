"""What hyperbolic networks cost, next to Euclidean ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, StrMethodFormatter

__all__ = ["plot_benchmark"]

_COLORS = {"eager": "#8a8f98", "compiled": "#0b6fa4", "naive": "#c8553d"}
_LABELS = {"eager": "ours, eager", "compiled": "ours, compiled", "naive": "naive geoopt"}
_SWEEPS = {"width": "widths", "depth": "depth", "batch": "batch_size", "image": "image_size"}
_TITLES = {"width": "channels", "depth": "depth", "batch": "images in a batch", "image": "image size"}


def plot_benchmark(results: Mapping[str, Any]) -> Figure:
    """Draw the ratios to the Euclidean network: of the whole network, of single layers, and along sweeps.

    Parameters
    ----------
    results : mapping
        As `manifold_resnet.benchmark.benchmark` returns them.

    Returns
    -------
    matplotlib.figure.Figure
        A panel of bars, and one for each sweep.
    """
    sweeps = results["sweeps"]
    rows = 1 + (len(sweeps) + 1) // 2
    figure = Figure(figsize=(9.6, 3.9 * rows), layout="constrained")
    grid = figure.add_gridspec(rows, 2)
    network = results["network"]
    times = {
        "training step": network["step"],
        "inference": network["inference"],
        **results["layers"],
    }
    bars = {title: {k: v["ratio"] for k, v in measured.items()} for title, measured in times.items()}
    for title, key in (("kept for backward", "kept_bytes"), ("peak memory", "peak_bytes")):
        bars[title] = {name: value / max(network[key]["euclidean"], 1) for name, value in network[key].items()}
    if "naive" in results:
        plain = results["naive"]
        bars["training step"]["naive"] = plain["step"]["naive"]["ratio"]
        for title, key in (("kept for backward", "kept_bytes"), ("peak memory", "peak_bytes")):
            bars[title]["naive"] = plain[key]["naive"] / max(plain[key]["euclidean"], 1)
    axes = figure.add_subplot(grid[0, :])
    contenders = [name for name in _LABELS if any(name in bar for bar in bars.values())]
    width = 0.8 / len(contenders)
    for i, name in enumerate(contenders):
        places = [(j, bar[name]) for j, bar in enumerate(bars.values()) if name in bar]
        x = [j + (i - (len(contenders) - 1) / 2) * width for j, _ in places]
        drawn = axes.bar(x, [value for _, value in places], width, color=_COLORS[name], label=_LABELS[name])
        axes.bar_label(drawn, fmt="%.1f", fontsize=8, padding=1)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set(
        yscale="log",
        ylabel="times Euclidean",
        xticks=range(len(bars)),
        xticklabels=[title.replace(" ", "\n", 1) for title in bars],
    )
    axes.set_ylim(top=4 * max(value for bar in bars.values() for value in bar.values()))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.legend(frameon=False, ncols=len(contenders), loc="upper left")
    settings, machine = results["settings"], results["machine"]
    model = settings.get("model")
    subject = f"ResNet-{settings['depth']}, {settings['widths']} channels"
    if model is not None:
        size = settings["image_size"]
        subject = f"{model.replace('resnet', 'ResNet-')} (Euclidean: torchvision's) on {size} x {size}"
    axes.set_title(
        f"{subject}, batch {settings['batch_size']}, "
        f"{machine['gpu'] if settings['device'] == 'cuda' else machine['processor']}, "
        f"{machine['threads']} thread{'' if machine['threads'] == 1 else 's'}",
        fontsize=10,
    )
    for i, (sweep, measured) in enumerate(sweeps.items()):
        axes = figure.add_subplot(grid[1 + i // 2, i % 2])
        values = [row[_SWEEPS[sweep]] for row in measured]
        x = range(len(values))
        for label, line, style in (
            ("training step", [row["step"]["compiled"]["ratio"] for row in measured], "-o"),
            ("kept for backward", [row["kept_bytes"]["compiled"] / row["kept_bytes"]["euclidean"] for row in measured],
             "--s"),
            ("peak memory", [row["peak_bytes"]["compiled"] / max(row["peak_bytes"]["euclidean"], 1)
                             for row in measured], ":^"),
        ):  # fmt: skip
            axes.plot(x, line, style, label=label)
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set(xlabel=_TITLES[sweep], xticks=x, xticklabels=values, ylabel="ours, compiled / Euclidean")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.legend(frameon=False, fontsize=8)
    return figure
