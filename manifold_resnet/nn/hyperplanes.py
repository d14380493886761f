"""Layers made of distances to hyperplanes: fully connected, convolutions, multinomial logistic regression."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import geoopt
import torch
from torch import Tensor, nn

from manifold_resnet.functional import (
    expmap0,
    logmap0,
)
from manifold_resnet.functional._checks import Chart
from manifold_resnet.functional.conv import _paddings, _per_dim, check_groups, convolve
from manifold_resnet.functional.linear import distances, transform
from manifold_resnet.nn.base import BoundedModule
from manifold_resnet.nn.init import initialisation

WeightOn = Literal["ball", "tangent"]


class _Hyperplanes(BoundedModule):
    """Holds hyperplanes: their normals as points of the ball, their offsets as numbers."""

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: tuple[int, ...],
        *,
        ball: geoopt.PoincareBall,
        dim: int,
        bias: bool,
        init: str,
        weight_on: WeightOn,
        max_distance: float | None,
        groups: int = 1,
        pixels: float | None = None,
    ) -> None:
        super().__init__(ball, dim, max_distance)
        if weight_on not in ("ball", "tangent"):
            raise ValueError(f"weight_on must be 'ball' or 'tangent', got {weight_on!r}")
        for name, value in (("input", inputs), ("output", outputs)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"the number of {name} channels or features must be a positive integer, got {value!r}")
        check_groups(groups, inputs, outputs)
        self._fill = initialisation(init)
        self._pixels = pixels
        self.init = init
        self.groups = groups
        self.weight_on: WeightOn = weight_on
        self._shape = (outputs, inputs // groups, *kernel)
        fan_in = math.prod(self._shape[1:])
        #: length of a normal per length of the weight's tangent vector at the origin
        self.weight_scale = 2 * math.sqrt(fan_in) if weight_on == "ball" else 1.0
        self._scale = self.weight_scale if weight_on == "ball" else None
        dtype = ball.isp_c.dtype
        empty = torch.empty(outputs, fan_in, dtype=dtype, device=ball.isp_c.device)
        if weight_on == "ball":
            self.weight = geoopt.ManifoldParameter(empty.zero_(), manifold=ball)
        else:
            self.weight = nn.Parameter(empty)
        if bias:
            self.bias = nn.Parameter(torch.empty(outputs, dtype=dtype, device=empty.device))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise again: normals by `init`, offsets zero."""
        normals = torch.empty(self._shape, dtype=self.weight.dtype, device=self.weight.device)
        for group in normals.chunk(self.groups):
            self._fill(group, self._pixels)
        self.set_normals(normals)
        if self.bias is not None:
            self.bias.zero_()

    @torch.no_grad()
    def set_normals(self, normals: Tensor) -> None:
        """Make the hyperplanes' normals these.

        Parameters
        ----------
        normals : Tensor
            Tangent vectors at the origin, as `normals` returns them or flattened to ``(out, -1)``.

        Raises
        ------
        ValueError
            If the shape differs, or a normal is so long that its point on the ball is out of the number format's reach.
        """
        if tuple(normals.shape) not in (self._shape, tuple(self.weight.shape)):
            raise ValueError(
                f"normals must have shape {self._shape} or {tuple(self.weight.shape)}, got {tuple(normals.shape)}"
            )
        flat = normals.reshape(self.weight.shape).to(self.weight) / self.weight_scale
        if self.weight_on == "ball":
            point = expmap0(flat, c=self.c)
            if not torch.allclose(logmap0(point, c=self.c), flat, rtol=1e-3, atol=1e-5):
                longest = float(torch.linalg.vector_norm(flat, dim=1).max()) * self.weight_scale
                raise ValueError(
                    f"a normal of length {longest:.3g} does not fit on the ball of c={self.c.item():.3g} in "
                    f"{flat.dtype}: use shorter normals, float64, or weight_on='tangent'"
                )
            flat = point
        self.weight.copy_(flat)

    def normals(self) -> Tensor:
        """Normals of the hyperplanes, tangent vectors at the origin, ``(out, in / groups, *kernel)``."""
        weight: Tensor = self.weight
        if self.weight_on == "ball":
            weight = logmap0(weight, c=self.c) * self.weight_scale
        return weight.view(self._shape)

    def extra_repr(self) -> str:
        parts = [f"{self._shape[1] * self.groups}, {self._shape[0]}"]
        if len(self._shape) > 2:
            parts.append(f"kernel_size={self._shape[2:]}")
        if self.groups > 1:
            parts.append(f"groups={self.groups}")
        parts += [f"bias={self.bias is not None}", f"init={self.init!r}", f"weight_on={self.weight_on!r}"]
        return ", ".join([*parts, super().extra_repr()])


class PoincareLinear(_Hyperplanes):
    """Poincaré fully connected layer along the last dimension (Shimizu et al. 2021, sec. 3.2).

    Parameters
    ----------
    in_features, out_features : int
        Dimensions of the input's and of the output's ball.
    ball : geoopt.PoincareBall
        The manifold of the inputs, the outputs and the weight.
    bias : bool
        Learn the hyperplanes' offsets.
    init : str
        "gaussian", "orthogonal", "identity", "paper" or "normal", see `manifold_resnet.nn.init`.
    weight_on : {"ball", "tangent"}
        Keep normals as points of the ball, trained by Riemannian optimizers, or as tangent vectors at the origin (the
        paper).
    max_distance : float, optional
        Bound on the outputs' geodesic distance from the origin; None: ``DEFAULT_MAX_DISTANCE / sqrt(c)``.

    Attributes
    ----------
    weight : geoopt.ManifoldParameter
        ``(out, fan_in)``: each row is a point p of the ball, and ``weight_scale * log0(p)`` the normal of a hyperplane
        (`normals`). With ``weight_on="tangent"``, a plain parameter that holds the normals themselves.
    weight_scale : float
        ``2 sqrt(fan_in)`` on the ball. It leaves room for every length in use even where c is large, and makes the step
        of geoopt's Adam, which is of length lr for a whole row, move coordinates of normals by lr in root mean square.
    bias : torch.nn.Parameter or None
        ``(out,)``: offsets of the hyperplanes, numbers in units of tangent norm (half a distance), not points.

    Raises
    ------
    TypeError, ValueError
        If an argument is not one of those listed.

    Examples
    --------
    >>> import geoopt
    >>> import torch
    >>> import manifold_resnet as mr
    >>> ball = geoopt.PoincareBall(c=1.0)
    >>> layer = mr.nn.PoincareLinear(3, 3, ball=ball, init="identity")
    >>> layer(torch.tensor([[0.3, 0.4, 0.5]])).detach()
    tensor([[0.3000, 0.4000, 0.5000]])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        ball: geoopt.PoincareBall,
        bias: bool = True,
        init: str = "gaussian",
        weight_on: WeightOn = "ball",
        max_distance: float | None = None,
    ) -> None:
        super().__init__(
            in_features, out_features, (), ball=ball, dim=-1, bias=bias, init=init, weight_on=weight_on,
            max_distance=max_distance,
        )  # fmt: skip
        self.in_features, self.out_features = in_features, out_features

    def forward(self, x: Tensor, in_chart: Chart = "ball", out_chart: Chart = "ball") -> Tensor:
        """Map points ``(..., in_features)`` in `in_chart` to points ``(..., out_features)`` in `out_chart`."""
        self._check_points(x, in_chart)
        h = transform(
            x, self.weight, self.bias, c=self.c, in_chart=in_chart, max_distance=self.max_distance, summands=2,
            scale=self._scale,
        )  # fmt: skip
        return self._emitted(h, out_chart)


class PoincareMLR(_Hyperplanes):
    """Poincaré multinomial logistic regression (Shimizu et al. 2021, sec. 3.1).

    Logits are signed distances to hyperplanes, scaled by twice the length of their normals.

    Parameters
    ----------
    in_features : int
        Dimension of the ball.
    num_classes : int
        Number of hyperplanes.
    ball : geoopt.PoincareBall
        The manifold of the inputs, the outputs and the weight.
    bias : bool
        Learn the hyperplanes' offsets.
    init : str
        "gaussian", "orthogonal", "identity", "paper" or "normal", see `manifold_resnet.nn.init`.
    weight_on : {"ball", "tangent"}
        Keep normals as points of the ball, trained by Riemannian optimizers, or as tangent vectors at the origin (the
        paper).
    dim : int
        The dimension the manifold runs along: -1 for vectors, 1 to classify each pixel of images.

    Attributes
    ----------
    weight : geoopt.ManifoldParameter
        ``(out, fan_in)``: each row is a point p of the ball, and ``weight_scale * log0(p)`` the normal of a hyperplane
        (`normals`). With ``weight_on="tangent"``, a plain parameter that holds the normals themselves.
    weight_scale : float
        ``2 sqrt(fan_in)`` on the ball. It leaves room for every length in use even where c is large, and makes the step
        of geoopt's Adam, which is of length lr for a whole row, move coordinates of normals by lr in root mean square.
    bias : torch.nn.Parameter or None
        ``(out,)``: offsets of the hyperplanes, numbers in units of tangent norm (half a distance), not points.

    Raises
    ------
    TypeError, ValueError
        If an argument is not one of those listed.

    Examples
    --------
    >>> import geoopt
    >>> import torch
    >>> import manifold_resnet as mr
    >>> ball = geoopt.PoincareBall(c=1.0)
    >>> head = mr.nn.PoincareMLR(2, 2, ball=ball)
    >>> head.set_normals(torch.tensor([[0.5, 0.0], [-0.5, 0.0]]))
    >>> head(torch.tensor([[0.6, 0.0]])).detach()  # 2 artanh(0.6) before the first plane, and behind the second
    tensor([[ 1.3863, -1.3863]])
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        ball: geoopt.PoincareBall,
        bias: bool = True,
        init: str = "gaussian",
        weight_on: WeightOn = "ball",
        dim: int = -1,
    ) -> None:
        super().__init__(
            in_features, num_classes, (), ball=ball, dim=dim, bias=bias, init=init, weight_on=weight_on,
            max_distance=math.inf,
        )  # fmt: skip
        self.in_features, self.num_classes = in_features, num_classes

    def forward(self, x: Tensor, in_chart: Chart = "ball") -> Tensor:
        """Map points, ``in_features`` along `dim`, in chart `in_chart` to logits, ``num_classes`` along `dim`."""
        self._check_points(x, in_chart)
        return distances(
            x, self.weight, self.bias, c=self.c, in_chart=in_chart, dim=self.dim, scale=self._scale
        )  # fmt: skip


class _PoincareConv(_Hyperplanes):
    _spatial: int

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | str | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        *,
        ball: geoopt.PoincareBall,
        bias: bool = True,
        init: str = "gaussian",
        weight_on: WeightOn = "ball",
        max_distance: float | None = None,
    ) -> None:
        kernel = _per_dim(kernel_size, self._spatial, "kernel_size", 1)
        super().__init__(
            in_channels, out_channels, kernel, ball=ball, dim=1, bias=bias, init=init, weight_on=weight_on,
            max_distance=max_distance, groups=groups,
        )  # fmt: skip
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel
        self.stride = _per_dim(stride, self._spatial, "stride", 1)
        self.dilation = _per_dim(dilation, self._spatial, "dilation", 1)
        _paddings(padding, kernel, self.stride, self.dilation)
        self.padding = padding

    def forward(self, x: Tensor, in_chart: Chart = "ball", out_chart: Chart = "ball") -> Tensor:
        """Map images of points ``(batch, in_channels, ...)`` to ``(batch, out_channels, ...)``."""
        self._check_points(x, in_chart)
        h = convolve(
            x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups, c=self.c,
            in_chart=in_chart, max_distance=self.max_distance, summands=2, scale=self._scale, shape=self._shape,
        )  # fmt: skip
        return self._emitted(h, out_chart)

    def extra_repr(self) -> str:
        s = f"{super().extra_repr()}, stride={self.stride}, padding={self.padding!r}"
        return s if set(self.dilation) == {1} else f"{s}, dilation={self.dilation}"


class PoincareConv2d(_PoincareConv):
    """Poincaré 2D convolution over images of points along dimension 1 (van Spengler et al. 2023, sec. 3.1).

    Parameters
    ----------
    in_channels, out_channels : int
        Dimensions of a pixel's ball in the input and in the output.
    kernel_size, stride, padding, dilation
        As ``torch.nn.Conv2d``. Padded pixels are the origin.
    groups : int
        Divides both numbers of channels: each group of output channels sees its group of input channels only, see
        `poincare_conv2d`.
    ball : geoopt.PoincareBall
        The manifold of the inputs, the outputs and the weight.
    bias : bool
        Learn the hyperplanes' offsets.
    init : str
        "gaussian", "orthogonal", "identity", "paper" or "normal", see `manifold_resnet.nn.init`.
    weight_on : {"ball", "tangent"}
        Keep normals as points of the ball, trained by Riemannian optimizers, or as tangent vectors at the origin (the
        paper).
    max_distance : float, optional
        Bound on the outputs' geodesic distance from the origin; None: ``DEFAULT_MAX_DISTANCE / sqrt(c)``.

    Attributes
    ----------
    weight : geoopt.ManifoldParameter
        ``(out, fan_in)``, where fan_in is in / groups times the kernel's pixels: each row is a point p of the ball, and
        ``weight_scale * log0(p)`` the normal of a hyperplane (`normals`). With ``weight_on="tangent"``, a plain
        parameter that holds the normals themselves.
    weight_scale : float
        ``2 sqrt(fan_in)`` on the ball. It leaves room for every length in use even where c is large, and makes the step
        of geoopt's Adam, which is of length lr for a whole row, move coordinates of normals by lr in root mean square.
    bias : torch.nn.Parameter or None
        ``(out,)``: offsets of the hyperplanes, numbers in units of tangent norm (half a distance), not points.

    Raises
    ------
    TypeError, ValueError
        If an argument is not one of those listed.

    Examples
    --------
    >>> import geoopt
    >>> import torch
    >>> import manifold_resnet as mr
    >>> ball = geoopt.PoincareBall(c=1.0)
    >>> conv = mr.nn.PoincareConv2d(3, 8, 3, padding=1, ball=ball)
    >>> conv(torch.full((2, 3, 5, 5), 0.1)).shape
    torch.Size([2, 8, 5, 5])
    >>> conv.weight.shape, conv.weight.manifold is ball  # a point of the ball for each output
    (torch.Size([8, 27]), True)
    """

    _spatial = 2


class PoincareConv1d(_PoincareConv):
    """Poincaré 1D convolution over sequences of points ``(batch, channels, L)``. Arguments as `PoincareConv2d`.

    Examples
    --------
    >>> import geoopt
    >>> import torch
    >>> import manifold_resnet as mr
    >>> ball = geoopt.PoincareBall(c=1.0)
    >>> conv = mr.nn.PoincareConv1d(3, 8, 5, padding=2, ball=ball)
    >>> conv(torch.full((2, 3, 10), 0.1)).shape
    torch.Size([2, 8, 10])
    """

    _spatial = 1


class PoincareConv3d(_PoincareConv):
    """Poincaré 3D convolution over volumes of points ``(batch, channels, D, H, W)``. Arguments as `PoincareConv2d`.

    Examples
    --------
    >>> import geoopt
    >>> import torch
    >>> import manifold_resnet as mr
    >>> ball = geoopt.PoincareBall(c=1.0)
    >>> conv = mr.nn.PoincareConv3d(2, 4, (1, 3, 3), ball=ball)
    >>> conv(torch.full((1, 2, 4, 5, 5), 0.1)).shape
    torch.Size([1, 4, 4, 3, 3])
    """

    _spatial = 3
