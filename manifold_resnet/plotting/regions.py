"""Which class a classifier gives to every point of the Poincaré disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import geoopt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Circle
from torch import Tensor, nn

from manifold_resnet.plotting._disk import class_colors, current_axes
from manifold_resnet.plotting.disk import plot_disk

__all__ = ["plot_decision_regions"]


def plot_decision_regions(
    classifier: Callable[[Tensor], Tensor],
    ax: Axes | None = None,
    *,
    ball: geoopt.PoincareBall | None = None,
    colors: Sequence[Any] | None = None,
    resolution: int = 301,
    boundaries: bool = True,
) -> Axes:
    """Colour the disk by the class of largest logit, with lines where the two largest tie.

    Parameters
    ----------
    classifier : PoincareMLR or callable
        Maps ball points ``(N, 2)`` to logits ``(N, classes)``, or to one logit ``(N,)`` or ``(N, 1)`` that is positive
        for class 1. A module is evaluated in evaluation mode, in the dtype and on the device of its first parameter,
        and left as it was; other callables get points in the dtype and on the device of the ball.
    ax : matplotlib.axes.Axes, optional
        Where to draw; default: pyplot's current Axes.
    ball : geoopt.PoincareBall, optional
        The manifold; default: the classifier's own, ``classifier.ball``.
    colors : sequence, optional
        A colour for each class, which is drawn light; default: those of `plot_points`.
    resolution : int
        Points along the diameter at which the classifier is evaluated.
    boundaries : bool
        Draw the lines.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    TypeError, ValueError
        If there is no ball, the classifier returns another shape or values that are not finite, or an argument is out
        of range.

    Examples
    --------
    >>> import geoopt, manifold_resnet as mr
    >>> from matplotlib.figure import Figure
    >>> from manifold_resnet.plotting import plot_decision_regions
    >>> mlr = mr.nn.PoincareMLR(2, 3, ball=geoopt.PoincareBall(c=1.0))
    >>> ax = plot_decision_regions(mlr, Figure().subplots(), resolution=51)
    """
    ball = getattr(classifier, "ball", None) if ball is None else ball
    if ball is None:
        raise TypeError(f"{type(classifier).__name__} has no ball of its own: pass ball=")
    if not isinstance(resolution, int) or resolution < 3:
        raise ValueError(f"resolution must be an integer of at least 3, got {resolution!r}")
    ax = plot_disk(ball, current_axes(ax))
    radius = ball.c.item() ** -0.5
    t = np.linspace(-1, 1, resolution)
    z = t + 1j * t[:, None]
    # points outside stand for the nearest ones inside, so that colours and lines reach the boundary
    inside = z * np.minimum(1, (1 - 1e-3) / np.maximum(np.abs(z), 1e-300))
    points = torch.as_tensor(np.stack([inside.real, inside.imag], -1).reshape(-1, 2) * radius)
    logits = _logits(classifier, points, ball).reshape(resolution, resolution, -1)
    classes = logits.shape[-1]
    palette = np.array(class_colors(classes, colors))[:, :3]
    disk = Circle((0, 0), radius, transform=ax.transData)
    x = t * radius
    for k in range(classes):
        # how far the class is ahead of the next: zero where two tie
        margin = logits[..., k] - np.delete(logits, k, -1).max(-1)
        if margin.max() <= 0:
            continue
        light = 1 - 0.35 * (1 - palette[k])
        region = ax.contourf(x, x, margin, levels=[0, np.inf], colors=[light], zorder=0.3)
        region.set_clip_path(disk)
        region.set_gid(f"class-{k}")
        if boundaries and margin.min() < 0:
            line = ax.contour(x, x, margin, levels=[0], colors="0.35", linewidths=0.8, zorder=0.5)
            line.set_clip_path(disk)
    limit = ax.get_xlim()[1]
    ax.set(xlim=(-limit, limit), ylim=(-limit, limit))
    return ax


def _logits(classifier: Callable[[Tensor], Tensor], points: Tensor, ball: geoopt.PoincareBall) -> np.ndarray:
    like = next(classifier.parameters(), ball.c) if isinstance(classifier, nn.Module) else ball.c
    with torch.no_grad(), _evaluating(classifier):
        logits = classifier(points.to(like))
    if not isinstance(logits, Tensor):
        raise TypeError(f"the classifier must return a tensor of logits, got {type(logits).__name__}")
    if logits.ndim not in (1, 2) or len(logits) != len(points) or logits.shape[-1] == 0:
        raise ValueError(
            f"the classifier must map points ({len(points)}, 2) to logits ({len(points)}, classes), "
            f"got {tuple(logits.shape)}"
        )
    if not bool(logits.isfinite().all()):
        raise ValueError("the classifier returned logits that are NaN or infinite")
    values = logits.double().cpu().numpy().reshape(len(points), -1)
    return np.hstack([-values / 2, values / 2]) if values.shape[1] == 1 else values


@contextmanager
def _evaluating(classifier: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Evaluation mode, afterwards every submodule's own."""
    modes = {m: m.training for m in classifier.modules()} if isinstance(classifier, nn.Module) else {}
    try:
        for module in modes:
            module.training = False
        yield
    finally:
        for module, training in modes.items():
            module.training = training
