"""What is measured without training: distances through new networks, and the time of a training step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from manifold_resnet.benchmark.measure import interleave, summarise
from manifold_resnet.experiments.ablate.grid import DEPTH, Ablation, Variant
from manifold_resnet.experiments.runs import evenly
from manifold_resnet.optim import RiemannianAdam
from manifold_resnet.plotting.norms import distances_through_blocks
from manifold_resnet.training import Config

__all__ = ["first_images", "norms_at_start", "seconds_per_step"]


def first_images(config: Config, count: int) -> tuple[dict[str, Any], Tensor, Tensor]:
    """Facts about a data set, and normalised images with labels, spread evenly over its test set, on the device."""
    data = config.open_data()
    data.setup()
    chosen = [data.test[int(index)] for index in evenly(len(data.test), count)]
    device = torch.device("cuda" if config.accelerator() == "gpu" else "cpu")
    images, labels = zip(*chosen, strict=True)
    return asdict(data.facts), torch.stack(images).to(device), torch.tensor(labels, device=device)


def norms_at_start(
    ablation: Ablation, depths: Iterable[int], *, count: int = 64, tell: Callable[[str], None] = lambda text: None
) -> list[dict[str, Any]]:
    """Distances of pixels from the origin after each block of new networks, on images of the test set.

    Parameters
    ----------
    ablation : Ablation
        Whose variants, other than in depth, are measured, with the first seed.
    depths : iterable of int
        Depths of the networks.
    count : int
        Number of images, a batch: networks are in training mode.
    tell : callable
        Takes a word on progress.

    Returns
    -------
    list of dict
        One for each variant and depth: ``variant``, ``depth``, ``first``, ``last``, ``ratio`` (last to first),
        ``spread`` (largest to smallest) and ``distances``, mean geodesic distances.

    Raises
    ------
    UserError
        If the data set is missing.

    Examples
    --------
    >>> ablation = Ablation("init", {"dataset": "digits"}, {"init": ("identity", "normal")}, seeds=(0,))
    >>> rows = norms_at_start(ablation, depths=(8,))
    >>> [(row["variant"], row["depth"], len(row["distances"])) for row in rows]
    [('identity', 8, 3), ('normal', 8, 3)]
    """
    rows: list[dict[str, Any]] = []
    images = None
    for plain in ablation.without_depth:
        for depth in depths:
            variant = Variant({**plain.values, DEPTH: depth}, plain.seed)
            tell(f"distances through {variant.label}")
            config = ablation.config(variant)
            if images is None:
                facts, images, _ = first_images(config, count)
            torch.manual_seed(config.seed)
            model = replace(config, images=facts).create_model().to(images)
            distances = distances_through_blocks(model, images)
            row = {"variant": plain.label, "depth": depth, "first": distances[0], "last": distances[-1]}
            row |= {"ratio": distances[-1] / distances[0], "spread": max(distances) / min(distances)}
            rows.append({**row, "distances": distances})
    return rows


def seconds_per_step(
    ablation: Ablation, *, rounds: int = 7, tell: Callable[[str], None] = lambda text: None
) -> list[dict[str, Any]]:
    """Seconds of a training step of each variant, all taking turns: what slows the machine slows all of them.

    Parameters
    ----------
    ablation : Ablation
        Whose variants are measured, on a batch of images of the test set, with Riemannian Adam.
    rounds : int
        Steps that count, of each.
    tell : callable
        Takes a word on progress.

    Returns
    -------
    list of dict
        One for each variant: ``variant``, ``seconds``, ``ratio`` (to the first variant's step of the same round), and
        their quartiles ``seconds_low``, ``seconds_high``, ``ratio_low``, ``ratio_high``.

    Raises
    ------
    UserError
        If the data set is missing.

    Examples
    --------
    >>> settings = {"dataset": "digits", "model": "hyperbolic-2-2-2-resnet-8", "batch_size": 4}
    >>> ablation = Ablation("norm", settings, {"mean": ("midpoint", "frechet")}, seeds=(0,))
    >>> [row["variant"] for row in seconds_per_step(ablation, rounds=1)]
    ['midpoint', 'frechet']
    """
    steps: dict[str, Callable[[], object]] = {}
    batch = None
    for cell in ablation.cells:
        if cell.label in steps:
            continue
        config = ablation.config(cell)
        if batch is None:
            facts, *batch = first_images(config, config.batch_size)
        torch.manual_seed(config.seed)
        model = replace(config, images=facts).create_model().to(batch[0])
        steps[cell.label] = _step(model, *batch)
    tell("seconds per step")
    device = "cuda" if batch[0].is_cuda else "cpu"
    measured = summarise(interleave(steps, rounds, device), next(iter(steps)))
    return [{"variant": label, **values} for label, values in measured.items()]


def _step(model: torch.nn.Module, images: Tensor, labels: Tensor) -> Callable[[], object]:
    optimizer = RiemannianAdam(model.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step
