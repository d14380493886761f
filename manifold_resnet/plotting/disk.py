"""The Poincaré disk: its boundary, geodesics, hyperplanes and tessellations."""

from __future__ import annotations

import math
from typing import Any

import geoopt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.patches import Circle
from numpy.typing import ArrayLike
from torch import Tensor

from manifold_resnet.nn.base import check_ball
from manifold_resnet.plotting._disk import (
    BOUNDARY,
    GRID,
    LINE,
    Complex,
    along,
    coordinates,
    current_axes,
    disk_points,
    line_through,
    reflect,
    sample,
    segment,
    translate,
)

__all__ = ["plot_disk", "plot_geodesic", "plot_hyperplane", "plot_tessellation"]

_DISK = "poincare-disk"


def plot_disk(ball: geoopt.PoincareBall, ax: Axes | None = None, *, grid: bool | float = False) -> Axes:
    """Draw the boundary of the Poincaré disk, a circle of radius ``1/sqrt(c)``, and set up the Axes for it.

    The other functions for the disk call this one first, unless the Axes have that circle already.

    Parameters
    ----------
    ball : geoopt.PoincareBall
        The manifold; its dimension is two here.
    ax : matplotlib.axes.Axes, optional
        Where to draw; default: pyplot's current Axes.
    grid : bool or float
        Draw circles about the origin and rays from it. A number is the geodesic distance from one circle to the next;
        True is ``1/sqrt(c)``.

    Returns
    -------
    matplotlib.axes.Axes
        In ball coordinates, of equal aspect and without frame.

    Raises
    ------
    TypeError
        If `ball` is not a Poincaré ball.
    ValueError
        If its c or the distance between circles is not positive.

    Examples
    --------
    >>> import geoopt
    >>> from matplotlib.figure import Figure
    >>> from manifold_resnet.plotting import plot_disk
    >>> ax = plot_disk(geoopt.PoincareBall(c=0.25), Figure().subplots(), grid=True)
    >>> round(ax.patches[0].get_radius(), 4)
    2.0
    """
    check_ball(ball)
    ax = current_axes(ax)
    root = ball.c.item() ** 0.5
    radius = 1 / root
    drawn = [p.get_radius() for p in ax.patches if isinstance(p, Circle) and p.get_gid() == _DISK]
    if not any(math.isclose(r, radius, rel_tol=1e-5) for r in drawn):
        ax.add_patch(Circle((0, 0), radius, facecolor="none", edgecolor=BOUNDARY, linewidth=0.8, zorder=1.5, gid=_DISK))
        limit = 1.03 * max(radius, *drawn) if drawn else 1.03 * radius
        ax.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
        ax.set_axis_off()
    if grid:
        spacing = 1 / root if grid is True else float(grid)
        if not (spacing > 0 and math.isfinite(spacing)):
            raise ValueError(f"grid must be True, False or a positive distance between circles, got {grid}")
        style = {"color": GRID, "linewidth": 0.6, "zorder": 0.6}
        distance = spacing
        while root * distance < 5.5:  # beyond, circles and boundary cannot be told apart
            r = math.tanh(root * distance / 2) * radius
            ax.add_patch(Circle((0, 0), r, fill=False, edgecolor=GRID, linewidth=0.6, zorder=0.6))
            distance += spacing
        ends = np.exp(1j * np.pi * np.arange(6) / 6)
        ax.add_collection(LineCollection(_paths(np.stack([-ends, ends], -1), ball), **style), autolim=False)
    return ax


def _paths(z: Complex, ball: geoopt.PoincareBall) -> list[np.ndarray]:
    """Curves ``(..., count)`` as a list of ``(count, 2)`` ball coordinates."""
    return list(coordinates(z, ball).reshape(-1, z.shape[-1], 2))


def _draw(curves: Complex, ball: geoopt.PoincareBall, ax: Axes | None, style: dict[str, Any]) -> Axes:
    ax = plot_disk(ball, ax)
    if not {"color", "colors", "edgecolor", "array"} & set(style):
        style["color"] = LINE
    if not {"lw", "linewidth", "linewidths"} & set(style):
        style["linewidth"] = 1.5
    style.setdefault("capstyle", "round")
    ax.add_collection(LineCollection(_paths(curves, ball), **style), autolim=False)
    return ax


def plot_geodesic(
    x: Tensor | ArrayLike,
    y: Tensor | ArrayLike,
    *,
    ball: geoopt.PoincareBall,
    line: bool = False,
    ax: Axes | None = None,
    **style: Any,
) -> Axes:
    """Draw the shortest paths between points, or the whole lines through them.

    They are arcs of circles that meet the boundary at right angles, or diameters.

    Parameters
    ----------
    x, y : Tensor or array
        Ball points ``(..., 2)``, broadcastable; points on the boundary, infinitely far away, may be among them.
    ball : geoopt.PoincareBall
        The manifold.
    line : bool
        Extend the geodesics to the boundary on both sides.
    ax : matplotlib.axes.Axes, optional
        Where to draw; default: pyplot's current Axes.
    **style
        For ``matplotlib.collections.LineCollection``: color, linewidth, linestyle, label, ...

    Returns
    -------
    matplotlib.axes.Axes
        Its last collection holds the geodesics, 65 points each, from x to y.

    Raises
    ------
    TypeError, ValueError
        If points are not on the ball or not two-dimensional, shapes do not fit, or a line is asked for through a single
        point.

    Examples
    --------
    >>> import geoopt, torch
    >>> from matplotlib.figure import Figure
    >>> from manifold_resnet.plotting import plot_geodesic
    >>> ball = geoopt.PoincareBall(c=1.0)
    >>> ax = plot_geodesic(torch.tensor([-0.6, 0.0]), torch.tensor([0.0, 0.6]), ball=ball, ax=Figure().subplots())
    >>> ax.collections[-1].get_segments()[0].shape
    (65, 2)
    """
    start, end = disk_points(x, ball, "x"), disk_points(y, ball, "y")
    try:
        start, end = np.broadcast_arrays(start, end)
    except ValueError:
        shapes = f"{(*start.shape, 2)} and {(*end.shape, 2)}"
        raise ValueError(f"x and y of shapes {shapes} cannot be broadcast together") from None
    if not line:
        return _draw(segment(start, end), ball, ax, style)
    if (start == end).any():
        raise ValueError("x and y must differ: many lines go through a single point")
    return _draw(sample(*line_through(start, end), -1, 1), ball, ax, style)


def plot_hyperplane(
    normal: Tensor | ArrayLike,
    offset: Tensor | ArrayLike = 0.0,
    *,
    point: Tensor | ArrayLike | None = None,
    ball: geoopt.PoincareBall,
    ax: Axes | None = None,
    **style: Any,
) -> Axes:
    """Draw hyperplanes: the geodesic lines that are orthogonal to a normal.

    Parameters
    ----------
    normal : Tensor or array
        Vectors ``(..., 2)`` that are not zero; only their directions count. Normals of this package's layers are
        tangent vectors at the origin (``mlr.normals()``); with `point`, they are tangent vectors there.
    offset : Tensor or array
        Where the hyperplane crosses the geodesic from the origin along the normal: a tangent norm, half the geodesic
        distance from the origin, shape ``(...)``. Those of this package's layers are ``mlr.bias``.
    point : Tensor or array, optional
        Ball points ``(..., 2)`` that the hyperplanes go through, in place of `offset`. geoopt's layer of distances to
        hyperplanes has ``normal=layer.points, point=layer.points``.
    ball : geoopt.PoincareBall
        The manifold.
    ax : matplotlib.axes.Axes, optional
        Where to draw; default: pyplot's current Axes.
    **style
        For ``matplotlib.collections.LineCollection``: color, linewidth, linestyle, label, ...

    Returns
    -------
    matplotlib.axes.Axes
        Its last collection holds the lines, 65 points each.

    Raises
    ------
    TypeError, ValueError
        If a normal is zero or not two-dimensional, both offset and point are given, or points are not on the ball.

    Notes
    -----
    Ganea, Bécigneul, Hofmann 2018, definition 3.1; with offsets, Shimizu et al. 2021, sec. 3.1.

    Examples
    --------
    >>> import geoopt, manifold_resnet as mr
    >>> from matplotlib.figure import Figure
    >>> from manifold_resnet.plotting import plot_hyperplane
    >>> mlr = mr.nn.PoincareMLR(2, 3, ball=geoopt.PoincareBall(c=1.0))
    >>> ax = plot_hyperplane(mlr.normals(), mlr.bias, ball=mlr.ball, ax=Figure().subplots())
    >>> len(ax.collections[-1].get_segments())
    3
    """
    check_ball(ball)
    a, r = _numbers(normal, "normal"), _numbers(offset, "offset")
    if a.ndim == 0 or a.shape[-1] != 2:
        raise ValueError(f"normal must have shape (..., 2), got {a.shape}")
    a = a[..., 0] + 1j * a[..., 1]
    if not (np.isfinite(a).all() and (a != 0).all()):
        raise ValueError("normal must be finite and not zero")
    a = a / np.abs(a)
    if point is None:
        foot, direction = np.tanh(ball.c.item() ** 0.5 * r) * a, -1j * a
    else:
        if np.any(r != 0):
            raise ValueError("give offset or point, not both: either says where the hyperplane is")
        p = disk_points(point, ball, "point")
        foot, direction = line_through(translate(1j * a, p), translate(-1j * a, p))
    return _draw(sample(foot, direction, -1, 1), ball, ax, style)


def _numbers(x: Tensor | ArrayLike, name: str) -> np.ndarray:
    try:
        return np.asarray(x.detach().cpu() if isinstance(x, Tensor) else x, dtype=np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a tensor or an array of numbers, got {type(x).__name__}") from None


def plot_tessellation(
    p: int = 5,
    q: int = 4,
    *,
    ball: geoopt.PoincareBall,
    smallest: float = 0.02,
    ax: Axes | None = None,
    **style: Any,
) -> Axes:
    """Tile the disk with regular polygons that all have the same size.

    Parameters
    ----------
    p, q : int
        Corners of a polygon, and polygons that meet at each corner. ``1/p + 1/q`` must be less than a half: then their
        sides cannot be straight lines of a plane.
    ball : geoopt.PoincareBall
        The manifold.
    smallest : float
        Polygons that look smaller than this share of the disk's radius are left out.
    ax : matplotlib.axes.Axes, optional
        Where to draw; default: pyplot's current Axes.
    **style
        For ``matplotlib.collections.LineCollection``: color, linewidth, ...

    Returns
    -------
    matplotlib.axes.Axes
        Its last collection holds the sides.

    Raises
    ------
    ValueError
        If there is no such tessellation of the hyperbolic plane, or `smallest` is not between 0.001 and 1.

    Examples
    --------
    >>> import geoopt
    >>> from matplotlib.figure import Figure
    >>> from manifold_resnet.plotting import plot_tessellation
    >>> ax = plot_tessellation(7, 3, ball=geoopt.PoincareBall(), smallest=0.3, ax=Figure().subplots())
    >>> len(ax.collections[-1].get_segments())  # the sides of 8 heptagons, shared ones once
    42
    """
    if not (isinstance(p, int) and isinstance(q, int) and min(p, q) >= 3 and 2 * (p + q) < p * q):
        raise ValueError(f"p and q must be integers >= 3 with 1/p + 1/q < 1/2, got {p!r} and {q!r}")
    if not 0.001 <= smallest < 1:
        raise ValueError(f"smallest must be between 0.001 and 1, got {smallest}")
    # distance of the corners from the centre: cosh d = cot(pi/p) cot(pi/q)
    cosh = 1 / (math.tan(math.pi / p) * math.tan(math.pi / q))
    corners = math.sqrt((cosh - 1) / (cosh + 1)) * np.exp(2j * np.pi * np.arange(p) / p + 0.5j * np.pi)
    polygons, seen, sides = [corners], {_key(0j)}, {}
    for polygon in polygons:  # grows while it is walked through
        for x, y in zip(polygon, np.roll(polygon, -1), strict=True):
            foot, direction = line_through(x, y)
            sides.setdefault(_key(translate(_middle(x, y, foot, direction), foot)), (x, y))
            mirrored = reflect(polygon, foot, direction)
            key = _key(mirrored.mean())
            if key not in seen and np.ptp(mirrored.real) + np.ptp(mirrored.imag) > 2 * smallest:
                seen.add(key)
                polygons.append(mirrored)
    ends = np.array(list(sides.values()))
    style = {"color": "0.55", "linewidth": 0.7, "zorder": 0.7} | style
    return _draw(segment(ends[:, 0], ends[:, 1], 17), ball, ax, style)


def _middle(x: complex, y: complex, foot: complex, direction: complex) -> complex:
    """A point halfway between two of a line, moved with its foot to the origin."""
    return 0.5 * (along(x, foot, direction) + along(y, foot, direction)) * direction


def _key(z: complex) -> tuple[int, int]:
    return round(z.real * 1e6), round(z.imag * 1e6)
