"""Fusing two networks: whether they make different mistakes, and what both know together.

The paper (van Spengler et al. 2023, sec. 4) adds up what two networks say about an image. Logits of different kinds of
networks have different units (distances to hyperplanes, inner products), so that the louder one decides when logits are
added; softmax puts both on one scale. Both are measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from manifold_resnet._errors import UserError
from manifold_resnet.experiments.outputs import Outputs, announce, outputs, progress_bar
from manifold_resnet.experiments.runs import Run, evenly

__all__ = ["fuse", "fusion_metrics"]


def fusion_metrics(first: Outputs, second: Outputs) -> dict[str, float | int]:
    """Compare and combine what two networks say about the same images.

    Parameters
    ----------
    first, second : Outputs
        Of the same images in the same order.

    Returns
    -------
    dict
        Accuracies ``first``, ``second``, ``mean_softmax``, ``mean_logits`` (class with the largest mean), ``either``
        (the best any combination could do); ``agreement``, the share of images for which both say the same class,
        right or wrong; counts ``both_right``, ``only_first_right``, ``only_second_right``, ``both_wrong``;
        ``second_corrects_first``, the share of the first's errors that the second has right, and
        ``first_corrects_second``; ``fixed_of_first`` and ``fixed_of_second``, the shares of the errors of each that
        the mean of the softmax has right, and ``broken_of_first`` and ``broken_of_second``, the shares of what each
        has right that it has not. Shares of nothing are 0.

    Raises
    ------
    ValueError
        If the labels differ.

    Examples
    --------
    >>> import torch
    >>> labels = torch.tensor([0, 1])
    >>> first = Outputs(torch.tensor([[3.0, 0.0], [1.0, 0.0]]), torch.zeros(2), labels)
    >>> second = Outputs(torch.tensor([[0.0, 1.0], [0.0, 2.0]]), torch.zeros(2), labels)
    >>> metrics = fusion_metrics(first, second)
    >>> metrics["first"], metrics["second"], metrics["mean_softmax"], metrics["agreement"]
    (0.5, 0.5, 1.0, 0.0)
    """
    if not torch.equal(first.labels, second.labels):
        raise ValueError("the labels differ; both outputs must be of the same images in the same order")
    labels = first.labels
    one, two = first.correct, second.correct
    softmax = (first.probabilities + second.probabilities).argmax(1) == labels
    logits = (first.logits + second.logits).argmax(1) == labels
    return {
        "first": _share(one),
        "second": _share(two),
        "mean_softmax": _share(softmax),
        "mean_logits": _share(logits),
        "either": _share(one | two),
        "agreement": _share(first.logits.argmax(1) == second.logits.argmax(1)),
        "both_right": int((one & two).sum()),
        "only_first_right": int((one & ~two).sum()),
        "only_second_right": int((~one & two).sum()),
        "both_wrong": int((~one & ~two).sum()),
        "second_corrects_first": _share(two[~one]),
        "first_corrects_second": _share(one[~two]),
        "fixed_of_first": _share(softmax[~one]),
        "fixed_of_second": _share(softmax[~two]),
        "broken_of_first": _share(~softmax[one]),
        "broken_of_second": _share(~softmax[two]),
    }


def _share(mask: Tensor) -> float:
    return mask.double().mean().item() if len(mask) else 0.0


def fuse(runs: Sequence[Run], *, limit: int | None = None, progress: bool = False) -> dict[str, Any]:
    """Combine the predictions of two runs.

    Parameters
    ----------
    runs : sequence of Run
        Two trained networks, from `load_runs`, measured on the same test images.
    limit : int, optional
        At most so many images, spread evenly over the test set.
    progress : bool
        Show a progress bar.

    Returns
    -------
    dict
        The names of the runs, the number of images, and what `fusion_metrics` returns.

    Raises
    ------
    UserError
        If there are not two runs, or their test images are not the same.
    """
    if len(runs) != 2:
        raise UserError(f"two runs can be fused, got {len(runs)}; name two, such as a hyperbolic and a Euclidean one")
    first, second = runs
    if len(first.test) != len(second.test):
        raise UserError(
            f"{first.name} has {len(first.test)} test images and {second.name} {len(second.test)}; runs can only be "
            "fused on the same images: name them with --dataset"
        )
    count = len(evenly(len(first.test), limit))
    with progress_bar(2 * count, "image", progress) as bar:
        seen = []
        for run in runs:
            announce(bar, run.name)
            seen.append(outputs(run, run.loader(limit=limit), bar))
    try:
        metrics = fusion_metrics(*seen)
    except ValueError:
        raise UserError(
            f"the test images of {first.name} and {second.name} have different labels; runs can only be fused on the "
            "same images: name them with --dataset"
        ) from None
    return {"run_first": first.name, "run_second": second.name, "images": count, **metrics}
