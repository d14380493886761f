"""Möbius residual connection.

References
----------
.. [1] van Spengler, Berkhout, Mettes: Poincaré ResNet. ICCV 2023, sec. 3.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from manifold_resnet.functional._autograd import differentiable
from manifold_resnet.functional._checks import (
    Chart,
    check_chart,
    check_max_distance,
    curvature,
    full_precision,
)
from manifold_resnet.functional.charts import convert


def _add(x: Tensor, y: Tensor, dim: int) -> Tensor:
    time_x = torch.sqrt(1 + (x * x).sum(dim, keepdim=True))
    time_y = torch.sqrt(1 + (y * y).sum(dim, keepdim=True))
    return y + (time_y + (x * y).sum(dim, keepdim=True) / (1 + time_x)) * x


def _add_backward(grad: Tensor, needs: tuple[bool, ...], x: Tensor, y: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    time_x = torch.sqrt(1 + (x * x).sum(dim, keepdim=True))
    time_y = torch.sqrt(1 + (y * y).sum(dim, keepdim=True))
    p = (x * y).sum(dim, keepdim=True) / (1 + time_x)
    along = (grad * x).sum(dim, keepdim=True)
    shared = along / (1 + time_x)
    grad_x = (grad * (time_y + p)).addcmul(y, shared).addcmul(x, -shared * p / time_x)
    grad_y = grad.addcmul(y, along / time_y).addcmul(x, shared)
    return grad_x, grad_y


hyperboloid_add = differentiable(_add, _add_backward, tensors=2)


def mobius_residual(
    x: Tensor,
    shortcut: Tensor,
    *,
    c: Tensor | float,
    dim: int = 1,
    order: Literal["fr", "rf"] = "fr",
    in_chart: Chart = "ball",
    shortcut_chart: Chart = "ball",
    out_chart: Chart = "ball",
    max_distance: float | None = math.inf,
    relu: bool = False,
) -> Tensor:
    r"""Möbius sum of a layer's output and its shortcut, :math:`f(x) \oplus r` or :math:`r \oplus f(x)`.

    Parameters
    ----------
    x, shortcut : Tensor
        Points of the same shape, along `dim`.
    c : Tensor or float
        The curvature of the space is ``-c``.
    dim : int
        The dimension the manifold runs along (the channels).
    order : {"fr", "rf"}
        "fr" is the paper's ``f(x) (+) r``. Möbius addition does not commute.
    in_chart, shortcut_chart, out_chart : {"ball", "tangent", "hyperboloid"}
        Charts of `x`, of `shortcut` and of the result.
    max_distance : float, optional
        Bound on the result's geodesic distance from the origin, see `convert`.
    relu : bool
        Apply the tangent ReLU in the same pass; needs ``out_chart="tangent"``.

    Returns
    -------
    Tensor
        Points, same shape.

    Raises
    ------
    ValueError
        If shapes differ, or `order` or a chart is unknown.

    Notes
    -----
    [1]_, sec. 3; in the hyperboloid chart ``x (+) y = y + (tau_y + <x, y>/(1 + tau_x)) x``.
    """
    if x.shape != shortcut.shape:
        raise ValueError(f"x and shortcut must have the same shape, got {tuple(x.shape)} and {tuple(shortcut.shape)}")
    if order not in ("fr", "rf"):
        raise ValueError(f"order must be 'fr' (f(x) (+) shortcut) or 'rf' (shortcut (+) f(x)), got {order!r}")
    if relu and out_chart != "tangent":
        raise ValueError(f"relu=True acts on tangent vectors and needs out_chart='tangent', got {out_chart!r}")
    check_chart(out_chart, "out_chart")
    check_max_distance(max_distance)
    x, shortcut = full_precision(x), full_precision(shortcut, "shortcut")
    c = curvature(c, x)
    x = convert(x, in_chart, "hyperboloid", c=c, dim=dim)
    shortcut = convert(shortcut, shortcut_chart, "hyperboloid", c=c, dim=dim)
    pair = (x, shortcut) if order == "fr" else (shortcut, x)
    h = hyperboloid_add(*pair, dim)
    return convert(h, "hyperboloid", out_chart, c=c, dim=dim, max_distance=max_distance, relu=relu)
