"""Measuring what hyperbolic networks cost: ``benchmark``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from manifold_resnet._errors import UserError
from manifold_resnet.cli._command import Command


def _benchmark_options(parser: argparse.ArgumentParser) -> None:
    def add(flag: str, **options: Any) -> None:
        parser.add_argument(flag, default=argparse.SUPPRESS, **options)

    add("--widths", metavar="A-B-C", help="channels of the three groups (default: 8-16-32)")
    add("--depth", metavar="N", type=int, help="depth of the networks, 6n + 2 (default: 20)")
    add("--model", metavar="NAME", help="instead of these: resnet18, resnet34 or resnet50, next to torchvision's")
    add("--batch-size", metavar="N", type=int, help="images in a batch (default: 128, with --model 4)")
    add("--image-size", metavar="N", type=int, help="height and width of the images (default: 32, with --model 224)")
    add("--c", metavar="C", type=float, help="the curvature of the ball is -C (default: 0.025)")
    add("--rounds", metavar="N", type=int, help="calls that count, of each network (default: 15, with --model 5)")
    add("--naive", action=argparse.BooleanOptionalAction, help="measure the plain composition of geoopt calls too: "
        "slow, and needs gigabytes (default: yes, with --model no)")  # fmt: skip
    add("--sweeps", metavar="NAME", nargs="*", help="vary these one by one: width, depth, batch, image")
    add("--device", metavar="NAME", help="cpu or cuda (default: cpu)")
    add("--threads", metavar="N", type=int, help="threads on the CPU (default: as torch does)")
    add("--deployment", action="store_true", help="measure exported networks instead: latency of eager, compiled, "
        "torch.export and ONNX; needs the extra export")  # fmt: skip
    parser.add_argument("--output", metavar="FOLDER", default="benchmark", help="where to write (default: benchmark)")


def _benchmark(options: argparse.Namespace) -> None:
    from manifold_resnet.benchmark import Settings, benchmark
    from manifold_resnet.benchmark.report import table, write

    given = dict(vars(options))
    folder = Path(given.pop("output"))
    if "sweeps" in given:
        given["sweeps"] = tuple(given["sweeps"])
    deployment = given.pop("deployment", False)
    settings = Settings(**given)
    try:
        folder.mkdir(parents=True, exist_ok=True)  # before minutes of measuring
    except OSError as error:
        raise UserError(f"--output must be a folder to write to, got {folder}: {error.strerror}") from error
    if deployment:
        _deployment(settings, folder)
        return
    results = benchmark(settings)
    write(results, folder)
    print(table(results))
    print(f"written to {folder / 'benchmark.json'} and {folder / 'benchmark.png'}")
    if not results["agrees"]:
        raise UserError("ours and the plain composition disagree, see above: please report this, with the JSON file")


def _deployment(settings: Any, folder: Path) -> None:
    from manifold_resnet.benchmark.deployment import benchmark_deployment, table, write

    results = benchmark_deployment(settings)
    write(results, folder)
    print(table(results))
    print(f"written to {folder / 'deployment.json'}")


COMMANDS = {
    "benchmark": Command(
        "measure what hyperbolic networks cost next to Euclidean ones",
        "examples:\n"
        "  manifold-resnet benchmark                              a few minutes and 8 GB of memory\n"
        "  manifold-resnet benchmark --no-naive --sweeps depth batch\n"
        "  manifold-resnet benchmark --deployment --batch-size 32\n"
        "  manifold-resnet benchmark --widths 64-128-256 --batch-size 32 --no-naive\n"
        "  manifold-resnet benchmark --model resnet18            images of 224 x 224, next to torchvision's",
        _benchmark_options,
        _benchmark,
    ),
}
