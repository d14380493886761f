"""What a command of the command line is made of."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """A command of ``manifold-resnet``.

    Parameters
    ----------
    text : str
        What it does, in a few words; the first letter small.
    examples : str
        Shown below its options.
    add_options : callable
        Adds its options to a parser. Called only when the command is used, so that it may import what it needs.
    run : callable
        Carries it out; gets the parsed options.
    positional : str
        Its positional arguments, as the usage line shows them.
    interrupted : str
        What to do after Ctrl-C, if something was kept.
    """

    text: str
    examples: str
    add_options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]
    positional: str = ""
    interrupted: str = "nothing was written"
