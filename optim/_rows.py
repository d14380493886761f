"""Points of one Poincaré ball, from many parameters, as the rows of one matrix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import geoopt
import torch
from torch import Tensor

from manifold_resnet.functional import _even
from manifold_resnet.functional.ball import _expmap, _transp

__all__ = ["Rows"]

# more elements than this, of one parameter on a CPU, are stepped in parts that stay in the cache
LARGE = 1 << 18
# what geoopt's projection leaves to the boundary, relative; half precision needs room for rounding
_MARGIN = {torch.float32: 4e-3, torch.float64: 1e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}


class Rows:
    """Parameters with rows of the same length on the same ball, and their gradients.

    Parameters
    ----------
    ball : geoopt.PoincareBall
        The manifold; a ``PoincareBallExact`` steps along geodesics, as geoopt's does.
    points, grads : sequence of Tensor
        Parameters ``(..., n)`` and Euclidean gradients of the same shapes, of one dtype, on one device.
    decay_factor : float
        What coupled weight decay is to be multiplied by.

    Attributes
    ----------
    factor : float or Tensor
        What the gradients are to be multiplied by.
    dtype : torch.dtype
        What is computed in.
    x, grad, c, half : Tensor
        After `load`. ``[R, n]``, copies in at least float32, `x` kept on the ball, which may have shrunk since the last
        step; 0-d, the curvature of the ball is ``-c``; ``[R, 1]``, 1/lambda_x.
    """

    def __init__(
        self, ball: geoopt.PoincareBall, points: Sequence[Tensor], grads: Sequence[Tensor], decay_factor: float = 1.0
    ) -> None:
        self.ball = ball
        self.points = points
        self.decay_factor = decay_factor
        self.length = points[0].shape[-1]
        self.exact = isinstance(ball, geoopt.PoincareBallExact)
        dtype = points[0].dtype
        self.dtype = torch.promote_types(dtype, torch.float32)
        self.margin = _MARGIN[dtype]
        self._sizes = [point.numel() // self.length for point in points]
        self.grads = grads
        self.factor: float | Tensor = 1.0

    def load(self) -> None:
        """Read points, curvature and gradients."""
        self.grad = self.join(self.grads) * self.factor
        self.c = self.ball.c.detach().to(dtype=self.dtype, device=self.points[0].device)
        self.x = self.project(self.join(self.points))
        self.half = self._half(self.x)

    def parts(self, *others: Sequence[Tensor]) -> Iterator[tuple[Any, ...]]:
        """Loaded rows, all or some of one large parameter; with each, that part of others shaped as the parameters."""
        columns = self.points, self.grads, *others
        tensors = [t.as_subclass(Tensor) for column in columns for t in column]
        if len(self.points) > 1 or not is_large(self.points[0]) or not all(t.is_contiguous() for t in tensors):
            self.load()
            yield self, *others
            return
        size = max(LARGE // self.length, 1)
        for point, grad, *rest in zip(*[t.view(-1, self.length).split(size) for t in tensors], strict=True):
            part = Rows(self.ball, [point], [grad], self.decay_factor)
            part.factor = self.factor
            part.load()
            yield part, *[[t] for t in rest]

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        """One matrix ``[R, n]`` of tensors shaped as the parameters."""
        return torch.cat([t.reshape(-1, self.length) for t in tensors]).to(self.dtype)

    def split(self, rows: Tensor) -> list[Tensor]:
        """The rows of a matrix in the shapes of the parameters."""
        return [p.view(point.shape) for p, point in zip(rows.split(self._sizes), self.points, strict=True)]

    def store(self, rows: Tensor, tensors: Sequence[Tensor]) -> None:
        """Write the rows of a matrix back into tensors shaped as the parameters."""
        torch._foreach_copy_(list(tensors), self.split(rows))

    def column(self, numbers: Sequence[float | Tensor]) -> float | Tensor:
        """One number per parameter as one that broadcasts over the rows."""
        first = numbers[0]
        if not isinstance(first, Tensor):
            if all(number == first for number in numbers):
                return first
            numbers = [self.x.new_full((), number) for number in numbers]
        pieces = [n.to(self.x).expand(size, 1) for n, size in zip(numbers, self._sizes, strict=True)]  # type: ignore[union-attr]
        return torch.cat(pieces)

    def _half(self, x: Tensor) -> Tensor:
        return 0.5 * (1 - self.c * (x * x).sum(1, keepdim=True))

    def project(self, x: Tensor) -> Tensor:
        """Move points that are on or off the boundary just inside it (``PoincareBall.projx``)."""
        reach = (1 - self.margin) * self.c.rsqrt()
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        return x * (reach / norm).clamp(max=1)  # the origin: reach / 0 is infinite

    def riemannian(self, grad: Tensor) -> Tensor:
        """Riemannian gradient, a tangent vector in ball coordinates, of a Euclidean one."""
        return self.half.square() * grad

    def square(self, v: Tensor) -> Tensor:
        """Squared Riemannian norms ``[R, 1]`` of tangent vectors."""
        return (v * v).sum(1, keepdim=True) / self.half.square()

    def shrink(self, share: float | Tensor, *tangents: Tensor) -> tuple[Tensor, ...]:
        """Move the points along the geodesics to the origin, by a share of their distance; carry tangent vectors."""
        keep = 1 - share
        square = self.c * (self.x * self.x).sum(1, keepdim=True)
        log = _even.artanhc(square)
        self.x = self.x * (keep * log * _even.tanhc(keep * keep * square * log * log))
        before, self.half = self.half, self._half(self.x)
        return tuple(v * (self.half / before) for v in tangents)

    def move(self, v: Tensor, *tangents: Tensor) -> tuple[Tensor, ...]:
        """Move the points by tangent vectors; transport others along."""
        x = self.x
        self.x = self.project(_expmap(x, v, self.c, 1) if self.exact else x + v)
        self.half = self._half(self.x)
        return tuple(_transp(x, self.x, w, self.c, 1) for w in tangents)

    def save(self) -> None:
        """Write the points into their parameters."""
        self.store(self.x, self.points)


def is_large(point: Tensor) -> bool:
    """Whether a parameter had better be stepped in parts."""
    return point.is_cpu and point.numel() > LARGE


def keeps_ball(point: Any) -> bool:
    """Whether a parameter's points can be stepped as rows: on a Poincaré ball along the last dimension."""
    return type(getattr(point, "manifold", None)) in (geoopt.PoincareBall, geoopt.PoincareBallExact) and (
        point.dtype in _MARGIN
    )
