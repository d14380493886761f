"""Points in the Poincaré disk: embeddings with their classes and images, and the way points took in a training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import geoopt
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from manifold_resnet.plotting._disk import (
    LINE,
    class_colors,
    coordinates,
    current_axes,
    disk_points,
    segment,
)
from manifold_resnet.plotting.disk import plot_disk

__all__ = ["plot_points", "plot_trajectory"]


def plot_points(
    points: Tensor | ArrayLike,
    labels: Tensor | ArrayLike | None = None,
    *,
    ball: geoopt.PoincareBall,
    names: Sequence[str] | None = None,
    colors: Sequence[Any] | None = None,
    legend: bool = True,
    thumbnails: Tensor | ArrayLike | None = None,
    thumbnail_size: float = 0.13,
    ax: Axes | None = None,
    **style: Any,
) -> Axes:
    """Draw points of the disk, coloured by class, and small images of some of them.

    Parameters
    ----------
    points : Tensor or array
        Ball points ``(N, 2)``; `manifold_resnet.plotting.reduce_to_disk` makes them from points of more dimensions.
    labels : Tensor or array, optional
        The class of each point, ``(N,)``: integers from 0, which index `names` and `colors`, or strings.
    ball : geoopt.PoincareBall
        The manifold.
    names : sequence of str, optional
        What the classes are called in the legend.
    colors : sequence, optional
        A colour for each class; default: ten that the colour-blind can tell apart, or steps of viridis if there are
        more classes. Without labels, `color` is an option of `style`.
    legend : bool
        Whether to draw the legend, to the right of the disk.
    thumbnails : Tensor or array, optional
        Images of the points: ``(N, H, W)``, ``(N, C, H, W)`` or ``(N, H, W, C)``, C = 1, 3 or 4; bytes, or real numbers
        that are spread over the range from black to white. Each is drawn centred at its point, the first ones first,
        if it does not overlap with those that are there.
    thumbnail_size : float
        The longer side of a thumbnail, as a share of the disk's radius.
    ax : matplotlib.axes.Axes, optional
        Where to draw; default: pyplot's current Axes.
    **style
        For ``Axes.scatter``: s (area in square points), alpha, marker, ...

    Returns
    -------
    matplotlib.axes.Axes
        With one collection for each class, in the order of the legend.

    Raises
    ------
    TypeError, ValueError
        If points are not on the ball or not ``(N, 2)``, or labels, names, colours or thumbnails do not fit them.

    Examples
    --------
    >>> import geoopt, torch, manifold_resnet as mr
    >>> from matplotlib.figure import Figure
    >>> from manifold_resnet.plotting import plot_points
    >>> points = mr.functional.expmap0(torch.tensor([[0.3, 0.1], [-0.5, 0.4], [0.2, 0.2]]), c=1.0)
    >>> ax = plot_points(points, ["cat", "dog", "cat"], ball=geoopt.PoincareBall(), ax=Figure().subplots())
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['cat', 'dog']
    """
    z = disk_points(points, ball)
    if z.ndim != 1:
        raise ValueError(f"points must have shape (N, 2), got {(*z.shape, 2)}")
    images = None if thumbnails is None else _images(thumbnails, len(z))
    index, names = _classes(labels, names, len(z))
    if index is not None and {"c", "color"} & set(style):
        raise ValueError("with labels, colours go by class: pass colors=, one for each")
    ax = plot_disk(ball, current_axes(ax))
    xy = coordinates(z, ball)
    style = {"s": 14, "linewidths": 0.3, "edgecolors": "white", "zorder": 2.5} | style
    if index is None:
        if not {"c", "color"} & set(style):
            style["color"] = LINE
        ax.scatter(*xy.T, **style)
        palette: list[Any] = ["0.3"]
    else:
        palette = class_colors(len(names), colors)
        for k in np.unique(index):
            ax.scatter(*xy[index == k].T, color=[palette[k]], label=names[k], **style)
        if legend and len(z):
            ax.legend(
                loc="center left", bbox_to_anchor=(1.0, 0.5), ncols=1 + (len(names) - 1) // 16,
                frameon=False, markerscale=1.6, handletextpad=0.2,
            )  # fmt: skip
    if images is not None:
        frames = [palette[0 if index is None else index[i]] for i in range(len(z))]
        _place(ax, xy, images, thumbnail_size * ball.c.item() ** -0.5, frames)
    return ax


def _classes(
    labels: Tensor | ArrayLike | None, names: Sequence[str] | None, count: int
) -> tuple[NDArray[np.int64] | None, list[str]]:
    """The class of each point as an integer, and the names of all classes."""
    if labels is None:
        return None, []
    values = np.asarray(labels.detach().cpu() if isinstance(labels, Tensor) else labels)
    if values.shape != (count,):
        raise ValueError(f"labels must have shape ({count},), one for each point; got {values.shape}")
    if values.dtype.kind in "US":
        found, index = np.unique(values, return_inverse=True)
        if names is not None:
            raise ValueError("names are for labels that are integers; these are strings already")
        return index, [str(name) for name in found]
    if count and not (values.dtype.kind in "iub" and values.min() >= 0):
        raise ValueError(f"labels must be integers from 0 or strings, got {values.dtype} values such as {values[0]}")
    index = values.astype(np.int64)
    classes = int(index.max()) + 1 if count else 0
    if names is None:
        return index, [str(k) for k in range(classes)]
    if len(names) < classes:
        raise ValueError(f"names must hold one name for each of {classes} classes, got {len(names)}")
    return index, [str(name) for name in names]


def _images(thumbnails: Tensor | ArrayLike, count: int) -> NDArray[Any]:
    """Images as matplotlib takes them: ``(N, H, W)`` or ``(N, H, W, 3 or 4)``."""
    images = np.asarray(thumbnails.detach().cpu() if isinstance(thumbnails, Tensor) else thumbnails)
    if images.ndim == 4 and images.shape[1] in (1, 3, 4) and images.shape[3] not in (1, 3, 4):
        images = np.moveaxis(images, 1, 3)
    fits = images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3, 4))
    if not fits or len(images) != count or 0 in images.shape[1:]:
        raise ValueError(
            f"thumbnails must have shape (N, H, W), (N, C, H, W) or (N, H, W, C) with N = {count} points and "
            f"C = 1, 3 or 4; got {images.shape}"
        )
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    if images.dtype != np.uint8 and count:
        images = images.astype(np.float64)
        low, high = images.min(), images.max()
        images = (images - low) / (high - low if high > low else 1.0)
    return images


def _place(ax: Axes, xy: NDArray[np.float64], images: NDArray[Any], size: float, frames: Sequence[Any]) -> None:
    """Draw images of the given longer side, in ball coordinates, wherever there is room."""
    if not size > 0:
        raise ValueError(f"thumbnail_size must be positive, got {size}")
    height, width = images.shape[1:3]
    half = 0.5 * size * np.array([width, height]) / max(width, height)
    bright = 255 if images.dtype == np.uint8 else 1
    taken = np.empty((0, 2))
    for i, centre in enumerate(xy):
        if (np.abs(taken - centre) < 2.1 * half).all(1).any():
            continue
        taken = np.vstack([taken, centre])
        (left, bottom), (right, top) = centre - half, centre + half
        # an image of the Axes would change their limits
        image = AxesImage(ax, cmap="gray_r", extent=(left, right, bottom, top), zorder=3, clip_on=False)
        image.set_data(images[i])
        image.set_clim(0, bright)
        ax.add_image(image)
        ax.add_patch(
            Rectangle(
                (left, bottom), *(2 * half), fill=False, edgecolor=frames[i], linewidth=1.0, zorder=3, clip_on=False
            )
        )


def plot_trajectory(
    points: Tensor | ArrayLike,
    *,
    ball: geoopt.PoincareBall,
    cmap: str = "viridis",
    ends: bool = True,
    ax: Axes | None = None,
    **style: Any,
) -> Axes:
    """Draw the way that points took, geodesic by geodesic, with a colour that tells the time.

    Parameters
    ----------
    points : Tensor or array
        Ball points along time, ``(T, 2)`` for one trajectory or ``(T, N, 2)`` for several.
    ball : geoopt.PoincareBall
        The manifold. Where its curvature was trained too, the last one.
    cmap : str
        Name of a matplotlib colour map: its first colour is the start, its last the end.
    ends : bool
        Mark the last points with a dot.
    ax : matplotlib.axes.Axes, optional
        Where to draw; default: pyplot's current Axes.
    **style
        For ``matplotlib.collections.LineCollection``: linewidth, alpha, ...

    Returns
    -------
    matplotlib.axes.Axes
        The first collection that was added holds the steps, with their number as its array: ready for a colour bar.

    Raises
    ------
    TypeError, ValueError
        If points are not on the ball or of another shape, or there are fewer than two times.

    Examples
    --------
    >>> import geoopt, torch, manifold_resnet as mr
    >>> from matplotlib.figure import Figure
    >>> from manifold_resnet.plotting import plot_trajectory
    >>> steps = torch.linspace(0, 1, 11)[:, None]
    >>> points = mr.functional.expmap0(torch.cat([steps, steps**2], 1), c=1.0)
    >>> ax = plot_trajectory(points, ball=geoopt.PoincareBall(), ax=Figure().subplots())
    >>> len(ax.collections[0].get_segments())
    10
    """
    z = disk_points(points, ball)
    if z.ndim not in (1, 2) or len(z) < 2:
        raise ValueError(f"points must have shape (T, 2) or (T, N, 2) with at least two times T, got {(*z.shape, 2)}")
    ax = plot_disk(ball, current_axes(ax))
    z = z.reshape(len(z), -1)
    curves = segment(z[:-1], z[1:], 9)
    lines = LineCollection(
        list(coordinates(curves, ball).reshape(-1, 9, 2)),
        **{"cmap": cmap, "linewidth": 1.2, "capstyle": "round", "zorder": 2} | style,
    )
    lines.set_array(np.repeat(np.arange(1, len(z)), z.shape[1]))
    lines.set_clim(1, len(z) - 1)
    ax.add_collection(lines, autolim=False)
    if ends:
        last = matplotlib.colormaps[cmap](1.0)
        ax.scatter(*coordinates(z[-1], ball).T, s=18, color=[last], edgecolors="0.25", linewidths=0.6, zorder=2.6)
    return ax
