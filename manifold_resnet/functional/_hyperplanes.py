"""From inner products with hyperplane normals to distances and points: what linear layers and convolutions share.

The output of these layers is determined by the inner products and the squared norms of their inputs, see
`manifold_resnet.functional.linear`. For the backward pass the result and a few scalars per pixel are kept: the inner
products follow from the result by one logarithm and one exponential per element, which is cheaper than memory.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from manifold_resnet.functional import _even
from manifold_resnet.functional._autograd import differentiable
from manifold_resnet.functional._backend import fused, kernel, native
from manifold_resnet.functional._eager import hyperplanes as _eager
from manifold_resnet.functional._eager import parameters
from manifold_resnet.functional.charts import sinh_factor, sinh_factor_derivatives, sinh_limit


def _directions(weight: Tensor, c: Tensor, scale: float | None, factor: float) -> tuple[Tensor, Tensor]:
    """Unit normals times `factor`, and their lengths [K]; `scale` is None for normals themselves."""
    library = fused(parameters, weight, c, parameter=True)
    if library is not None:
        return library.directions(weight, c, scale, factor)
    radius = torch.linalg.vector_norm(weight.flatten(1), dim=1)
    directions = weight * (factor * _inverse(radius)).view([-1] + [1] * (weight.ndim - 1))
    if scale is None:
        return directions, radius
    return directions, scale * radius * _even.artanhc(_inside(c * radius * radius))


def _inverse(radius: Tensor) -> Tensor:
    return 1 / radius.clamp_min(torch.finfo(radius.dtype).tiny ** 0.5)


def _inside(x: Tensor) -> Tensor:
    return x.clamp(max=(1 - 2 * torch.finfo(x.dtype).eps) ** 2)


def _directions_backward(
    grads: tuple[Tensor | None, Tensor | None],
    needs: tuple[bool, ...],
    weight: Tensor,
    c: Tensor,
    scale: float | None,
    factor: float,
) -> tuple[Tensor | None, Tensor | None]:
    library = fused(parameters, weight, *[g for g in grads if g is not None], c, parameter=True)
    if library is not None and not (needs[1] and library is parameters):
        grad_weight, grad_c = library.directions_backward(*grads, weight, c, scale, factor)
        return grad_weight, grad_c if needs[1] and scale is not None else None
    rows = weight.flatten(1)
    radius = torch.linalg.vector_norm(rows, dim=1)
    inverse = _inverse(radius).unsqueeze(1)
    unit = rows * inverse
    grad_rows, grad_c = torch.zeros_like(rows), None
    if grads[0] is not None:
        grad = factor * grads[0].reshape(rows.shape)
        grad_rows = inverse * torch.addcmul(grad, (grad * unit).sum(1, keepdim=True), unit, value=-1)
    if grads[1] is not None:
        slope = grads[1]
        if scale is not None:
            x = c * radius * radius
            slope = scale * slope / (1 - _inside(x))
            if needs[1]:
                grad_c = (grads[1] * scale * radius**3 * _even.artanhc_derivative(_inside(x))).sum()
        grad_rows = torch.addcmul(grad_rows, slope.unsqueeze(1), unit)
    return grad_rows.view_as(weight), grad_c


_directions_op = differentiable(_directions, _directions_backward, tensors=2)


def hyperplane_normals(
    weight: Tensor, c: Tensor, scale: float | None = None, factor: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Directions (times `factor`, same shape as `weight`) and lengths [K] of hyperplane normals.

    Parameters
    ----------
    weight : Tensor
        ``[K, ...]``: normals, tangent vectors at the origin; or, if there is a `scale`, points of the ball, the normals
        being `scale` times their logarithms. A zero normal has direction zero.
    c : Tensor
        0-d.
    """
    return _directions_op(weight, c, scale, factor)


def _channels(v: Tensor) -> Tensor:
    return v.view(1, -1, 1)


def _offset_terms(offset: Tensor | None, norm: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Hyperbolic cosine and sine [1, K, 1] of 2 sqrt(c) r."""
    if offset is None:
        return _channels(torch.ones_like(norm)), _channels(torch.zeros_like(norm))
    # a hyperplane beyond sinh's range is out of every point's reach, and its cosh would overflow
    limit = 0.5 * sinh_limit(norm.dtype)
    r = _channels(2 * c.sqrt() * offset).clamp(-limit, limit)
    return torch.cosh(r), _even.sinh(r)


@kernel
def _slopes(square: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """sqrt(c) sinh(2t)/t and cosh(2t), with t^2 = c |v|^2; of vectors that are no longer than sinh allows."""
    slope, _ = sinh_factor(square, c)
    return slope, torch.sqrt(1 + slope * slope * square)


@kernel
def _distances(inner: Tensor, slope: Tensor, cosh: Tensor, two_norm: Tensor, cosh_r: Tensor, sinh_r: Tensor) -> Tensor:
    """sqrt(c) v, the scaled distances to the hyperplanes."""
    q = torch.addcmul(inner.to(slope.dtype) * (slope * cosh_r), cosh, sinh_r, value=-1)
    return two_norm * _even.asinh(q)


@kernel(materialise=True)
def _points(
    inner: Tensor,
    slope: Tensor,
    cosh: Tensor,
    two_norm: Tensor,
    cosh_r: Tensor,
    sinh_r: Tensor,
    limit: Tensor,
) -> tuple[Tensor, Tensor]:
    """Points h = sinh(sqrt(c) v) with a bound, and by how much they exceeded it (at least 1)."""
    y = _distances.body(inner, slope, cosh, two_norm, cosh_r, sinh_r)
    reach = sinh_limit(y.dtype)
    h = _even.sinh(y.clamp(-reach, reach))
    excess = ((h * h).sum(1, keepdim=True) / limit).clamp(min=1).sqrt()
    return h * (1 / excess), excess


@kernel
def _unbounding(grad: Tensor, h: Tensor, excess: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients of grad and h in the gradient for the points before the bound."""
    along = (grad * h).sum(1, keepdim=True)
    shrink = 1 / excess
    return shrink, -_even.above(excess, 1) * along * shrink / limit


@kernel
def _distances_backward(
    grad_y: Tensor, y: Tensor, slope: Tensor, two_norm: Tensor, inverse_norm: Tensor, cosh_r: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient for the inner products; q times that for q; two_norm times that for two_norm."""
    overflow = 80.0 if y.dtype == torch.float32 else 700.0
    asinh_q = (y * inverse_norm).clamp(-overflow, overflow)
    q, cosh_q = _even.sinh_cosh(asinh_q)
    grad_q = grad_y * two_norm / cosh_q
    return grad_q * (slope * cosh_r), grad_q * q, grad_y * asinh_q


@kernel
def _points_backward(
    grad: Tensor,
    h: Tensor,
    by_grad: Tensor,
    by_h: Tensor,
    excess: Tensor,
    slope: Tensor,
    two_norm: Tensor,
    inverse_norm: Tensor,
    cosh_r: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `_distances_backward`, for points with a bound."""
    raw = h * excess
    root = torch.sqrt(1 + raw * raw)
    reach = math.sinh(sinh_limit(h.dtype)) * (1 - 1e-5)
    grad_y = torch.ops.aten.hardtanh_backward.default(torch.addcmul(by_grad * grad, by_h, h) * root, raw, -reach, reach)
    return _distances_backward.body(grad_y, _even.asinh(raw), slope, two_norm, inverse_norm, cosh_r)


@kernel
def _backward_sums(
    grad_inner: Tensor, along_q: Tensor, along_norm: Tensor, slope: Tensor, cosh: Tensor, tanh_r: Tensor
) -> tuple[Tensor, ...]:
    """Sums over the pixels [B, K] that make the gradients for norms and offsets, and over hyperplanes [B, 1, N]."""
    return (
        along_norm.sum(2),
        along_q.sum(2),
        (grad_inner * (cosh / slope)).sum(2),
        along_q.sum(1, keepdim=True),
        (grad_inner * tanh_r).sum(1, keepdim=True),
    )


@kernel
def _square_backward(
    along_q: Tensor, along_sinh: Tensor, slope: Tensor, cosh: Tensor, square: Tensor, c: Tensor, by_c: bool
) -> tuple[Tensor, Tensor]:
    """Gradient for the squared norms; and c times that for c, as far as it does not pass through the offsets."""
    grad_cosh = -along_sinh / slope
    grad_slope = (along_q - cosh * grad_cosh) / slope
    end = (0.5 * sinh_limit(square.dtype)) ** 2 / c
    slope_s, slope_c = sinh_factor_derivatives(square, end, slope, c, by_c)
    grad_double = (1 - _even.above(square, end)) * grad_cosh * slope  # that for 2 |v| sqrt(c), over |v|
    grad_square = grad_slope * slope_s + c.sqrt() * grad_double
    return grad_square, grad_square if slope_c is None else c * grad_slope * slope_c + c.sqrt() * square * grad_double


def _library(
    square: Tensor, norm: Tensor, offset: Tensor | None, c: Tensor, limit: Tensor | None, *others: Tensor
) -> Any:
    if limit is None:  # one number per point and hyperplane: always worth it
        return native(square, norm, offset, c, *others, parameter=True)
    return fused(_eager, square, norm, offset, c, limit, *others)


def _hyperplanes(
    inner: Tensor,
    square: Tensor,
    norm: Tensor,
    offset: Tensor | None,
    c: Tensor,
    limit: Tensor | None,
    is_input: bool = True,
) -> tuple[Tensor, ...]:
    """Points and excess, or, without `limit`, distances and a one; slopes. `is_input`: `inner` is one of the node's."""
    library = _library(square, norm, offset, c, limit)
    if library is not None:
        result, excess, slope = library.hyperplanes(inner, square, norm, offset, c, limit, is_input)
        return result, square.new_ones(()) if excess is None else excess, slope
    parameters = _channels(2 * norm), *_offset_terms(offset, norm, c)
    slope, cosh = _slopes(square, c)
    if limit is None:
        return _distances(inner, slope, cosh, *parameters) * c.rsqrt(), slope.new_ones(()), slope
    return *_points(inner, slope, cosh, *parameters, limit), slope


def _hyperplanes_backward(
    grads: tuple[Tensor | None, ...],
    needs: tuple[bool, ...],
    _: None,
    square: Tensor,
    norm: Tensor,
    offset: Tensor | None,
    c: Tensor,
    limit: Tensor | None,
    result: Tensor,
    excess: Tensor,
    slope: Tensor,
) -> tuple[Tensor | None, ...]:
    grad, grad_excess = grads[0], grads[1]
    if grad is None:
        grad = torch.zeros_like(result)
    library = None
    if not needs[5] and grad_excess is None:
        library = _library(square, norm, offset, c, limit, grad)
    if library is not None:
        used = None if limit is None else excess
        return *library.hyperplanes_backward(
            grad, result, used, slope, square, norm, offset, c, limit, needs[4]
        ), None  # fmt: skip
    two_norm = _channels(2 * norm)
    inverse_norm = 1 / two_norm.clamp_min(torch.finfo(norm.dtype).tiny ** 0.5)
    cosh_r, sinh_r = _offset_terms(offset, norm, c)
    tanh_r = sinh_r / cosh_r
    grad_limit = grad_c = grad_offset = None
    if torch.is_grad_enabled():  # a second derivative goes through the slope as well
        slope, cosh = _slopes(square, c)
    else:
        cosh = torch.sqrt(1 + slope * slope * square)
    if limit is None:
        terms = grad * c.rsqrt(), result * c.sqrt()
        body = _distances_backward
    else:
        by_grad, by_h = _unbounding(grad, result, excess, limit)
        if needs[5]:
            grad_limit = -0.5 * (by_h * excess * (result * result).sum(1, keepdim=True)).sum() / limit
        if grad_excess is not None:  # only a second derivative uses it
            outside = _even.above(excess, 1)
            by_h = by_h + outside * grad_excess / limit
            if grad_limit is not None:
                grad_limit = grad_limit - 0.5 * (outside * grad_excess * excess).sum() / limit
        terms = grad, result, by_grad, by_h, excess
        body = _points_backward
    grad_inner, *along = body(*terms, slope, two_norm, inverse_norm, cosh_r)
    *sums, along_q, along_sinh = _backward_sums(grad_inner, *along, slope, cosh, tanh_r)
    grad_square, by_c = _square_backward(along_q, along_sinh, slope, cosh, square, c, needs[4])
    by_norm, by_q, by_cosh = (t.sum(0) for t in sums)
    if offset is not None and (needs[3] or needs[4]):
        reach = (2 * c.sqrt() * offset).abs() < 0.5 * sinh_limit(grad.dtype)
        along_r = by_q * tanh_r.flatten() - by_cosh / cosh_r.flatten().square()
        grad_offset = 2 * c.sqrt() * reach * along_r
    if needs[4]:
        grad_c = by_c.sum() / c
        if offset is not None and grad_offset is not None:
            grad_c = grad_c + (grad_offset * offset).sum() * 0.5 / c
        if limit is None:
            grad_c = grad_c - (grad * result).sum() * 0.5 / c
    return grad_inner, grad_square, 2 * by_norm if needs[2] else None, grad_offset, grad_c, grad_limit


_hyperplanes_op = differentiable(
    _hyperplanes, _hyperplanes_backward, tensors=6, drop=(0,), keep_outputs=True, auxiliary=1
)


def hyperplane_points(
    inner: Tensor, square: Tensor, norm: Tensor, offset: Tensor | None, c: Tensor, limit: Tensor
) -> Tensor:
    """The points (hyperboloid chart) of a layer with hyperplanes.

    Parameters
    ----------
    inner : Tensor
        ``[B, K, N]``: inner products of tangent vectors with unit normals.
    square : Tensor
        ``[B, 1, N]``: the tangent vectors' squared norms.
    norm, offset : Tensor
        ``[K]``: lengths and offsets of the normals; no offsets are zeros.
    c : Tensor
        0-d.
    limit : Tensor
        0-d, bounds the squared norm of the result, see `charts.squared_limit`.

    Returns
    -------
    Tensor
        ``[B, K, N]``.
    """
    return _hyperplanes_op(inner, square, norm, offset, c, limit)[0]
