"""Checks and conversions of arguments that every operation shares."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, get_args

import torch
from torch import Tensor

Chart = Literal["ball", "tangent", "hyperboloid"]
_CHARTS = get_args(Chart)
_UNCHANGED = nullcontext()


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Context in which autocast leaves the precision of radial scalars and statistics alone."""
    if not torch.compiler.is_compiling() and not torch.is_autocast_enabled(x.device.type):
        return _UNCHANGED
    return torch.autocast(x.device.type, enabled=False)


def check_floating(x: Tensor, name: str = "x") -> None:
    """Raise a TypeError unless `x` is a real floating point tensor."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"{name} must be a floating point tensor, got {x.dtype}: convert it with {name}.float()")


def full_precision(x: Tensor, name: str = "x") -> Tensor:
    """Points and tangent vectors in at least float32: half precision has no room near the boundary.

    Raises
    ------
    TypeError
        If `x` is not a real floating point tensor.
    """
    check_floating(x, name)
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def curvature(c: Tensor | float, like: Tensor) -> Tensor:
    """The curvature parameter c as a 0-d tensor with the dtype and device of `like`.

    Raises
    ------
    ValueError
        If `c` is a number that is not positive and finite, or a tensor with more than one element. (The value of a
        tensor is not read: that would make the GPU wait.)
    """
    if isinstance(c, Tensor):
        if c.numel() != 1:
            raise ValueError(f"c must be a scalar, got a tensor of shape {tuple(c.shape)}")
        if c.ndim == 0 and c.dtype == like.dtype and c.device == like.device:
            return c
        return c.reshape(()).to(dtype=like.dtype, device=like.device)
    if not (c > 0 and math.isfinite(c)):
        raise ValueError(f"c must be positive and finite (the ball's sectional curvature is -c), got {c}")
    return torch.full((), c, dtype=like.dtype, device=like.device)


def check_chart(chart: str, name: str) -> None:
    """Raise a ValueError unless `chart` names one of the three charts."""
    if chart not in _CHARTS:
        raise ValueError(f"{name} must be one of {', '.join(_CHARTS)}; got {chart!r}")


def check_max_distance(max_distance: float | None) -> None:
    """Raise a ValueError unless `max_distance` is None or positive."""
    if max_distance is not None and not (isinstance(max_distance, (int, float)) and max_distance > 0):
        raise ValueError(
            f"max_distance must be a positive geodesic distance, math.inf for no bound or None for the default; "
            f"got {max_distance!r}"
        )


def as_pixels(x: Tensor, dim: int) -> Tensor:
    """View a tensor as ``[B, C, N]`` with the channels of `dim`."""
    if dim == 1:
        return x.reshape(x.shape[0], x.shape[1], math.prod(x.shape[2:]))
    dim = dim % x.ndim
    return x.reshape(math.prod(x.shape[:dim]), x.shape[dim], math.prod(x.shape[dim + 1 :]))


def other_dims(x: Tensor, dim: int) -> list[int]:
    """All dimensions of `x` but `dim`."""
    return [d for d in range(x.ndim) if d != dim % x.ndim]


def broadcast_channels(v: Tensor, x: Tensor, dim: int) -> Tensor:
    """View a vector [C] (or a scalar) so that it broadcasts along `dim` of `x`."""
    if v.ndim == 0:
        return v
    return v.view([-1 if d == dim % x.ndim else 1 for d in range(x.ndim)])
