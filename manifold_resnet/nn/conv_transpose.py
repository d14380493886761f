"""Transposed convolutions."""

from __future__ import annotations

from collections.abc import Sequence

import geoopt
from torch import Tensor

from manifold_resnet.functional._checks import Chart
from manifold_resnet.functional.conv import _per_dim
from manifold_resnet.functional.conv_transpose import average_pixels, check_output_padding, convolve_transpose
from manifold_resnet.nn.hyperplanes import WeightOn, _Hyperplanes


class _PoincareConvTranspose(_Hyperplanes):
    _spatial: int

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        output_padding: int | Sequence[int] = 0,
        groups: int = 1,
        *,
        dilation: int | Sequence[int] = 1,
        ball: geoopt.PoincareBall,
        bias: bool = True,
        init: str = "gaussian",
        weight_on: WeightOn = "ball",
        max_distance: float | None = None,
    ) -> None:
        kernel = _per_dim(kernel_size, self._spatial, "kernel_size", 1)
        strides = _per_dim(stride, self._spatial, "stride", 1)
        super().__init__(
            in_channels, out_channels, kernel, ball=ball, dim=1, bias=bias, init=init, weight_on=weight_on,
            max_distance=max_distance, groups=groups, pixels=average_pixels(kernel, strides),
        )  # fmt: skip
        self.in_channels, self.out_channels, self.kernel_size, self.stride = in_channels, out_channels, kernel, strides
        self.padding = _per_dim(padding, self._spatial, "padding", 0)
        self.output_padding = _per_dim(output_padding, self._spatial, "output_padding", 0)
        self.dilation = _per_dim(dilation, self._spatial, "dilation", 1)
        check_output_padding(self.output_padding, self.stride, self.dilation)

    def forward(self, x: Tensor, in_chart: Chart = "ball", out_chart: Chart = "ball") -> Tensor:
        """Map images of points ``(batch, in_channels, ...)`` to ``(batch, out_channels, ...)``."""
        self._check_points(x, in_chart)
        h = convolve_transpose(
            x, self.weight.view(self._shape), self.bias, self.stride, self.padding, self.output_padding, self.groups,
            self.dilation, c=self.c, in_chart=in_chart, max_distance=self.max_distance, summands=2, scale=self._scale,
        )  # fmt: skip
        return self._emitted(h, out_chart)

    def extra_repr(self) -> str:
        parts = [super().extra_repr(), f"stride={self.stride}, padding={self.padding}"]
        if any(self.output_padding):
            parts.append(f"output_padding={self.output_padding}")
        if set(self.dilation) != {1}:
            parts.append(f"dilation={self.dilation}")
        return ", ".join(parts)


class PoincareConvTranspose2d(_PoincareConvTranspose):
    """Transposed Poincaré 2D convolution over images of points along dimension 1.

    An output pixel is a Poincaré fully connected layer over the beta-concatenation of its window: for each tap of the
    kernel the input pixel that the tap carries there, or the origin if there is none. The concatenation's factor counts
    as many pixels as reach an output pixel on average, ``max(kernel_size / stride, 1)`` per dimension; see
    `manifold_resnet.functional.poincare_conv_transpose2d`.

    Parameters
    ----------
    in_channels, out_channels : int
        Dimensions of a pixel's ball in the input and in the output.
    kernel_size, stride, padding, output_padding, groups, dilation
        As ``torch.nn.ConvTranspose2d``; `dilation` by keyword only. A kernel size that the stride divides lets equally
        many pixels reach every output pixel.
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
        ``(out, in / groups * kH * kW)``: each row, one per output channel (torch has inputs first), is a point p of the
        ball, and ``weight_scale * log0(p)`` the normal of a hyperplane (`normals`). With ``weight_on="tangent"``, a
        plain parameter that holds the normals themselves.
    weight_scale : float
        As in `PoincareConv2d`.
    bias : torch.nn.Parameter or None
        ``(out,)``: offsets of the hyperplanes, numbers in units of tangent norm (half a distance), not points.

    Raises
    ------
    TypeError, ValueError
        If an argument is not one of those listed.

    Examples
    --------
    >>> import geoopt, torch
    >>> from manifold_resnet.nn import PoincareConvTranspose2d
    >>> layer = PoincareConvTranspose2d(8, 4, 4, stride=2, padding=1, ball=geoopt.PoincareBall(1.0))
    >>> layer(torch.zeros(2, 8, 5, 5)).shape
    torch.Size([2, 4, 10, 10])
    """

    _spatial = 2


class PoincareConvTranspose1d(_PoincareConvTranspose):
    """Transposed Poincaré 1D convolution over ``(batch, channels, L)``. Arguments as `PoincareConvTranspose2d`.

    Examples
    --------
    >>> import geoopt, torch
    >>> from manifold_resnet.nn import PoincareConvTranspose1d
    >>> PoincareConvTranspose1d(8, 4, 2, stride=2, ball=geoopt.PoincareBall(1.0))(torch.zeros(2, 8, 5)).shape
    torch.Size([2, 4, 10])
    """

    _spatial = 1


class PoincareConvTranspose3d(_PoincareConvTranspose):
    """Transposed Poincaré 3D convolution over ``(batch, channels, D, H, W)``. Arguments as `PoincareConvTranspose2d`.

    Examples
    --------
    >>> import geoopt, torch
    >>> from manifold_resnet.nn import PoincareConvTranspose3d
    >>> PoincareConvTranspose3d(8, 4, 2, stride=2, ball=geoopt.PoincareBall(1.0))(torch.zeros(2, 8, 2, 3, 1)).shape
    torch.Size([2, 4, 4, 6, 2])
    """

    _spatial = 3
