r"""The Fréchet mean of points of the ball, with its implicit gradient, and the Fréchet variance.

The mean :math:`m` minimises the mean squared geodesic distance. On the unit hyperboloid the first-order condition
:math:`\sum_i w_i \log_m x_i = 0` reads :math:`m \propto \sum_i w_i \frac{d_i}{\sinh d_i} x_i`, a midpoint with
weights that depend on :math:`m`; iterating it decreases the objective monotonically and needs no step size [1]_. The
iterations are not differentiated: the gradient follows from the implicit function theorem at the solution.

References
----------
.. [1] Lou, Katsman, Jiang, Belongie, Lim, De Sa: Differentiating through the Fréchet mean. ICML 2020.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from manifold_resnet.functional import _even
from manifold_resnet.functional._autograd import differentiable
from manifold_resnet.functional._checks import curvature, full_precision
from manifold_resnet.functional.ball import dist
from manifold_resnet.functional.charts import convert
from manifold_resnet.functional.midpoint import hyperboloid_midpoint, midpoint, reduced_dims, unit_weights

_TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-13}


def translate(h: Tensor, m: Tensor, dim: int) -> Tensor:
    r"""Left translation :math:`\ominus m \oplus x` (a Lorentz boost) in the hyperboloid chart. `m` broadcasts."""
    time_h = torch.sqrt(1 + (h * h).sum(dim, keepdim=True))
    time_m = torch.sqrt(1 + (m * m).sum(dim, keepdim=True))
    return torch.addcmul(h, time_h - (m * h).sum(dim, keepdim=True) / (1 + time_m), m, value=-1)


def translate_backward(grad: Tensor, h: Tensor, m: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Gradients of `translate`; the one for `m` is not reduced to the shape of `m`."""
    time_h = torch.sqrt(1 + (h * h).sum(dim, keepdim=True))
    time_m = torch.sqrt(1 + (m * m).sum(dim, keepdim=True))
    shared = 1 / (1 + time_m)
    inner = (m * h).sum(dim, keepdim=True)
    along = (grad * m).sum(dim, keepdim=True)
    grad_h = grad - along / time_h * h + along * shared * m
    grad_m = (inner * shared - time_h) * grad + along * shared * h - along * inner * shared**2 / time_m * m
    return grad_h, grad_m


def _mean(h: Tensor, weights: Tensor, tolerance: float, max_iter: int) -> Tensor:
    # h [..., N, n], weights [..., N, 1]
    m = hyperboloid_midpoint(h, weights, [h.ndim - 2], -1)
    for _ in range(max_iter):
        b = translate(h, m, -1)
        # the update in the frame at m, where the mean is at the origin when it is found
        step = hyperboloid_midpoint(b, weights * _even.asinhc((b * b).sum(-1, keepdim=True)), [h.ndim - 2], -1)
        m = translate(step, -m, -1)
        if not bool((step * step).sum(-1).max() > tolerance**2):
            break
    return m.squeeze(-2)


def _mean_backward(
    grad: Tensor,
    needs: tuple[bool, ...],
    h: Tensor,
    weights: Tensor,
    mean: Tensor,
    tolerance: float,
    max_iter: int,
) -> tuple[Tensor, Tensor]:
    m = mean.unsqueeze(-2)
    b = translate(h, m, -1)
    s = (b * b).sum(-1, keepdim=True)  # sinh(d)^2
    k = _even.asinhc(s)  # d / sinh d
    # Hessian of half the squared distance: 1 along the geodesic, d coth d across it
    across = k * torch.sqrt(1 + s)
    unit = b * torch.where(s > 0, s, torch.ones_like(s)).rsqrt()
    eye = torch.eye(h.shape[-1], dtype=h.dtype, device=h.device)
    hessian = (weights * across).sum(-2, keepdim=True) * eye + (weights * (1 - across) * unit).mT @ unit

    time_m = torch.sqrt(1 + (m * m).sum(-1, keepdim=True))
    grad = grad.unsqueeze(-2)
    in_frame = grad + (grad * m).sum(-1, keepdim=True) / (1 + time_m) * m
    a = torch.linalg.solve(hessian, in_frame.mT).mT
    # mean = solution of sum_i w_i k_i b_i = 0
    along = (a * b).sum(-1, keepdim=True)
    grad_b = weights * (k * a + 2 * _even.asinhc_derivative(s) * along * b)
    grad_h, _ = translate_backward(grad_b, h, m, -1)
    return grad_h, k * along


_mean_op = differentiable(_mean, _mean_backward, tensors=2, keep_outputs=True)


def hyperboloid_frechet_mean(h: Tensor, weights: Tensor, tolerance: float, max_iter: int) -> Tensor:
    """Fréchet mean of points [..., N, n] in the hyperboloid chart with weights [..., N, 1] that sum to one."""
    return _mean_op(h, weights, tolerance, max_iter)


def _grouped(t: Tensor, dims: list[int], dim: int) -> Tensor:
    """Move `dims`, flattened, before the last dimension and `dim` to the end."""
    dim = dim % t.ndim
    kept = [d for d in range(t.ndim) if d != dim and d not in dims]
    t = t.permute(*kept, *dims, dim)
    return t.flatten(len(kept), -2)


def frechet_mean(
    x: Tensor,
    weights: Tensor | None = None,
    *,
    c: Tensor | float,
    reducedim: Sequence[int] | int | None = None,
    dim: int = -1,
    keepdim: bool = False,
    tol: float | None = None,
    max_iter: int = 1000,
) -> Tensor:
    """Fréchet (Karcher) mean of ball points, differentiable through the implicit function theorem.

    Parameters
    ----------
    x : Tensor
        Ball points, any shape, along `dim`.
    weights : Tensor, optional
        Non-negative weights, broadcastable to the shape of `x` without `dim`.
    c : Tensor or float
        The curvature of the ball is ``-c``.
    reducedim : int or sequence of int, optional
        The dimensions to average over; default: all but `dim`.
    dim : int
        The dimension the manifold runs along.
    keepdim : bool
        Keep the reduced dimensions with size one.
    tol : float, optional
        Stop when a step is shorter than this, in units of the curvature radius. Default 1e-6 in float32, 1e-13 in
        float64.
    max_iter : int
        Stop after this many steps at the latest.

    Returns
    -------
    Tensor
        Ball points, shape of `x` without the reduced dimensions.

    Raises
    ------
    ValueError
        If `reducedim` contains `dim`, the weights do not fit, or `tol` or `max_iter` is not positive.

    Notes
    -----
    [1]_. Iterative, and it waits for the GPU after every step; `midpoint` is the closed form of about the same
    accuracy.

    Examples
    --------
    >>> import torch
    >>> import manifold_resnet.functional as F
    >>> x = torch.tensor([[0.5, 0.0], [-0.5, 0.0], [0.0, 0.6]])
    >>> m = F.frechet_mean(x, c=1.0)
    >>> print(f"{m[1]:.4f}")
    0.1837
    >>> F.logmap(m, x, c=1.0).sum(0).norm() < 1e-5  # the logarithms cancel
    tensor(True)
    """
    x = full_precision(x)
    c = curvature(c, x)
    tol = _TOLERANCE[x.dtype] if tol is None else tol
    if not tol > 0 or max_iter < 1:
        raise ValueError(f"tol and max_iter must be positive, got tol={tol}, max_iter={max_iter}")
    dims = reduced_dims(x, reducedim, dim)
    if not dims:
        return x
    h = _grouped(convert(x, "ball", "hyperboloid", c=c, dim=dim), dims, dim)
    if weights is None:
        weights = x.new_full((), 1 / max(h.shape[-2], 1)).expand(*h.shape[:-1], 1)
    else:
        weights = _grouped(unit_weights(weights, x, dims, dim), dims, dim)
    m = convert(hyperboloid_frechet_mean(h, weights, tol, max_iter), "hyperboloid", "ball", c=c)
    # m is [*kept, n]: put the manifold back at its place, then the reduced dimensions
    place = dim % x.ndim
    m = m.movedim(-1, place - sum(d < place for d in dims))
    for d in dims if keepdim else ():
        m = m.unsqueeze(d)
    return m


def frechet_variance(
    x: Tensor,
    mean: Tensor | None = None,
    weights: Tensor | None = None,
    *,
    c: Tensor | float,
    reducedim: Sequence[int] | int | None = None,
    dim: int = -1,
    keepdim: bool = False,
) -> Tensor:
    """Mean squared geodesic distance of ball points to a point.

    Parameters
    ----------
    x : Tensor
        Ball points, any shape, along `dim`.
    mean : Tensor, optional
        Ball points to measure from, broadcastable with `x` (as `midpoint` returns them with ``keepdim=True``), or of
        the shape that `midpoint` returns without. Default: the midpoint of `x`.
    weights : Tensor, optional
        Non-negative weights, broadcastable to the shape of `x` without `dim`.
    c : Tensor or float
        The curvature of the ball is ``-c``.
    reducedim : int or sequence of int, optional
        The dimensions to average over; default: all but `dim`.
    dim : int
        The dimension the manifold runs along.
    keepdim : bool
        Keep the reduced dimensions and `dim` with size one.

    Returns
    -------
    Tensor
        Squared distances, shape of `x` without the reduced dimensions and `dim`.

    Raises
    ------
    ValueError
        If `reducedim` contains `dim`, or `mean` or the weights do not fit.

    Examples
    --------
    >>> import torch
    >>> import manifold_resnet.functional as F
    >>> x = torch.tensor([[0.6, 0.0], [-0.6, 0.0]])
    >>> F.frechet_variance(x, c=1.0)  # both at distance 2 artanh(0.6) = 1.386 from their mean
    tensor(1.9218)
    """
    x = full_precision(x)
    c = curvature(c, x)
    dims = reduced_dims(x, reducedim, dim)
    if mean is None:
        mean = midpoint(x, weights, c=c, reducedim=dims, dim=dim, keepdim=True) if dims else x
    elif mean.ndim == x.ndim - len(dims):
        for d in dims:
            mean = mean.unsqueeze(d)
    weights = unit_weights(weights, x, dims, dim)
    square = dist(x, mean, c=c, dim=dim, keepdim=True).square()
    if dims:
        square = square.mean(dims, keepdim=True) if weights is None else (weights * square).sum(dims, keepdim=True)
    return square if keepdim else square.squeeze([*dims, dim % x.ndim])
