"""Comparing optimizers: ``compare-optimizers``."""

from __future__ import annotations

import argparse
from pathlib import Path

from manifold_resnet._errors import UserError
from manifold_resnet.cli._command import Command


def _compare_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", nargs="?", help="YAML file, or the name of a shipped experiment")
    parser.add_argument("--list", action="store_true", help="show the shipped experiments and stop")
    parser.add_argument("--output", metavar="FOLDER", help="where to write and carry on (default: optimizers/CONFIG)")
    parser.add_argument("--limit", metavar="N", type=int, help="stop after N cells (default: all)")
    parser.add_argument("--dataset", metavar="NAME", help="other images than the configuration names")
    parser.add_argument("--data-dir", metavar="PATH", help="where downloaded data sets are kept")
    parser.add_argument("--device", metavar="NAME", help="auto, cpu or cuda, for trainings of networks")


def _compare(options: argparse.Namespace) -> None:
    from manifold_resnet.optim.experiments import read_experiment, run_experiment, shipped, summary

    if options.list:
        for name, text in shipped().items():
            print(f"{name:16} {text}")
        return
    if options.config is None:
        raise UserError("name a CONFIG: a YAML file, or one of " + ", ".join(shipped()))
    experiment = read_experiment(options.config).override(
        dataset=options.dataset, data_dir=options.data_dir, device=options.device
    )
    folder = Path("optimizers", experiment.name) if options.output is None else Path(options.output)
    outcome = run_experiment(experiment, folder, limit=options.limit, progress=True)
    print(summary(outcome))
    print(f"written to {folder / 'results.csv'}, {folder / 'curves.csv'} and {folder / 'comparison.png'}")
    if outcome.missing:
        print(f"{outcome.missing} of {len(experiment.cells)} cells are left; carry on with the same command")


COMMANDS = {
    "compare-optimizers": Command(
        "compare optimizers, learning rates and parametrisations over seeds",
        "examples:\n"
        "  manifold-resnet compare-optimizers --list              the experiments that come with the package\n"
        "  manifold-resnet compare-optimizers frechet-mean\n"
        "  manifold-resnet compare-optimizers digits --limit 10   ten cells now; the same command carries on\n"
        "  manifold-resnet compare-optimizers cifar10-fifth --dataset folder:cifar10\n"
        "  manifold-resnet compare-optimizers my.yaml --output optimizers/mine",
        _compare_options,
        _compare,
        positional="CONFIG",
        interrupted="finished cells are kept, carry on with the same command",
    ),
}
