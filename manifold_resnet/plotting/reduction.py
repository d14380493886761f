"""Which point is in the middle of the picture, and how points of more than two dimensions come into it."""

from __future__ import annotations

import warnings
from typing import Literal

import geoopt
import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from manifold_resnet._errors import extra
from manifold_resnet.functional import convert, dist, expmap0, frechet_mean, logmap0, midpoint
from manifold_resnet.functional.frechet import translate
from manifold_resnet.plotting._disk import ball_points

__all__ = ["recenter", "reduce_to_disk"]


def recenter(
    points: Tensor | ArrayLike, about: Tensor | ArrayLike | None = None, *, ball: geoopt.PoincareBall
) -> Tensor:
    r"""Move points by the isometry that brings one of them to the origin: :math:`\ominus a \oplus x`.

    Pictures of the disk show most at the origin and little near the boundary; this changes which part of the space is
    seen well. All distances stay what they are.

    Parameters
    ----------
    points : Tensor or array
        Ball points ``(..., n)``, along the last dimension.
    about : Tensor or array, optional
        The point that comes to the origin, ``(n,)`` or broadcastable; default: the Poincaré midpoint of all points.
    ball : geoopt.PoincareBall
        The manifold.

    Returns
    -------
    Tensor
        Ball points of the same shape, dtype (integers become float64) and device; computed in float64, gradients pass.
        Points may come to lie at twice the distance from the origin; float64 keeps distances up to ``12/sqrt(c)``.

    Raises
    ------
    TypeError, ValueError
        If points are not on the ball, there are none to take the midpoint of, or the shapes do not fit.

    Examples
    --------
    >>> import geoopt, torch
    >>> from manifold_resnet.plotting import recenter
    >>> ball = geoopt.PoincareBall(c=1.0)
    >>> points = torch.tensor([[0.5, 0.0], [0.9, 0.0]])
    >>> recenter(points, points[0], ball=ball)[1]
    tensor([0.7273, 0.0000])
    """
    x = ball_points(points, ball)
    dtype = points.dtype if isinstance(points, Tensor) and points.is_floating_point() else torch.float64
    c = ball.c.to(x)
    if about is None:
        if x.numel() == 0:
            raise ValueError(f"points of shape {tuple(x.shape)} have no midpoint: there are none")
        a = midpoint(x, c=c) if x.ndim > 1 else x
    else:
        a = ball_points(about, ball, "about").to(x.device)
        try:
            fits = torch.broadcast_shapes(a.shape, x.shape) == x.shape
        except RuntimeError:
            fits = False
        if not fits or a.shape[-1] != x.shape[-1]:
            raise ValueError(f"about of shape {tuple(a.shape)} does not fit points of shape {tuple(x.shape)}")
    h = translate(convert(x, "ball", "hyperboloid", c=c), convert(a, "ball", "hyperboloid", c=c), -1)
    moved = convert(h, "hyperboloid", "ball", c=c)
    return moved.to(points.device if isinstance(points, Tensor) else moved.device, dtype)


@torch.no_grad()
def reduce_to_disk(
    points: Tensor | ArrayLike,
    *,
    ball: geoopt.PoincareBall,
    method: Literal["pca", "umap"] = "pca",
    seed: int = 0,
) -> Tensor:
    """Points of the disk that stand for points of a ball of any dimension.

    Parameters
    ----------
    points : Tensor or array
        Ball points ``(N, n)``.
    ball : geoopt.PoincareBall
        The manifold, also of the result.
    method : {"pca", "umap"}
        "pca" is principal component analysis of the tangent vectors at the Fréchet mean, which becomes the origin.
        It keeps the distances from the mean and the angles there of points along the two principal directions exactly;
        those of others shrink, never grow. "umap" (extra "umap") is a hyperbolic UMAP of the geodesic distances
        between all pairs; it keeps who is near whom, and separates clusters that overlap in two principal directions,
        but neither distances nor the distance from the origin mean anything. It takes memory for N x N numbers.
    seed : int
        Of UMAP; PCA is deterministic.

    Returns
    -------
    Tensor
        Ball points ``(N, 2)``, of the dtype and on the device of `points`.

    Raises
    ------
    ValueError
        If points have another shape, are off the ball or too few (two for PCA, 16 for UMAP), or the method is unknown.
    ModuleNotFoundError
        If scikit-learn, or umap-learn for "umap", is not installed.

    Notes
    -----
    Tangent PCA: Fletcher et al. 2004, "Principal geodesic analysis for the study of nonlinear statistics of shape".
    UMAP: McInnes, Healy, Melville 2018.

    Examples
    --------
    >>> import geoopt, torch
    >>> from manifold_resnet.plotting import reduce_to_disk
    >>> points = torch.tensor([[0.6, 0.0, 0.0], [-0.6, 0.0, 0.0], [0.0, 0.3, 0.0], [0.0, -0.3, 0.0]])
    >>> reduce_to_disk(points, ball=geoopt.PoincareBall(c=1.0)).norm(dim=1)  # they lie in a plane: nothing is lost
    tensor([0.6000, 0.6000, 0.3000, 0.3000])
    """
    x = ball_points(points, ball)
    if x.ndim != 2:
        raise ValueError(f"points must have shape (N, n), got {tuple(x.shape)}")
    if method not in ("pca", "umap"):
        raise ValueError(f"method must be 'pca' or 'umap', got {method!r}")
    fewest = 2 if method == "pca" else 16
    if len(x) < fewest:
        raise ValueError(f"method {method!r} needs at least {fewest} points, got {len(x)}")
    c = ball.c.to(x)
    plane = _principal_plane(x, c, ball) if method == "pca" else _umap(x, c, ball, seed)
    like = points if isinstance(points, Tensor) and points.is_floating_point() else x
    return plane.to(like)


def _principal_plane(x: Tensor, c: Tensor, ball: geoopt.PoincareBall) -> Tensor:
    with extra("train"):
        from sklearn.decomposition import PCA
    # their mean is zero: that is what defines the Fréchet mean
    u = logmap0(recenter(x, frechet_mean(x, c=c), ball=ball), c=c)
    kept = min(2, *u.shape)
    with np.errstate(invalid="ignore"):  # shares of a variance that is zero
        components = torch.from_numpy(PCA(kept, svd_solver="full").fit_transform(u.cpu().numpy()))
    return expmap0(torch.nn.functional.pad(components, (0, 2 - kept)).to(x), c=c)


def _umap(x: Tensor, c: Tensor, ball: geoopt.PoincareBall, seed: int) -> Tensor:
    with extra("umap"):
        from umap import UMAP
    distances = dist(x[:, None], x[None], c=c).fill_diagonal_(0).cpu().numpy()
    mapper = UMAP(min(15, len(x) - 1), metric="precomputed", output_metric="hyperboloid", random_state=seed, n_jobs=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="using precomputed metric")
        h = torch.from_numpy(np.asarray(mapper.fit_transform(distances), dtype=np.float64)).to(x)
    return recenter(convert(h, "hyperboloid", "ball", c=c), ball=ball)
