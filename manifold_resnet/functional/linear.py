r"""Distances to hyperplanes and the fully connected layer of Hyperbolic Neural Networks++.

With hyperplane normals :math:`z_k` (tangent vectors at the origin) and offsets :math:`r_k`, for a tangent vector
:math:`v` and :math:`t=\sqrt{c}\|v\|`,

.. math::
    q_k = \sqrt{c}\,\frac{\sinh 2t}{t}\,\frac{\langle v, z_k\rangle}{\|z_k\|} \cosh(2\sqrt{c}\,r_k)
          - \cosh(2t)\sinh(2\sqrt{c}\,r_k), \qquad
    v_k = \frac{2\|z_k\|}{\sqrt{c}}\,\mathrm{asinh}\,q_k

is the signed distance to the k-th hyperplane, scaled by twice the length of its normal, and
:math:`\sinh(\sqrt{c}\,v_k)` are the coordinates of the layer's output in the hyperboloid chart. Everything but one
matrix product (or convolution) is elementwise.

References
----------
.. [1] Shimizu, Mukuta, Harada: Hyperbolic neural networks++. ICLR 2021, sec. 3.1 and 3.2.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from manifold_resnet.functional import _even
from manifold_resnet.functional._autograd import differentiable
from manifold_resnet.functional._checks import (
    Chart,
    broadcast_channels,
    check_chart,
    check_max_distance,
    curvature,
    full_precision,
    other_dims,
    sum_over,
    without_autocast,
)
from manifold_resnet.functional.charts import _SINH_LIMIT, convert


def _terms(
    inner: Tensor, square: Tensor, offset: Tensor | None, c: Tensor, dim: int
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor]:
    """(2t)^2, sqrt(c) sinh(2t)/t, cosh(2t), cosh and sinh of 2 sqrt(c) r, and q."""
    x = 4 * c * square
    f = _even.sinhc(x)
    e = 2 * c.sqrt() * f
    if offset is None:
        return x, e, None, None, None, inner * e
    cosh = torch.sqrt(1 + x * f * f)
    # a hyperplane beyond sinh's range is out of every point's reach, and its cosh would overflow
    limit = 0.5 * _SINH_LIMIT[inner.dtype]
    r = (2 * c.sqrt() * broadcast_channels(offset, inner, dim)).clamp(-limit, limit)
    cosh_r, sinh_r = torch.cosh(r), _even.sinh(r)
    return x, e, cosh, cosh_r, sinh_r, torch.addcmul(inner * (e * cosh_r), cosh, sinh_r, value=-1)


def _hyperplanes(
    inner: Tensor, square: Tensor, norm: Tensor, offset: Tensor | None, c: Tensor, dim: int, as_point: bool
) -> Tensor:
    *_, q = _terms(inner, square, offset, c, dim)
    y = 2 * broadcast_channels(norm, inner, dim) * _even.asinh(q)
    if not as_point:
        return y * c.rsqrt()
    limit = _SINH_LIMIT[y.dtype]
    return _even.sinh(y.clamp(-limit, limit))


def _hyperplanes_backward(
    grad: Tensor,
    needs: tuple[bool, ...],
    inner: Tensor,
    square: Tensor,
    norm: Tensor,
    offset: Tensor | None,
    c: Tensor,
    result: Tensor,
    dim: int,
    as_point: bool,
) -> tuple[Tensor | None, ...]:
    rest = other_dims(inner, dim)
    x, e, cosh, cosh_r, sinh_r, q = _terms(inner, square, offset, c, dim)
    two_norm = 2 * broadcast_channels(norm, inner, dim)
    asinh_q = _even.asinh(q)
    if as_point:
        limit = math.sinh(_SINH_LIMIT[grad.dtype]) * (1 - 1e-5)
        grad_y = torch.ops.aten.hardtanh_backward(grad * torch.sqrt(1 + result * result), result, -limit, limit)
    else:
        grad_y = grad * c.rsqrt()
    grad_q = grad_y * two_norm * torch.rsqrt(1 + q * q)
    grad_norm = 2 * sum_over(grad_y * asinh_q, rest) if needs[2] else None

    grad_offset = grad_cosh = None
    if offset is None or cosh is None or cosh_r is None or sinh_r is None:
        grad_inner = grad_q * e
        grad_e = (grad_q * inner).sum(dim, keepdim=True)
    else:
        scaled = grad_q * cosh_r
        grad_inner = scaled * e
        grad_e = (scaled * inner).sum(dim, keepdim=True)
        grad_cosh = -(grad_q * sinh_r).sum(dim, keepdim=True)
        if needs[3] or needs[4]:
            along_cosh, along_sinh = sum_over(grad_inner * inner, rest), sum_over(grad_q * cosh, rest)
            tanh_r = (sinh_r / cosh_r).flatten()
            reach = (2 * c.sqrt() * offset).abs() < 0.5 * _SINH_LIMIT[grad.dtype]
            grad_offset = 2 * c.sqrt() * reach * (along_cosh * tanh_r - along_sinh * cosh_r.flatten())
    # e = 2 sqrt(c) sinhc(x), cosh = cosh(sqrt(x)), x = 4 c |v|^2
    grad_x = 2 * c.sqrt() * grad_e * _even.sinhc_derivative(x)
    if grad_cosh is not None:
        grad_x = grad_x + 0.25 * c.rsqrt() * grad_cosh * e
    grad_square = 4 * c * grad_x

    grad_c = None
    if needs[4]:
        grad_c = (4 * grad_x * square).sum() + (grad_e * e).sum() * 0.5 / c
        if grad_offset is not None and offset is not None:
            grad_c = grad_c + (grad_offset * offset).sum() * 0.5 / c
        if not as_point:
            grad_c = grad_c - (grad * result).sum() * 0.5 / c
    return grad_inner, grad_square, grad_norm, grad_offset, grad_c


_hyperplanes_op = differentiable(_hyperplanes, _hyperplanes_backward, tensors=5, keep_output=True)


def _squared_norm(v: Tensor, dim: int) -> Tensor:
    return (v * v).sum(dim, keepdim=True)


def _squared_norm_backward(grad: Tensor, needs: tuple[bool, ...], v: Tensor, dim: int) -> tuple[Tensor]:
    return (2 * grad * v,)


squared_norm = differentiable(_squared_norm, _squared_norm_backward, tensors=1)


def unit_normals(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Directions (same shape as `weight`) and lengths [K] of hyperplane normals; a zero normal has direction zero."""
    norm = torch.linalg.vector_norm(weight.flatten(1), dim=1)
    divisor = norm.clamp_min(torch.finfo(weight.dtype).tiny ** 0.5)
    return weight / divisor.view([-1] + [1] * (weight.ndim - 1)), norm


def check_same_dtype(x: Tensor, weight: Tensor) -> None:
    """Raise a TypeError unless both have the same dtype."""
    if x.dtype != weight.dtype:
        raise TypeError(
            f"x and weight must have the same dtype, got {x.dtype} and {weight.dtype}: convert one, with "
            f"x.to({weight.dtype}) or layer.to({x.dtype})"
        )


def check_offsets(bias: Tensor | None, outputs: int) -> None:
    """Raise a ValueError unless there is one offset per hyperplane."""
    if bias is not None and bias.shape != (outputs,):
        raise ValueError(f"bias must hold one offset per hyperplane, shape ({outputs},), got {tuple(bias.shape)}")


def _linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, c: Tensor | float, in_chart: Chart, as_point: bool
) -> Tensor:
    if weight.ndim != 2:
        raise ValueError(f"weight must have shape (outputs, features), got {tuple(weight.shape)}")
    if x.shape[-1:] != weight.shape[1:]:
        raise ValueError(
            f"x must have {weight.shape[1]} features in its last dimension to match weight of shape "
            f"{tuple(weight.shape)}, got x of shape {tuple(x.shape)}"
        )
    check_offsets(bias, weight.shape[0])
    x = full_precision(x)
    c = curvature(c, x)
    weight = full_precision(weight, "weight")
    check_same_dtype(x, weight)
    v = convert(x, in_chart, "tangent", c=c)
    normals, norm = unit_normals(weight)
    with without_autocast(v):  # so small a product is not worth the loss of digits
        inner = F.linear(v, normals)
    return _hyperplanes_op(inner, squared_norm(v, -1), norm, bias, c, -1, as_point)


def poincare_mlr(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, c: Tensor | float, in_chart: Chart = "ball"
) -> Tensor:
    r"""Signed distances to hyperplanes, scaled by twice the length of their normals: the logits of Poincaré MLR.

    Parameters
    ----------
    x : Tensor
        Points, ``(..., features)``, along the last dimension.
    weight : Tensor
        Hyperplane normals :math:`z_k`, tangent vectors at the origin, ``(K, features)``.
    bias : Tensor, optional
        Signed offsets :math:`r_k` of the hyperplanes in tangent norm (half the distance from the origin), ``(K,)``.
    c : Tensor or float
        The curvature of the space is ``-c``.
    in_chart : {"ball", "tangent", "hyperboloid"}
        Chart of `x`.

    Returns
    -------
    Tensor
        :math:`v_k`, ``(..., K)``. In the flat limit, ``4 (<x, z_k> - r_k |z_k|)``.

    Raises
    ------
    ValueError
        If shapes do not fit, a chart is unknown or `c` is not positive.

    Notes
    -----
    [1]_, sec. 3.1.
    """
    return _linear(x, weight, bias, c, in_chart, as_point=False)


def poincare_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    c: Tensor | float,
    in_chart: Chart = "ball",
    out_chart: Chart = "ball",
    max_distance: float | None = math.inf,
) -> Tensor:
    r"""Poincaré fully connected layer: the point whose signed distances to the coordinate hyperplanes are :math:`v_k`.

    Parameters
    ----------
    x : Tensor
        Points, ``(..., in_features)``, along the last dimension.
    weight : Tensor
        Hyperplane normals :math:`z_k`, tangent vectors at the origin, ``(out_features, in_features)``.
    bias : Tensor, optional
        Signed offsets :math:`r_k` in tangent norm, ``(out_features,)``.
    c : Tensor or float
        The curvature of the space is ``-c``.
    in_chart, out_chart : {"ball", "tangent", "hyperboloid"}
        Charts of the input and of the result.
    max_distance : float, optional
        Bound on the result's geodesic distance from the origin, see `convert`.

    Returns
    -------
    Tensor
        Points, ``(..., out_features)``. In the flat limit, ``2 (<x, z_k> - r_k |z_k|)``.

    Raises
    ------
    ValueError
        If shapes do not fit, a chart is unknown, or `c` or `max_distance` is not positive.

    Notes
    -----
    [1]_, sec. 3.2.
    """
    check_chart(out_chart, "out_chart")
    check_max_distance(max_distance)
    h = _linear(x, weight, bias, c, in_chart, as_point=True)
    return convert(h, "hyperboloid", out_chart, c=c, max_distance=max_distance)
