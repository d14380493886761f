"""Run the cells of an experiment one after the other, each recorded as soon as it is done."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import yaml
from manifold_resnet.optim.experiments.grid import Result, read_yaml
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from manifold_resnet._errors import UserError
from manifold_resnet.training.callbacks import write_atomically

__all__ = ["GridCell", "Grid", "Outcome", "run_experiment"]

_log = logging.getLogger("manifold_resnet.optim.experiments")


class GridCell(Protocol):
    """One training, see `optim.experiments.grid.Cell`.

    Attributes
    ----------
    id : str
        Name of the cell and of its folder.
    key : dict
        The columns that say which cell a row of a table is about, ``id`` first.
    about : dict
        What the name stands for, of plain values; cells of the same name must agree in it.
    """

    @property
    def id(self) -> str: ...
    @property
    def key(self) -> dict[str, Any]: ...
    @property
    def about(self) -> dict[str, Any]: ...


class Grid(Protocol):
    """Trainings to be run and compared, see `optim.experiments.grid.Experiment`.

    Attributes
    ----------
    name, command : str
        Of the experiment, and the command of ``manifold-resnet`` that runs it.
    settings : mapping
        What all cells share.
    cells : sequence of GridCell
        In the order they run.
    """

    name: str
    command: str
    settings: Mapping[str, Any]
    cells: Sequence[GridCell]

    @classmethod
    def from_dict(cls, values: Any, name: str, source: str) -> Grid: ...  # noqa: D102
    def to_dict(self) -> dict[str, Any]: ...  # noqa: D102
    def check_run(self, cell: Any, folder: Path) -> None: ...  # noqa: D102
    def run(self, cell: Any, folder: Path, tell: Callable[[str], None]) -> Result: ...  # noqa: D102
    def write(self, outcome: Outcome, folder: Path, *, figure: bool) -> None: ...  # noqa: D102


@dataclass(frozen=True)
class Outcome:
    """What there is of an experiment.

    Attributes
    ----------
    experiment : Grid
        What was asked for.
    results : list of (GridCell, Result)
        Of the cells that are done, in their order.
    missing : int
        How many cells are not.

    Examples
    --------
    >>> import tempfile
    >>> from manifold_resnet.optim.experiments import Experiment, run_experiment
    >>> grid = {"optimizer": {"adam": {"class": "RiemannianAdam"}}, "lr": [0.1, 1.0]}
    >>> experiment = Experiment.from_dict({"task": {"kind": "frechet-mean", "steps": 5}, "grid": grid}, "mine")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     outcome = run_experiment(experiment, folder, limit=1)
    >>> outcome.missing, outcome.results[0][1].status
    (1, 'finished')
    """

    experiment: Any
    results: list[tuple[Any, Result]]
    missing: int


def run_experiment(
    experiment: Grid, folder: str | Path, *, limit: int | None = None, progress: bool = False
) -> Outcome:
    """Run what is not done yet; after an interruption, even a kill, the same call carries on.

    Parameters
    ----------
    experiment : Grid
        What to run, such as an `Experiment`.
    folder : str or Path
        For ``cells/<cell>/cell.json`` and what else cells write, ``config.yaml``, ``log.txt``, and what the experiment
        writes: ``results.csv``, ``curves.csv`` and ``comparison.png`` for one that compares optimizers.
    limit : int, optional
        Stop after so many cells.
    progress : bool
        Show a progress bar where there is a terminal; elsewhere the log says it.

    Returns
    -------
    Outcome
        All results so far.

    Raises
    ------
    UserError
        If the folder holds a different experiment, or cells trained with defaults that have changed since, or a cell
        can't be run. A cell that diverges is a result.

    Examples
    --------
    >>> import tempfile
    >>> from manifold_resnet.optim.experiments import Experiment, run_experiment
    >>> grid = {"optimizer": {"adam": {"class": "RiemannianAdam"}}, "lr": [0.1]}
    >>> experiment = Experiment.from_dict({"task": {"kind": "frechet-mean", "steps": 5}, "grid": grid}, "mine")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run_experiment(experiment, folder).missing
    ...     run_experiment(experiment, folder).missing  # nothing to do, nothing done
    0
    0
    """
    if limit is not None and limit < 1:
        raise UserError(f"--limit must be a whole number, 1 or more, got {limit}")
    folder = Path(folder).expanduser().absolute()
    _claim(experiment, folder)
    done = {cell.id: result for cell in experiment.cells if (result := _read(folder, cell)) is not None}
    waiting = [cell for cell in experiment.cells if cell.id not in done]
    todo = waiting if limit is None else waiting[:limit]

    def outcome() -> Outcome:
        results = [(cell, done[cell.id]) for cell in experiment.cells if cell.id in done]
        return Outcome(experiment, results, len(experiment.cells) - len(results))

    with _logged(folder, progress and bool(todo)) as bar:
        _log.info(
            "%s: %d cells, %d of them done; folder: %s", experiment.name, len(experiment.cells), len(done), folder
        )
        bar.reset(total=len(experiment.cells))
        bar.update(len(done))
        for cell in todo:
            started = time.perf_counter()
            result = _run(experiment, cell, folder, lambda text, cell=cell: bar.set_postfix_str(f"{cell.id} {text}"))
            done[cell.id] = result
            experiment.write(outcome(), folder, figure=False)
            bar.update()
            figures = ", ".join(f"{key} {value:.4g}" for key, value in result.metrics.items() if value is not None)
            _log.info(
                "[%d/%d] %s: %s, %.1f s",
                len(done), len(experiment.cells), cell.id, figures or result.reason, time.perf_counter() - started,
            )  # fmt: skip
    experiment.write(outcome(), folder, figure=True)
    return outcome()


def _claim(experiment: Grid, folder: Path) -> None:
    """Write ``config.yaml``, or check that what is there agrees but for cells that are new."""
    path = folder / "config.yaml"
    if path.exists():
        _check_same(experiment.from_dict(read_yaml(path), experiment.name, str(path)), experiment, path)
        for cell in experiment.cells:
            experiment.check_run(cell, _cell_file(folder, cell).parent)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not a folder of an experiment, and not empty; choose another --output")
    try:
        (folder / "cells").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create {folder}: {error.strerror}; choose another --output") from error
    text = yaml.safe_dump(experiment.to_dict(), sort_keys=False, allow_unicode=True)
    write_atomically(path, f"# {experiment.name}: manifold-resnet {experiment.command} reads this file\n{text}")


def _check_same(old: Grid, new: Grid, path: Path) -> None:
    hint = f"only cells can be added to {path.parent}; choose another --output"
    for name in {**old.settings, **new.settings}:
        before, now = old.settings.get(name), new.settings.get(name)
        if before != now:
            raise UserError(f"{name} of the task is {before!r} in {path} and {now!r} now; {hint}")
    cells = {cell.id: cell for cell in new.cells}
    for cell in old.cells:
        if cell.id not in cells:
            raise UserError(f"the cell {cell.id} is in {path}, and not in the grid now; {hint}")
        before, now = cell.about, cells[cell.id].about
        if before != now:
            raise UserError(f"the cell {cell.id} is {before} in {path} and {now} now; {hint}")


def _cell_file(folder: Path, cell: GridCell) -> Path:
    return folder / "cells" / cell.id / "cell.json"


def _read(folder: Path, cell: GridCell) -> Result | None:
    path = _cell_file(folder, cell)
    if not path.exists():
        return None
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return Result(**{name: stored[name] for name in ("status", "metrics", "curve", "seconds", "reason")})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); remove its folder to run the cell again") from error


def _run(experiment: Grid, cell: GridCell, folder: Path, tell: Callable[[str], None]) -> Result:
    path = _cell_file(folder, cell)
    trainings = logging.getLogger("manifold_resnet.training")
    level = trainings.level
    trainings.setLevel(logging.WARNING)  # one line per cell is enough
    try:
        result = experiment.run(cell, path.parent, tell)
    finally:
        trainings.setLevel(level)
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"cell": {**cell.key, **cell.about}, **_plain(asdict(result))}
    write_atomically(path, json.dumps(about, indent=1, allow_nan=False) + "\n")
    return _read(folder, cell)


def _plain(value: Any) -> Any:
    """Leave out what JSON has no word for."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def _logged(folder: Path, progress: bool) -> Iterator[tqdm]:
    """Append the log to ``log.txt``; a bar where there is a terminal, with log lines above it."""
    log = logging.getLogger("manifold_resnet")
    handler = logging.FileHandler(folder / "log.txt", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    level = log.level
    shown = progress and (sys.stderr.isatty() or "ipykernel" in sys.modules)
    with contextlib.ExitStack() as stack:
        if shown:
            stack.enter_context(logging_redirect_tqdm([log]))
        log.addHandler(handler)
        if not log.isEnabledFor(logging.INFO):
            log.setLevel(logging.INFO)
        bar = stack.enter_context(tqdm(disable=not shown, unit="cell", leave=False, dynamic_ncols=True))
        try:
            yield bar
        finally:
            log.removeHandler(handler)
            handler.close()
            log.setLevel(level)
