"""From images of points to one point."""

from __future__ import annotations

import geoopt
from torch import Tensor

from manifold_resnet.functional._checks import Chart, check_chart
from manifold_resnet.functional.concatenation import flatten_tangent
from manifold_resnet.nn.base import BoundedModule


class PoincareFlatten(BoundedModule):
    """Beta-concatenation of an image's points into one point (Shimizu et al. 2021, sec. 3.3).

    Takes the place of ``torch.nn.Flatten`` between convolutions and linear layers: a `PoincareLinear` behind it is a
    convolution with a kernel as large as the image, of the same normals.

    Parameters
    ----------
    start_dim, end_dim : int
        First and last of the dimensions to flatten, as ``torch.nn.Flatten``.
    ball : geoopt.PoincareBall
        The manifold.
    dim : int
        The dimension the manifold runs along in the input, among those to flatten; in the output it is `start_dim`.
    max_distance : float, optional
        Bound on the outputs' geodesic distance from the origin; None: ``DEFAULT_MAX_DISTANCE / sqrt(c)``.

    Raises
    ------
    TypeError, ValueError
        If an argument is not one of those listed.

    Examples
    --------
    >>> import geoopt, torch
    >>> from manifold_resnet.nn import PoincareFlatten
    >>> PoincareFlatten(ball=geoopt.PoincareBall(1.0))(torch.zeros(2, 8, 4, 4)).shape
    torch.Size([2, 128])
    """

    def __init__(
        self,
        start_dim: int = 1,
        end_dim: int = -1,
        *,
        ball: geoopt.PoincareBall,
        dim: int = 1,
        max_distance: float | None = None,
    ) -> None:
        super().__init__(ball, dim, max_distance)
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, x: Tensor, in_chart: Chart = "ball", out_chart: Chart = "ball") -> Tensor:
        """Map points along `dim` to points along `start_dim`, by default ``(batch, C, ...)`` to ``(batch, -1)``."""
        check_chart(in_chart, "in_chart")
        check_chart(out_chart, "out_chart")
        v, start = flatten_tangent(x, self.start_dim, self.end_dim, c=self.c, dim=self.dim, in_chart=in_chart)
        self._check_points(x, in_chart)
        return self._emitted_from_tangent(v, out_chart, start)

    def extra_repr(self) -> str:
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}, {super().extra_repr()}"
