r"""Batch normalisation about the Poincaré midpoint or the Fréchet mean.

Everything happens in the hyperboloid chart, where the midpoint is a sum and a left translation a Lorentz boost. With
:math:`m` the batch's mean and :math:`\beta` the learned centre,

- ``scale="scalar"`` divides by one Fréchet variance, as the paper does:
  :math:`y = \exp_\beta\!\big(\tfrac{g}{\sqrt{\mathrm{var}+\epsilon}}\,PT_{m\to\beta}\log_m x\big)`;
- ``scale="channel"`` standardises each coordinate of the tangent vector :math:`w = \log_0(\ominus m \oplus x)`:
  :math:`y = \beta \oplus \exp_0\!\big(g_k w_k/\sqrt{\mathrm{mean}(w_k^2)+\epsilon}\big)`.

References
----------
.. [1] van Spengler, Berkhout, Mettes: Poincaré ResNet. ICCV 2023, sec. 3.3.
.. [2] Lou, Katsman, Jiang, Belongie, Lim, De Sa: Differentiating through the Fréchet mean. ICML 2020, sec. 5.2.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from manifold_resnet.functional._channel_norm import channel_norm, mean_of_sums
from manifold_resnet.functional._checks import (
    Chart,
    check_chart,
    check_max_distance,
    curvature,
    full_precision,
    other_dims,
)
from manifold_resnet.functional._rescale import rescale, variance_about
from manifold_resnet.functional.charts import (
    bound,
    convert,
    squared_limit,
)
from manifold_resnet.functional.frechet import _TOLERANCE, hyperboloid_frechet_mean
from manifold_resnet.functional.midpoint import time_excess

Mean = Literal["midpoint", "frechet"]
Scale = Literal["scalar", "channel"]


def batch_mean(h: Tensor, *, about: Mean, dim: int) -> tuple[Tensor, Tensor]:
    """Mean of points in the hyperboloid chart over all dimensions but `dim`.

    Returns
    -------
    mean : Tensor
        ``[C]``, in the hyperboloid chart.
    sums : Tensor
        ``[C + 1]``: what to average over batches to get their joint mean, namely for the midpoint the mean of the
        points' coordinates and of their time part minus one, and for the Fréchet mean these of the mean itself.
    """
    if about == "midpoint":
        rest = other_dims(h, dim)
        sums = torch.cat([h.mean(rest), time_excess(h, dim).mean().reshape(1)])
        return mean_of_sums(sums), sums
    points = h.movedim(dim, -1).reshape(-1, h.shape[dim])
    weights = h.new_full((), 1 / points.shape[0]).expand(points.shape[0], 1)
    mean = hyperboloid_frechet_mean(points, weights, _TOLERANCE[h.dtype], 1000)
    return mean, torch.cat([mean, time_excess(mean, 0)])


def normalise(
    h: Tensor,
    mean: Tensor | None,
    variance: Tensor | None,
    gain: Tensor | None,
    center: Tensor | None,
    *,
    c: Tensor,
    limit: Tensor,
    about: Mean,
    scale: Scale,
    eps: float,
    dim: int,
    chart: Literal["tangent", "hyperboloid"] = "hyperboloid",
    relu: bool = False,
    base_gain: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise points in the hyperboloid chart.

    `mean` ``[C]`` is in that chart too, `center` ``[C]`` in the ball's; a `mean` or `variance` of None is computed.
    With a `base_gain`, `gain` holds logarithms of what that is multiplied by. `limit` bounds the squared norm of the
    result, see `squared_limit`. Returns the points in `chart`, the sums that belong to the mean
    (see `batch_mean`) and the variance.
    """
    if scale == "scalar":
        if mean is None:
            mean, sums = batch_mean(h, about=about, dim=dim)
        else:
            sums = torch.cat([mean, time_excess(mean, 0)])
        if variance is None:
            variance = variance_about(h, mean, c, dim)
        factor = torch.rsqrt(variance + eps)
        if gain is not None:
            factor = factor * (gain if base_gain is None else gain.exp() * base_gain)
        lifted = torch.zeros_like(mean) if center is None else convert(center, "ball", "hyperboloid", c=c)
        y = rescale(h, mean, lifted, factor, dim)
        return bound(y, c, limit, chart, dim=dim, relu=relu), sums, variance
    if mean is None and about == "frechet":
        mean, _ = batch_mean(h, about=about, dim=dim)
    if gain is None:
        gain = h.new_full((h.shape[dim],), 1.0 if base_gain is None else 0.0)
    if center is None:
        center = h.new_zeros(h.shape[dim])
    y, sums, variance, *_ = channel_norm(h, mean, variance, gain, center, c, limit, dim, eps, chart, relu, base_gain)
    return y, sums, variance


def check_norm(about: str, scale: str) -> None:
    """Raise a ValueError unless the mean and the scale are known."""
    if about not in get_args(Mean):
        raise ValueError(f"the mean must be one of {', '.join(get_args(Mean))}; got {about!r}")
    if scale not in get_args(Scale):
        raise ValueError(f"the scale must be one of {', '.join(get_args(Scale))}; got {scale!r}")


def midpoint_batch_norm(
    x: Tensor,
    mean: Tensor | None = None,
    variance: Tensor | None = None,
    gain: Tensor | None = None,
    center: Tensor | None = None,
    *,
    c: Tensor | float,
    about: Mean = "midpoint",
    scale: Scale = "scalar",
    eps: float = 1e-5,
    dim: int = 1,
    in_chart: Chart = "ball",
    out_chart: Chart = "ball",
    max_distance: float | None = math.inf,
) -> Tensor:
    r"""Batch normalisation on the ball.

    Parameters
    ----------
    x : Tensor
        Points, any shape, along `dim`.
    mean : Tensor, optional
        Ball point ``(C,)`` to normalise about. Default: the mean of `x` over all dimensions but `dim`, of the kind
        `about`.
    variance : Tensor, optional
        For ``scale="scalar"`` a squared geodesic distance, 0-d; for ``"channel"`` squared coordinates of tangent
        vectors, ``(C,)``. Default: that of `x` about the mean.
    gain : Tensor, optional
        What the standardised tangent vectors are multiplied by, 0-d or ``(C,)`` by the kind of scale. Default 1.
    center : Tensor, optional
        Ball point ``(C,)`` to move the mean to. Default: the origin.
    c : Tensor or float
        The curvature of the space is ``-c``.
    about : {"midpoint", "frechet"}
        Kind of mean of the batch.
    scale : {"scalar", "channel"}
        One scale for all channels (the paper) or one for each, see the module's documentation.
    eps : float
        Added to the variance.
    dim : int
        The dimension the manifold runs along.
    in_chart, out_chart : {"ball", "tangent", "hyperboloid"}
        Charts of `x` and of the result.
    max_distance : float, optional
        Bound on the result's geodesic distance from the origin, see `convert`.

    Returns
    -------
    Tensor
        Points, same shape as `x`.

    Raises
    ------
    ValueError
        If a chart, mean or scale is unknown, a statistic or parameter has the wrong shape, or the batch is empty and
        `mean` or `variance` would have to come from it.

    Notes
    -----
    [1]_, sec. 3.3; with ``about="frechet"`` [2]_, sec. 5.2.

    Examples
    --------
    >>> import torch
    >>> import manifold_resnet.functional as F
    >>> x = F.expmap0(torch.randn(64, 3, generator=torch.Generator().manual_seed(0)), c=1.0)
    >>> y = F.midpoint_batch_norm(x, c=1.0)
    >>> F.frechet_variance(y, torch.zeros(3), c=1.0)  # one, about the origin
    tensor(1.0000)
    """
    check_norm(about, scale)
    check_chart(out_chart, "out_chart")
    check_max_distance(max_distance)
    x = full_precision(x)
    c = curvature(c, x)
    channels = x.shape[dim]
    spread = () if scale == "scalar" else (channels,)
    for name, t, shape in (
        ("mean", mean, (channels,)), ("center", center, (channels,)), ("variance", variance, spread), ("gain", gain,
        spread),
    ):  # fmt: skip
        if t is not None and t.shape != shape:
            raise ValueError(
                f"{name} must have shape {shape} for {channels} channels and scale={scale!r}, got {tuple(t.shape)}"
            )
    if x.numel() == 0 and (mean is None or variance is None):
        raise ValueError(f"an empty batch (shape {tuple(x.shape)}) has no mean and variance: pass them")
    single = x.ndim == 1
    if single:  # one point is a batch of one
        x, dim = x.unsqueeze(0), 1
    h = convert(x, in_chart, "hyperboloid", c=c, dim=dim)
    mean = None if mean is None else convert(mean, "ball", "hyperboloid", c=c)
    chart: Literal["tangent", "hyperboloid"] = "tangent" if out_chart == "tangent" else "hyperboloid"
    y, *_ = normalise(
        h, mean, variance, gain, center, c=c, limit=squared_limit(c, h, max_distance), about=about, scale=scale,
        eps=eps, dim=dim, chart=chart,
    )  # fmt: skip
    y = convert(y, chart, out_chart, c=c, dim=dim)
    return y.squeeze(0) if single else y
