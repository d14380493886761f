"""What networks say about images: logits, and how far from the origin they place them."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from manifold_resnet.experiments.runs import Run
from manifold_resnet.models import PoincareResNet

__all__ = ["Outputs", "announce", "outputs", "progress_bar"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outputs:
    """Outputs of a network, on the CPU in float64.

    Attributes
    ----------
    logits : Tensor
        ``(images, classes)``.
    distance : Tensor
        ``(images,)``: geodesic distance of the pooled features from the ball's origin; of a network whose features
        are Euclidean, their norm.
    labels : Tensor
        ``(images,)``, int64.

    Examples
    --------
    >>> seen = Outputs(torch.tensor([[2.0, 0.0], [1.0, 0.0]]), torch.tensor([1.5, 0.5]), torch.tensor([0, 1]))
    >>> seen.correct
    tensor([ True, False])
    """

    logits: Tensor
    distance: Tensor
    labels: Tensor

    @property
    def correct(self) -> Tensor:
        """``(images,)``: whether the largest logit is the label's."""
        return self.logits.argmax(1) == self.labels

    @property
    def probabilities(self) -> Tensor:
        """``(images, classes)``: softmax of the logits; float64 tells confident images apart where float32 has 1."""
        return self.logits.softmax(1)


@torch.no_grad()
def outputs(run: Run, loader: DataLoader, bar: tqdm | None = None) -> Outputs:
    """Run a network over images once.

    Parameters
    ----------
    run : Run
        The network.
    loader : DataLoader
        Batches of pixels in [0, 1] and labels, such as ``run.loader()``.
    bar : tqdm, optional
        Told of each image.

    Returns
    -------
    Outputs
        Of every image, in the loader's order.
    """
    features: list[Tensor] = []
    # forward() hands the classifier what features() returns, a PoincareResNet as tangent vectors at the origin
    hook = run.model.fc.register_forward_pre_hook(lambda _, given: features.append(given[0]))
    logits, distances, labels = [], [], []
    try:
        for pixels, targets in loader:
            logits.append(run.network(pixels.to(run.device)).double().cpu())
            distances.append(_distance(run, features.pop()).double().cpu())
            labels.append(targets)
            if bar is not None:
                bar.update(len(targets))
    finally:
        hook.remove()
    return Outputs(torch.cat(logits), torch.cat(distances), torch.cat(labels))


def _distance(run: Run, features: Tensor) -> Tensor:
    if isinstance(run.model, PoincareResNet):
        return 2 * features.norm(dim=1)
    ball = getattr(getattr(run.model, "expmap0", None), "ball", None)
    return features.norm(dim=1) if ball is None else ball.dist0(features)


def progress_bar(total: int, unit: str, show: bool) -> tqdm:
    """A bar on standard error that goes when it is done; none where there is no terminal."""
    return tqdm(total=total, unit=unit, disable=None if show else True, leave=False, dynamic_ncols=True)


def announce(bar: tqdm, what: str) -> None:
    """Say what begins: beside the bar, or in the log where there is none."""
    bar.set_description(what)
    if bar.disable:
        _log.info("%s", what)
