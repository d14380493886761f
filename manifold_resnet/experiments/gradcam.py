"""Grad-CAM: where in an image networks look.

Grad-CAM (Selvaraju et al. 2017) weighs the channels of a layer by the mean gradient of a class's logit, and shows the
positive part of their sum; the paper (van Spengler et al. 2023, sec. 4) compares networks by it. The layer is the last
residual block. Between its blocks, a Poincaré ResNet's activations travel as tangent vectors at the origin (logarithms
of the ball points). These form a vector space, in which a weighted sum of channels makes sense; for coordinates of ball
points it would not.

Captum draws the maps, as it makes the attacks (see `attack`). The alternative, pytorch-grad-cam, is as well kept but
brings OpenCV.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from manifold_resnet._errors import UserError, extra
from manifold_resnet.experiments.outputs import announce, outputs, progress_bar
from manifold_resnet.experiments.runs import Run, evenly

__all__ = ["MOST", "CamGrid", "gradcam", "heat_maps"]

#: Images that fit in a figure.
MOST = 48


@dataclass(frozen=True)
class CamGrid:
    """Images, and where each network looks in them.

    Attributes
    ----------
    images : Tensor
        ``(n, C, H, W)``, pixels in [0, 1].
    labels : Tensor
        ``(n,)``, true classes.
    indices : list of int
        Of the images in the test set.
    maps : dict
        Run name to ``(n, H, W)``, between 0 and 1, the largest entry of each image 1 (all 0 where nothing speaks for
        the class).
    rows : list of dict
        For each image and run: predicted class, its probability, and whether it is right.
    similarity : dict
        ``(run name, run name)`` to the mean correlation of their maps over the images; a map without contrast counts
        as uncorrelated.
    found, searched : int
        How many images qualified, of how many.
    """

    images: Tensor
    labels: Tensor
    indices: list[int]
    maps: dict[str, Tensor]
    rows: list[dict[str, Any]]
    similarity: dict[tuple[str, str], float]
    found: int
    searched: int


def heat_maps(run: Run, pixels: Tensor, targets: Tensor, layer: str | None = None) -> Tensor:
    """Grad-CAM of a network.

    Parameters
    ----------
    run : Run
        The network.
    pixels : Tensor
        ``(n, C, H, W)`` in [0, 1].
    targets : Tensor
        ``(n,)``, the class of each image whose logit is explained.
    layer : str, optional
        The group of blocks, such as ``"group2"``, whose last block's activations are weighed; by default the last one.
        Of a Poincaré ResNet, they are tangent vectors at the origin.

    Returns
    -------
    Tensor
        ``(n, H, W)``, on the CPU: between 0 and 1, the largest entry of each image 1.

    Raises
    ------
    UserError
        If there is no such layer.
    """
    with extra("experiments"):
        from captum.attr import LayerAttribution, LayerGradCam
    groups = {name: group for name, group in run.model.named_children() if re.fullmatch(r"group\d+", name)}
    if layer is not None and layer not in groups:
        raise UserError(f"{run.name} has no layer {layer!r}; choose from {', '.join(groups)}")
    block = (list(groups.values())[-1] if layer is None else groups[layer])[-1]
    cam = LayerGradCam(run.network, block)
    given = pixels.to(run.device).clone().requires_grad_()
    maps = cam.attribute(given, target=targets.to(run.device), relu_attributions=True)
    maps = LayerAttribution.interpolate(maps.detach(), tuple(pixels.shape[-2:]), interpolate_mode="bilinear")[:, 0]
    top = maps.amax((1, 2), keepdim=True)
    return torch.where(top > 0, maps / top.clamp_min(torch.finfo(maps.dtype).tiny), 0.0).float().cpu()


def gradcam(
    runs: Sequence[Run],
    count: int = 8,
    *,
    errors_only: bool = False,
    layer: str | None = None,
    limit: int | None = None,
    progress: bool = False,
) -> CamGrid:
    """Explain the predictions of runs on the same test images.

    Parameters
    ----------
    runs : sequence of Run
        Trained networks, from `load_runs`, with the same test images.
    count : int
        How many images, spread evenly over those that qualify.
    errors_only : bool
        Only images that at least one of the networks gets wrong.
    layer : str, optional
        See `heat_maps`; an earlier one has more pixels, the last one knows most about classes.
    limit : int, optional
        Look at no more than so many test images, spread evenly.
    progress : bool
        Show a progress bar.

    Returns
    -------
    CamGrid
        Images, maps of the predicted classes, and predictions.

    Raises
    ------
    UserError
        If the test images of the runs differ, none qualifies, or a setting is out of range.
    """
    if not 1 <= count <= MOST:
        raise UserError(f"--count must be from 1 to {MOST}, got {count}")
    first = runs[0]
    for run in runs[1:]:
        if len(run.test) != len(first.test) or run.config.images["size"] != first.config.images["size"]:
            raise UserError(
                f"the test images of {run.name} and {first.name} differ in number or size; compare runs on the same "
                "images: name them with --dataset"
            )
    searched = evenly(len(first.test), limit)
    with progress_bar(len(runs) * len(searched), "image", progress) as bar:
        seen = []
        for run in runs:
            announce(bar, run.name)
            seen.append(outputs(run, run.loader(limit=limit), bar))
    for run, other in zip(runs[1:], seen[1:], strict=True):
        if not torch.equal(other.labels, seen[0].labels):
            raise UserError(f"the test images of {run.name} and {first.name} have different labels; compare runs on "
                            "the same images: name them with --dataset")  # fmt: skip
    wrong = ~torch.stack([part.correct for part in seen]).all(0)
    qualify = np.flatnonzero(wrong.numpy()) if errors_only else np.arange(len(searched))
    if not len(qualify):
        raise UserError(f"no errors among {len(searched)} test images; leave out --errors-only, or raise --limit")
    chosen = qualify[evenly(len(qualify), count)]
    images = torch.stack([first.test[int(searched[place])][0] for place in chosen])
    labels = seen[0].labels[chosen]
    maps, rows = {}, []
    for run, part in zip(runs, seen, strict=True):
        predicted = part.logits[chosen].argmax(1)
        maps[run.name] = heat_maps(run, images, predicted, layer)
        chances = part.probabilities[chosen].amax(1)
        rows += [
            {
                "image": int(searched[place]),
                "run": run.name,
                "true": first.classes[true],
                "predicted": first.classes[guess],
                "probability": float(chance),
                "right": bool(true == guess),
            }
            for place, true, guess, chance in zip(chosen, labels, predicted, chances, strict=True)
        ]
    pairs = [(a, b) for index, a in enumerate(maps) for b in list(maps)[index + 1 :]]
    similarity = {(a, b): _correlation(maps[a], maps[b]) for a, b in pairs}
    indices = [int(searched[place]) for place in chosen]
    return CamGrid(images, labels, indices, maps, rows, similarity, len(qualify), len(searched))


def _correlation(first: Tensor, second: Tensor) -> float:
    centred = [maps.double().flatten(1) - maps.double().mean((1, 2))[:, None] for maps in (first, second)]
    return torch.nn.functional.cosine_similarity(*centred, dim=1).mean().item()
