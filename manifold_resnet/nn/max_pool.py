"""Max pooling by distance from the origin."""

from __future__ import annotations

from collections.abc import Sequence

import geoopt
from torch import Tensor

from manifold_resnet.functional import max_pooling
from manifold_resnet.functional._checks import Chart
from manifold_resnet.functional.conv import _per_dim
from manifold_resnet.nn.base import PoincareModule


class _PoincareMaxPool(PoincareModule):
    _spatial: int

    def __init__(
        self,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] | None = None,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
        *,
        ball: geoopt.PoincareBall,
    ) -> None:
        super().__init__(ball, 1)
        kernel = _per_dim(kernel_size, self._spatial, "kernel_size", 1)
        self.kernel_size = kernel
        self.stride = kernel if stride is None else _per_dim(stride, self._spatial, "stride", 1)
        self.padding = _per_dim(padding, self._spatial, "padding", 0)
        self.dilation = _per_dim(dilation, self._spatial, "dilation", 1)
        if any(2 * p > k for p, k in zip(self.padding, kernel, strict=True)):
            raise ValueError(f"padding must be at most half of kernel_size {kernel_size}, got {padding}")
        self.return_indices, self.ceil_mode = return_indices, ceil_mode

    def forward(self, x: Tensor, in_chart: Chart = "ball", out_chart: Chart = "ball") -> Tensor | tuple[Tensor, Tensor]:
        """Map images of points to smaller images of points (and their indices, if asked for)."""
        self._check_points(x, in_chart)
        return getattr(max_pooling, f"poincare_max_pool{self._spatial}d")(
            x, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, self.return_indices,
            c=self.c, in_chart=in_chart, out_chart=out_chart,
        )  # fmt: skip

    def extra_repr(self) -> str:
        parts = [f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"]
        if set(self.dilation) != {1}:
            parts.append(f"dilation={self.dilation}")
        if self.ceil_mode:
            parts.append("ceil_mode=True")
        return ", ".join([*parts, super().extra_repr()])


class PoincareMaxPool2d(_PoincareMaxPool):
    """Of each window of images of points ``(batch, channels, H, W)``, along dimension 1, the farthest from the origin.

    Points are taken as a whole, channels are not mixed; of equally far ones the first in reading order. The gradient
    goes to the points chosen.

    Parameters
    ----------
    kernel_size, stride, padding, dilation, ceil_mode
        As ``torch.nn.MaxPool2d``. Padding is never chosen.
    return_indices : bool
        Also return which pixel each point was, ``(batch, 1, H_out, W_out)``, see `poincare_max_pool2d`.
    ball : geoopt.PoincareBall
        The manifold.

    Raises
    ------
    TypeError, ValueError
        If an argument is not one of those listed.

    Examples
    --------
    >>> import geoopt, torch
    >>> from manifold_resnet.nn import PoincareMaxPool2d
    >>> pool = PoincareMaxPool2d(3, stride=2, padding=1, ball=geoopt.PoincareBall(1.0))
    >>> pool(torch.zeros(2, 8, 32, 32)).shape
    torch.Size([2, 8, 16, 16])
    """

    _spatial = 2


class PoincareMaxPool1d(_PoincareMaxPool):
    """Max pooling of sequences of points ``(batch, channels, L)``. Arguments as `PoincareMaxPool2d`.

    Examples
    --------
    >>> import geoopt, torch
    >>> from manifold_resnet.nn import PoincareMaxPool1d
    >>> PoincareMaxPool1d(2, ball=geoopt.PoincareBall(1.0))(torch.zeros(2, 8, 6)).shape
    torch.Size([2, 8, 3])
    """

    _spatial = 1


class PoincareMaxPool3d(_PoincareMaxPool):
    """Max pooling of volumes of points ``(batch, channels, D, H, W)``. Arguments as `PoincareMaxPool2d`.

    Examples
    --------
    >>> import geoopt, torch
    >>> from manifold_resnet.nn import PoincareMaxPool3d
    >>> PoincareMaxPool3d((1, 2, 2), ball=geoopt.PoincareBall(1.0))(torch.zeros(2, 8, 4, 4, 4)).shape
    torch.Size([2, 8, 4, 2, 2])
    """

    _spatial = 3
