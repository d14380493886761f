"""What to compare: a task, and a grid of optimizers, learning rates, parametrisations and seeds."""

from __future__ import annotations

import difflib
import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
import yaml

from manifold_resnet import optim
from manifold_resnet._errors import UserError

if TYPE_CHECKING:
    from manifold_resnet.optim.experiments.run import Outcome

__all__ = ["Cell", "Experiment", "Result", "Task", "check_names", "create_optimizer", "read_experiment", "shipped"]

PARAMETRISATIONS = ("ball", "tangent")
_GRID = ("optimizer", "lr", "parametrisation", "seed")


@dataclass(frozen=True)
class Cell:
    """One training: an optimizer with its arguments, learning rate, parametrisation and seed.

    Examples
    --------
    >>> from manifold_resnet.optim.experiments import Cell
    >>> Cell("adam", "RiemannianAdam", {}, lr=0.1, parametrisation="ball", seed=0).id
    'adam-ball-lr0.1-seed0'
    """

    optimizer: str
    kind: str
    arguments: Mapping[str, Any]
    lr: float
    parametrisation: str
    seed: int

    @property
    def id(self) -> str:
        """Name of the cell and of its folder."""
        return f"{self.optimizer}-{self.parametrisation}-lr{self.lr:.12g}-seed{self.seed}"

    @property
    def variant(self) -> tuple[str, str]:
        """What the learning rate is chosen for: optimizer and parametrisation."""
        return self.optimizer, self.parametrisation

    @property
    def key(self) -> dict[str, Any]:
        """The columns that say which cell a row is about."""
        return {
            "id": self.id,
            "optimizer": self.optimizer,
            "lr": self.lr,
            "parametrisation": self.parametrisation,
            "seed": self.seed,
        }

    @property
    def about(self) -> dict[str, Any]:
        """What the name of the cell stands for."""
        return {"class": self.kind, "arguments": dict(self.arguments)}


@dataclass
class Result:
    """What came out of a cell.

    Attributes
    ----------
    status : {"finished", "diverged"}
        Diverged: the loss became infinite or NaN; the metrics are then left out.
    metrics : dict
        Numbers by name; the task's own metric among them.
    curve : list of dict
        Rows over epochs or steps, with ``seconds`` since the start and ``train_loss``.
    seconds : float
        Spent on training, measurements left out.
    reason : str
        Why it diverged.
    """

    status: str
    metrics: dict[str, float | None] = field(default_factory=dict)
    curve: list[dict[str, float | None]] = field(default_factory=list)
    seconds: float = 0.0
    reason: str = ""


class Task(Protocol):
    """Something to train; see `classification`, `frechet` and `tree`.

    Attributes
    ----------
    unit : {"epoch", "step"}
        Column of a curve that counts.
    metric, label : str
        The column that learning rates are chosen by, and its name in figures.
    higher : bool
        Whether more of it is better.
    log : bool
        Whether it is averaged and drawn by its logarithm.
    also : tuple of str
        Further metrics for the summary.
    """

    unit: str
    metric: str
    label: str
    higher: bool
    log: bool
    also: tuple[str, ...]

    def check(self, cell: Cell) -> None:
        """Raise a UserError if the task can't do the cell."""

    def check_run(self, cell: Cell, folder: Path) -> None:
        """Raise a UserError if what there is of the cell was trained with other settings."""

    def run(self, cell: Cell, folder: Path, tell: Any) -> Result:
        """Train in a folder of the cell's own, carrying on with what is there; `tell` takes a word on progress."""


def check_names(given: Iterable[Any], known: Iterable[str], where: str, what: str = "setting") -> None:
    """Raise a UserError, with a hint, if a name is not known."""
    known = list(known)
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(known)}"
            raise UserError(f"{where} has an unknown {what} {name!r}; {hint}")


@dataclass(frozen=True)
class Experiment:
    """A task and the cells to run, seed by seed; `read_experiment` reads one from a file.

    Parameters
    ----------
    name : str
        Short, for folders and titles.
    settings : mapping
        Of the task, with its ``kind``.
    cells : tuple of Cell
        In the order they run.
    machine : mapping
        ``data_dir`` and ``device``: settings that don't change what is computed.

    Examples
    --------
    >>> from manifold_resnet.optim.experiments import Experiment
    >>> grid = {"optimizer": {"adam": {"class": "RiemannianAdam"}}, "lr": [0.1, 1.0], "seed": [0, 1]}
    >>> experiment = Experiment.from_dict({"task": {"kind": "frechet-mean", "steps": 20}, "grid": grid}, "mine")
    >>> [cell.id for cell in experiment.cells]
    ['adam-ball-lr0.1-seed0', 'adam-ball-lr1-seed0', 'adam-ball-lr0.1-seed1', 'adam-ball-lr1-seed1']
    """

    name: str
    settings: Mapping[str, Any]
    cells: tuple[Cell, ...]
    machine: Mapping[str, Any] = field(default_factory=dict)

    command = "compare-optimizers"

    @cached_property
    def task(self) -> Task:
        """What the cells train."""
        settings = dict(self.settings)
        kind = settings.pop("kind")
        if kind == "frechet-mean":
            from manifold_resnet.optim.experiments.frechet import FrechetMean

            return FrechetMean.from_dict(settings)
        if kind == "tree-embedding":
            from manifold_resnet.optim.experiments.tree import TreeEmbedding

            return TreeEmbedding.from_dict(settings)
        from manifold_resnet.optim.experiments.classification import Classification

        return Classification(settings, self.machine)

    @classmethod
    def from_dict(cls, values: Any, name: str, source: str = "the configuration") -> Experiment:
        """An experiment from a mapping such as a YAML file holds.

        Parameters
        ----------
        values : mapping
            ``task`` and ``grid``.
        name : str
            Of the experiment.
        source : str
            Named in errors.

        Raises
        ------
        UserError
            If something is unknown, missing or out of range.
        """
        values = _mapping(values, source)
        check_names(values, ("task", "grid"), source)
        settings = _mapping(values.get("task"), f"task of {source}")
        settings = {str(key).replace("-", "_"): value for key, value in settings.items()}
        if "kind" not in settings:
            raise UserError(f"task of {source} has no kind; choose from {', '.join(TASKS)}")
        check_names([settings["kind"]], TASKS, f"task of {source}", "kind")
        grid = _mapping(values.get("grid"), f"grid of {source}")
        check_names(grid, _GRID, f"grid of {source}")
        experiment = cls(name, settings, tuple(_cells(grid, f"grid of {source}")))
        experiment._check()
        return experiment

    def _check(self) -> None:
        for cell in {cell.optimizer: cell for cell in self.cells}.values():
            create_optimizer(cell, [torch.nn.Parameter(torch.zeros(2))])
            self.task.check(cell)

    def override(
        self, *, dataset: str | None = None, data_dir: str | None = None, device: str | None = None
    ) -> Experiment:
        """The same on other images, or another machine; ``None`` keeps what there is.

        Raises
        ------
        UserError
            If the task uses no images, or a value is wrong.
        """
        machine = {key: value for key, value in (("data_dir", data_dir), ("device", device)) if value is not None}
        if self.settings["kind"] != "classification" and (machine or dataset is not None):
            flag = "--dataset" if dataset is not None else "--" + next(iter(machine)).replace("_", "-")
            raise UserError(f"{flag} goes with a task of kind classification, and this is {self.settings['kind']}")
        settings = dict(self.settings)
        if dataset is not None:
            if (
                dataset.startswith("folder:") and dataset != "folder:"
            ):  # the results stay usable from another working directory
                dataset = "folder:" + str(Path(dataset.removeprefix("folder:")).expanduser().absolute())
            settings["dataset"] = dataset
        other = replace(self, settings=settings, machine={**self.machine, **machine})
        other._check()
        return other

    def check_run(self, cell: Cell, folder: Path) -> None:
        """Raise a UserError if what there is of a cell was trained with other settings."""
        self.task.check_run(cell, folder)

    def run(self, cell: Cell, folder: Path, tell: Callable[[str], None]) -> Result:
        """Train a cell in a folder of its own, carrying on with what is there; `tell` takes a word on progress."""
        return self.task.run(cell, folder, tell)

    def write(self, outcome: Outcome, folder: Path, *, figure: bool) -> None:
        """Write tables of what there is so far and, if asked for, the figure."""
        from manifold_resnet.optim.experiments.report import write

        write(outcome, folder, figure=figure)

    def to_dict(self) -> dict[str, Any]:
        """The experiment as a mapping that `from_dict` reads, every cell's settings spelled out."""
        optimizers: dict[str, Any] = {}
        for cell in self.cells:
            spec = optimizers.setdefault(
                cell.optimizer, {"class": cell.kind, **cell.arguments, "lr": [], "parametrisation": []}
            )
            for name in ("lr", "parametrisation"):
                if getattr(cell, name) not in spec[name]:
                    spec[name].append(getattr(cell, name))
        seeds = list(dict.fromkeys(cell.seed for cell in self.cells))
        return {"task": dict(self.settings), "grid": {"optimizer": optimizers, "seed": seeds}}


TASKS = ("classification", "frechet-mean", "tree-embedding")


def shipped() -> dict[str, str]:
    """Names of the experiments that come with the package, and what each is about.

    Examples
    --------
    >>> from manifold_resnet.optim.experiments import shipped
    >>> "digits" in shipped()
    True
    """
    files = sorted(_configs().iterdir(), key=lambda file: file.name)
    texts = {file.name.removesuffix(".yaml"): file.read_text(encoding="utf-8") for file in files}
    return {name: text.splitlines()[0].lstrip("# ") for name, text in texts.items()}


def _configs() -> Any:
    return resources.files("manifold_resnet.optim.experiments") / "configs"


def read_experiment(config: str | Path) -> Experiment:
    """An experiment from a YAML file, or a shipped one by its name.

    Parameters
    ----------
    config : str or Path
        A name from `shipped`, or a file.

    Raises
    ------
    UserError
        If there is no such file or experiment, or it is wrong.

    Examples
    --------
    >>> from manifold_resnet.optim.experiments import read_experiment
    >>> read_experiment("frechet-mean").settings["steps"]
    300
    """
    name, path = str(config), Path(config).expanduser()
    if name in shipped():
        return Experiment.from_dict(yaml.safe_load((_configs() / f"{name}.yaml").read_text(encoding="utf-8")), name)
    if not path.exists() and path.suffix not in (".yaml", ".yml"):
        check_names([name], shipped(), "the package", "experiment")
    return Experiment.from_dict(read_yaml(path), path.stem, str(config))


def read_yaml(path: Path) -> Any:
    """What a YAML file holds; a UserError if it can't be read."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}; the shipped ones are {', '.join(shipped())}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" near line {mark.line + 1}" if mark else ""
        raise UserError(f"{path} is not valid YAML{line}; it should hold task: and grid:") from error


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not value:
        got = "nothing" if value is None else repr(value)
        raise UserError(f"{where} should hold `name: value` lines, got {got}")
    return dict(value)


def _list(value: Any, where: str) -> list[Any]:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    if not values or value is None:
        raise UserError(f"{where} is empty; give a value or a list of them")
    return values


def _rates(value: Any, where: str) -> list[float]:
    rates = []
    for item in _list(value, where):
        rate = item if isinstance(item, bool) else _number(item)  # YAML reads 1e-3 as a string
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate < math.inf:
            raise UserError(f"{where} must be numbers above 0, got {item!r}")
        rates.append(float(rate))
    return list(dict.fromkeys(rates))


def _number(value: Any) -> Any:
    if isinstance(value, str) and re.fullmatch(r"[+-]?[\d.]+[eE][+-]?\d+", value):
        return float(value)
    return value


def _cells(grid: dict[str, Any], where: str) -> Iterable[Cell]:
    seeds = _list(grid.get("seed", 0), f"seed in {where}")
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise UserError(f"seed in {where} must be whole numbers, 0 or more, got {seed!r}")
    variants: list[dict[str, Any]] = []
    for name, given in _mapping(grid.get("optimizer"), f"optimizer in {where}").items():
        place = f"optimizer {name} in {where}"
        if not re.fullmatch(r"\w[\w.-]*", str(name)):
            raise UserError(f"{place}: names are made of letters, digits, '.', '_' and '-'")
        spec = _mapping(given, place)
        if "class" not in spec:
            raise UserError(f"{place} has no class; choose from {', '.join(_classes())}")
        kind = str(spec.pop("class"))
        check_names([kind], _classes(), place, "class")
        lr = spec.pop("lr", grid.get("lr"))
        if lr is None:
            raise UserError(f"{place} has no lr, and {where} has none for all; add a list of learning rates")
        points = _list(spec.pop("parametrisation", grid.get("parametrisation", "ball")), f"parametrisation of {place}")
        check_names(points, PARAMETRISATIONS, f"parametrisation of {place}", "value")
        check_names(spec, _arguments(_classes()[kind]), place, "argument")
        arguments = {key: _number(value) for key, value in spec.items()}
        for rate in _rates(lr, f"lr of {place}"):
            variants += [
                {"optimizer": str(name), "kind": kind, "arguments": arguments, "lr": rate, "parametrisation": point}
                for point in dict.fromkeys(points)
            ]
    # seed by seed: whatever has run so far compares all variants
    return [Cell(**variant, seed=seed) for seed in dict.fromkeys(seeds) for variant in variants]


def _classes() -> dict[str, type[torch.optim.Optimizer]]:
    exported = {name: getattr(optim, name) for name in optim.__all__}
    return {n: c for n, c in exported.items() if isinstance(c, type) and issubclass(c, torch.optim.Optimizer)}


def _arguments(kind: type[torch.optim.Optimizer]) -> list[str]:
    return [name for name in inspect.signature(kind).parameters if name not in ("params", "lr")]


def create_optimizer(cell: Cell, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of a cell; a UserError if it does not take its arguments."""
    arguments = {key: tuple(value) if isinstance(value, list) else value for key, value in cell.arguments.items()}
    try:
        return _classes()[cell.kind](parameters, lr=cell.lr, **arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"optimizer {cell.optimizer}: {cell.kind} refuses its arguments: {error}") from error
