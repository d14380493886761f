"""Results of a benchmark as text and as files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from manifold_resnet.benchmark.run import AGREEMENT

_LABELS = {"euclidean": "Euclidean", "eager": "ours, eager", "compiled": "ours, compiled", "naive": "naive geoopt"}
_KEYS = {"width": "widths", "depth": "depth", "batch": "batch_size", "image": "image_size"}


def table(results: dict[str, Any]) -> str:
    """The results as lines of text; without speed-ups if ours and the plain composition disagree."""
    names = list(next(iter(results["layers"].values())))
    lines = []

    def row(title: str, cells: Iterable[str]) -> None:
        lines.append(f"{title:22}" + "".join(f"{cell:>32}" for cell in cells))

    def times(title: str, measured: dict[str, dict[str, float]]) -> None:
        cells = []
        for name in names:
            r = measured.get(name)
            if r is None:
                cells.append("-")
                continue
            spread = f" [{r['ratio_low']:.2f}-{r['ratio_high']:.2f}]" if name != "euclidean" else ""
            cells.append(f"{1e3 * r['seconds']:.1f} ms {r['ratio']:.2f}x{spread}")
        row(title, cells)

    def memory(title: str, measured: dict[str, int]) -> None:
        reference = max(measured["euclidean"], 1)
        cells = (f"{measured[n] / 2**20:.0f} MiB {measured[n] / reference:.2f}x" for n in names if n in measured)
        row(title, cells)

    row("", (_LABELS[name] for name in names))
    network = results["network"]
    times("training step", network["step"])
    times("inference", network["inference"])
    steps = network["optimizer"]
    times("optimizer step", {name: r for name, r in steps.items() if name != "naive"})
    memory("kept for backward", network["kept_bytes"])
    memory("peak memory rise", network["peak_bytes"])
    for name, measured in results["layers"].items():
        times(name, measured)
    geoopts, ours = steps["naive"]["seconds"], steps["compiled"]["seconds"]
    lines.append(
        f"\nOptimizer steps are Adam's, the Euclidean one torch's foreach. geoopt's RiemannianAdam takes "
        f"{1e3 * geoopts:.1f} ms on the same parameters, {geoopts / ours:.1f} times ours, compiled."
    )
    for sweep, rows in results["sweeps"].items():
        lines.append(f"\nby {sweep}: training step, kept for backward, peak memory; ours, compiled, to Euclidean")
        for r in rows:
            ours = r["step"]["compiled"]
            kept, peak = (r[k]["compiled"] / max(r[k]["euclidean"], 1) for k in ("kept_bytes", "peak_bytes"))
            time = f"{1e3 * ours['seconds']:8.0f} ms {ours['ratio']:6.2f}x"
            lines.append(f"{r[_KEYS[sweep]]!s:>12} {time}{kept:8.2f}x{peak:8.2f}x")
    differences = ", ".join(f"{k} {v:.1e}" for k, v in results["agreement"].items())
    if not results["agrees"]:
        lines.append(
            f"\nNo speed-up to report: ours and the plain composition disagree (relative differences of loss and "
            f"gradients in float64: {differences}; allowed: {AGREEMENT:g})"
        )
        return "\n".join(lines)
    lines.append(f"\nLoss and gradients agree with the plain composition's (float64, relative: {differences}).")
    if "naive" in results:
        plain, ours = results["naive"]["step"]["naive"], results["naive"]["step"]["compiled"]
        lines.append(
            f"On {results['naive']['batch_size']} images, a step takes the plain composition {plain['seconds']:.2f} s, "
            f"{plain['ratio']:.1f} times the Euclidean network's, and ours 1/{plain['seconds'] / ours['seconds']:.1f} "
            f"of that."
        )
    return "\n".join(lines)


def write(results: dict[str, Any], folder: Path) -> None:
    """Write ``benchmark.json`` and ``benchmark.png`` into a folder, each at once."""
    from manifold_resnet.plotting.benchmark import plot_benchmark

    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / "benchmark.json.part"
    temporary.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(folder / "benchmark.json")
    image = folder / "benchmark.part.png"
    plot_benchmark(results).savefig(image, dpi=150)
    image.replace(folder / "benchmark.png")
