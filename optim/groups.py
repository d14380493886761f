"""Which parameters weight decay may pull towards the origin, and which learn at a pace of their own."""

from __future__ import annotations

import math
from typing import Any

from geoopt.manifolds.base import Manifold
from torch import nn

from manifold_resnet.nn.base import PoincareModule

__all__ = ["parameter_groups"]


def parameter_groups(
    model: nn.Module,
    weight_decay: float = 0.0,
    lr: float | None = None,
    lr_curvature: float | None = None,
) -> list[dict[str, Any]]:
    """Split a model's parameters by weight decay, and its curvatures off if they have their own learning rate.

    Kernels and weight matrices (two dimensions or more) decay. Those that hyperbolic layers keep as points p of the
    ball decay as what they stand for, the normals ``weight_scale * log0(p)``: the points' own decay is
    ``weight_scale**2`` times that (``"decay_factors"``), which for points near the origin is the gradient of
    ``weight_decay / 2`` times the normals' squared lengths. So weight decay means in hyperbolic layers what it means
    in Euclidean ones; without the factors it would be weaker by that much, 288 times for 8 channels under a kernel of
    3 x 3. Decoupled weight decay needs none: it takes a share of either. Whatever places or measures something does
    not decay: centres of batch norms (points of the ball), hyperplane offsets, scales and their logarithms (one
    dimension or none), and what a manifold itself owns: its curvature or scale, such as
    ``PoincareBall.isp_c``. Frozen parameters are left out.

    Parameters
    ----------
    model : torch.nn.Module
        Any model, hyperbolic or Euclidean.
    weight_decay : float
        Weight decay of the first group; the other ones' is 0.
    lr : float, optional
        Learning rate of the groups; ``None`` leaves it to the optimizer.
    lr_curvature : float, optional
        Learning rate of the parameters that manifolds own, which then are the last group; ``None`` leaves
        them in the second one.

    Returns
    -------
    list of dict
        Parameter groups for any torch or geoopt optimizer, in the order of ``model.parameters()``, with the
        parameters' names in the model as ``"param_names"``; an empty group is left out. The first one has a number
        for each parameter as ``"decay_factors"``, if one of them is not 1; optimizers that do not know the entry
        (torch's and geoopt's) do without.

    Raises
    ------
    ValueError
        If ``weight_decay`` is negative, or a learning rate is not positive; also if they are not finite.

    Examples
    --------
    >>> import torch
    >>> from manifold_resnet.optim import RiemannianAdam, parameter_groups
    >>> optimizer = RiemannianAdam(parameter_groups(torch.nn.Linear(3, 2), weight_decay=1e-4), lr=1e-2)
    >>> [(group["param_names"], group["weight_decay"]) for group in optimizer.param_groups]
    [(['weight'], 0.0001), (['bias'], 0.0)]
    """
    if not 0 <= weight_decay < math.inf:
        raise ValueError(f"weight_decay must be 0 or more, got {weight_decay}")
    for name, rate in (("lr", lr), ("lr_curvature", lr_curvature)):
        if rate is not None and not 0 < rate < math.inf:
            raise ValueError(f"{name} must be more than 0, got {rate}")
    factors = {
        id(module.weight): float(module.weight_scale) ** 2
        for module in model.modules()
        if isinstance(module, PoincareModule) and hasattr(module, "weight_scale") and hasattr(module, "weight")
    }
    owned = {id(p) for m in model.modules() if isinstance(m, Manifold) for p in m.parameters(recurse=False)}
    decayed, kept, curvature = [], [], []
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        if id(p) in owned:
            (kept if lr_curvature is None else curvature).append((name, p))
        else:
            (decayed if p.ndim >= 2 else kept).append((name, p))
    groups = []
    for named, decay, rate in ((decayed, weight_decay, lr), (kept, 0.0, lr), (curvature, 0.0, lr_curvature)):
        if named:
            names, params = zip(*named, strict=True)
            group: dict[str, Any] = {"params": list(params), "param_names": list(names), "weight_decay": decay}
            used = [factors.get(id(p), 1.0) for p in params]
            if any(factor != 1 for factor in used):
                group["decay_factors"] = used
            groups.append(group if rate is None else {**group, "lr": rate})
    return groups
