"""Check the gradient of a function on a manifold against the function's values."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import geoopt
import numpy as np
import torch
from geoopt.manifolds.base import Manifold
from manifold_resnet.optim._optimizer import manifold_of
from manifold_resnet.optim.describe import manifold_name
from manifold_resnet.optim.monitor import inner, move_along, project_to_tangent, riemannian_gradient
from numpy.typing import NDArray
from torch import Tensor

from manifold_resnet._errors import extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["GradientCheck", "check_gradient"]

_STRAIGHT = 0.05  # largest deviation of a linear piece from its line, in decades of the error
_SHORTEST = 1.0  # a piece spans at least so many decades of steps
_TANGENT = 1e-6  # largest part of a vector, relative to its length, that sticks out of the tangent space
_RIGHT, _WRONG, _POINTS = "#0b6fa4", "#c0392b", "#8a8f98"


@dataclass(frozen=True)
class GradientCheck:
    """What `check_gradient` found.

    Attributes
    ----------
    steps : numpy.ndarray
        Lengths t of the steps along the direction (times its norm), shape ``(n,)``.
    errors : numpy.ndarray
        ``|f(exp_x(t d)) - f(x) - t <grad f(x), d>_x|`` for each of them, shape ``(n,)``.
    rounding : numpy.ndarray
        Errors up to here may come from rounding alone, shape ``(n,)``.
    piece : tuple of int, or None
        Indices of the first and the last step of the longest linear piece of the errors in doubly logarithmic
        axes, not counting those that are due to rounding; ``None`` if there is none.
    slope : float
        Of that piece, NaN if there is none. 2 (or more) for a right gradient, 1 for a wrong one.
    derivative : float
        ``<grad f(x), d>_x``, the derivative of f along the direction.
    gradient_norm : float
        Riemannian norm of the gradient.
    tangent_residual : float
        Length of the part of the gradient outside the tangent space, relative to the gradient's (Euclidean
        norms of coordinates).
    manifold : str
        The manifold's name.
    """

    steps: NDArray[np.float64]
    errors: NDArray[np.float64]
    rounding: NDArray[np.float64]
    piece: tuple[int, int] | None
    slope: float
    derivative: float
    gradient_norm: float
    tangent_residual: float
    manifold: str

    @property
    def linear(self) -> bool:
        """Whether the function is linear near the point: all errors, or all of small steps, are rounding."""
        small = self.errors <= self.rounding
        if small.all():
            return True
        count = int(np.argmin(small))  # the number of small errors before the first large one
        if count == 0 or self.steps[count - 1] < 1e-3 * self.steps[-1]:
            return False
        # a wrong gradient could only hide below the rounding
        return bool(self.rounding[count - 1] / self.steps[count - 1] <= 1e-6 * abs(self.derivative))

    @property
    def tangent(self) -> bool:
        """Whether the Riemannian gradient is a tangent vector."""
        return self.tangent_residual <= _TANGENT

    @property
    def ok(self) -> bool:
        """Whether the gradient is right: the error falls quadratically or faster, and the gradient is tangent.

        A slope above 2 is right, too: of a function without second-order term along the direction.
        """
        return self.tangent and (self.linear or self.slope > 1.9)

    def __str__(self) -> str:
        verdict = f"The gradient on {self.manifold} is {'right' if self.ok else 'wrong'}: "
        if self.linear:
            found = "the function is linear near the point, and its first-order model exact up to rounding"
        elif self.piece is None:
            found = (
                "no straight piece in the error of its first-order model, so the function is not smooth there, or "
                "noisy (does it compute in float64?)"
            )
        else:
            first, last = self.piece
            found = (
                f"the error of its first-order model falls with slope {self.slope:.2f} "
                f"as steps go from {self.steps[last]:.0e} to {self.steps[first]:.0e}"
                f"{'' if self.slope > 1.9 else ', where a right gradient gives 2'}"
            )
        if not self.tangent:
            found += f"; {self.tangent_residual:.1e} of the gradient's length is outside the tangent space"
        return f"{verdict}{found}."

    def plot(self, axes: Axes | None = None) -> Axes:
        """Draw the errors over the steps, a line of slope 2, and the linear piece.

        Parameters
        ----------
        axes : matplotlib.axes.Axes, optional
            Where to draw; a new figure if None (``check.plot().figure.savefig("check.png")``).

        Returns
        -------
        matplotlib.axes.Axes
            With logarithmic scales.

        Raises
        ------
        ModuleNotFoundError
            If matplotlib is not installed.
        """
        with extra("train"):
            from matplotlib.figure import Figure
        if axes is None:
            axes = Figure(figsize=(5.6, 4.2), layout="constrained").subplots()
        axes.set(xscale="log", yscale="log", xlabel="step t along the direction", ylabel="error of first-order model")
        shown = np.isfinite(self.errors) & (self.errors > 0)  # an error of 0 has no logarithm
        steps, errors = self.steps[shown], self.errors[shown]
        axes.plot(steps, errors, "o", markersize=3.5, color=_POINTS, label="error", zorder=3)
        color = _RIGHT if self.ok else _WRONG
        if self.piece is not None:
            first, last = self.piece
            t, e = self.steps[first : last + 1], self.errors[first : last + 1]
            fit = np.exp(np.log(e).mean() + self.slope * (np.log(t) - np.log(t).mean()))
            axes.plot(t, fit, color=color, linewidth=2.5, label=f"slope {self.slope:.2f}", zorder=2)
            # through the piece's far end: there both lines meet, and the angle between them shows
            reference = fit[-1] * (self.steps / t[-1]) ** 2
            axes.plot(self.steps, reference, "--", color="0.35", linewidth=1, label="slope 2, if right", zorder=1)
        floor = self.rounding.min() / 1e2
        axes.fill_between(self.steps, floor, self.rounding, color="0.93", linewidth=0, label="rounding", zorder=0)
        top = max([*errors, self.rounding.max()])
        axes.set(xlim=(self.steps[0], self.steps[-1]), ylim=(floor, 5 * top))
        axes.set_title(f"gradient on {self.manifold}: {'right' if self.ok else 'wrong'}", fontsize=11, color=color)
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="upper left", frameon=False)
        return axes


def check_gradient(
    fn: Callable[[Tensor], Tensor],
    point: Tensor,
    manifold: Manifold | None = None,
    *,
    direction: Tensor | None = None,
    steps: Sequence[float] | None = None,
    seed: int = 0,
) -> GradientCheck:
    """Check the Riemannian gradient that autograd and geoopt give against values of the function.

    With a right gradient, the error of the first-order model along a geodesic,
    ``|f(exp_x(t d)) - f(x) - t <grad f(x), d>_x|``, falls with the square of t; with a wrong one it falls in
    proportion to t. Everything is computed in float64, on copies. Manifolds without an exponential map are left
    along their retraction, for which the same holds.

    Parameters
    ----------
    fn : callable
        From a float64 tensor shaped like ``point`` to a scalar tensor, through autograd. It must be
        deterministic (modules in evaluation mode) and compute in float64 (``copy.deepcopy(model).double()``).
    point : Tensor
        Where to check: one point or a batch of points.
    manifold : geoopt.manifolds.base.Manifold, optional
        By default that of ``point`` if it is a geoopt ManifoldTensor or ManifoldParameter, else Euclidean
        space.
    direction : Tensor, optional
        Tangent vector d at ``point``, used as it is; by default a random one of length 1.
    steps : sequence of float, optional
        Increasing step lengths t, spanning two decades or more; by default 51 from 1e-8 to 1.
    seed : int
        Of the random direction.

    Returns
    -------
    GradientCheck
        ``print`` it for a verdict, ask for ``.ok`` in tests, look at ``.plot()``.

    Raises
    ------
    TypeError
        If an argument has a wrong type, or ``fn`` doesn't return a float64 tensor.
    ValueError
        If ``point`` is not on the manifold or ``direction`` not tangent, or ``fn`` returns more than one
        number, infinity or NaN, something that doesn't depend on its argument, or each time something else.

    Notes
    -----
    The test is that of Manopt's ``checkgradient`` [1]_. Where geoopt's gradients miss a constant factor (``Scaled``,
    ``BirkhoffPolytope``), the true gradient is checked. On geoopt 0.5.1's ``BoundedDomain`` every function fails:
    its ``egrad2rgrad`` is wrong.

    References
    ----------
    .. [1] N. Boumal, An Introduction to Optimization on Smooth Manifolds, 2023, section 4.8.

    Examples
    --------
    >>> import geoopt, torch
    >>> from manifold_resnet.optim import check_gradient
    >>> ball = geoopt.PoincareBall()
    >>> x, y = torch.tensor([[0.1, 0.5], [-0.6, 0.3]])
    >>> check = check_gradient(lambda p: ball.dist(p, y) ** 2, geoopt.ManifoldParameter(x, ball))
    >>> check.ok
    True
    """
    if not callable(fn):
        raise TypeError(f"fn must be a function from a tensor to a scalar tensor, got {type(fn).__name__}")
    if not isinstance(point, Tensor):
        raise TypeError(f"point must be a tensor, got {type(point).__name__}")
    if not (point.is_floating_point() or point.is_complex()) or point.numel() == 0:
        raise TypeError(f"point must be a floating point tensor, got {tuple(point.shape)} of {point.dtype}")
    if manifold is None:
        manifold = manifold_of(point)
    elif not isinstance(manifold, Manifold):
        raise TypeError(f"manifold must be a geoopt manifold, got {type(manifold).__name__}")
    t = _check_steps(steps)
    manifold = _double_manifold(manifold, point.device)
    x = _check_point(manifold, point)
    value, egrad = _differentiate(fn, x)
    with torch.no_grad():
        gradient = riemannian_gradient(manifold, x, egrad.clone())
        d = _random_direction(manifold, x, seed) if direction is None else _check_direction(manifold, x, direction)
        derivative = inner(manifold, x, gradient, d).item()
        gradient_norm = max(inner(manifold, x, gradient, gradient).item(), 0.0) ** 0.5
        outside = gradient - project_to_tangent(manifold, x, gradient)
        residual = (outside.norm() / gradient.norm()).item() if gradient.abs().max() > 0 else 0.0
        targets = [move_along(manifold, x, float(length) * d) for length in t]
    # not under no_grad: fn may differentiate something itself
    values = np.array([fn(target).item() for target in targets])
    with np.errstate(invalid="ignore", over="ignore"):
        errors = np.abs(values - value - t * derivative)
    # what rounding does to the values, and rounding the coordinates to them
    scale = max(abs(value), (egrad * x).abs().sum().item())
    finite = np.where(np.isfinite(values), np.abs(values), 0.0)
    largest = np.maximum(np.maximum(scale, finite), t * abs(derivative))
    rounding = np.maximum(50 * np.finfo(np.float64).eps * largest, np.finfo(np.float64).tiny)
    piece, slope = longest_linear_piece(t, errors, rounding)
    return GradientCheck(
        t, errors, rounding, piece, slope, derivative, gradient_norm, residual, manifold_name(manifold)
    )


def longest_linear_piece(
    steps: NDArray[np.float64], errors: NDArray[np.float64], rounding: NDArray[np.float64]
) -> tuple[tuple[int, int] | None, float]:
    """Indices of the ends, and the slope, of the longest piece that is straight in doubly logarithmic axes.

    Pieces that hardly rise are passed over: inexact exponential maps leave a constant error at small steps.
    """
    usable = np.isfinite(errors) & (errors > rounding)
    x = np.log10(steps)
    y = np.log10(np.where(usable, errors, 1.0))
    best: tuple[float, float] = (0.0, 0.0)
    piece, slope = None, float("nan")
    for i in range(len(x)):
        for j in range(i + 3, len(x)):
            if not usable[i : j + 1].all():
                break
            span = x[j] - x[i]
            if span < _SHORTEST - 1e-9:
                continue
            rise, offset = np.polyfit(x[i : j + 1] - x[i], y[i : j + 1], 1)
            deviation = np.abs(offset + rise * (x[i : j + 1] - x[i]) - y[i : j + 1]).max()
            # of equally long pieces the straightest
            if deviation <= _STRAIGHT and rise > 0.5 and (round(span, 6), -deviation) > best:
                best, piece, slope = (round(span, 6), -deviation), (i, j), float(rise)
    return piece, slope


def _check_steps(steps: Sequence[float] | None) -> NDArray[np.float64]:
    if steps is None:
        return np.logspace(-8, 0, 51)
    t = np.asarray(steps, dtype=np.float64)
    rising = t.ndim == 1 and len(t) >= 8 and np.isfinite(t).all() and t[0] > 0 and (np.diff(t) > 0).all()
    if not rising or t[-1] < 100 * t[0] * (1 - 1e-9):
        raise ValueError(
            f"steps must be 8 or more increasing positive numbers, the last at least 100 times the first, as "
            f"numpy.logspace(-8, 0, 51); got {steps}"
        )
    return t


def _check_point(manifold: Manifold, point: Tensor) -> Tensor:
    """The point in double precision, on the manifold to double precision."""
    x = _double(point)
    fits, reason = manifold.check_point(x, explain=True)
    if not fits:
        raise ValueError(f"point does not fit {manifold_name(manifold)}: {reason}")
    with torch.no_grad():
        if not x.isfinite().all():
            raise ValueError("point has coordinates that are infinite or NaN")
        projected = manifold.projx(x)
        moved = ((projected - x).norm() / (1 + x.norm())).item()
    if not moved <= 1e-3:
        raise ValueError(
            f"point is not on {manifold_name(manifold)}: projection moves it by {moved:.1e} of its length; use "
            f"manifold.projx(point), or pass the manifold that it is on"
        )
    return projected


def _check_direction(manifold: Manifold, x: Tensor, direction: Tensor) -> Tensor:
    if not isinstance(direction, Tensor):
        raise TypeError(f"direction must be a tensor, got {type(direction).__name__}")
    if direction.shape != x.shape:
        raise ValueError(f"direction must have the point's shape {tuple(x.shape)}, got {tuple(direction.shape)}")
    u = _double(direction).to(x)
    length = u.norm().item()
    if not 0 < length < float("inf"):
        raise ValueError("direction must be finite and not zero; leave it out for a random one")
    d = project_to_tangent(manifold, x, u)
    outside = ((d - u).norm() / length).item()
    if outside > 1e-4:  # float32 directions are tangent up to rounding
        raise ValueError(
            f"direction is not tangent to {manifold_name(manifold)} at the point: {outside:.1e} of its length sticks "
            f"out; use manifold.proju(point, direction)"
        )
    return d


def _random_direction(manifold: Manifold, x: Tensor, seed: int) -> Tensor:
    # on the CPU, so that the seed means the same everywhere
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
    d = project_to_tangent(manifold, x, noise.to(x.device))
    return d / inner(manifold, x, d, d).sqrt()


def _differentiate(fn: Callable[[Tensor], Tensor], x: Tensor) -> tuple[float, Tensor]:
    """Value and Euclidean gradient of fn, after checking that it is a function from x to one number."""
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        try:
            result = fn(leaf)
        except RuntimeError as error:
            if "dtype" not in str(error) and "scalar type" not in str(error):
                raise
            raise TypeError(
                f"fn failed on a float64 tensor ({error}); it must compute in float64: convert the tensors and models "
                f"that it uses, as in copy.deepcopy(model).double()"
            ) from error
    if not isinstance(result, Tensor):
        raise TypeError(f"fn must return a scalar tensor, got {type(result).__name__}; don't call .item() in it")
    if result.numel() != 1:
        raise ValueError(
            f"fn must return one number, got a tensor of shape {tuple(result.shape)}; reduce it with .sum() or .mean()"
        )
    if result.dtype != torch.float64:
        raise TypeError(f"fn must compute in float64 to be checked, got {result.dtype} for a float64 tensor")
    if not result.isfinite():
        raise ValueError(f"fn must be finite at the point, got {result.item()}")
    gradient = None
    if result.requires_grad:
        (gradient,) = torch.autograd.grad(result, leaf, allow_unused=True)
    if gradient is None:
        raise ValueError(
            "fn's result does not depend on its argument through autograd: compute it from the tensor that fn is "
            "given, without .detach(), .data or no_grad"
        )
    if not gradient.isfinite().all():
        raise ValueError("fn's gradient at the point has entries that are infinite or NaN")
    value = result.item()
    again = fn(x.clone()).item()
    if not abs(again - value) <= 1e-12 * max(abs(value), 1.0):
        raise ValueError(
            f"fn must return the same value for the same point, got {value} and {again}; put modules into evaluation "
            f"mode (model.eval()), and fix random numbers outside fn"
        )
    return value, gradient.detach()


def _double_manifold(manifold: Manifold, device: torch.device) -> Manifold:
    """Copy a manifold, to double precision."""
    manifold = copy.deepcopy(manifold).to(device).double()
    for factor in manifold.modules():
        if isinstance(factor, geoopt.BirkhoffPolytope):  # its projection stops at a relative error of 1e-5
            factor.tol, factor.max_iter = 1e-13, 1000
        elif isinstance(factor, geoopt.Sphere) and factor.projector is not None:
            # in float32, twice the projection is not the projection
            eigenvalues, basis = torch.linalg.eigh(factor.projector)
            factor.projector = (basis * eigenvalues.round()) @ basis.mT
    return manifold


def _double(tensor: Tensor) -> Tensor:
    plain = tensor.detach().as_subclass(Tensor)
    return plain.to(torch.complex128 if plain.is_complex() else torch.float64, copy=True)
