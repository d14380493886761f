"""What the Riemannian optimizers share: how parameters are sorted, checked and clipped, and what a step does around it.

A step sorts the parameters of a group into three kinds: points of Poincaré balls, joined into `Rows` by ball and row
length; Euclidean ones, for torch's foreach functions; and points of any other manifold of geoopt's, one by one.
"""

from __future__ import annotations

import itertools
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import geoopt
import torch
from geoopt.manifolds.base import Manifold
from manifold_resnet.optim._rows import Rows, is_large, keeps_ball
from torch import Tensor

from manifold_resnet.functional._backend import native
from manifold_resnet.functional._native import Library

__all__ = ["RiemannianOptimizer"]

Nonfinite = Literal["ignore", "raise", "skip"]
_EUCLIDEAN = geoopt.Euclidean()


def manifold_of(point: Tensor) -> Manifold:
    """The manifold of a parameter; the Euclidean one of plain tensors."""
    return getattr(point, "manifold", _EUCLIDEAN)


@dataclass
class _Work:
    """A group's parameters that have a gradient, sorted."""

    group: dict[str, Any]
    rows: list[Rows]
    flat: list[Tensor]
    flat_grads: list[Tensor]
    others: list[Tensor]
    other_grads: list[Tensor]
    other_factors: list[float]

    def scale(self, factor: Tensor | float) -> None:
        """Multiply all gradients, not those that the parameters hold."""
        for rows in self.rows:
            rows.factor = rows.factor * factor
        self.flat_grads = [grad * factor for grad in self.flat_grads]
        self.other_grads = [grad * factor for grad in self.other_grads]


class RiemannianOptimizer(ABC):
    """Base of the optimizers, put before geoopt's optimizer of the same name.

    Subclasses step one kind of parameters each in `_step_rows`, `_step_flat` and `_step_others`.
    """

    #: settings of a group that geoopt's optimizers do not have, and their defaults
    _options: dict[str, Any] = {"decoupled_weight_decay": False, "max_grad_norm": None, "nonfinite": "ignore"}

    param_groups: list[dict[str, Any]]
    defaults: dict[str, Any]
    state: Any

    def __init__(self, params: Iterable[Any], *args: Any, options: dict[str, Any], **kwargs: Any) -> None:
        self._given = options
        super().__init__(params, *args, **kwargs)
        self.defaults.update(self._given)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters; entries of the group override the optimizer's settings.

        Parameters
        ----------
        param_group : dict
            ``params``, optionally ``param_names`` (used in messages), and settings.

        Raises
        ------
        ValueError
            If a setting is out of range, or decoupled weight decay is asked for on a manifold without origin.
        TypeError
            If a parameter is sharded (a ``DTensor``): ``fully_shard`` takes its manifold away.
        """
        for name, value in self._given.items():
            param_group.setdefault(name, value)
        self._check_options(param_group)
        super().add_param_group(param_group)  # type: ignore[misc]
        group = self.param_groups[-1]
        try:
            self._check_sharding(group)
            self._check_decay(group)
            self._check_factors(group)
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    def _check_options(self, group: dict[str, Any]) -> None:
        if group["nonfinite"] not in ("ignore", "raise", "skip"):
            raise ValueError(f"nonfinite must be 'ignore', 'raise' or 'skip', got {group['nonfinite']!r}")
        limit = group["max_grad_norm"]
        if limit is not None and not limit > 0:
            raise ValueError(f"max_grad_norm must be above 0, or None for no clipping, got {limit!r}")

    def _check_sharding(self, group: dict[str, Any]) -> None:
        for i, point in enumerate(group["params"]):
            if hasattr(point, "device_mesh"):
                raise TypeError(
                    f"{_name(group, i, point)} is sharded (a {type(point).__name__}): fully_shard turns points of a "
                    "manifold into plain numbers. Train hyperbolic layers with DistributedDataParallel, and give "
                    "sharded Euclidean ones to an optimizer of torch"
                )

    def _check_decay(self, group: dict[str, Any]) -> None:
        if not group["decoupled_weight_decay"] or not group.get("weight_decay", self.defaults.get("weight_decay")):
            return
        for i, point in enumerate(group["params"]):
            manifold = manifold_of(point)
            if not isinstance(manifold, geoopt.Euclidean) and not hasattr(manifold, "expmap0"):
                raise ValueError(
                    f"decoupled weight decay moves points towards the origin, and {manifold.name} of "
                    f"{_name(group, i, point)} has none: put it into a group with weight_decay=0 (parameter groups "
                    f"are dicts; see parameter_groups)"
                )

    def _check_factors(self, group: dict[str, Any]) -> None:
        if "decay_factors" not in group:
            return
        given, wanted = group["decay_factors"], len(group["params"])
        try:
            factors = [float(factor) for factor in given]
        except (TypeError, ValueError):
            raise TypeError(f"decay_factors must be a list of numbers, got {given!r}") from None
        if len(factors) != wanted:
            raise ValueError(
                f"decay_factors must hold one number per parameter of the group, {wanted}; got {len(factors)}"
            )
        if not all(0 <= factor < math.inf for factor in factors):
            raise ValueError(f"decay_factors must be finite and 0 or more, got {given!r}")
        group["decay_factors"] = factors

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[misc]
        self._given = {name: self.defaults.get(name, default) for name, default in self._options.items()}
        self._stabilize = self.defaults.get("stabilize", getattr(self, "_stabilize", None))
        for group in self.param_groups:  # one saved by geoopt's optimizer lacks them
            for name, value in self._given.items():
                group.setdefault(name, value)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters that have a gradient; ``.grad`` is not changed.

        Parameters
        ----------
        closure : callable, optional
            Evaluates the loss anew and returns it.

        Returns
        -------
        Any
            What `closure` returns.

        Raises
        ------
        RuntimeError
            If a gradient is sparse.
        FloatingPointError
            If a gradient is not finite and ``nonfinite="raise"``. No parameter has changed then.
        """
        loss = closure() if closure is not None else None
        with torch.no_grad():
            work = [self._sort(group) for group in self.param_groups]
            if not self._finite(work):
                return loss
            self._clip(work)
            for part in work:
                for rows in part.rows:
                    library = None
                    if not isinstance(part.group["lr"], Tensor) and all(t.is_contiguous() for t in rows.grads):
                        library = native(rows.grads[0], parameter=True)
                    if library is None or not self._step_natively(library, rows, part.group):
                        self._step_rows(rows, part.group)
            for part in work:  # these may hold curvatures: from here on balls may be smaller
                if part.flat:
                    self._step_flat(part.flat, part.flat_grads, part.group)
            for part in work:
                for point, grad, factor in zip(part.others, part.other_grads, part.other_factors, strict=True):
                    group = part.group
                    if factor != 1 and not group["decoupled_weight_decay"]:
                        group = {**part.group, "weight_decay": factor * part.group["weight_decay"]}
                    # geoopt.Lorentz writes into the gradient that it converts
                    self._step_other(point, grad.clone(), manifold_of(point), group)
            for part in work:
                for rows in part.rows:
                    if rows.ball.isp_c.requires_grad:
                        rows.load()
                        rows.save()
                self._stabilize_if_due(part.group)
        return loss

    def _sort(self, group: dict[str, Any]) -> _Work:
        balls: dict[tuple[Any, ...], tuple[list[Tensor], list[Tensor]]] = {}
        work = _Work(group, [], [], [], [], [], [])
        sign = -1 if group.get("maximize") else 1
        # a parameter may have been added to the list
        factors = itertools.chain(group.get("decay_factors", ()), itertools.repeat(1.0))
        for point, factor in zip(group["params"], factors, strict=False):
            grad = point.grad
            if grad is None:
                continue
            if grad.is_sparse:
                name = type(self).__name__
                raise RuntimeError(f"{name} does not support sparse gradients, use geoopt.optim.Sparse{name} instead")
            manifold = manifold_of(point)
            if keeps_ball(point):
                alone = id(point) if is_large(point) else None
                key = (alone, id(manifold), point.shape[-1], point.dtype, point.device, factor)
                points, grads = balls.setdefault(key, ([], []))
            elif type(manifold) is geoopt.Euclidean and factor == 1:
                points, grads = work.flat, work.flat_grads
            else:
                points, grads = work.others, work.other_grads
                work.other_factors.append(factor)
            points.append(point)
            grads.append(grad)
        work.rows = [
            Rows(points[0].manifold, points, grads, key[-1])
            for key, (points, grads) in balls.items()
            if points[0].shape[-1]
        ]
        if sign < 0:
            work.scale(-1)
        return work

    def _finite(self, work: Sequence[_Work]) -> bool:
        """Whether the step may be made, as far as that was asked for."""
        for part in work:
            policy, group = part.group["nonfinite"], part.group
            if policy == "ignore":
                continue
            grads = [point.grad for point in group["params"] if point.grad is not None]
            if not grads or bool(torch.stack([g.isfinite().all() for g in grads]).all()):
                continue
            bad = [
                _name(group, i, point)
                for i, point in enumerate(group["params"])
                if point.grad is not None and not bool(point.grad.isfinite().all())
            ]
            message = f"the gradient of {', '.join(bad)} is not finite"
            if policy == "raise":
                raise FloatingPointError(f"{message}; no parameter was changed")
            warnings.warn(f"{message}; step skipped", RuntimeWarning, stacklevel=4)
            return False
        return True

    def _clip(self, work: Sequence[_Work]) -> None:
        for part in work:
            limit = part.group["max_grad_norm"]
            if limit is None:
                continue
            # |grad| in the dual metric, 1/lambda_x times the Euclidean norm, is the norm of the Riemannian gradient
            for rows in part.rows:
                rows.load()
            squares = [(rows.half * rows.grad).square().sum() for rows in part.rows]
            squares += [norm.square() for norm in torch._foreach_norm(part.flat_grads)] if part.flat else []
            for point, grad in zip(part.others, part.other_grads, strict=True):
                manifold = manifold_of(point)
                tangent = manifold.egrad2rgrad(point, grad.clone())
                # without keepdim, geoopt's balls multiply lengths and factors of different points
                squares.append(manifold.inner(point, tangent, keepdim=True).sum())
            if squares:
                total = torch.stack([s.to(squares[0].device, torch.float32) for s in squares]).sum().sqrt()
                factor = (limit / (total + 1e-6)).clamp(max=1)
                part.scale(factor)

    def _stabilize_if_due(self, group: dict[str, Any]) -> None:
        counts = self._count(group)
        if group["stabilize"] is not None and any(n % group["stabilize"] == 0 for n in counts):
            self.stabilize_group(group)  # type: ignore[attr-defined]

    @abstractmethod
    def _count(self, group: dict[str, Any]) -> Iterable[int]:
        """Count a step that was made, if that has not been done; the counts that stabilisation goes by."""

    @abstractmethod
    def _step_rows(self, rows: Rows, group: dict[str, Any]) -> None:
        """Step points of a ball."""

    @abstractmethod
    def _step_natively(self, library: Library, rows: Rows, group: dict[str, Any]) -> bool:
        """Step points of a ball with the C++ kernels, if these can: they read memory row by row."""

    @abstractmethod
    def _step_flat(self, points: list[Tensor], grads: list[Tensor], group: dict[str, Any]) -> None:
        """Step Euclidean parameters."""

    @abstractmethod
    def _step_other(self, point: Tensor, grad: Tensor, manifold: Manifold, group: dict[str, Any]) -> None:
        """Step a point of any other manifold."""


def native_settings(rows: Rows, group: dict[str, Any]) -> tuple[tuple[Any, ...], tuple[float, float, float]]:
    """For the C++ kernels: the ball; and coupled decay, share that decoupled decay takes, factor of the gradients."""
    c, decay = float(rows.ball.c), float(group["weight_decay"])
    coupled, share = (
        (0.0, group["lr"] * decay) if group["decoupled_weight_decay"] else (float(decay * rows.decay_factor), 0.0)
    )
    reach = (1 - rows.margin) / math.sqrt(c) if c > 0 else math.inf
    return (c, reach, int(rows.exact)), (coupled, float(share), float(rows.factor))


def shrink(manifold: Any, point: Tensor, share: float | Tensor, *tangents: Tensor) -> tuple[Tensor, ...]:
    """Move a point of a manifold with an origin towards it, by a share of its distance; carry tangent vectors."""
    moved = manifold.expmap0((1 - share) * manifold.logmap0(point))
    carried = tuple(manifold.transp(point, moved, v) for v in tangents)
    point.copy_(moved)
    return carried


def _name(group: dict[str, Any], index: int, point: Tensor) -> str:
    names = group.get("param_names")
    if names:
        return f"{names[index]!r}"
    return f"parameter {index} of its group, of shape {tuple(point.shape)} on {manifold_of(point).name}"
