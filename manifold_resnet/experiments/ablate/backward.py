"""The hand-written backward passes next to automatic differentiation of the plain composition of geoopt calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from manifold_resnet._errors import UserError
from manifold_resnet.benchmark.measure import interleave, kept_bytes, largest_difference, summarise
from manifold_resnet.benchmark.naive import NaiveResNet
from manifold_resnet.benchmark.run import AGREEMENT
from manifold_resnet.experiments.ablate.grid import with_depth
from manifold_resnet.experiments.ablate.measure import first_images
from manifold_resnet.training import Config

__all__ = ["compare_backward"]


def compare_backward(
    settings: Mapping[str, Any],
    depths: Sequence[int] = (8, 14, 20),
    *,
    count: int = 8,
    rounds: int = 3,
    done: Sequence[Mapping[str, Any]] = (),
    tell: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """Measure time and memory of forward and backward pass against depth, on the same parameters and real images.

    Parameters
    ----------
    settings : mapping
        Of ``training.Config``: data set, model, curvature, device; other settings of the network are the defaults.
    depths : sequence of int
        Depths of the networks, 6n + 2.
    count : int
        Images in a batch. The plain composition keeps about a hundred times the memory of the Euclidean network.
    rounds : int
        Calls that count, of each contender, taking turns.
    done : sequence of dict
        Rows measured before, which are kept.
    tell : callable
        Takes a word on progress.

    Returns
    -------
    list of dict
        One for each depth and contender ("euclidean", "hand-written", "naive"): ``depth``, ``contender``,
        ``kept_bytes`` (for the backward pass, parameters aside), ``seconds`` and ``ratio`` (to the Euclidean network)
        with their quartiles, and ``difference``, the largest relative difference of loss and gradients of the two
        hyperbolic ones in float64.

    Raises
    ------
    UserError
        If the settings are wrong, or the two hyperbolic contenders disagree.

    Examples
    --------
    >>> from manifold_resnet.experiments.ablate import compare_backward
    >>> settings = {"dataset": "digits", "model": "hyperbolic-2-2-2-resnet-8"}
    >>> rows = compare_backward(settings, (8,), count=2, rounds=1)
    >>> kept = {row["contender"]: row["kept_bytes"] for row in rows}
    >>> kept["naive"] > 10 * kept["hand-written"]
    True
    """
    base = Config.from_dict(dict(settings)).resolved()
    if not base.model.startswith("hyperbolic"):
        raise UserError(f"{base.model} has no hand-written backward passes: --model must be a hyperbolic one")
    rows = [dict(row) for row in done if row["depth"] in depths]
    known = {row["depth"] for row in rows}
    for depth in depths:
        if depth in known:
            continue
        tell(f"depth {depth}")
        config = replace(base, model=with_depth(base.model, depth))
        facts, images, labels = first_images(config, count)
        rows += _compare(replace(config, images=facts), images, labels, rounds)
    return sorted(rows, key=lambda row: row["depth"])


def _compare(config: Config, images: Tensor, labels: Tensor, rounds: int) -> list[dict[str, Any]]:
    torch.manual_seed(config.seed)
    twin = replace(config, model="euclidean" + config.model.removeprefix("hyperbolic"))
    model = Config(model=config.model, c=config.c, bias=config.bias, images=config.images).create_model().to(images)
    contenders = {
        "euclidean": Config(model=twin.model, images=config.images).create_model().to(images),
        "hand-written": model,
        "naive": NaiveResNet(model),
    }
    depth = int(config.model.rpartition("-")[2])
    difference = _difference(model, images[:2], labels[:2])
    if not difference < AGREEMENT:
        raise UserError(
            f"at depth {depth}, loss and gradients of the hand-written passes and of the plain composition differ by "
            f"{difference:.1e}, relative; allowed are {AGREEMENT:g}. Please report this"
        )

    def loss(network: nn.Module) -> Tensor:
        return functional.cross_entropy(network(images), labels)

    def step(network: nn.Module) -> Callable[[], object]:
        return lambda: torch.autograd.grad(loss(network), [p for p in network.parameters() if p.requires_grad])

    kept = {name: kept_bytes(lambda network=network: loss(network), network) for name, network in contenders.items()}
    device = "cuda" if images.is_cuda else "cpu"
    times = summarise(interleave({name: step(made) for name, made in contenders.items()}, rounds, device), "euclidean")
    return [
        {"depth": depth, "contender": name, "kept_bytes": kept[name], **times[name], "difference": difference}
        for name in contenders
    ]


def _difference(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    model = model.double()

    def results(network: nn.Module) -> list[Tensor]:
        value = functional.cross_entropy(network(images.double()), labels)
        return [
            value.detach(), *torch.autograd.grad(value, [p for p in model.parameters() if p.requires_grad])
        ]  # fmt: skip

    try:
        return largest_difference(results(model), results(NaiveResNet(model)))
    finally:
        model.float()
