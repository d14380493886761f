"""Layers without parameters: maps between the ball and its tangent space, activation, pooling, residual."""

from __future__ import annotations

from typing import Literal

import geoopt
from torch import Tensor

from manifold_resnet.functional import (
    convert,
    poincare_adaptive_avg_pool2d,
    poincare_avg_pool2d,
    poincare_relu,
)
from manifold_resnet.functional._checks import Chart, check_chart, curvature, full_precision
from manifold_resnet.functional.conv import _per_dim
from manifold_resnet.functional.residual import residual_sum
from manifold_resnet.nn.base import BoundedModule, PoincareModule


class ExpMap0(BoundedModule):
    """Exponential map at the origin: the way from Euclidean features onto the ball.

    Parameters
    ----------
    ball : geoopt.PoincareBall
        The manifold.
    dim : int
        The dimension the manifold runs along (1 for images).
    max_distance : float, optional
        Bound on the points' geodesic distance from the origin; None: ``DEFAULT_MAX_DISTANCE / sqrt(c)``.

    Examples
    --------
    >>> import geoopt
    >>> import torch
    >>> import manifold_resnet as mr
    >>> ball = geoopt.PoincareBall(c=1.0)
    >>> mr.nn.ExpMap0(ball=ball)(torch.tensor([[0.5, 0.0], [100.0, 0.0]]))  # tanh(0.5); within distance 6: tanh(3)
    tensor([[0.4621, 0.0000],
            [0.9951, 0.0000]])
    """

    def __init__(self, *, ball: geoopt.PoincareBall, dim: int = -1, max_distance: float | None = None) -> None:
        super().__init__(ball, dim, max_distance)

    def forward(self, u: Tensor, out_chart: Chart = "ball") -> Tensor:
        """Map tangent vectors at the origin along `dim` to points in chart `out_chart`, same shape."""
        return self._emitted_from_tangent(u, out_chart, self.dim)


class LogMap0(PoincareModule):
    """Logarithmic map at the origin: the way from the ball back to Euclidean features.

    Parameters
    ----------
    ball : geoopt.PoincareBall
        The manifold.
    dim : int
        The dimension the manifold runs along (1 for images).

    Examples
    --------
    >>> import geoopt
    >>> import torch
    >>> import manifold_resnet as mr
    >>> ball = geoopt.PoincareBall(c=1.0)
    >>> mr.nn.LogMap0(ball=ball)(torch.tensor([[0.5, 0.0]]))  # artanh(0.5)
    tensor([[0.5493, 0.0000]])
    """

    def __init__(self, *, ball: geoopt.PoincareBall, dim: int = -1) -> None:
        super().__init__(ball, dim)

    def forward(self, x: Tensor, in_chart: Chart = "ball") -> Tensor:
        """Map points in chart `in_chart` along `dim` to tangent vectors at the origin, same shape."""
        self._check_points(x, in_chart)
        return convert(x, in_chart, "tangent", c=self.c, dim=self.dim)


class PoincareReLU(PoincareModule):
    """Tangent ReLU, ``exp0(max(log0(x), 0))`` (van Spengler et al. 2023, sec. 3).

    Parameters
    ----------
    ball : geoopt.PoincareBall
        The manifold.
    dim : int
        The dimension the manifold runs along.

    Examples
    --------
    >>> import geoopt
    >>> import torch
    >>> import manifold_resnet as mr
    >>> ball = geoopt.PoincareBall(c=1.0)
    >>> mr.nn.PoincareReLU(ball=ball)(torch.tensor([[0.5, -0.5]]))
    tensor([[0.5534, 0.0000]])
    """

    def __init__(self, *, ball: geoopt.PoincareBall, dim: int = 1) -> None:
        super().__init__(ball, dim)

    def forward(self, x: Tensor, in_chart: Chart = "ball", out_chart: Chart = "ball") -> Tensor:
        """Map points along `dim` to points, same shape."""
        self._check_points(x, in_chart)
        return poincare_relu(x, c=self.c, dim=self.dim, in_chart=in_chart, out_chart=out_chart)


class PoincareAvgPool2d(PoincareModule):
    """Poincaré midpoint of each window of images of points ``(batch, channels, H, W)``, along dimension 1.

    Parameters
    ----------
    kernel_size, stride, padding, ceil_mode
        As ``torch.nn.AvgPool2d``.
    count_include_pad : bool
        Whether padded pixels count as points at the origin or are left out.
    ball : geoopt.PoincareBall
        The manifold.

    Examples
    --------
    >>> import geoopt
    >>> import torch
    >>> import manifold_resnet as mr
    >>> ball = geoopt.PoincareBall(c=1.0)
    >>> pool = mr.nn.PoincareAvgPool2d(2, ball=ball)
    >>> pool(torch.full((2, 3, 6, 6), 0.1)).shape
    torch.Size([2, 3, 3, 3])
    """

    def __init__(
        self,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] | None = None,
        padding: int | tuple[int, int] = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        *,
        ball: geoopt.PoincareBall,
    ) -> None:
        super().__init__(ball, 1)
        kernel = _per_dim(kernel_size, 2, "kernel_size", 1)
        _per_dim(kernel_size if stride is None else stride, 2, "stride", 1)
        if any(2 * p > k for p, k in zip(_per_dim(padding, 2, "padding", 0), kernel, strict=True)):
            raise ValueError(f"padding must be at most half of kernel_size {kernel_size}, got {padding}")
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding
        self.ceil_mode, self.count_include_pad = ceil_mode, count_include_pad

    def forward(self, x: Tensor, in_chart: Chart = "ball", out_chart: Chart = "ball") -> Tensor:
        """Map images of points to smaller images of points."""
        self._check_points(x, in_chart)
        return poincare_avg_pool2d(
            x, self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad,
            c=self.c, in_chart=in_chart, out_chart=out_chart,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, {super().extra_repr()}"


class PoincareAdaptiveAvgPool2d(PoincareModule):
    """Poincaré midpoint of each cell of a grid over images of points ``(batch, channels, H, W)``, along dimension 1.

    Parameters
    ----------
    output_size
        As ``torch.nn.AdaptiveAvgPool2d``.
    ball : geoopt.PoincareBall
        The manifold.

    Examples
    --------
    >>> import geoopt
    >>> import torch
    >>> import manifold_resnet as mr
    >>> ball = geoopt.PoincareBall(c=1.0)
    >>> pool = mr.nn.PoincareAdaptiveAvgPool2d(1, ball=ball)
    >>> pool(torch.full((2, 3, 5, 7), 0.1)).shape
    torch.Size([2, 3, 1, 1])
    """

    def __init__(self, output_size: int | tuple[int | None, int | None], *, ball: geoopt.PoincareBall) -> None:
        super().__init__(ball, 1)
        sizes = output_size if isinstance(output_size, tuple) else (output_size,) * 2
        _per_dim([1 if s is None else s for s in sizes], 2, "output_size", 1)
        self.output_size = output_size

    def forward(self, x: Tensor, in_chart: Chart = "ball", out_chart: Chart = "ball") -> Tensor:
        """Map images of points to images of points of size `output_size`."""
        self._check_points(x, in_chart)
        return poincare_adaptive_avg_pool2d(x, self.output_size, c=self.c, in_chart=in_chart, out_chart=out_chart)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}, {super().extra_repr()}"


class PoincareResidual(BoundedModule):
    """Möbius residual connection, ``f(x) (+) shortcut`` or ``shortcut (+) f(x)`` (van Spengler et al. 2023, sec. 3).

    Parameters
    ----------
    ball : geoopt.PoincareBall
        The manifold.
    order : {"fr", "rf"}
        "fr" is the paper's ``f(x) (+) shortcut``.
    dim : int
        The dimension the manifold runs along.
    max_distance : float, optional
        Bound on the sum's geodesic distance from the origin; None: ``DEFAULT_MAX_DISTANCE / sqrt(c)``.

    Examples
    --------
    >>> import geoopt
    >>> import torch
    >>> import manifold_resnet as mr
    >>> ball = geoopt.PoincareBall(c=1.0)
    >>> add = mr.nn.PoincareResidual(ball=ball)
    >>> x = torch.tensor([[0.3, 0.0]])
    >>> add(x, x)  # 0.6 / (1 + 0.09)
    tensor([[0.5505, 0.0000]])
    """

    def __init__(
        self,
        *,
        ball: geoopt.PoincareBall,
        order: Literal["fr", "rf"] = "fr",
        dim: int = 1,
        max_distance: float | None = None,
    ) -> None:
        super().__init__(ball, dim, max_distance)
        if order not in ("fr", "rf"):
            raise ValueError(f"order must be 'fr' (f(x) (+) shortcut) or 'rf' (shortcut (+) f(x)), got {order!r}")
        self.order: Literal["fr", "rf"] = order

    def forward(
        self,
        x: Tensor,
        shortcut: Tensor,
        in_chart: Chart = "ball",
        shortcut_chart: Chart = "ball",
        out_chart: Chart = "ball",
        relu: bool = False,
    ) -> Tensor:
        """Add points of the same shape; `relu` applies the tangent ReLU in the same pass (``out_chart="tangent"``)."""
        if relu and out_chart != "tangent":
            raise ValueError(f"relu=True acts on tangent vectors and needs out_chart='tangent', got {out_chart!r}")
        check_chart(shortcut_chart, "shortcut_chart")
        check_chart(out_chart, "out_chart")
        self._check_points(x, in_chart)
        self._check_points(shortcut, shortcut_chart)
        if x.shape != shortcut.shape:
            raise ValueError(
                f"x and shortcut must have the same shape, got {tuple(x.shape)} and {tuple(shortcut.shape)}"
            )
        x, shortcut = full_precision(x), full_precision(shortcut, "shortcut")
        c = curvature(self.c, x)
        x = convert(x, in_chart, "hyperboloid", c=c, dim=self.dim)
        fused = out_chart == "tangent" and self._counts is None
        y = residual_sum(
            x, shortcut, c=c, limit=self._limit(c, x), dim=self.dim, order=self.order,
            shortcut_chart=shortcut_chart, chart="tangent" if fused else "hyperboloid", relu=fused and relu,
        )  # fmt: skip
        return y if fused else self._emitted(y, out_chart, relu)

    def extra_repr(self) -> str:
        return f"order={self.order!r}, {super().extra_repr()}"
