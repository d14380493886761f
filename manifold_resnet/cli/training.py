"""Training and evaluating networks: ``train``, ``evaluate``."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from pathlib import Path
from typing import Any

from manifold_resnet._errors import UserError
from manifold_resnet.cli._command import Command


def _train_options(parser: argparse.ArgumentParser) -> None:
    run = parser.add_argument_group("run")
    run.add_argument("--output", metavar="FOLDER", help="new folder to write to (default: runs/DATASET-MODEL-NUMBER)")
    run.add_argument(
        "--resume",
        metavar="RUN",
        help="carry on with an interrupted run; only --data-dir, --workers, --device, --devices, "
        "--num-nodes and, with a constant schedule, --epochs may differ",
    )
    run.add_argument(
        "--config",
        metavar="FILE",
        help="YAML file of settings, such as the config.yaml of a run; options given here override it",
    )
    add_settings(parser)


def add_settings(
    parser: argparse.ArgumentParser, *, several: Collection[str] = (), left_out: Collection[str] = ()
) -> None:
    """Add an option for each setting of a training, in groups; only those given appear in the result.

    Parameters
    ----------
    parser : argparse.ArgumentParser
        Gets the options.
    several : collection of str
        Settings that take one value or more, and become lists of text; switches stay switches.
    left_out : collection of str
        Settings without an option.
    """
    from dataclasses import fields

    from manifold_resnet.training import Config

    groups: dict[str, Any] = {}
    for setting in fields(Config):
        about = setting.metadata
        if not about or setting.name in left_out:
            continue
        if about["group"] not in groups:
            groups[about["group"]] = parser.add_argument_group(about["group"])
        text = about["help"].replace("%", "%%")
        switch = str(setting.type).startswith("bool")
        if setting.default is not None and "default: " not in text:
            shown = {True: "yes", False: "no"}[setting.default] if switch else setting.default
            text += f" (default: {shown})"
        flag = "--" + setting.name.replace("_", "-")
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text}
        if switch:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["metavar"] = about["metavar"]
            if setting.name in several:
                options["nargs"] = "+"
        groups[about["group"]].add_argument(flag, **options)


def _train(options: argparse.Namespace) -> None:
    from manifold_resnet.training import Config, resume, train
    from manifold_resnet.training.processes import reports

    given = dict(vars(options))
    output, run, file = given.pop("output"), given.pop("resume"), given.pop("config")
    if run is not None:
        allowed = {"epochs", "data_dir", "workers", "device", "devices", "num_nodes"}
        refused = sorted(set(given) - allowed) + [
            name for name, value in (("output", output), ("config", file)) if value is not None
        ]
        if refused:
            flag = "--" + refused[0].replace("_", "-")
            raise UserError(f"{flag} does not go with --resume: a resumed run keeps its settings; leave {flag} out")
        checked = Config(**given)
        folder = resume(run, **{name: getattr(checked, name) for name in given})
    else:
        values = {} if file is None else Config.read_dict(file)
        folder = train(Config.from_dict({**values, **given}, file or "the command line"), output)
    if reports():  # the others do not wait for the test
        _report(folder)


def _report(folder: Path) -> None:
    import json

    results = json.loads((folder / "test.json").read_text(encoding="utf-8"))
    minutes, seconds = divmod(round(results["train_seconds"]), 60)
    print(f"training took {minutes} min {seconds} s; curves: {folder / 'curves.png'}")
    _print_accuracy(results)


def _print_accuracy(results: dict[str, Any]) -> None:
    accuracy, images = results["test_accuracy"], results["images"]
    print(
        f"test accuracy {accuracy:.2%} ({round(accuracy * images)} of {images} images), "
        f"{results['checkpoint']} of epoch {results['epoch']}"
    )


def _evaluate_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="folder of a run, or a checkpoint file")
    parser.add_argument(
        "--checkpoint", choices=("best", "last"), default="best", help="which checkpoint (default: best)"
    )
    parser.add_argument(
        "--dataset", metavar="NAME", help="other test images with the same classes (default: the run's own)"
    )
    parser.add_argument("--data-dir", metavar="PATH", help="where downloaded data sets are kept (default: the run's)")
    parser.add_argument("--batch-size", metavar="N", help="images at a time (default: the run's)")
    parser.add_argument("--workers", metavar="N", help="processes that load images (default: the run's)")
    parser.add_argument("--device", metavar="NAME", help="auto, cpu or cuda (default: the run's)")


def _evaluate(options: argparse.Namespace) -> None:
    from manifold_resnet.training import evaluate

    _print_accuracy(evaluate(**vars(options)))


COMMANDS = {
    "train": Command(
        "train a network on images and measure it on the test set",
        "examples:\n"
        "  manifold-resnet train                                  handwritten digits, no download\n"
        "  manifold-resnet train --dataset cifar10 --epochs 100   downloads CIFAR-10 to ./data\n"
        "  manifold-resnet train --dataset folder:photos --image-size 64\n"
        "  manifold-resnet train --model euclidean-8-16-32-resnet-20\n"
        "  manifold-resnet train --devices 2 --batch-size 256     two processes, 128 images each per step\n"
        "  torchrun --nproc_per_node 2 -m manifold_resnet train   the same, started by torchrun\n"
        "  manifold-resnet train --resume runs/digits-hyperbolic-8-16-32-resnet-20-1\n"
        "  manifold-resnet train --config runs/digits-hyperbolic-8-16-32-resnet-20-1/config.yaml --seed 1",
        _train_options,
        _train,
    ),
    "evaluate": Command(
        "measure a trained network on the test set",
        "examples:\n"
        "  manifold-resnet evaluate runs/digits-hyperbolic-8-16-32-resnet-20-1\n"
        "  manifold-resnet evaluate RUN --checkpoint last",
        _evaluate_options,
        _evaluate,
        positional="RUN",
    ),
}
