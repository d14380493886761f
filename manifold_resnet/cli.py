"""The command line, ``manifold-resnet``."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

from manifold_resnet._errors import UserError

__all__ = ["main"]

_PROGRAM = "manifold-resnet"
_DEBUG = "MANIFOLD_RESNET_DEBUG"


@dataclass(frozen=True)
class _Command:
    text: str
    examples: str
    add_options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]
    positional: str = ""


def _train_options(parser: argparse.ArgumentParser) -> None:
    from dataclasses import fields

    from manifold_resnet.training import Config

    run = parser.add_argument_group("run")
    run.add_argument("--output", metavar="FOLDER", help="new folder to write to (default: runs/DATASET-MODEL-NUMBER)")
    run.add_argument(
        "--resume",
        metavar="RUN",
        help="carry on with an interrupted run; only --data-dir, --workers, --device and, with a constant "
        "schedule, --epochs may differ",
    )
    run.add_argument(
        "--config",
        metavar="FILE",
        help="YAML file of settings, such as the config.yaml of a run; options given here override it",
    )
    groups: dict[str, Any] = {}
    for setting in fields(Config):
        about = setting.metadata
        if not about:
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
        groups[about["group"]].add_argument(flag, **options)


def _train(options: argparse.Namespace) -> None:
    from manifold_resnet.training import Config, resume, train

    given = dict(vars(options))
    output, run, file = given.pop("output"), given.pop("resume"), given.pop("config")
    if run is not None:
        allowed = {"epochs", "data_dir", "workers", "device"}
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


def _benchmark_options(parser: argparse.ArgumentParser) -> None:
    def add(flag: str, **options: Any) -> None:
        parser.add_argument(flag, default=argparse.SUPPRESS, **options)

    add("--widths", metavar="A-B-C", help="channels of the three groups (default: 8-16-32)")
    add("--depth", metavar="N", type=int, help="depth of the networks, 6n + 2 (default: 20)")
    add("--batch-size", metavar="N", type=int, help="images in a batch (default: 128)")
    add("--image-size", metavar="N", type=int, help="height and width of the images (default: 32)")
    add("--c", metavar="C", type=float, help="the curvature of the ball is -C (default: 0.1)")
    add("--rounds", metavar="N", type=int, help="calls that count, of each network (default: 15)")
    add("--naive", action=argparse.BooleanOptionalAction, help="measure the plain composition of geoopt calls too: "
        "slow, and needs gigabytes (default: yes)")  # fmt: skip
    add("--sweeps", metavar="NAME", nargs="*", help="vary these one by one: width, depth, batch, image")
    add("--device", metavar="NAME", help="cpu or cuda (default: cpu)")
    add("--threads", metavar="N", type=int, help="threads on the CPU (default: as torch does)")
    parser.add_argument("--output", metavar="FOLDER", default="benchmark", help="where to write (default: benchmark)")


def _benchmark(options: argparse.Namespace) -> None:
    from manifold_resnet.benchmark import Settings, benchmark
    from manifold_resnet.benchmark.report import table, write

    given = dict(vars(options))
    folder = Path(given.pop("output"))
    if "sweeps" in given:
        given["sweeps"] = tuple(given["sweeps"])
    results = benchmark(Settings(**given))
    write(results, folder)
    print(table(results))
    print(f"written to {folder / 'benchmark.json'} and {folder / 'benchmark.png'}")
    if not results["agrees"]:
        raise UserError("ours and the plain composition disagree, see above: please report this, with the JSON file")


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


_COMMANDS = {
    "train": _Command(
        "train a network on images and measure it on the test set",
        "examples:\n"
        "  manifold-resnet train                                  handwritten digits, no download\n"
        "  manifold-resnet train --dataset cifar10 --epochs 100   downloads CIFAR-10 to ./data\n"
        "  manifold-resnet train --dataset folder:photos --image-size 64\n"
        "  manifold-resnet train --model euclidean-8-16-32-resnet-20\n"
        "  manifold-resnet train --resume runs/digits-hyperbolic-8-16-32-resnet-20-1\n"
        "  manifold-resnet train --config runs/digits-hyperbolic-8-16-32-resnet-20-1/config.yaml --seed 1",
        _train_options,
        _train,
    ),
    "evaluate": _Command(
        "measure a trained network on the test set",
        "examples:\n"
        "  manifold-resnet evaluate runs/digits-hyperbolic-8-16-32-resnet-20-1\n"
        "  manifold-resnet evaluate RUN --checkpoint last",
        _evaluate_options,
        _evaluate,
        positional="RUN",
    ),
    "benchmark": _Command(
        "measure what hyperbolic networks cost next to Euclidean ones",
        "examples:\n"
        "  manifold-resnet benchmark                              a few minutes and 8 GB of memory\n"
        "  manifold-resnet benchmark --no-naive --sweeps depth batch\n"
        "  manifold-resnet benchmark --widths 64-128-256 --batch-size 32 --no-naive",
        _benchmark_options,
        _benchmark,
    ),
    "compare-optimizers": _Command(
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
    ),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def _parser(name: str | None = None) -> argparse.ArgumentParser:
    shared: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    if name is None:
        commands = "\n".join(f"  {key:18} {command.text}" for key, command in _COMMANDS.items())
        parser = _Parser(
            _PROGRAM,
            usage=f"{_PROGRAM} COMMAND [options]",
            description=f"Hyperbolic residual networks on images.\n\ncommands:\n{commands}",
            epilog=f"{_PROGRAM} COMMAND --help describes a command; --debug shows where an error happened.",
            **shared,
        )
        parser.add_argument("--version", action="version", version=f"{_PROGRAM} {metadata.version(_PROGRAM)}")
        parser.add_argument("command", metavar="COMMAND", help=argparse.SUPPRESS)
        return parser
    command = _COMMANDS[name]
    parser = _Parser(
        f"{_PROGRAM} {name}",
        usage=f"{_PROGRAM} {name} {command.positional + ' ' if command.positional else ''}[options]",
        description=command.text[0].upper() + command.text[1:] + ".",
        epilog=command.examples,
        **shared,
    )
    command.add_options(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    arguments : sequence of str, optional
        By default those of the process. ``--debug`` anywhere, or the environment variable
        ``MANIFOLD_RESNET_DEBUG``, shows tracebacks.

    Returns
    -------
    int
        Exit code: 0, 2 for an error that the user can mend (one line on standard error), 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = bool(os.environ.get(_DEBUG)) or "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        return _run(arguments)
    except KeyboardInterrupt as interrupt:
        folder = getattr(interrupt, "folder", None)
        hint = f"; carry on with: {_PROGRAM} train --resume {folder}" if folder else "; nothing was written"
        if arguments[:1] == ["compare-optimizers"]:
            hint = "; finished cells are kept, carry on with the same command"
        print(f"{_PROGRAM}: interrupted{hint}", file=sys.stderr)
        return 130
    except (UserError, ImportError, OSError) as error:
        if debug:
            raise
        print(f"{_PROGRAM}: error: {_one_line(error)}", file=sys.stderr)
        return 2


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0].startswith("-"):
        try:
            _parser().parse_args(arguments)
        except SystemExit as end:  # --help
            return int(end.code or 0)
    name = arguments[0]
    if name not in _COMMANDS:
        raise UserError(f"unknown command {name!r}; choose from {', '.join(_COMMANDS)}")
    try:
        options = _parser(name).parse_args(arguments[1:])
    except SystemExit as end:
        return int(end.code or 0)
    log = logging.getLogger("manifold_resnet")
    handler = logging.StreamHandler(sys.stdout)
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        _COMMANDS[name].run(options)
    finally:
        log.removeHandler(handler)
    return 0


def _one_line(error: BaseException) -> str:
    """Say an error in one line; of one from a worker process, what it said there."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if len(lines) > 1 and "Original Traceback" in str(error):
        return lines[-1].partition(": ")[2]
    return " ".join(lines)
