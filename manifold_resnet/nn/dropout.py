"""Dropout in the tangent space at the origin."""

from __future__ import annotations

import geoopt
from torch import Tensor

from manifold_resnet.functional import convert
from manifold_resnet.functional._checks import Chart, check_chart, curvature, full_precision
from manifold_resnet.functional.dropout import check_probability, dropped
from manifold_resnet.nn.base import BoundedModule


class PoincareDropout(BoundedModule):
    """Zeroes coordinates of tangent vectors at the origin at random, ``exp0(dropout(log0(x)))``, in training.

    The coordinates that stay are divided by ``1 - p``, so that the expected tangent vector is that of the input. In
    evaluation points pass unchanged.

    Parameters
    ----------
    p : float
        Probability of a coordinate to be zeroed.
    ball : geoopt.PoincareBall
        The manifold.
    dim : int
        The dimension the manifold runs along.
    max_distance : float, optional
        Bound on the geodesic distance from the origin of the points that dropout makes, which are up to ``1/(1 - p)``
        times as far as those it gets; None: ``DEFAULT_MAX_DISTANCE / sqrt(c)``.

    Raises
    ------
    TypeError, ValueError
        If an argument is not one of those listed.

    Examples
    --------
    >>> import geoopt, torch
    >>> from manifold_resnet.nn import PoincareDropout
    >>> layer = PoincareDropout(0.5, ball=geoopt.PoincareBall(1.0)).eval()
    >>> layer(torch.tensor([[0.3, 0.4]]))
    tensor([[0.3000, 0.4000]])
    """

    _channelwise = False
    _ndim: int | None = None

    def __init__(
        self, p: float = 0.5, *, ball: geoopt.PoincareBall, dim: int = 1, max_distance: float | None = None
    ) -> None:
        super().__init__(ball, dim, max_distance)
        check_probability(p)
        self.p = p

    def forward(self, x: Tensor, in_chart: Chart = "ball", out_chart: Chart = "ball") -> Tensor:
        """Map points along `dim` to points, same shape."""
        check_chart(in_chart, "in_chart")
        check_chart(out_chart, "out_chart")
        x = full_precision(x)
        if self._ndim is not None and x.ndim != self._ndim:
            raise ValueError(
                f"x must have shape (batch, channels, {', '.join('DHW'[2 - self._ndim :])}), got {tuple(x.shape)}"
            )
        self._check_points(x, in_chart)
        c = curvature(self.c, x)
        if not self.training or self.p == 0:
            return x if in_chart == out_chart else convert(x, in_chart, out_chart, c=c, dim=self.dim)
        u = dropped(x, self.p, c=c, dim=self.dim, channelwise=self._channelwise, in_chart=in_chart)
        return self._emitted_from_tangent(u, out_chart, self.dim)

    def extra_repr(self) -> str:
        return f"p={self.p}, {super().extra_repr()}"


class PoincareDropout2d(PoincareDropout):
    """Zeroes whole channels of images of points ``(batch, channels, H, W)``: in all pixels of an image or in none.

    Otherwise as `PoincareDropout`.

    Parameters
    ----------
    p : float
        Probability of a channel to be zeroed.
    ball : geoopt.PoincareBall
        The manifold.
    max_distance : float, optional
        As in `PoincareDropout`.

    Examples
    --------
    >>> import geoopt, torch
    >>> from manifold_resnet.nn import PoincareDropout2d
    >>> y = PoincareDropout2d(0.5, ball=geoopt.PoincareBall(1.0))(torch.full((2, 6, 4, 4), 0.1))
    >>> bool((y == y[:, :, :1, :1]).all())
    True
    """

    _channelwise = True
    _ndim = 4

    def __init__(self, p: float = 0.5, *, ball: geoopt.PoincareBall, max_distance: float | None = None) -> None:
        super().__init__(p, ball=ball, max_distance=max_distance)


class PoincareDropout1d(PoincareDropout2d):
    """Zeroes whole channels of sequences of points ``(batch, channels, L)``. Arguments as `PoincareDropout2d`.

    Examples
    --------
    >>> import geoopt, torch
    >>> from manifold_resnet.nn import PoincareDropout1d
    >>> PoincareDropout1d(1.0, ball=geoopt.PoincareBall(1.0))(torch.full((1, 2, 3), 0.1))
    tensor([[[0., 0., 0.],
             [0., 0., 0.]]])
    """

    _ndim = 3


class PoincareDropout3d(PoincareDropout2d):
    """Zeroes whole channels of volumes of points ``(batch, channels, D, H, W)``. Arguments as `PoincareDropout2d`.

    Examples
    --------
    >>> import geoopt, torch
    >>> from manifold_resnet.nn import PoincareDropout3d
    >>> PoincareDropout3d(0.2, ball=geoopt.PoincareBall(1.0))(torch.zeros(1, 2, 3, 3, 3)).shape
    torch.Size([1, 2, 3, 3, 3])
    """

    _ndim = 5
