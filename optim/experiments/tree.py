"""A tree embedded in the ball: Python's built-in exceptions and who inherits from whom."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from manifold_resnet.optim.experiments.toys import Problem, Toy
from torch import Tensor

from manifold_resnet.functional import dist, expmap0

__all__ = ["TreeEmbedding", "distortion", "exceptions", "mean_average_precision", "tree_distances"]

# came after Python 3.10: left out, so that every version has the same tree
_NEWER = {"BaseExceptionGroup", "ExceptionGroup", "PythonFinalizationError", "_IncompleteInputError"}


@lru_cache(maxsize=1)
def exceptions() -> tuple[tuple[str, ...], tuple[tuple[int, int], ...]]:
    """Names of the built-in exceptions, and the edges (child, parent) among them."""
    names, edges = [], []

    def visit(cls: type, parent: int | None) -> None:
        index = len(names)
        names.append(cls.__name__)
        if parent is not None:
            edges.append((index, parent))
        for child in sorted(cls.__subclasses__(), key=lambda child: child.__name__):
            known = getattr(builtins, child.__name__, None) is child
            if known and child.__name__ not in _NEWER and child.__base__ is cls:
                visit(child, index)

    visit(BaseException, None)
    return tuple(names), tuple(edges)


def tree_distances(nodes: int, edges: Sequence[tuple[int, int]]) -> Tensor:
    """Edges between any two nodes, ``(nodes, nodes)``."""
    d = torch.full((nodes, nodes), float("inf"), dtype=torch.float64)
    d.fill_diagonal_(0)
    for a, b in edges:
        d[a, b] = d[b, a] = 1
    for k in range(nodes):
        d = torch.minimum(d, d[:, k, None] + d[k])
    return d


def mean_average_precision(embedded: Tensor, tree: Tensor) -> float:
    """How well neighbours in the tree are the nearest in the embedding: 1 if no other node comes between.

    Parameters
    ----------
    embedded, tree : Tensor
        Distances ``(nodes, nodes)``.
    """
    apart = embedded.clone().fill_diagonal_(float("inf"))
    neighbours = tree == 1
    within = apart[:, None, :] <= apart[:, :, None]  # [u, v, w]: is w at least as close to u as v
    precision = (within & neighbours[:, None]).sum(-1) / within.sum(-1).double()
    return ((precision * neighbours).sum(1) / neighbours.sum(1)).mean().item()


def distortion(embedded: Tensor, tree: Tensor) -> float:
    """Mean over pairs of ``|s d - t| / t``, embedded distance d, tree distance t, at the scale s that is best."""
    a, b = torch.triu_indices(*tree.shape, offset=1)
    ratio = embedded[a, b] / tree[a, b]
    if not bool(ratio.sum() > 0):
        return 1.0
    # sum |s r - 1| = sum r |s - 1/r|: the best s is the median of 1/r weighted by r
    ratio, _ = ratio.sort(descending=True)
    total = ratio.cumsum(0)
    s = 1 / ratio[torch.searchsorted(total, total[-1] / 2)]
    return (s * ratio - 1).abs().mean().item()


@dataclass(frozen=True)
class TreeEmbedding(Toy):
    """Embed the tree of Python's built-in exceptions as Nickel and Kiela (2017) do.

    For each edge (u, v), both ways, the loss is the cross-entropy of v among v and nodes that are no neighbours of u,
    by the softmax of minus the distances to u.

    Parameters
    ----------
    negatives : int, optional
        Nodes drawn at every step for each edge; ``None`` takes all.
    spread : float
        Distance from the origin at the start, at most.
    """

    steps: int = 300
    every: int = 10
    schedule: str = "constant"
    dim: int = 2
    negatives: int | None = None
    spread: float = 0.02

    metric: ClassVar[str] = "mean_average_precision"
    label: ClassVar[str] = "mean average precision"
    higher: ClassVar[bool] = True
    log: ClassVar[bool] = False
    also: ClassVar[tuple[str, ...]] = ("distortion",)
    kind: ClassVar[str] = "tree-embedding"

    def problem(self, seed: int) -> Problem:
        """Start near the origin, at random."""
        names, edges = exceptions()
        n = len(names)
        tree = tree_distances(n, edges)
        random = torch.Generator().manual_seed(seed)
        u = torch.rand(n, self.dim, generator=random, dtype=torch.float64) * 2 - 1
        start = expmap0(u * (0.5 * self.spread / (self.dim * self.c) ** 0.5), c=self.c)
        child, parent = torch.tensor(edges).T
        source, target = torch.cat([child, parent]), torch.cat([parent, child])
        strangers = tree > 1
        allowed = strangers[source]
        upper = torch.triu_indices(n, n, offset=1)

        def distances(x: Tensor) -> Tensor:
            a, b = upper
            d = dist(x[a], x[b], c=self.c)
            table = d.new_zeros(n, n).index_put((a, b), d)
            return table + table.T

        def loss(x: Tensor) -> Tensor:
            logits = -distances(x)[source]
            counted = allowed
            if self.negatives is not None and self.negatives < n:
                drawn = torch.multinomial(allowed.double(), self.negatives, replacement=True, generator=random)
                counted = torch.zeros_like(allowed).scatter(1, drawn, True)
            wanted = logits.gather(1, target[:, None])
            others = logits.masked_fill(~counted, -torch.inf)
            return (torch.cat([wanted, others], 1).logsumexp(1) - wanted[:, 0]).mean()

        def measure(x: Tensor) -> dict[str, float]:
            d = distances(x)
            return {"mean_average_precision": mean_average_precision(d, tree), "distortion": distortion(d, tree)}

        return Problem(start, loss, measure)

    def final(self, curve: list[dict[str, float | None]]) -> dict[str, float | None]:
        """The last measurements, and the best precision on the way."""
        last = curve[-1]
        return {
            "mean_average_precision": last["mean_average_precision"],
            "best_mean_average_precision": max(row["mean_average_precision"] for row in curve),
            "distortion": last["distortion"],
            "train_loss": last["train_loss"],
        }
