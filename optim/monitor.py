"""Riemannian gradients, their norms, and where a model's points are: what to watch during training."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import geoopt
import torch
from geoopt.manifolds.base import Manifold
from geoopt.manifolds.siegel.siegel import SiegelManifold
from manifold_resnet.optim._optimizer import manifold_of
from manifold_resnet.optim.describe import relative_radii
from torch import Tensor, nn

if TYPE_CHECKING:
    from manifold_resnet.nn import ClippingMonitor

__all__ = ["gradient_norms", "measure"]


@torch.no_grad()
def gradient_norms(model: nn.Module) -> dict[str, float]:
    """Riemannian norms of the gradients that a backward pass left behind.

    The norm at a point x of a ball is ``|grad| / lambda_x``, where ``lambda_x = 2 / (1 - c |x|^2)``: how much
    the loss changes per distance moved. Euclidean norms there shrink or explode with the coordinates.

    Parameters
    ----------
    model : torch.nn.Module
        Any model; parameters without a gradient are passed over. Gradients are not changed.

    Returns
    -------
    dict
        By the parameter's name; for several points in one parameter, the root of the sum of squares. In units
        of loss per distance.

    Raises
    ------
    TypeError
        If ``model`` is not a module.

    Examples
    --------
    >>> import geoopt, torch
    >>> from manifold_resnet.optim import gradient_norms
    >>> model = torch.nn.Module()
    >>> model.x = geoopt.ManifoldParameter(torch.tensor([0.5, 0.0]), geoopt.PoincareBall())
    >>> model.x.manifold.dist0(model.x).backward()
    >>> {name: round(norm, 4) for name, norm in gradient_norms(model).items()}
    {'x': 1.0}
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    squares = {}
    for name, p in model.named_parameters():
        if p.grad is None:
            continue
        # geoopt's Lorentz changes the gradient it is given
        egrad = p.grad.to_dense() if p.grad.is_sparse else p.grad.clone()
        x, manifold = p.detach().as_subclass(Tensor), manifold_of(p)
        rgrad = riemannian_gradient(manifold, x, egrad.as_subclass(Tensor))
        squares[name] = inner(manifold, x, rgrad, rgrad)
    return {name: max(square, 0.0) ** 0.5 for name, square in zip(squares, _floats(squares.values()), strict=True)}


@torch.no_grad()
def measure(model: nn.Module, clipping: ClippingMonitor | None = None) -> dict[str, float]:
    """The state of a training in a few numbers.

    Parameters
    ----------
    model : torch.nn.Module
        Any model.
    clipping : ClippingMonitor, optional
        From `manifold_resnet.nn.monitor_clipping`.

    Returns
    -------
    dict
        ``gradient_norm``: Riemannian norm of the whole gradient, the root of the sum of squares of
        `gradient_norms`. ``distance_max``, ``distance_mean``: geodesic distance of the parameters' ball points
        from the origin. ``radius_max``: the largest ``sqrt(c) |x|`` of these, 1 on the boundary. ``clipped``:
        share (0 to 1) of the layers' output points that sit on their bound ``max_distance``. What does not
        exist (no gradients, no ball, no monitor or none that has seen points) is left out.

    Raises
    ------
    TypeError
        If ``model`` is not a module.

    Examples
    --------
    >>> import torch, manifold_resnet as mr
    >>> from manifold_resnet.optim import measure
    >>> model = mr.models.create_model("hyperbolic-4-8-8-resnet-8")
    >>> with mr.nn.monitor_clipping(model) as monitor:
    ...     model(torch.randn(2, 3, 16, 16)).square().mean().backward()
    >>> list(measure(model, monitor))
    ['gradient_norm', 'distance_max', 'distance_mean', 'radius_max', 'clipped']
    """
    norms = gradient_norms(model)
    measured = {}
    if norms:
        measured["gradient_norm"] = sum(norm**2 for norm in norms.values()) ** 0.5
    distances, radii = [], []
    for p in model.parameters():
        radius = relative_radii(p)
        if radius is not None and radius.numel():
            distances.append(manifold_of(p).dist0(p.detach().as_subclass(Tensor)).flatten())
            radii.append(radius.max())
    if distances:
        totals = _floats([d.sum() for d in distances])
        measured["distance_max"] = max(_floats([d.max() for d in distances]))
        measured["distance_mean"] = sum(totals) / sum(d.numel() for d in distances)
        measured["radius_max"] = max(_floats(radii))
    if clipping is not None and clipping.shares():
        measured["clipped"] = clipping.share()
    return measured


# What follows mends geoopt's manifolds where a method is not what its name says, so that norms and slopes are true.


def riemannian_gradient(manifold: Manifold, x: Tensor, egrad: Tensor) -> Tensor:
    """The Riemannian gradient at points x, with respect to `inner`; ``manifold.egrad2rgrad`` but for constants."""
    if isinstance(manifold, geoopt.Scaled):
        # its tangent vectors are stretched (the map of u is that of u / scale), its gradients not
        return riemannian_gradient(manifold.base, x, egrad) / manifold.scale
    if isinstance(manifold, geoopt.ProductManifold):
        return by_factor(riemannian_gradient, manifold, x, egrad)
    gradient = manifold.egrad2rgrad(x, egrad)
    # its metric is divided by the size, its gradient not multiplied
    return gradient * x.shape[-1] if isinstance(manifold, geoopt.BirkhoffPolytope) else gradient


def project_to_tangent(manifold: Manifold, x: Tensor, u: Tensor) -> Tensor:
    """Project u on the tangent space at points x; ``manifold.proju`` where that leaves tangent vectors alone."""
    if isinstance(manifold, geoopt.Scaled):
        return project_to_tangent(manifold.base, x, u)
    if isinstance(manifold, geoopt.ProductManifold):
        return by_factor(project_to_tangent, manifold, x, u)
    if isinstance(manifold, geoopt.CanonicalStiefel):  # proju doubles the part of u along x
        return geoopt.EuclideanStiefel().proju(x, u)
    if isinstance(manifold, geoopt.BirkhoffPolytope):  # proju multiplies by x
        return manifold.proju(x, u / x)
    if isinstance(manifold, SiegelManifold):  # proju is egrad2rgrad
        return (u + u.mT) / 2
    return manifold.proju(x, u)


def move_along(manifold: Manifold, x: Tensor, u: Tensor) -> Tensor:
    """Follow a geodesic, or a curve of the same velocity where geoopt has no geodesic, from points x along u."""
    if isinstance(manifold, geoopt.Scaled):
        return move_along(manifold.base, x, u / manifold.scale)
    if isinstance(manifold, geoopt.ProductManifold):
        return by_factor(move_along, manifold, x, u)
    if isinstance(manifold, geoopt.CanonicalStiefel):  # its curve has another velocity, proju(u)
        return geoopt.EuclideanStiefel().expmap(x, u)
    try:
        return manifold.expmap(x, u)
    except NotImplementedError:
        return manifold.retr(x, u)


def inner(manifold: Manifold, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Riemannian inner product of u and v, summed over the points x, 0-d."""
    # without keepdim, Stereographic broadcasts a batch against itself
    product = manifold.inner(x, u, v, keepdim=True).sum()
    return product.real if product.is_complex() else product


def by_factor(
    function: Callable[[Manifold, Tensor, Tensor], Tensor], manifold: geoopt.ProductManifold, x: Tensor, u: Tensor
) -> Tensor:
    """Apply a function of manifold, points and vectors to each factor of a product."""
    parts = [
        function(factor, manifold.take_submanifold_value(x, i), manifold.take_submanifold_value(u, i))
        for i, factor in enumerate(manifold.manifolds)
    ]
    return manifold.pack_point(*parts)


def _floats(values: Iterable[Tensor]) -> list[float]:
    """Numbers of 0-d tensors, waiting for the GPU once."""
    values = list(values)
    return torch.stack([value.to(values[0].device) for value in values]).tolist() if values else []
