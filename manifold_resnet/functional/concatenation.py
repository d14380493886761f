r"""Joining points of small balls into one of a large ball, and taking it apart: beta-concatenation and beta-split.

The tangent vectors at the origin of points of :math:`n_i` dimensions are stacked into one of :math:`n=\sum_i n_i`,
each times :math:`B(n/2, 1/2)/B(n_i/2, 1/2)`. This keeps the expected norm of a random vector, where stacking alone
would let it grow with the number of parts.

References
----------
.. [1] Shimizu, Mukuta, Harada: Hyperbolic neural networks++. ICLR 2021, sec. 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from manifold_resnet.functional._checks import Chart, check_chart, curvature, full_precision
from manifold_resnet.functional.charts import convert
from manifold_resnet.functional.conv import beta_ratio


def flatten_tangent(x: Tensor, start_dim: int, end_dim: int, *, c: Tensor | float, dim: int, in_chart: Chart) -> Tensor:
    """`poincare_flatten` in the tangent chart, without a bound."""
    x = full_precision(x)
    if not all(-x.ndim <= d < x.ndim for d in (start_dim, end_dim, dim)):
        raise ValueError(
            f"start_dim={start_dim}, end_dim={end_dim} and dim={dim} must be dimensions of x, got x of shape "
            f"{tuple(x.shape)}"
        )
    start, end, dim = (d % x.ndim for d in (start_dim, end_dim, dim))
    if not start <= dim <= end:
        raise ValueError(
            f"start_dim and end_dim must enclose dim={dim}, the dimension that the manifold runs along, got "
            f"{start_dim} and {end_dim} for x of shape {tuple(x.shape)}"
        )
    channels, total = x.shape[dim], math.prod(x.shape[start : end + 1])
    v = convert(x, in_chart, "tangent", c=curvature(c, x), dim=dim)
    return (v * beta_ratio(channels, total / channels) if total else v).flatten(start, end), start


def poincare_flatten(
    x: Tensor,
    start_dim: int = 1,
    end_dim: int = -1,
    *,
    c: Tensor | float,
    dim: int = 1,
    in_chart: Chart = "ball",
    out_chart: Chart = "ball",
    max_distance: float | None = math.inf,
) -> Tensor:
    """Beta-concatenation of all points in a range of dimensions: an image of points becomes one point.

    Parameters
    ----------
    x : Tensor
        Points, any shape, along `dim`; by default images ``(batch, C, *spatial)``.
    start_dim, end_dim : int
        First and last of the dimensions to flatten, as ``torch.flatten``; `dim` must be one of them.
    c : Tensor or float
        The curvature of the space is ``-c``.
    dim : int
        The dimension the manifold runs along.
    in_chart, out_chart : {"ball", "tangent", "hyperboloid"}
        Charts of the input and of the result.
    max_distance : float, optional
        Bound on the result's geodesic distance from the origin, see `convert`.

    Returns
    -------
    Tensor
        Points along `start_dim`, by default ``(batch, C * prod(spatial))``, coordinates in the order of
        ``torch.flatten``. `beta_split` takes them apart.

    Raises
    ------
    ValueError
        If `dim` is not among the dimensions to flatten, a chart is unknown, or `c` or `max_distance` is not positive.

    Notes
    -----
    [1]_, sec. 3.3. A fully connected layer on the result is a convolution whose kernel is as large as the image.

    Examples
    --------
    >>> import torch
    >>> from manifold_resnet.functional import poincare_flatten
    >>> poincare_flatten(torch.zeros(2, 8, 4, 4), c=1.0).shape
    torch.Size([2, 128])
    """
    check_chart(out_chart, "out_chart")
    v, start = flatten_tangent(x, start_dim, end_dim, c=c, dim=dim, in_chart=in_chart)
    return convert(v, "tangent", out_chart, c=c, dim=start, max_distance=max_distance)


def beta_concatenate(
    points: Sequence[Tensor] | Tensor,
    *,
    c: Tensor | float,
    dim: int = -1,
    in_chart: Chart = "ball",
    out_chart: Chart = "ball",
    max_distance: float | None = math.inf,
) -> Tensor:
    """Beta-concatenation: points of several balls as one point of a ball of the sum of their dimensions.

    Parameters
    ----------
    points : sequence of Tensor, or Tensor
        Points along `dim`, of shapes that are equal but for `dim`. A tensor ``(..., k, n)`` counts as k points of n
        dimensions along the last one.
    c : Tensor or float
        The curvature of the spaces is ``-c``.
    dim : int
        The dimension the manifold runs along; -1 for a tensor.
    in_chart, out_chart : {"ball", "tangent", "hyperboloid"}
        Charts of the points and of the result.
    max_distance : float, optional
        Bound on the result's geodesic distance from the origin, see `convert`.

    Returns
    -------
    Tensor
        Points along `dim`, whose size is the sum of the points'; ``(..., k * n)`` from a tensor.

    Raises
    ------
    ValueError
        If there are no points, their shapes do not fit, a chart is unknown, or `c` or `max_distance` is not positive.

    Notes
    -----
    [1]_, sec. 3.3. Inverse: `beta_split`, as long as no bound is reached.

    Examples
    --------
    >>> import torch
    >>> from manifold_resnet.functional import beta_concatenate, beta_split
    >>> x, y = torch.full((5, 3), 0.2), torch.full((5, 2), -0.1)
    >>> z = beta_concatenate([x, y], c=1.0)
    >>> z.shape
    torch.Size([5, 5])
    >>> [torch.allclose(a, b) for a, b in zip(beta_split(z, [3, 2], c=1.0), (x, y))]
    [True, True]
    """
    check_chart(out_chart, "out_chart")
    options = {"c": c, "in_chart": in_chart, "out_chart": out_chart, "max_distance": max_distance}
    if isinstance(points, Tensor):
        if points.ndim < 2 or dim not in (-1, points.ndim - 1):
            raise ValueError(
                f"a tensor of points must have shape (..., k, n), along dim=-1, got {tuple(points.shape)} and "
                f"dim={dim}: pass a list of tensors, or use poincare_flatten"
            )
        return poincare_flatten(points, -2, -1, dim=-1, **options)  # type: ignore[arg-type]
    points = [full_precision(x, f"points[{i}]") for i, x in enumerate(points)]
    shapes = [tuple(x.shape) for x in points]
    if not points or any(x.ndim != points[0].ndim for x in points) or not -points[0].ndim <= dim < points[0].ndim:
        raise ValueError(
            f"points must be tensors with the same number of dimensions, and dim={dim} among these, got shapes {shapes}"
        )
    if any(x.select(dim, 0).shape != points[0].select(dim, 0).shape for x in points if x.shape[dim]):
        raise ValueError(f"points must have equal shapes but for dim={dim}, got {shapes}")
    total = sum(x.shape[dim] for x in points)
    tangents = [
        convert(x, in_chart, "tangent", c=curvature(c, x), dim=dim) * beta_ratio(n, total / n)
        for x in points
        if (n := x.shape[dim])
    ]
    return convert(torch.cat(tangents, dim), "tangent", out_chart, c=c, dim=dim, max_distance=max_distance)


def beta_split(
    x: Tensor,
    sizes: int | Sequence[int],
    *,
    c: Tensor | float,
    dim: int = -1,
    in_chart: Chart = "ball",
    out_chart: Chart = "ball",
    max_distance: float | None = math.inf,
) -> tuple[Tensor, ...]:
    """Beta-split: a point as several points of balls of fewer dimensions, the inverse of `beta_concatenate`.

    Parameters
    ----------
    x : Tensor
        Points, any shape, along `dim`.
    sizes : int or sequence of int
        Dimensions of the parts; a number n stands for as many parts of n dimensions as there are.
    c : Tensor or float
        The curvature of the spaces is ``-c``.
    dim : int
        The dimension the manifold runs along.
    in_chart, out_chart : {"ball", "tangent", "hyperboloid"}
        Charts of the input and of the results.
    max_distance : float, optional
        Bound on the results' geodesic distance from the origin, see `convert`. In the ball chart points stay where
        geoopt keeps them: parts are about as far from the origin as `x` if they are alike, and farther if they are not.

    Returns
    -------
    tuple of Tensor
        Points along `dim`.

    Raises
    ------
    ValueError
        If the sizes do not sum to the dimensions of `x`, a chart is unknown, or `c` or `max_distance` is not positive.

    Notes
    -----
    [1]_, sec. 3.3.

    Examples
    --------
    >>> import torch
    >>> from manifold_resnet.functional import beta_split
    >>> [part.shape for part in beta_split(torch.zeros(5, 6), 2, c=1.0)]
    [torch.Size([5, 2]), torch.Size([5, 2]), torch.Size([5, 2])]
    """
    check_chart(out_chart, "out_chart")
    x = full_precision(x)
    total = x.shape[dim]
    parts = [sizes] * (total // sizes) if isinstance(sizes, int) and sizes > 0 else sizes
    if isinstance(parts, int) or any(not isinstance(n, int) or n < 1 for n in parts) or sum(parts) != total:
        raise ValueError(
            f"sizes must be a divisor of the {total} dimensions of x, or positive integers that sum to them, got "
            f"{sizes!r}"
        )
    v = convert(x, in_chart, "tangent", c=curvature(c, x), dim=dim)
    return tuple(
        convert(part / beta_ratio(n, total / n), "tangent", out_chart, c=c, dim=dim, max_distance=max_distance)
        for part, n in zip(v.split(list(parts), dim), parts, strict=True)
    )
