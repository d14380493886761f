"""Riemannian Adam."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import geoopt
import torch
from geoopt.manifolds.base import Manifold
from manifold_resnet.optim._optimizer import Nonfinite, RiemannianOptimizer, native_settings, shrink
from manifold_resnet.optim._rows import Rows
from torch import Tensor

from manifold_resnet.functional._native import Library

__all__ = ["RiemannianAdam"]

SecondMoment = Literal["point", "coordinate"]


class RiemannianAdam(RiemannianOptimizer, geoopt.optim.RiemannianAdam):
    r"""Riemannian Adam (Bécigneul and Ganea 2019), batched: arguments, results and ``state_dict`` are geoopt's.

    All points of a Poincaré ball with rows of the same length are stepped together, Euclidean parameters through
    torch's foreach functions, points of any other geoopt manifold one by one. Points stay on their ball even where its
    curvature is trained, or changed, in between.

    Parameters
    ----------
    params : iterable
        Parameters, named parameters, or parameter groups, of any geoopt manifold; rows of ball points run along the
        last dimension.
    lr : float or Tensor
        Learning rate: about the Riemannian length of a point's step.
    betas : tuple of float
        Decay of the averages of the gradient and of its square.
    eps : float
        Added to the root of the second moment.
    weight_decay : float
        Times the point, added to the Euclidean gradient, as in geoopt; see `decoupled_weight_decay`. Where a parameter
        group has ``"decay_factors"`` (see `parameter_groups`), times its number for the parameter as well.
    amsgrad : bool
        Divide by the largest second moment so far.
    stabilize : int, optional
        Project points and momenta onto their manifold every so many steps.
    second_moment : {"point", "coordinate"}
        Of ball points: one number per point, its gradient's squared Riemannian length (geoopt's, which does not depend
        on coordinates); or one per coordinate in the frame in which the ball's metric is the identity, times the
        dimension, so that either makes steps of length `lr`.
    decoupled_weight_decay : bool
        Shrink, before each step, by the factor ``1 - lr * weight_decay``: Euclidean parameters as ``torch.optim.AdamW``
        does, points along the geodesic to the origin.
    max_grad_norm : float, optional
        Scale the gradients of a group such that the Riemannian norm of all together is at most this.
    nonfinite : {"ignore", "raise", "skip"}
        What to do about gradients that are not finite: nothing, as torch; raise; or leave out the step with a warning.
        The last two name the parameter, and make a GPU wait.
    maximize : bool
        Go uphill.
    capturable : bool
        Keep step counts on the device, so that steps can be captured in CUDA graphs.
    foreach : bool, optional
        Accepted for compatibility, without effect.

    Raises
    ------
    ValueError
        If an argument is out of range, or decoupled weight decay is asked for on a manifold without origin.

    Notes
    -----
    A step computes, at a point x with gradient g, ``m = b1 m + (1 - b1) g``, ``v = b2 v + (1 - b2) |g|_x^2``, moves x
    by ``-lr m/(sqrt(v) + eps)``, bias corrected, and transports m along. The ball's retraction is addition with a
    projection onto the ball; ``geoopt.PoincareBallExact`` has the exponential map instead.

    Examples
    --------
    >>> import geoopt
    >>> import torch
    >>> from manifold_resnet.optim import RiemannianAdam
    >>> ball = geoopt.PoincareBall(c=1.0)
    >>> x = geoopt.ManifoldParameter(torch.zeros(5, 2), manifold=ball)
    >>> optimizer = RiemannianAdam([x], lr=0.1)
    >>> for _ in range(100):
    ...     optimizer.zero_grad()
    ...     ball.dist(x, torch.tensor([0.3, 0.4])).square().sum().backward()
    ...     optimizer.step()
    >>> torch.allclose(x, torch.tensor([0.3, 0.4]), atol=1e-2)
    True
    """

    _options = {**RiemannianOptimizer._options, "second_moment": "point"}

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        stabilize: int | None = None,
        second_moment: SecondMoment = "point",
        decoupled_weight_decay: bool = False,
        max_grad_norm: float | None = None,
        nonfinite: Nonfinite = "ignore",
        maximize: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        differentiable: bool = False,
    ) -> None:
        for name, value in (("fused", fused), ("differentiable", differentiable)):
            if value:
                raise ValueError(f"{name}=True is not supported by RiemannianAdam, leave it out")
        options = {
            "decoupled_weight_decay": decoupled_weight_decay,
            "max_grad_norm": max_grad_norm,
            "nonfinite": nonfinite,
            "second_moment": second_moment,
        }
        super().__init__(
            params, lr, betas, eps, weight_decay, amsgrad, stabilize=stabilize, maximize=maximize,
            capturable=capturable, options=options,
        )  # fmt: skip

    def _check_options(self, group: dict[str, Any]) -> None:
        super()._check_options(group)
        if group["second_moment"] not in ("point", "coordinate"):
            raise ValueError(f"second_moment must be 'point' or 'coordinate', got {group['second_moment']!r}")
        capturable = group.get("capturable", self.defaults.get("capturable"))
        if capturable and group.get("stabilize", self._stabilize) is not None:
            raise ValueError("stabilize reads step counts, which capturable=True keeps on the device: leave out one")

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # torch's Adam turns a loaded step count into a float32 tensor, and with it the bias corrections that
        # geoopt computes from an int in double precision
        for group in self.param_groups:
            if not group["capturable"]:
                for point in group["params"]:
                    if "step" in self.state.get(point, ()):
                        self.state[point]["step"] = int(self.state[point]["step"])

    def _advance(
        self, points: Sequence[Tensor], group: dict[str, Any]
    ) -> tuple[list[dict[str, Any]], list[Any], list[Any]]:
        """States, with their step counts increased, and both bias corrections."""
        states = [self.state[point] for point in points]
        for state, point in zip(states, points, strict=True):
            if not state:
                state["step"] = torch.zeros((), device=point.device) if group["capturable"] else 0
                for name in ("exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if group["amsgrad"] else [])):
                    state[name] = torch.zeros_like(point.detach())
            state["step"] += 1
        return states, *([1 - beta ** state["step"] for state in states] for beta in group["betas"])

    def _count(self, group: dict[str, Any]) -> Iterable[int]:
        return (self.state[point]["step"] for point in group["params"] if self.state.get(point))

    def _step_natively(self, library: Library, rows: Rows, group: dict[str, Any]) -> bool:
        if group["capturable"]:
            return False
        names = ("exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if group["amsgrad"] else []))
        kept = [self.state[point][name] for point in rows.points for name in names if self.state[point]]
        if not all(t.is_contiguous() for t in (*rows.points, *kept)):
            return False
        ball, decay = native_settings(rows, group)
        states, *corrections = self._advance(rows.points, group)
        by_coordinate = int(group["second_moment"] == "coordinate")
        numbers = (*ball, float(group["lr"]), *map(float, group["betas"]), float(group["eps"]), *decay, by_coordinate)
        moments = [[state[name] for state in states] for name in names]
        library.step("adam", rows.points, numbers, (rows.grads, *moments, *[None] * (3 - len(names))), *corrections)
        return True

    def _step_rows(self, rows: Rows, group: dict[str, Any]) -> None:
        lr, decay, (beta1, beta2) = group["lr"], group["weight_decay"], group["betas"]
        states, *corrections = self._advance(rows.points, group)
        names = ("exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if group["amsgrad"] else []))
        for part, first, second, *largest in rows.parts(*[[state[name] for state in states] for name in names]):
            m, v = part.join(first), part.join(second)
            grad = part.grad
            if decay and not group["decoupled_weight_decay"]:
                grad = torch.add(grad, part.x, alpha=decay * part.decay_factor)
            grad = part.riemannian(grad)
            m.mul_(beta1).add_(grad, alpha=1 - beta1)
            square = part.square(grad)
            if group["second_moment"] == "coordinate":
                square = (part.length / part.half.square()) * grad * grad
            v.mul_(beta2).add_(square, alpha=1 - beta2)
            part.store(v, second)
            if largest:
                v = torch.maximum(part.join(largest[0]), v)
                part.store(v, largest[0])
            step = m / part.column(corrections[0]) / (v / part.column(corrections[1])).sqrt_().add_(group["eps"])
            if decay and group["decoupled_weight_decay"]:
                step, m = part.shrink(lr * decay, step, m)
            (m,) = part.move(-lr * step, m)
            part.store(m, first)
            part.save()

    def _step_flat(self, points: list[Tensor], grads: list[Tensor], group: dict[str, Any]) -> None:
        lr, decay, (beta1, beta2) = group["lr"], group["weight_decay"], group["betas"]
        states, first_correction, second_correction = self._advance(points, group)
        m, v = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
        if decay and group["decoupled_weight_decay"]:
            torch._foreach_mul_(points, 1 - lr * decay)
        elif decay:
            grads = torch._foreach_add(grads, points, alpha=decay)
        torch._foreach_lerp_(m, grads, 1 - beta1)
        torch._foreach_mul_(v, beta2)
        torch._foreach_addcmul_(v, grads, grads, 1 - beta2)
        if group["amsgrad"]:
            largest = [state["max_exp_avg_sq"] for state in states]
            torch._foreach_maximum_(largest, v)
            v = largest
        root = torch._foreach_div(v, second_correction)
        torch._foreach_sqrt_(root)
        torch._foreach_add_(root, group["eps"])
        step = torch._foreach_div(m, root)
        torch._foreach_mul_(step, [-lr / correction for correction in first_correction])
        torch._foreach_add_(points, step)

    def _step_other(self, point: Tensor, grad: Tensor, manifold: Manifold, group: dict[str, Any]) -> None:
        lr, decay, (beta1, beta2) = group["lr"], group["weight_decay"], group["betas"]
        (state,), (first_correction,), (second_correction,) = self._advance([point], group)
        m, v = state["exp_avg"], state["exp_avg_sq"]
        if decay and not group["decoupled_weight_decay"]:
            grad = torch.add(grad, point, alpha=decay)
        grad = manifold.egrad2rgrad(point, grad)
        m.mul_(beta1).add_(grad, alpha=1 - beta1)
        v.mul_(beta2).add_(manifold.component_inner(point, grad), alpha=1 - beta2)
        if group["amsgrad"]:
            torch.maximum(state["max_exp_avg_sq"], v, out=state["max_exp_avg_sq"])
            v = state["max_exp_avg_sq"]
        step = m / first_correction / (v / second_correction).sqrt_().add_(group["eps"])
        if decay and group["decoupled_weight_decay"]:
            step, moved = shrink(manifold, point, lr * decay, step, m)
            m.copy_(moved)
        new_point, transported = manifold.retr_transp(point, -lr * step, m)
        point.copy_(new_point)
        m.copy_(transported)
