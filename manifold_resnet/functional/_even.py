"""Even hyperbolic functions of the squared argument, smooth at zero.

Radial maps of the Poincaré ball need ``tanh(t)/t`` and its relatives, with ``t`` a norm. They are even in ``t``,
hence smooth functions of ``X = t**2``, and written that way a zero vector needs no special treatment: no
``clamp_min``, no NaN gradient. Each function below comes with its derivative with respect to ``X``; around zero,
where the closed form of the derivative would lose all digits, both switch to the Taylor series.

``sinh`` and ``asinh`` go through ``expm1`` and ``log1p`` of the absolute value, which keep full precision for small
as well as for large negative arguments.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# below this X the series with so many terms are exact to the number format, above it the closed forms lose few digits
_SWITCH = {torch.float32: (5e-2, 5), torch.float64: (1e-2, 9)}
_TANHC = (1.0, -1 / 3, 2 / 15, -17 / 315, 62 / 2835, -1382 / 155925, 21844 / 6081075, -929569 / 638512875)
_ARTANHC = tuple(1 / (2 * k + 1) for k in range(9))
_SINHC = (1.0, 1 / 6, 1 / 120, 1 / 5040, 1 / 362880, 1 / 39916800, 1 / 6227020800)
_ASINHC = (
    1.0,
    -1 / 6,
    3 / 40,
    -15 / 336,
    105 / 3456,
    -945 / 42240,
    10395 / 599040,
    -135135 / 9676800,
    2027025 / 175472640,
)


def _log1p_(x: Tensor) -> Tensor:
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return x.log1p_()
    # torch's log1p is several times slower on CPUs than its log: correct the rounding of 1 + x to first order
    u = x + 1
    v = (u - 1).sub_(x).div_(u)
    return u.log_().sub_(v)


def _expm1_(x: Tensor) -> Tensor:
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return x.expm1_()
    # likewise: exp(x) = u exp(x - log u), where u is exp(x) rounded
    u = x.exp()
    x.sub_(u.log())
    return (u - 1).addcmul_(u, x)


def asinh(q: Tensor) -> Tensor:
    """Inverse hyperbolic sine, elementwise."""
    a = q.abs()
    if torch.is_grad_enabled():
        return torch.log1p(a + a * (a / (1 + torch.sqrt(1 + a * a)))).copysign(q)
    # in place, because this is the most costly function of a network
    x = (a * a).add_(1).sqrt_().add_(1).reciprocal_().mul_(a).mul_(a).add_(a)
    return _log1p_(x).copysign_(q)


def sinh(y: Tensor) -> Tensor:
    """Hyperbolic sine, elementwise."""
    if torch.is_grad_enabled():
        m = torch.expm1(y.abs())
        return (0.5 * (m + m / (m + 1))).copysign(y)
    m = _expm1_(y.abs())
    return (m + 1).reciprocal_().mul_(m).add_(m).mul_(0.5).copysign_(y)


def _horner(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    *rest, last = coefficients
    result = x * last + rest.pop() if rest else torch.full_like(x, last)
    for a in reversed(rest):
        result = result * x + a
    return result


def _derivative(coefficients: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(k * a for k, a in enumerate(coefficients))[1:]


def above(x: Tensor, bound: Tensor | float) -> Tensor:
    """One where `x` exceeds `bound`, zero elsewhere, in the dtype of `x`: for `select`."""
    return (x - bound).relu().sign()


def select(where: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """`one` where `where` is one, `other` where it is zero; both finite. torch.where is ten times slower on CPUs."""
    return torch.lerp(other, one, where)


def _piecewise(x: Tensor, coefficients: tuple[float, ...], closed: Callable[[Tensor], Tensor]) -> Tensor:
    switch, terms = _SWITCH[x.dtype]
    # each branch gets arguments that are harmless for it, so that neither its value nor a derivative is NaN
    series = _horner(x.clamp(max=switch), coefficients[:terms])
    return select(above(x, switch), closed(x.clamp(min=switch)), series)


def _ratio(x: Tensor, coefficients: tuple[float, ...], closed: Callable[[Tensor], Tensor]) -> Tensor:
    """As `_piecewise`, where the closed form is exact for all positive x: the series only serves derivatives."""
    if torch.is_grad_enabled():
        return _piecewise(x, coefficients, closed)
    return closed(x.clamp_min(torch.finfo(x.dtype).tiny))


def tanhc(x: Tensor) -> Tensor:
    """``tanh(t)/t`` as a function of ``x = t**2``."""
    return _ratio(x, _TANHC, lambda x: torch.tanh(t := x.sqrt()) / t)


def tanhc_derivative(x: Tensor) -> Tensor:
    """Derivative of `tanhc` with respect to ``x``."""

    def closed(x: Tensor) -> Tensor:
        tanh = torch.tanh(x.sqrt())
        return (1 - tanh * tanh - tanh / x.sqrt()) / (2 * x)

    return _piecewise(x, _derivative(_TANHC), closed)


def _artanhc_closed(x: Tensor) -> Tensor:
    t = x.sqrt()
    return 0.5 * torch.log1p(2 * t / (1 - t)) / t


def artanhc(x: Tensor) -> Tensor:
    """``artanh(t)/t`` as a function of ``x = t**2 < 1``."""
    return _ratio(x, _ARTANHC, _artanhc_closed)


def artanhc_derivative(x: Tensor) -> Tensor:
    """Derivative of `artanhc` with respect to ``x``."""
    return _piecewise(x, _derivative(_ARTANHC), lambda x: (1 / (1 - x) - _artanhc_closed(x)) / (2 * x))


def sinhc(x: Tensor) -> Tensor:
    """``sinh(t)/t`` as a function of ``x = t**2``."""
    return _ratio(x, _SINHC, lambda x: sinh(t := x.sqrt()) / t)


def sinhc_derivative(x: Tensor) -> Tensor:
    """Derivative of `sinhc` with respect to ``x``."""

    def closed(x: Tensor) -> Tensor:
        t = x.sqrt()
        sinh_t = sinh(t)
        return (torch.sqrt(1 + sinh_t * sinh_t) - sinh_t / t) / (2 * x)

    return _piecewise(x, _derivative(_SINHC), closed)


def asinhc(x: Tensor) -> Tensor:
    """``asinh(t)/t`` as a function of ``x = t**2``."""
    return _ratio(x, _ASINHC, lambda x: asinh(t := x.sqrt()) / t)


def asinhc_derivative(x: Tensor) -> Tensor:
    """Derivative of `asinhc` with respect to ``x``."""

    def closed(x: Tensor) -> Tensor:
        t = x.sqrt()
        return (torch.rsqrt(1 + x) - asinh(t) / t) / (2 * x)

    return _piecewise(x, _derivative(_ASINHC), closed)
