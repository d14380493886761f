"""Random points of the ball, one tolerance table, and the assertions every test goes through."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CURVATURES = (1e-6, 0.1, 1.0, 10.0)


TORCH = tuple(int(number) for number in torch.__version__.split(".")[:2])


@dataclass(frozen=True)
class Tolerance:
    value: float
    gradient: float


# float32: relative to entries larger than one
TOLERANCES = {torch.float64: Tolerance(1e-10, 1e-8), torch.float32: Tolerance(2e-5, 2e-4)}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unit(c: float) -> float:
    """The length that random points are measured in: the curvature radius, for an all but flat ball 1.5.

    With the true radius of 1000 at c = 1e-6, a tolerance of 1e-10 would ask for more digits than there are.
    """
    return 1 / math.sqrt(c) if c > 1e-3 else 1.5


def tangents(g: torch.Generator, *shape: int, c: float, dim: int = -1, distance: float = 4.0) -> Tensor:
    """Tangent vectors at the origin, to points in all directions, from near to `distance` units away."""
    direction = torch.randn(shape, generator=g, dtype=torch.float64)
    norm = direction.norm(dim=dim, keepdim=True)
    radius = torch.rand(norm.shape, generator=g, dtype=torch.float64) ** 1.5
    return direction / norm * (1e-3 + radius) * distance / 2 * unit(c)


def points(g: torch.Generator, *shape: int, c: float, dim: int = -1, distance: float = 4.0) -> Tensor:
    """Ball points from near the origin up to `distance` units away."""
    u = tangents(g, *shape, c=c, dim=dim, distance=distance)
    t = math.sqrt(c) * u.norm(dim=dim, keepdim=True)
    return torch.tanh(t) / t * u


def assert_close(actual: Tensor, expected: Tensor, tolerance: float, what: str = "value") -> None:
    """Equal shapes, entries equal up to `tolerance`: absolute in float64, relative above 1 in float32."""
    assert actual.shape == expected.shape, f"{what}: got shape {actual.shape}, expected {expected.shape}"
    relative = tolerance if actual.dtype == torch.float32 else 0.0
    torch.testing.assert_close(
        actual,
        expected.to(actual.dtype),
        atol=tolerance,
        rtol=relative,
        msg=lambda m: f"{what}: {m}",
    )


def value_and_gradients(
    function: Callable[..., Tensor], tensors: Sequence[Tensor], c: float, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, list[Tensor]]:
    """`function(*tensors, c=c)`, and all gradients, c included, for a random cotangent of length one."""
    inputs = [t.detach().to(dtype).requires_grad_() for t in tensors]
    curvature = torch.tensor(c, dtype=dtype, requires_grad=True)
    out = function(*inputs, c=curvature)
    cotangent = torch.randn(out.shape, generator=generator(1), dtype=torch.float64)
    cotangent = (cotangent / cotangent.norm()).to(dtype)
    gradients = torch.autograd.grad(out, [*inputs, curvature], cotangent, materialize_grads=True)
    return out.detach(), list(gradients)


def assert_equal_with_gradients(
    function: Callable[..., Tensor],
    reference: Callable[..., Tensor] | tuple[Tensor, list[Tensor]],
    tensors: Sequence[Tensor],
    c: float,
    dtype: torch.dtype = torch.float64,
) -> None:
    """Two functions of `(*tensors, c=c)` agree in value and in the gradient of every argument, c included.

    The reference, or what `value_and_gradients` gave for it, is in float64, whatever the dtype of the function. On an
    all but flat ball, the gradient compared is that for log(c): geoopt's logarithms know the one for c to 1e-16 c^-1.5
    only.
    """
    tolerance = TOLERANCES[dtype]
    out, gradients = value_and_gradients(function, tensors, c, dtype)
    if not isinstance(reference, tuple):
        reference = value_and_gradients(reference, tensors, c)
    expected, expected_gradients = reference[0], list(reference[1])
    assert out.dtype == dtype
    assert_close(out, expected, tolerance.value)
    if c < 1e-3:
        gradients[-1], expected_gradients[-1] = c * gradients[-1], c * expected_gradients[-1]
    names = [*(f"gradient of argument {i}" for i in range(len(tensors))), "gradient of c"]
    for name, gradient, other in zip(names, gradients, expected_gradients, strict=True):
        assert gradient.isfinite().all(), f"{name} is not finite"
        assert_close(gradient, other, tolerance.gradient, name)
