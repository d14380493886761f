"""Errors that are the user's to mend, and the extras that some features need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Something the user can put right; its message says what to do.

    The command line prints it as one line, without a traceback.
    """


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Name the extra to install when an import inside the block fails.

    Parameters
    ----------
    name : str
        The extra of this distribution that brings the missing package, for example ``"train"``.

    Raises
    ------
    ModuleNotFoundError
        If a package outside ``manifold_resnet`` is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "manifold_resnet":
            raise
        message = f'{error.name} is not installed; this needs: pip install "manifold-resnet[{name}]"'
        raise ModuleNotFoundError(message, name=error.name) from error
