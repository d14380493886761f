"""Dropout of coordinates in the tangent space at the origin."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from manifold_resnet.functional._checks import Chart, check_chart, check_max_distance, curvature, full_precision
from manifold_resnet.functional.charts import convert


def check_probability(p: float) -> None:
    """Raise a ValueError unless `p` is a probability."""
    if not isinstance(p, (int, float)) or not 0 <= p <= 1:
        raise ValueError(f"p must be a probability, between 0 and 1, got {p!r}")


def poincare_dropout(
    x: Tensor,
    p: float = 0.5,
    training: bool = True,
    *,
    c: Tensor | float,
    dim: int = 1,
    channelwise: bool = False,
    in_chart: Chart = "ball",
    out_chart: Chart = "ball",
    max_distance: float | None = math.inf,
) -> Tensor:
    r"""Dropout of coordinates of tangent vectors at the origin, :math:`\exp_0(\mathrm{dropout}(\log_0 x))`.

    Coordinates are set to zero with probability `p` and divided by ``1 - p`` otherwise, so that the expected tangent
    vector is that of `x`.

    Parameters
    ----------
    x : Tensor
        Points, any shape, along `dim`.
    p : float
        Probability of a coordinate to be zeroed.
    training : bool
        Without, or with p = 0, points pass unchanged.
    c : Tensor or float
        The curvature of the space is ``-c``.
    dim : int
        The dimension the manifold runs along.
    channelwise : bool
        Zero a coordinate in all points of a sample or in none (a sample being an entry of the first dimension, which
        must not be `dim`), as torch's ``dropout2d``; otherwise in each point independently.
    in_chart, out_chart : {"ball", "tangent", "hyperboloid"}
        Charts of the input and of the result.
    max_distance : float, optional
        Bound on the geodesic distance from the origin of the points that dropout makes, which are up to ``1/(1 - p)``
        times as far as those it gets. See `convert`.

    Returns
    -------
    Tensor
        Points, same shape.

    Raises
    ------
    ValueError
        If `p` is no probability, a chart is unknown, or `c` or `max_distance` is not positive.

    Examples
    --------
    >>> import torch
    >>> from manifold_resnet.functional import poincare_dropout
    >>> x = torch.tensor([[0.3, 0.4]])
    >>> poincare_dropout(x, 1.0, c=1.0), poincare_dropout(x, training=False, c=1.0)
    (tensor([[0., 0.]]), tensor([[0.3000, 0.4000]]))
    """
    check_probability(p)
    check_chart(in_chart, "in_chart")
    check_chart(out_chart, "out_chart")
    check_max_distance(max_distance)
    x = full_precision(x)
    c = curvature(c, x)
    if not training or p == 0:
        return x if in_chart == out_chart else convert(x, in_chart, out_chart, c=c, dim=dim)
    u = dropped(x, p, c=c, dim=dim, channelwise=channelwise, in_chart=in_chart)
    return convert(u, "tangent", out_chart, c=c, dim=dim, max_distance=max_distance)


def dropped(x: Tensor, p: float, *, c: Tensor, dim: int, channelwise: bool, in_chart: Chart) -> Tensor:
    """Tangent vectors at the origin, with dropout."""
    u = convert(x, in_chart, "tangent", c=c, dim=dim)
    if not channelwise:
        return F.dropout(u, p)
    if u.ndim < 2 or dim % u.ndim == 0:
        raise ValueError(
            f"channelwise dropout needs samples in the first dimension, got x of shape {tuple(x.shape)} along dim={dim}"
        )
    return u * F.dropout(u.new_ones([n if d in (0, dim % u.ndim) else 1 for d, n in enumerate(u.shape)]), p)
