"""The command line, ``manifold-resnet``."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Any, NoReturn

from manifold_resnet._errors import UserError
from manifold_resnet.cli import benchmark, convert, experiments, export, optimizers, robustness, training

__all__ = ["main"]

_PROGRAM = "manifold-resnet"
_DEBUG = "MANIFOLD_RESNET_DEBUG"
_COMMANDS = (
    training.COMMANDS
    | robustness.COMMANDS
    | experiments.COMMANDS
    | export.COMMANDS
    | convert.COMMANDS
    | benchmark.COMMANDS
    | optimizers.COMMANDS
)


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

    Examples
    --------
    >>> from manifold_resnet.cli import main
    >>> main(["evaluate", "runs/none"])  # there is no such run
    2
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = bool(os.environ.get(_DEBUG)) or "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        return _run(arguments)
    except KeyboardInterrupt as interrupt:
        folder = getattr(interrupt, "folder", None)
        command = _COMMANDS.get(arguments[0]) if arguments else None
        hint = "nothing was written" if command is None else command.interrupted
        if folder is not None and hint == "nothing was written":  # a training that is the whole command
            hint = f"carry on with: {_PROGRAM} train --resume {folder}"
        print(f"{_PROGRAM}: interrupted; {hint}", file=sys.stderr)
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
