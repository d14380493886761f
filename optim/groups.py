"""Which parameters weight decay may pull towards the origin."""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["parameter_groups"]


def parameter_groups(model: nn.Module, weight_decay: float = 0.0, lr: float | None = None) -> list[dict[str, Any]]:
    """Split a model's parameters into those with and those without weight decay.

    Kernels and weight matrices (two dimensions or more) decay. Whatever places or measures something does
    not: centres of batch norms (points of the ball), hyperplane offsets, scales and their logarithms, the
    curvature; all of these have one dimension or none. Frozen parameters are left out.

    Parameters
    ----------
    model : torch.nn.Module
        Any model, hyperbolic or Euclidean.
    weight_decay : float
        Weight decay of the first group; the second one's is 0.
    lr : float, optional
        Learning rate of both groups; ``None`` leaves it to the optimizer.

    Returns
    -------
    list of dict
        Parameter groups for any torch or geoopt optimizer, in the order of ``model.parameters()``; an empty
        group is left out.

    Raises
    ------
    ValueError
        If ``weight_decay`` is negative, or ``lr`` is not positive.

    Examples
    --------
    >>> import torch
    >>> from manifold_resnet.optim import RiemannianAdam, parameter_groups
    >>> optimizer = RiemannianAdam(parameter_groups(torch.nn.Linear(3, 2), weight_decay=1e-4), lr=1e-2)
    >>> [group["weight_decay"] for group in optimizer.param_groups]
    [0.0001, 0.0]
    """
    if weight_decay < 0:
        raise ValueError(f"weight_decay must be 0 or more, got {weight_decay}")
    if lr is not None and lr <= 0:
        raise ValueError(f"lr must be more than 0, got {lr}")
    trained = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    if lr is not None:
        for group in groups:
            group["lr"] = lr
    return [group for group in groups if group["params"]]
