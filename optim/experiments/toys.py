"""Small problems of points on a ball: how every one of them is minimised and measured."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import geoopt
import torch
from manifold_resnet.optim.experiments.grid import Cell, Result, check_names, create_optimizer
from torch import Tensor

from manifold_resnet._errors import UserError
from manifold_resnet.functional import expmap0, logmap0

__all__ = ["Problem", "Toy"]


@dataclass(frozen=True)
class Problem:
    """Points to move, what to minimise, and what to measure.

    Attributes
    ----------
    start : Tensor
        Ball points, float64, one per row.
    loss : callable
        Of the points.
    measure : callable
        Of the points, to numbers by name.
    """

    start: Tensor
    loss: Callable[[Tensor], Tensor]
    measure: Callable[[Tensor], dict[str, float]]


@dataclass(frozen=True)
class Toy(ABC):
    """Minimisation of a function of ball points: the points themselves are trained, or tangent vectors at the origin.

    Parameters
    ----------
    steps : int
        Of the optimizer.
    every : int
        Steps between rows of the curve.
    schedule : {"constant", "cosine"}
        Of the learning rate; cosine lets it end at zero.
    dim : int
        Dimensions of the ball.
    c : float
        The curvature is ``-c``.
    """

    steps: int = 200
    every: int = 5
    schedule: str = "constant"
    dim: int = 2
    c: float = 1.0

    unit: ClassVar[str] = "step"
    metric: ClassVar[str]
    label: ClassVar[str]
    higher: ClassVar[bool]
    log: ClassVar[bool]
    also: ClassVar[tuple[str, ...]]
    kind: ClassVar[str]

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            if setting.name == "schedule":
                if value not in ("constant", "cosine"):
                    raise UserError(f"schedule of {self.kind} must be constant or cosine, got {value!r}")
                continue
            if value is None and setting.default is None:
                continue
            whole = "int" in str(setting.type)
            good = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
            if not good or not 0 < value < math.inf:
                raise UserError(
                    f"{setting.name} of {self.kind} must be a {'whole ' if whole else ''}number above 0, got {value!r}"
                )

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Toy:
        """The task with settings by name; a UserError if there is no such setting."""
        check_names(settings, [setting.name for setting in fields(cls)], f"task {cls.kind}")
        return cls(**settings)

    @abstractmethod
    def problem(self, seed: int) -> Problem:
        """The problem that a seed stands for."""

    @abstractmethod
    def final(self, curve: list[dict[str, float | None]]) -> dict[str, float | None]:
        """Numbers about a finished curve."""

    def check(self, cell: Cell) -> None:  # noqa: B027 - nothing to refuse
        """Toys take every optimizer."""

    def check_run(self, cell: Cell, folder: Path) -> None:  # noqa: B027 - nothing to refuse
        """All of a toy's settings are the experiment's own."""

    def run(self, cell: Cell, folder: Path, tell: Callable[[str], None]) -> Result:
        """Minimise; nothing is kept of a run that was cut off, it takes seconds."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # tensors this small only wait for more, on a busy machine for long
        try:
            return self._minimise(cell, tell)
        finally:
            torch.set_num_threads(threads)

    def _minimise(self, cell: Cell, tell: Callable[[str], None]) -> Result:
        problem = self.problem(cell.seed)
        ball = geoopt.PoincareBall(c=torch.tensor(self.c, dtype=torch.float64))
        on_ball = cell.parametrisation == "ball"
        if on_ball:
            weights: torch.nn.Parameter = geoopt.ManifoldParameter(problem.start.clone(), manifold=ball)
        else:
            weights = torch.nn.Parameter(logmap0(problem.start, c=self.c))
        optimizer = create_optimizer(cell, [weights])
        curve: list[dict[str, float | None]] = []
        seconds = 0.0
        for step in range(self.steps + 1):
            started = time.perf_counter()
            points = weights if on_ball else expmap0(weights, c=self.c)
            loss = problem.loss(points)
            value = loss.item()
            if not math.isfinite(value):
                return Result("diverged", {}, curve, seconds, f"the loss became {value} at step {step}")
            if step < self.steps:
                if self.schedule == "cosine":
                    for group in optimizer.param_groups:
                        group["lr"] = cell.lr * (1 + math.cos(math.pi * step / self.steps)) / 2
                before = weights.detach().clone() if step % self.every == 0 else None
                optimizer.zero_grad()
                loss.backward()
                try:
                    optimizer.step()
                except ArithmeticError as error:  # nonfinite="raise"
                    return Result("diverged", {}, curve, seconds, f"step {step}: {error}")
            else:
                before = weights.detach().clone()
            row_seconds, seconds = seconds, seconds + time.perf_counter() - started
            if before is not None:
                before = before.as_subclass(Tensor)
                place = before if on_ball else expmap0(before, c=self.c)
                curve.append({"step": step, "seconds": row_seconds, "train_loss": value, **problem.measure(place)})
                tell(f"step {step}/{self.steps}")
        return Result("finished", self.final(curve), curve, row_seconds)
