"""Running statistics of norms, estimated anew."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from manifold_resnet.nn.batch_norm import _PoincareBatchNorm


@torch.no_grad()
def update_bn(batches: Iterable[Any], model: nn.Module, device: torch.device | str | None = None) -> None:
    """Estimate the running statistics of all norms anew, ours and torch's, from images; as torch's `update_bn`.

    Parameters
    ----------
    batches : iterable
        Batches of images, such as a data loader gives: tensors, or tuples whose first entry is one.
    model : torch.nn.Module
        Its norms' statistics are forgotten, and become the average over the batches.
    device : torch.device or str, optional
        Where to move the batches to.

    Raises
    ------
    ValueError
        If there are no batches.

    Examples
    --------
    >>> import torch, manifold_resnet as mr
    >>> model = mr.models.create_model("hyperbolic-4-4-4-resnet-8")
    >>> mr.models.update_bn([torch.zeros(4, 3, 8, 8), torch.ones(4, 3, 8, 8)], model)
    >>> int(model.bn.num_batches_tracked)
    2
    """
    norms = [m for m in model.modules() if isinstance(m, _PoincareBatchNorm | nn.modules.batchnorm._BatchNorm)]
    before = [(m, m.momentum) for m in norms]
    training = model.training
    seen = 0
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average
    model.train()
    try:
        for batch in batches:
            images = batch[0] if isinstance(batch, list | tuple) else batch
            model(images if device is None else images.to(device))
            seen += 1
    finally:
        model.train(training)
        for norm, momentum in before:
            norm.momentum = momentum
    if seen == 0:
        raise ValueError("there are no batches to take statistics from: pass a list or a data loader")
