"""What the pictures of the Poincaré disk share: arguments, Axes, colours, and lines as complex numbers.

A point of the disk is a complex number of modulus below one here, whatever the curvature: left translation by a is the
map ``z -> (z + a) / (1 + conj(a) z)``, which is exact on the boundary as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import geoopt
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from manifold_resnet.nn.base import check_ball

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Complex = NDArray[np.complex128]

#: Petroff 2021, "Accessible color sequences for data visualization": ten colours that the colour-blind can tell apart.
PALETTE = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip
LINE, BOUNDARY, GRID = "#0b6fa4", "0.25", "0.87"
_ON_BOUNDARY = 1e-5  # rounding may put points there


def ball_points(points: Tensor | ArrayLike, ball: geoopt.PoincareBall, name: str = "points") -> Tensor:
    """Points ``(..., n)`` of a ball as a plain float64 tensor; gradients pass.

    Raises
    ------
    TypeError, ValueError
        If they are not numbers, not finite, or not on the ball.
    """
    check_ball(ball)
    try:
        x = points.as_subclass(Tensor) if isinstance(points, Tensor) else torch.as_tensor(np.asarray(points))
    except (TypeError, ValueError):
        raise TypeError(
            f"{name} must be a tensor or an array of numbers of shape (..., n), got {type(points).__name__}"
        ) from None
    if x.is_complex() or x.dtype == torch.bool:
        raise TypeError(f"{name} must be real numbers, got {x.dtype}")
    if x.ndim == 0:
        raise ValueError(f"{name} must have shape (..., n), got a single number")
    x = (x.cpu() if x.device.type == "mps" else x).to(dtype=torch.float64)  # Apple's GPUs have no float64
    if x.numel():
        largest, c = float(x.detach().norm(dim=-1).max()), ball.c.item()
        if not np.isfinite(largest):
            raise ValueError(f"{name} must be finite, got values that are NaN or infinite")
        if largest * c**0.5 > 1 + _ON_BOUNDARY:
            raise ValueError(
                f"{name} must lie on the ball of c={c:.4g}, radius {c**-0.5:.4g}; the largest norm is {largest:.4g}. "
                f"Map vectors onto it with manifold_resnet.functional.expmap0, or project points with ball.projx"
            )
    return x


def disk_points(points: Tensor | ArrayLike, ball: geoopt.PoincareBall, name: str = "points") -> Complex:
    """Points ``(..., 2)`` of a two-dimensional ball as complex numbers in the unit disk.

    Raises
    ------
    TypeError, ValueError
        As `ball_points`, and if they are not two-dimensional.
    """
    x = ball_points(points, ball, name)
    if x.shape[-1] != 2:
        raise ValueError(
            f"{name} must have shape (..., 2), got {tuple(x.shape)}: reduce_to_disk(points, ball=ball) maps points of "
            f"another dimension to the disk"
        )
    z = np.ascontiguousarray((x.detach().cpu() * ball.c.item() ** 0.5).numpy()).view(np.complex128)[..., 0]
    return z / np.maximum(np.abs(z), 1)


def translate(z: Complex, a: Complex | complex) -> Complex:
    """Möbius sum of `a` and `z`."""
    return (z + a) / (1 + np.conj(a) * z)


def line_through(x: Complex, y: Complex) -> tuple[Complex, Complex]:
    """The geodesic line from `x` to `y`: its point nearest to the origin, and its unit direction there.

    In the Klein model, k = 2x/(1 + |x|^2), the line is a chord. Its points are ``translate(t * direction, foot)`` for t
    between -1 and 1; as t grows evenly, the Euclidean speed changes by a factor of two at most.
    """
    chord = (y - x) - x * y * np.conj(y - x)  # of the Klein model, up to a positive factor
    direction = chord / np.abs(chord)
    normal = 1j * direction
    h = np.real(np.conj(normal) * 2 * x / (1 + np.abs(x) ** 2))
    return normal * h / (1 + np.sqrt(np.clip(1 - h * h, 0, 1))), direction


def along(x: Complex, foot: Complex, direction: Complex) -> NDArray[np.float64]:
    """Where on a line a point of it lies: t as in `line_through`."""
    return np.clip(np.real(np.conj(direction) * translate(x, -foot)), -1, 1)


def sample(foot: Complex, direction: Complex, start: Any, end: Any, count: int = 65) -> Complex:
    """Points ``(..., count)`` on lines from t = `start` to t = `end`."""
    foot, direction, start, end = np.broadcast_arrays(foot, direction, start, end)
    t = np.linspace(start, end, count, axis=-1)
    return translate(t * direction[..., None], foot[..., None])


def segment(x: Complex, y: Complex, count: int = 65) -> Complex:
    """Points ``(..., count)`` on the geodesic from `x` to `y`; where they are equal, that point."""
    x, y = np.broadcast_arrays(x, y)
    same = x == y
    away = np.where(same, np.where(x == 0, 0.5, 0), y)  # any other point
    foot, direction = line_through(x, away)
    points = sample(foot, direction, along(x, foot, direction), along(away, foot, direction), count)
    return np.where(same[..., None], x[..., None], points)


def reflect(z: Complex, foot: complex, direction: complex) -> Complex:
    """Mirror image of `z` in a line."""
    return translate(direction**2 * np.conj(translate(z, -foot)), foot)


def coordinates(z: Complex, ball: geoopt.PoincareBall) -> NDArray[np.float64]:
    """Coordinates ``(..., 2)`` on the ball of complex numbers in the unit disk."""
    return np.stack([z.real, z.imag], -1) * ball.c.item() ** -0.5


def current_axes(ax: Axes | None) -> Axes:
    """The given Axes, or pyplot's current ones."""
    if ax is not None:
        return ax
    from matplotlib import pyplot

    return pyplot.gca()


def class_colors(classes: int, colors: Sequence[Any] | None = None) -> list[tuple[float, ...]]:
    """One RGBA colour for each class: those given, the palette, or, for more than ten classes, steps of viridis.

    Raises
    ------
    ValueError
        If fewer colours are given than there are classes.
    """
    import matplotlib
    from matplotlib.colors import to_rgba

    if colors is None:
        colors = PALETTE if classes <= len(PALETTE) else matplotlib.colormaps["viridis"](np.linspace(0, 1, classes))
    if len(colors) < classes:
        raise ValueError(f"colors must hold one colour for each of {classes} classes, got {len(colors)}")
    return [to_rgba(color) for color in colors[:classes]]
