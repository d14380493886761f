"""Even hyperbolic functions of the squared argument, smooth at zero.

Radial maps of the Poincaré ball need ``tanh(t)/t`` and its relatives, with ``t`` a norm. They are even in ``t``,
hence smooth functions of ``X = t**2``, and written that way a zero vector needs no special treatment: no
``clamp_min``, no NaN gradient. Each function below comes with its derivative with respect to ``X``; around zero,
where the closed form of the derivative would lose all digits, both switch to the Taylor series.

``sinh`` and ``asinh`` keep full precision for small as well as for large negative arguments.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from manifold_resnet.functional._backend import transformed

# Taylor coefficients, in functions because torch.compile takes numbers in global variables for inputs


def _tanhc() -> tuple[float, ...]:
    return (1.0, -1 / 3, 2 / 15, -17 / 315, 62 / 2835, -1382 / 155925, 21844 / 6081075, -929569 / 638512875)


def _artanhc() -> tuple[float, ...]:
    return (1.0, 1 / 3, 1 / 5, 1 / 7, 1 / 9, 1 / 11, 1 / 13, 1 / 15, 1 / 17)


def _sinhc() -> tuple[float, ...]:
    return (1.0, 1 / 6, 1 / 120, 1 / 5040, 1 / 362880, 1 / 39916800, 1 / 6227020800, 1 / 1307674368000)


def _asinhc() -> tuple[float, ...]:
    return (
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


def sinh_limit(dtype: torch.dtype) -> float:
    """Sinh and the sum of its squares stay finite up to here; a distance in units of 1/sqrt(c)."""
    return 40.0 if dtype == torch.float32 else 300.0


def _switch(dtype: torch.dtype) -> tuple[float, int]:
    """Below this X the series with so many terms are exact, above it the closed forms lose few digits."""
    return (5e-2, 5) if dtype == torch.float32 else (1e-2, 9)


def _log1p(x: Tensor) -> Tensor:
    # corrects the rounding of 1 + x to first order
    u = x + 1
    return torch.log(u) - ((u - 1) - x) / u


def _native(x: Tensor) -> bool:
    """Whether torch's own functions serve best: on GPUs they are fast, and only they have derivatives at zero.

    On CPUs they are several times slower than torch's log and exp.
    """
    if torch.compiler.is_compiling():
        return x.device.type != "cpu"
    return x.device.type != "cpu" or torch.is_grad_enabled() or transformed()


def asinh(q: Tensor) -> Tensor:
    """Inverse hyperbolic sine, elementwise."""
    if _native(q):
        return torch.asinh(q)
    a = q.abs()
    if torch.compiler.is_compiling():
        root = torch.sqrt(1 + a * a)
        if q.dtype == torch.float32:
            return torch.where(a < 0.25, a * _horner(a * a, _asinhc()[:6]), torch.log(a + root)).copysign(q)
        return _log1p(a + a * (a / (1 + root))).copysign(q)
    # in place, because this is the most costly function of a network
    x = (a * a).add_(1).sqrt_().add_(1).reciprocal_().mul_(a).mul_(a).add_(a)
    u = x + 1
    v = (u - 1).sub_(x).div_(u)  # as _log1p
    return u.log_().sub_(v).copysign_(q)


def sinh_cosh(y: Tensor) -> tuple[Tensor, Tensor]:
    """Hyperbolic sine and cosine, elementwise."""
    if _native(y):
        return torch.sinh(y), torch.cosh(y)
    if torch.compiler.is_compiling():
        e = torch.exp(y)
        r = 1 / e
        square = y * y
        series = y * _horner(square, _sinhc()[: 4 if y.dtype == torch.float32 else 8])
        return torch.where(square < 0.25, series, 0.5 * (e - r)), 0.5 * (e + r)
    a = y.abs()
    u = a.exp()
    a.sub_(u.log())
    m = a.mul_(u).add_(u - 1)  # expm1: exp(a) = u exp(a - log u), where u is exp(a) rounded
    r = (m + 1).reciprocal_().mul_(m)
    cosh = (m - r).mul_(0.5).add_(1)
    return m.add_(r).mul_(0.5).copysign_(y), cosh


def sinh(y: Tensor) -> Tensor:
    """Hyperbolic sine, elementwise."""
    return sinh_cosh(y)[0]


def _horner(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    if len(coefficients) == 1:
        return torch.full_like(x, coefficients[0])
    result = x * coefficients[-1] + coefficients[-2]
    for a in reversed(coefficients[:-2]):
        result = result * x + a
    return result


def _derivative(coefficients: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(k * a for k, a in enumerate(coefficients))[1:]


def above(x: Tensor, bound: Tensor | float) -> Tensor:
    """One where `x` exceeds `bound`, zero elsewhere, in the dtype of `x`: for `select`."""
    if torch.compiler.is_compiling():
        return (x > bound).to(x.dtype)
    return (x - bound).relu().sign()


def select(where: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """`one` where `where` is one, `other` where it is zero; both finite. torch.where is ten times slower on CPUs."""
    if torch.compiler.is_compiling():
        return torch.where(where > 0, one, other)
    return torch.lerp(other, one, where)


def _piecewise(x: Tensor, coefficients: tuple[float, ...], closed: Callable[[Tensor], Tensor]) -> Tensor:
    switch, terms = _switch(x.dtype)
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
    return _ratio(x, _tanhc(), lambda x: torch.tanh(t := x.sqrt()) / t)


def tanhc_derivative(x: Tensor) -> Tensor:
    """Derivative of `tanhc` with respect to ``x``."""

    def closed(x: Tensor) -> Tensor:
        tanh = torch.tanh(x.sqrt())
        return (1 - tanh * tanh - tanh / x.sqrt()) / (2 * x)

    return _piecewise(x, _derivative(_tanhc()), closed)


def _artanhc_closed(x: Tensor) -> Tensor:
    t = x.sqrt()
    return 0.5 * torch.log1p(2 * t / (1 - t)) / t


def artanhc(x: Tensor) -> Tensor:
    """``artanh(t)/t`` as a function of ``x = t**2 < 1``."""
    return _ratio(x, _artanhc(), _artanhc_closed)


def artanhc_derivative(x: Tensor) -> Tensor:
    """Derivative of `artanhc` with respect to ``x``."""
    return _piecewise(x, _derivative(_artanhc()), lambda x: (1 / (1 - x) - _artanhc_closed(x)) / (2 * x))


def sinhc(x: Tensor) -> Tensor:
    """``sinh(t)/t`` as a function of ``x = t**2``."""
    return _ratio(x, _sinhc(), lambda x: sinh(t := x.sqrt()) / t)


def sinhc_derivative(x: Tensor) -> Tensor:
    """Derivative of `sinhc` with respect to ``x``."""

    def closed(x: Tensor) -> Tensor:
        t = x.sqrt()
        sinh_t = sinh(t)
        return (torch.sqrt(1 + sinh_t * sinh_t) - sinh_t / t) / (2 * x)

    return _piecewise(x, _derivative(_sinhc()), closed)


def asinhc(x: Tensor) -> Tensor:
    """``asinh(t)/t`` as a function of ``x = t**2``."""
    return _ratio(x, _asinhc(), lambda x: asinh(t := x.sqrt()) / t)


def asinhc_derivative(x: Tensor) -> Tensor:
    """Derivative of `asinhc` with respect to ``x``."""

    def closed(x: Tensor) -> Tensor:
        t = x.sqrt()
        return (torch.rsqrt(1 + x) - asinh(t) / t) / (2 * x)

    return _piecewise(x, _derivative(_asinhc()), closed)
