"""What every layer has: a ball, and a bound on the distance of its outputs from the origin."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import geoopt
import torch
from torch import Tensor, nn

from manifold_resnet.functional import DEFAULT_MAX_DISTANCE, convert
from manifold_resnet.functional._checks import Chart, check_chart, check_floating, check_max_distance
from manifold_resnet.functional.charts import squared_limit


def check_ball(ball: geoopt.PoincareBall) -> None:
    """Check that `ball` is a Poincaré ball of positive c (``geoopt.PoincareBallExact`` is one).

    Raises
    ------
    TypeError
        If it is another object.
    ValueError
        If its c is not positive and finite.
    """
    if not isinstance(ball, geoopt.PoincareBall):
        advice = "pass geoopt.PoincareBall(c=1.0)"
        if isinstance(ball, geoopt.Stereographic) and ball.k.numel() == 1 and ball.k.item() < 0:
            # not accepted as it is: training may carry its k through zero, where the ball ends
            exact = "Exact" if isinstance(ball, geoopt.StereographicExact) else ""
            advice = f"pass geoopt.PoincareBall{exact}(c={-ball.k.item():.6g}), whose points and distances are the same"
        raise TypeError(f"ball must be a geoopt.PoincareBall, got {type(ball).__name__}: {advice}")
    c = ball.c.item()
    if not (c > 0 and math.isfinite(c)):
        raise ValueError(
            f"the ball's c must be positive and finite (its sectional curvature is -c), got c={c}. In float32, geoopt "
            f"represents c between about 1e-7 and 88"
        )


class PoincareModule(nn.Module):
    """Base of the layers.

    Parameters
    ----------
    ball : geoopt.PoincareBall
        The manifold. Registered as a submodule, so ``.to()``, ``state_dict`` and ``deepcopy`` carry it; share one
        between layers.
    dim : int
        The dimension the manifold runs along.

    Raises
    ------
    TypeError, ValueError
        If `ball` is not a Poincaré ball of positive c.
    """

    def __init__(self, ball: geoopt.PoincareBall, dim: int) -> None:
        super().__init__()
        check_ball(ball)
        self.ball = ball
        self.dim = dim

    @property
    def c(self) -> Tensor:
        """The ball's c (0-d): its sectional curvature is ``-c``."""
        return self.ball.c

    def _check_points(self, x: Tensor, chart: Chart) -> None:
        """Raise a ValueError if points of the ball chart are off the ball. On CPU only: GPUs would have to wait.

        A TypeError if they are no points at all.
        """
        check_chart(chart, "in_chart")
        check_floating(x)
        if chart != "ball" or x.device.type != "cpu" or torch.compiler.is_compiling() or x.numel() == 0:
            return
        with torch.no_grad():
            square = (x * x).sum(self.dim).max()
            try:
                largest, c = square.item() ** 0.5, self.c.item()
            except RuntimeError:  # inside torch.func.vmap there are no values to look at
                return
        if largest * c**0.5 > 1 + 1e-4:  # rounding may put points on the boundary
            raise ValueError(
                f"x has points off the ball: the largest norm is {largest:.4g}, the ball of c={c:.4g} has radius "
                f"{c**-0.5:.4g}. Map Euclidean features onto it with ExpMap0, or project points with ball.projx(x)"
            )

    def extra_repr(self) -> str:
        return f"c={self.c.item():.4g}, dim={self.dim}"

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, metadata: dict[str, Any], *rest: Any
    ) -> None:
        if metadata.get("assign_to_params_buffers"):
            # torch would replace manifold parameters by plain ones
            for name, p in self._parameters.items():
                value = state_dict.get(prefix + name)
                if isinstance(p, geoopt.ManifoldParameter) and value is not None:
                    state_dict[prefix + name] = geoopt.ManifoldParameter(
                        value.detach(), manifold=p.manifold, requires_grad=p.requires_grad
                    )
        super()._load_from_state_dict(state_dict, prefix, metadata, *rest)


class BoundedModule(PoincareModule):
    """Base of the layers that produce new points and bound their distance from the origin.

    Parameters
    ----------
    ball : geoopt.PoincareBall
        The manifold.
    dim : int
        The dimension the manifold runs along.
    max_distance : float, optional
        Largest geodesic distance of the outputs from the origin; farther points are moved there along the geodesic.
        None: ``DEFAULT_MAX_DISTANCE / sqrt(c)``; ``math.inf``: as far as the number format reaches (in the ball
        chart, as far as geoopt keeps points).
    """

    def __init__(self, ball: geoopt.PoincareBall, dim: int, max_distance: float | None) -> None:
        super().__init__(ball, dim)
        check_max_distance(max_distance)
        self.max_distance = max_distance
        self._counts: list[tuple[Tensor, int]] | None = None  # filled while a ClippingMonitor watches

    def _limit(self, c: Tensor, like: Tensor) -> Tensor:
        """The bound as a squared norm in the hyperboloid chart, 0-d."""
        return squared_limit(c, like, self.max_distance, summands=2)

    def _emitted(self, h: Tensor, chart: Chart, relu: bool = False) -> Tensor:
        """Bounded points in the hyperboloid chart, counted, in another chart."""
        check_chart(chart, "out_chart")
        if self._counts is not None:
            self._count(h)
        if chart == "hyperboloid" and not relu:
            return h
        return convert(h, "hyperboloid", chart, c=self.c, dim=self.dim, relu=relu)

    def _emitted_from_tangent(self, u: Tensor, chart: Chart, dim: int) -> Tensor:
        """Tangent vectors at the origin as bounded points, counted, in a chart."""
        check_chart(chart, "out_chart")
        if self._counts is not None:
            h = convert(u, "tangent", "hyperboloid", c=self.c, dim=dim, max_distance=self.max_distance)
            self._count(h, dim)
        return convert(u, "tangent", chart, c=self.c, dim=dim, max_distance=self.max_distance)

    @torch.no_grad()
    def _count(self, h: Tensor, dim: int | None = None) -> None:
        if self.max_distance is None:
            radius = h.new_full((), math.sinh(DEFAULT_MAX_DISTANCE))
        else:
            radius = torch.sinh(self.c.to(h.dtype).sqrt() * self.max_distance)
        norm = torch.linalg.vector_norm(h, dim=self.dim if dim is None else dim)
        if self._counts is not None:
            self._counts.append(((norm >= radius * (1 - 1e-5)).sum(), norm.numel()))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_counts": None}

    def extra_repr(self) -> str:
        own = super().extra_repr()
        return own if self.max_distance is None else f"{own}, max_distance={self.max_distance}"


class ClippingMonitor:
    """Counts the points that layers put on their bound `max_distance`. See `monitor_clipping`.

    Examples
    --------
    >>> import geoopt
    >>> import torch
    >>> import manifold_resnet as mr
    >>> ball = geoopt.PoincareBall(c=1.0)
    >>> layer = mr.nn.ExpMap0(ball=ball, max_distance=2.0)
    >>> with mr.nn.monitor_clipping(layer) as monitor:
    ...     _ = layer(torch.tensor([[0.5], [3.0]]))  # to distances 1 and 6
    >>> monitor.share()
    0.5
    """

    def __init__(self, layers: dict[str, BoundedModule]) -> None:
        self._layers = layers
        self._counts: dict[str, list[tuple[Tensor, int]]] = {name: [] for name in layers}

    def shares(self) -> dict[str, float]:
        """Share of clipped points (0 to 1) per layer that has run, by the layer's name. Waits for the GPU."""
        return {
            name: sum(int(n) for n, _ in counts) / max(sum(total for _, total in counts), 1)
            for name, counts in self._counts.items()
            if counts
        }

    def share(self) -> float:
        """Share of clipped points (0 to 1) over all layers. Waits for the GPU."""
        counts = [pair for layer in self._counts.values() for pair in layer]
        return sum(int(n) for n, _ in counts) / max(sum(total for _, total in counts), 1)


@contextmanager
def monitor_clipping(module: nn.Module) -> Iterator[ClippingMonitor]:
    """Count, while the context is open, what share of points sits on the bound `max_distance`.

    Parameters
    ----------
    module : nn.Module
        A layer or a model; all Poincaré layers in it are watched. Costs nothing once the context is closed.

    Yields
    ------
    ClippingMonitor
        Ask it for `share()` or `shares()`.

    Examples
    --------
    >>> import torch, manifold_resnet as mr
    >>> model = mr.models.create_model("hyperbolic-4-8-8-resnet-8")
    >>> with mr.nn.monitor_clipping(model) as monitor:
    ...     _ = model(torch.randn(2, 3, 16, 16))
    >>> 0 <= monitor.share() <= 1
    True
    """
    layers = {name: m for name, m in module.named_modules() if isinstance(m, BoundedModule)}
    monitor = ClippingMonitor(layers)
    before = {name: layer._counts for name, layer in layers.items()}
    for name, layer in layers.items():
        layer._counts = monitor._counts[name]
    try:
        yield monitor
    finally:
        for name, layer in layers.items():
            layer._counts = before[name]
