"""Means of points on the ball, whose optimum is known in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from manifold_resnet.optim.experiments.toys import Problem, Toy
from torch import Tensor

from manifold_resnet.functional import dist, expmap0, mobius_add

__all__ = ["FrechetMean"]

CLOSE = 1e-6


@dataclass(frozen=True)
class FrechetMean(Toy):
    r"""Find points that minimise the sum of squared geodesic distances to points around them.

    Pairs :math:`\pm v` have the origin as their mean, by symmetry and because the sum is strictly convex along
    geodesics. Translations :math:`x \mapsto m \oplus x` are isometries: the translated points have the mean `m`.

    Parameters
    ----------
    means : int
        Points to find at once, one row of the parameter each; their distances from the origin spread evenly from 0 to
        `radius`, because optimizers feel the ball's metric there.
    pairs : int
        Of points, for each mean.
    spread : float
        Typical distance of a point from its mean, in units of the curvature radius, as `radius`.
    radius : float
        Largest distance of a mean from the origin.
    """

    steps: int = 300
    every: int = 3
    schedule: str = "cosine"
    dim: int = 8
    means: int = 8
    pairs: int = 16
    spread: float = 1.5
    radius: float = 4.0

    metric: ClassVar[str] = "distance"
    label: ClassVar[str] = "distance to the optimum"
    higher: ClassVar[bool] = False
    log: ClassVar[bool] = True
    also: ClassVar[tuple[str, ...]] = ("steps_to_1e-6",)
    kind: ClassVar[str] = "frechet-mean"

    def points(self, seed: int) -> tuple[Tensor, Tensor]:
        """Points ``(means, 2 * pairs, dim)`` and their means ``(means, dim)``."""
        random = torch.Generator().manual_seed(seed)

        def directions(*shape: int) -> Tensor:
            return torch.nn.functional.normalize(
                torch.randn(*shape, self.dim, generator=random, dtype=torch.float64), dim=-1
            )

        half = 0.5 / self.c**0.5  # expmap0 doubles lengths
        length = torch.rand(self.means, self.pairs, 1, generator=random, dtype=torch.float64) + 0.5
        v = half * self.spread * length * directions(self.means, self.pairs)
        around = expmap0(torch.cat([v, -v], 1), c=self.c)
        radii = torch.linspace(0, self.radius, self.means, dtype=torch.float64)[:, None]
        means = expmap0(half * radii * directions(self.means), c=self.c)
        return mobius_add(means[:, None], around, c=self.c), means

    def problem(self, seed: int) -> Problem:
        """Start at a point of each cloud; the loss is half the mean squared distance, of curvature 1 and more."""
        points, means = self.points(seed)

        def loss(x: Tensor) -> Tensor:
            return dist(x[:, None], points, c=self.c).square().mean(1).sum() * (self.c / 2)

        def measure(x: Tensor) -> dict[str, float]:
            return {"distance": dist(x, means, c=self.c).mean().item()}

        return Problem(points[:, 0].clone(), loss, measure)

    def final(self, curve: list[dict[str, float | None]]) -> dict[str, float | None]:
        """Distance at the end, and the step from which on it is below 1e-6."""
        reached = None
        for row in reversed(curve):
            if not row["distance"] < CLOSE:
                break
            reached = row["step"]
        return {
            "distance": curve[-1]["distance"],
            "best_distance": min(row["distance"] for row in curve),
            "steps_to_1e-6": reached,
            "train_loss": curve[-1]["train_loss"],
        }
