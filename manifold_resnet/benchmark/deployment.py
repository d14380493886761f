"""Latency of exported networks, next to the network itself and its Euclidean twin."""

from __future__ import annotations

import json
import platform
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import manifold_resnet
from manifold_resnet._errors import UserError, extra
from manifold_resnet.benchmark.measure import interleave, summarise
from manifold_resnet.benchmark.run import Settings
from manifold_resnet.export import export_model, load_exported
from manifold_resnet.functional import set_backend
from manifold_resnet.models import create_model

__all__ = ["benchmark_deployment", "table", "write"]

_LABELS = {
    "euclidean": "Euclidean, eager",
    "euclidean_onnx": "Euclidean, ONNX",
    "eager": "ours, eager",
    "compiled": "ours, compiled",
    "export": "ours, torch.export",
    "onnx": "ours, ONNX",
}


def benchmark_deployment(settings: Settings) -> dict[str, Any]:
    """Measure inference of one image and of a batch, on the CPU.

    Parameters
    ----------
    settings : Settings
        Of them, `widths`, `depth`, `batch_size`, `image_size`, `c`, `rounds` and `threads` count.

    Returns
    -------
    dict
        ``latency``: by batch size and way, medians and quartiles of seconds and of the ratio to the Euclidean
        network's, see `measure.summarise`; ``differences``: of each exported file's logits from the network's,
        relative; ``settings`` and ``environment``.

    Raises
    ------
    UserError
        If an exported file does not compute what the network does, or the device is not the CPU.
    """
    if settings.device != "cpu":
        raise UserError("exported networks are measured on the CPU; leave --device out")
    with extra("export"):
        import onnxruntime
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    torch.manual_seed(0)
    images, _ = settings.batch()
    twin = create_model(settings.name("euclidean")).eval()
    ours = create_model(settings.name("hyperbolic"), c=settings.c).eval()
    with tempfile.TemporaryDirectory() as folder:
        exports = {
            name: export_model(model, Path(folder, f"{name}.{ending}"), images)
            for name, model, ending in (
                ("euclidean_onnx", twin, "onnx"),
                ("export", ours, "pt2"),
                ("onnx", ours, "onnx"),
            )
        }
        files = {name: load_exported(exported.path) for name, exported in exports.items()}
    ways = {"euclidean": _eager(twin, "eager"), "eager": _eager(ours, "eager"), "compiled": _eager(ours, "compiled")}
    ways |= files
    latency = {}
    for size in sorted({1, settings.batch_size}):
        batch = images[:size].contiguous()
        with torch.no_grad():
            calls = {name: lambda run=ways[name], batch=batch: run(batch) for name in _LABELS}
            latency[str(size)] = summarise(interleave(calls, settings.rounds, "cpu"), "euclidean")
    return {
        "settings": asdict(settings),
        "environment": {
            "torch": torch.__version__,
            "onnxruntime": onnxruntime.__version__,
            "manifold_resnet": manifold_resnet.__version__,
            "threads": torch.get_num_threads(),
            "machine": platform.machine(),
        },
        "latency": latency,
        "differences": {name: exported.difference for name, exported in exports.items()},
    }


def _eager(model: nn.Module, backend: str) -> Callable[[Tensor], Tensor]:
    def run(images: Tensor) -> Tensor:
        with set_backend(backend):  # type: ignore[arg-type]
            return model(images)

    return run


def table(results: dict[str, Any]) -> str:
    """The results as lines of text."""
    sizes = list(results["latency"])

    def row(title: str, cells: Iterable[str]) -> str:
        return f"{title:22}" + "".join(f"{cell:>32}" for cell in cells)

    lines = [row("", (f"batch of {size}" for size in sizes))]
    for name, label in _LABELS.items():
        cells = []
        for size in sizes:
            r = results["latency"][size][name]
            spread = "" if name == "euclidean" else f" [{r['ratio_low']:.2f}-{r['ratio_high']:.2f}]"
            cells.append(f"{1e3 * r['seconds']:.2f} ms {r['ratio']:.2f}x{spread}")
        lines.append(row(label, cells))
    largest = max(results["differences"].values())
    lines.append(f"\nLogits of the files are within {largest:.1e} of the networks', relative to the largest.")
    return "\n".join(lines)


def write(results: dict[str, Any], folder: Path) -> None:
    """Write ``deployment.json`` into a folder, at once."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / "deployment.json.part"
    temporary.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(folder / "deployment.json")
