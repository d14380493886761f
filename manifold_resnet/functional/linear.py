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

from manifold_resnet.functional._autograd import differentiable, reshaped
from manifold_resnet.functional._checks import (
    Chart,
    check_chart,
    check_max_distance,
    curvature,
    full_precision,
)
from manifold_resnet.functional._hyperplanes import (
    _directions,
    _directions_backward,
    _hyperplanes,
    _hyperplanes_backward,
)
from manifold_resnet.functional.charts import convert, squared_limit


def _rows(v: Tensor) -> Tensor:
    return v.reshape(math.prod(v.shape[:-1]), v.shape[-1])


def _linear(
    v: Tensor, weight: Tensor, offset: Tensor | None, c: Tensor, limit: Tensor | None, scale: float | None
) -> tuple[Tensor, ...]:
    """Distances or, with `limit`, points; and what the backward pass needs beside them.

    That is excess, slope, squares, directions and lengths.
    """
    directions, norm = _directions(weight, c, scale, 1.0)
    rows = _rows(v)
    square = (rows * rows).sum(1).view(-1, 1, 1)
    inner = F.linear(rows, directions).unsqueeze(2)
    result, excess, slope = _hyperplanes(inner, square, norm, offset, c, limit, is_input=False)
    return reshaped(result, (*v.shape[:-1], weight.shape[0])), excess, slope, square, directions, norm


def _linear_backward(
    grads: tuple[Tensor | None, ...],
    needs: tuple[bool, ...],
    v: Tensor,
    weight: Tensor,
    offset: Tensor | None,
    c: Tensor,
    limit: Tensor | None,
    result: Tensor,
    excess: Tensor,
    slope: Tensor,
    square: Tensor,
    directions: Tensor,
    norm: Tensor,
    scale: float | None,
) -> tuple[Tensor | None, ...]:
    rows = _rows(v)
    if torch.is_grad_enabled():  # a second derivative goes through these as well
        directions, norm = _directions(weight, c, scale, 1.0)
        square = (rows * rows).sum(1).view(-1, 1, 1)
    flat = rows.shape[0], weight.shape[0], 1
    of_weight = needs[1] or needs[3]
    grad_inner, grad_square, grad_norm, grad_offset, grad_c, grad_limit = _hyperplanes_backward(
        (None if grads[0] is None else grads[0].reshape(flat), grads[1]), (True, True, of_weight, *needs[2:]), None,
        square, norm, offset, c, limit, result.view(flat), excess, slope,
    )  # fmt: skip
    grad_v = grad_weight = None
    if grad_inner is not None and grad_square is not None:
        grad_inner, grad_square = grad_inner.squeeze(2).to(rows.dtype), grad_square.squeeze(2).to(rows.dtype)
        if needs[0]:
            grad_v = torch.addcmul(grad_inner @ directions, grad_square, rows, value=2).view(v.shape)
        if of_weight:
            grad_weight, more = _directions_backward(
                (grad_inner.t() @ rows, grad_norm), needs[1::2], weight, c, scale, 1.0
            )
            grad_c = grad_c if grad_c is None or more is None else grad_c + more
    return grad_v, grad_weight, grad_offset, grad_c, grad_limit


_linear_op = differentiable(_linear, _linear_backward, tensors=5, keep_outputs=True, auxiliary=4)


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


def _checked(
    x: Tensor, weight: Tensor, bias: Tensor | None, c: Tensor | float, in_chart: Chart
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Tangent vectors, and the other arguments as `_linear` takes them."""
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
    return convert(x, in_chart, "tangent", c=c), weight, bias, c


def distances(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    c: Tensor | float,
    in_chart: Chart,
    dim: int = -1,
    scale: float | None = None,
) -> Tensor:
    """`poincare_mlr`; see `hyperplane_normals` for `scale`."""
    if dim not in (-1, x.ndim - 1):
        if not -x.ndim <= dim < x.ndim or x.shape[dim] != weight.shape[-1]:
            raise ValueError(f"x must have {weight.shape[-1]} features in dim={dim}, got x of shape {tuple(x.shape)}")
        return distances(x.movedim(dim, -1), weight, bias, c=c, in_chart=in_chart, scale=scale).movedim(-1, dim)
    return _linear_op(*_checked(x, weight, bias, c, in_chart), None, scale)[0]


def transform(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    c: Tensor | float,
    in_chart: Chart,
    max_distance: float | None,
    summands: int = 1,
    scale: float | None = None,
) -> Tensor:
    """`poincare_linear` in the hyperboloid chart.

    See `squared_limit` for `summands`, and `hyperplane_normals` for `scale`.
    """
    arguments = _checked(x, weight, bias, c, in_chart)
    limit = squared_limit(c, arguments[0], max_distance, summands)
    return _linear_op(*arguments, limit, scale)[0]


def poincare_mlr(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    c: Tensor | float,
    dim: int = -1,
    in_chart: Chart = "ball",
) -> Tensor:
    r"""Signed distances to hyperplanes, scaled by twice the length of their normals: the logits of Poincaré MLR.

    Parameters
    ----------
    x : Tensor
        Points, ``(..., features)``, along `dim`.
    weight : Tensor
        Hyperplane normals :math:`z_k`, tangent vectors at the origin, ``(K, features)``.
    bias : Tensor, optional
        Signed offsets :math:`r_k` of the hyperplanes in tangent norm (half the distance from the origin), ``(K,)``.
    c : Tensor or float
        The curvature of the space is ``-c``.
    dim : int
        The dimension the manifold runs along: 1 for the pixels of images.
    in_chart : {"ball", "tangent", "hyperboloid"}
        Chart of `x`.

    Returns
    -------
    Tensor
        :math:`v_k`, ``(..., K)``, logits along `dim`. In the flat limit, ``4 (<x, z_k> - r_k |z_k|)``.

    Raises
    ------
    ValueError
        If shapes do not fit, a chart is unknown or `c` is not positive.

    Notes
    -----
    [1]_, sec. 3.1.

    Examples
    --------
    >>> import torch
    >>> import manifold_resnet.functional as F
    >>> x = torch.tensor([[0.6, 0.0], [0.0, 0.6]])
    >>> F.poincare_mlr(x, torch.tensor([[0.5, 0.0]]), c=1.0)  # to the line x_0 = 0: 2 artanh(0.6), nothing
    tensor([[1.3863],
            [0.0000]])
    """
    return distances(x, weight, bias, c=c, in_chart=in_chart, dim=dim)


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

    Examples
    --------
    >>> import torch
    >>> import manifold_resnet.functional as F
    >>> x = torch.tensor([[0.3, 0.4]])
    >>> F.poincare_linear(x, torch.eye(2) / 2, c=1.0)  # normals of length 1/2 along the axes: the identity
    tensor([[0.3000, 0.4000]])
    """
    check_chart(out_chart, "out_chart")
    check_max_distance(max_distance)
    h = transform(x, weight, bias, c=c, in_chart=in_chart, max_distance=max_distance)
    return convert(h, "hyperboloid", out_chart, c=c)
