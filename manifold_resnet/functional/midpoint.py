r"""The Poincaré midpoint: a closed-form average of points of the ball.

In the hyperboloid chart it is the plain (weighted) mean of the points with their time parts, scaled back to the
hyperboloid: :math:`m = (S, T)/\sqrt{T^2-\|S\|^2}`. It coincides with the gyromidpoint and with geoopt's
``weighted_midpoint``.

References
----------
.. [1] Ungar: A gyrovector space approach to hyperbolic geometry. 2009.
.. [2] van Spengler, Berkhout, Mettes: Poincaré ResNet. ICCV 2023, sec. 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from manifold_resnet.functional._autograd import differentiable
from manifold_resnet.functional._checks import curvature, full_precision
from manifold_resnet.functional.charts import convert


def _excess(h: Tensor, dim: int) -> Tensor:
    s = (h * h).sum(dim, keepdim=True)
    return s / (1 + torch.sqrt(1 + s))  # the time part minus one, without cancellation


def _excess_backward(grad: Tensor, needs: tuple[bool, ...], h: Tensor, dim: int) -> tuple[Tensor]:
    return (grad * torch.rsqrt(1 + (h * h).sum(dim, keepdim=True)) * h,)


time_excess = differentiable(_excess, _excess_backward, tensors=1)


def _lorentz_square(mean: Tensor, excess: Tensor, dim: int) -> Tensor:
    """T^2 - |S|^2 >= 1 of a mean of points, where T = 1 + excess."""
    s = (mean * mean).sum(dim, keepdim=True)
    time = torch.sqrt(1 + s)
    # T >= time by convexity; rounding must not make it smaller
    return 1 + (excess - s / (1 + time)).clamp_min(0) * (1 + excess + time)


def _normalise(mean: Tensor, excess: Tensor, dim: int) -> Tensor:
    return mean * torch.rsqrt(_lorentz_square(mean, excess, dim))


def _normalise_backward(
    grad: Tensor, needs: tuple[bool, ...], mean: Tensor, excess: Tensor, dim: int
) -> tuple[Tensor, Tensor]:
    r = torch.rsqrt(_lorentz_square(mean, excess, dim))
    along = r**3 * (grad * mean).sum(dim, keepdim=True)
    return r * grad + along * mean, -along * (1 + excess)


normalise_mean = differentiable(_normalise, _normalise_backward, tensors=2)


def reduced_dims(x: Tensor, reducedim: Sequence[int] | int | None, dim: int) -> list[int]:
    """The dimensions to average over, as non-negative numbers.

    Raises
    ------
    ValueError
        If they contain the manifold's own dimension.
    """
    dim = dim % x.ndim
    if reducedim is None:
        return [d for d in range(x.ndim) if d != dim]
    dims = sorted({d % x.ndim for d in ([reducedim] if isinstance(reducedim, int) else reducedim)})
    if dim in dims:
        raise ValueError(f"reducedim {reducedim} contains dim {dim}, the dimension that the manifold runs along")
    return dims


def unit_weights(weights: Tensor | None, x: Tensor, dims: list[int], dim: int) -> Tensor | None:
    """Weights that sum to one over `dims`, with size one along `dim`; None stands for equal weights.

    Raises
    ------
    ValueError
        If the weights do not broadcast with `x` without `dim`.
    """
    if weights is None:
        return None
    shape = list(x.shape)
    del shape[dim % x.ndim]
    try:
        weights = full_precision(weights, "weights").to(x.dtype).expand(shape).unsqueeze(dim % x.ndim)
    except RuntimeError:
        raise ValueError(
            f"weights must broadcast to the shape of x without dim {dim}, {tuple(shape)}; got {tuple(weights.shape)}"
        ) from None
    return weights / weights.sum(dims, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)


def hyperboloid_midpoint(h: Tensor, weights: Tensor | None, dims: list[int], dim: int) -> Tensor:
    """Midpoint of points in the hyperboloid chart; keeps all dimensions. `weights` as `unit_weights` returns them."""
    excess = time_excess(h, dim)
    if weights is None:
        return normalise_mean(h.mean(dims, keepdim=True), excess.mean(dims, keepdim=True), dim)
    return normalise_mean((weights * h).sum(dims, keepdim=True), (weights * excess).sum(dims, keepdim=True), dim)


def midpoint(
    x: Tensor,
    weights: Tensor | None = None,
    *,
    c: Tensor | float,
    reducedim: Sequence[int] | int | None = None,
    dim: int = -1,
    keepdim: bool = False,
) -> Tensor:
    """Poincaré midpoint of ball points.

    Parameters
    ----------
    x : Tensor
        Ball points, any shape, along `dim`.
    weights : Tensor, optional
        Non-negative weights, broadcastable to the shape of `x` without `dim`. Where all of them are zero, so is the
        midpoint.
    c : Tensor or float
        The curvature of the ball is ``-c``.
    reducedim : int or sequence of int, optional
        The dimensions to average over; default: all but `dim`.
    dim : int
        The dimension the manifold runs along.
    keepdim : bool
        Keep the reduced dimensions with size one.

    Returns
    -------
    Tensor
        Ball points, shape of `x` without the reduced dimensions.

    Raises
    ------
    ValueError
        If `reducedim` contains `dim`, or the weights do not fit.

    Notes
    -----
    [1]_; [2]_, eq. 13. Same conventions as ``geoopt.PoincareBall.weighted_midpoint``.

    Examples
    --------
    >>> import torch
    >>> import manifold_resnet.functional as F
    >>> x = torch.tensor([[0.5, 0.0], [-0.5, 0.0], [0.0, 0.6]])
    >>> F.midpoint(x[:2], c=1.0)  # of opposite points: the origin
    tensor([0., 0.])
    >>> F.midpoint(x, c=1.0)
    tensor([0.0000, 0.1771])
    """
    x = full_precision(x)
    c = curvature(c, x)
    dims = reduced_dims(x, reducedim, dim)
    if not dims:
        return x
    h = convert(x, "ball", "hyperboloid", c=c, dim=dim)
    m = hyperboloid_midpoint(h, unit_weights(weights, x, dims, dim), dims, dim)
    m = convert(m, "hyperboloid", "ball", c=c, dim=dim)
    return m if keepdim else m.squeeze(dims)
