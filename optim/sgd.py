"""Riemannian stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import geoopt
import torch
from geoopt.manifolds.base import Manifold
from manifold_resnet.optim._optimizer import Nonfinite, RiemannianOptimizer, native_settings, shrink
from manifold_resnet.optim._rows import Rows
from torch import Tensor

from manifold_resnet.functional._native import Library

__all__ = ["RiemannianSGD"]


class RiemannianSGD(RiemannianOptimizer, geoopt.optim.RiemannianSGD):
    """Riemannian SGD (Bonnabel 2013), batched: arguments, results and ``state_dict`` are geoopt's.

    Parameters are stepped in batches and stay on their ball as described for `RiemannianAdam`.

    Parameters
    ----------
    params : iterable
        Parameters, named parameters, or parameter groups, of any geoopt manifold; rows of ball points run along the
        last dimension.
    lr : float or Tensor
        Learning rate: a step's Riemannian length per length of the Riemannian gradient.
    momentum : float
        Decay of the momentum, 0 for none.
    dampening : float
        Share of the gradient that does not enter the momentum.
    weight_decay : float
        Times the point, added to the Euclidean gradient, as in geoopt; see `decoupled_weight_decay`. Where a parameter
        group has ``"decay_factors"`` (see `parameter_groups`), times its number for the parameter as well.
    nesterov : bool
        Nesterov momentum.
    stabilize : int, optional
        Project points and momenta onto their manifold every so many steps.
    decoupled_weight_decay : bool
        Shrink, before each step, by the factor ``1 - lr * weight_decay``: Euclidean parameters towards zero, points
        along the geodesic to the origin.
    max_grad_norm : float, optional
        Scale the gradients of a group such that the Riemannian norm of all together is at most this.
    nonfinite : {"ignore", "raise", "skip"}
        What to do about gradients that are not finite: nothing, as torch; raise; or leave out the step with a warning.
        The last two name the parameter, and make a GPU wait.

    Raises
    ------
    ValueError
        If an argument is out of range, or decoupled weight decay is asked for on a manifold without origin.

    Notes
    -----
    As in geoopt, a momentum starts as the Euclidean gradient of the first step, to which that step's Riemannian
    gradient is added. All of a step's operations can be captured in CUDA graphs after the first one.

    Examples
    --------
    >>> import geoopt
    >>> import torch
    >>> from manifold_resnet.optim import RiemannianSGD
    >>> ball = geoopt.PoincareBall(c=1.0)
    >>> x = geoopt.ManifoldParameter(torch.zeros(5, 2), manifold=ball)
    >>> optimizer = RiemannianSGD([x], lr=0.1, momentum=0.5)
    >>> for _ in range(50):
    ...     optimizer.zero_grad()
    ...     ball.dist(x, torch.tensor([0.3, 0.4])).square().sum().backward()
    ...     optimizer.step()
    >>> torch.allclose(x, torch.tensor([0.3, 0.4]), atol=1e-2)
    True
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        stabilize: int | None = None,
        *,
        decoupled_weight_decay: bool = False,
        max_grad_norm: float | None = None,
        nonfinite: Nonfinite = "ignore",
    ) -> None:
        options = {
            "decoupled_weight_decay": decoupled_weight_decay,
            "max_grad_norm": max_grad_norm,
            "nonfinite": nonfinite,
        }
        super().__init__(
            params, lr, momentum, dampening, weight_decay, nesterov, stabilize=stabilize, options=options
        )  # fmt: skip

    def _count(self, group: dict[str, Any]) -> Iterable[int]:
        group["step"] = group.get("step", 0) + 1
        return (group["step"],)

    def _momenta(
        self,
        points: Sequence[Tensor],
        grads: Sequence[Tensor],
        factor: float | Tensor = 1.0,
        dtype: torch.dtype | None = None,
    ) -> list[Tensor]:
        states = [self.state[point] for point in points]
        for state, grad in zip(states, grads, strict=True):
            if not state:
                state["momentum_buffer"] = grad.detach().to(dtype or grad.dtype, copy=True).mul_(factor)
        return [state["momentum_buffer"] for state in states]

    def _step_natively(self, library: Library, rows: Rows, group: dict[str, Any]) -> bool:
        momentum, dampening = float(group["momentum"]), float(group["dampening"])
        buffers = None
        if momentum > 0:
            buffers = self._momenta(rows.points, rows.grads, rows.factor)
        if not all(t.is_contiguous() for t in (*rows.points, *(buffers or ()))):
            return False
        ball, decay = native_settings(rows, group)
        numbers = (*ball, float(group["lr"]), momentum, dampening, *decay, int(group["nesterov"]))
        library.step("sgd", rows.points, numbers, (rows.grads, buffers))
        return True

    def _step_rows(self, rows: Rows, group: dict[str, Any]) -> None:
        lr, decay, momentum = group["lr"], group["weight_decay"], group["momentum"]
        buffers = [self._momenta(rows.points, rows.grads, rows.factor, rows.dtype)] if momentum > 0 else []
        for part, *stored in rows.parts(*buffers):
            grad = part.grad
            if decay and not group["decoupled_weight_decay"]:
                grad = torch.add(grad, part.x, alpha=decay * part.decay_factor)
            grad = part.riemannian(grad)
            kept: tuple[Tensor, ...] = ()
            if stored:
                m = part.join(stored[0]).mul_(momentum).add_(grad, alpha=1 - group["dampening"])
                grad = torch.add(grad, m, alpha=momentum) if group["nesterov"] else m
                kept = (m,)
            if decay and group["decoupled_weight_decay"]:
                grad, *kept = part.shrink(lr * decay, grad, *kept)  # type: ignore[assignment]
            kept = part.move(-lr * grad, *kept)
            if stored:
                part.store(kept[0], stored[0])
            part.save()

    def _step_flat(self, points: list[Tensor], grads: list[Tensor], group: dict[str, Any]) -> None:
        lr, decay, momentum = group["lr"], group["weight_decay"], group["momentum"]
        first = grads
        if decay and group["decoupled_weight_decay"]:
            torch._foreach_mul_(points, 1 - lr * decay)
        elif decay:
            grads = torch._foreach_add(grads, points, alpha=decay)
        if momentum > 0:
            buffers = self._momenta(points, first)
            torch._foreach_mul_(buffers, momentum)
            torch._foreach_add_(buffers, grads, alpha=1 - group["dampening"])
            grads = torch._foreach_add(grads, buffers, alpha=momentum) if group["nesterov"] else buffers
        torch._foreach_add_(points, torch._foreach_mul(grads, -lr))

    def _step_other(self, point: Tensor, grad: Tensor, manifold: Manifold, group: dict[str, Any]) -> None:
        lr, decay, momentum = group["lr"], group["weight_decay"], group["momentum"]
        buffers = self._momenta([point], [grad]) if momentum > 0 else []
        if decay and not group["decoupled_weight_decay"]:
            grad = torch.add(grad, point, alpha=decay)
        grad = manifold.egrad2rgrad(point, grad)
        for m in buffers:
            m.mul_(momentum).add_(grad, alpha=1 - group["dampening"])
            grad = torch.add(grad, m, alpha=momentum) if group["nesterov"] else m
        if decay and group["decoupled_weight_decay"]:
            grad, *moved = shrink(manifold, point, lr * decay, grad, *buffers)
            torch._foreach_copy_(buffers, moved)
        if not buffers:
            point.copy_(manifold.retr(point, -lr * grad))
            return
        new_point, transported = manifold.retr_transp(point, -lr * grad, buffers[0])
        point.copy_(new_point)
        buffers[0].copy_(transported)
