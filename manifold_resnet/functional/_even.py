"""Even hyperbolic functions of the squared argument, smooth at zero.

Radial maps of the Poincaré ball need ``tanh(t)/t`` and its relatives, with ``t`` a norm. They are even in ``t``, hence smooth
functions of ``X = t**2``, and written that way a zero vector needs no special treatment: no ``clamp_min``, no NaN gradient.
Each function below comes with its derivative with respect to ``X``; around zero, where the closed form of the derivative
would lose all digits, both switch to the Taylor series.

``sinh`` and ``asinh`` go through ``expm1`` and ``log1p`` of the absolute value: torch vectorises those, and they keep full
precision for small as well as for large negative arguments.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_SWITCH = 1e-2  # below this X, the series below are exact to float64
_TANHC = (1.0, -1 / 3, 2 / 15, -17 / 315, 62 / 2835, -1382 / 155925, 21844 / 6081075, -929569 / 638512875)
_ARTANHC = tuple(1 / (2 * k + 1) for k in range(9))
_SINHC = (1.0, 1 / 6, 1 / 120, 1 / 5040, 1 / 362880, 1 / 39916800, 1 / 6227020800)
_ASINHC = (1.0, -1 / 6, 3 / 40, -15 / 336, 105 / 3456, -945 / 42240, 10395 / 599040, -135135 / 9676800, 2027025 / 175472640)


def asinh(q: Tensor) -> Tensor:
    """Inverse hyperbolic sine, elementwise."""
    a = q.abs()
    return torch.log1p(a + a * (a / (1 + torch.sqrt(1 + a * a)))).copysign(q)


def sinh(y: Tensor) -> Tensor:
    """Hyperbolic sine, elementwise."""
    m = torch.expm1(y.abs())
    return (0.5 * (m + m / (m + 1))).copysign(y)


def _horner(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    result = torch.full_like(x, coefficients[-1])
    for a in reversed(coefficients[:-1]):
        result = result * x + a
    return result


def _derivative(coefficients: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(k * a for k, a in enumerate(coefficients))[1:]


def _piecewise(x: Tensor, coefficients: tuple[float, ...], closed: Callable[[Tensor], Tensor]) -> Tensor:
    small = x < _SWITCH
    # both branches get harmless arguments, so that neither the value nor a derivative of the unused one is NaN
    series = _horner(torch.where(small, x, torch.zeros_like(x)), coefficients)
    return torch.where(small, series, closed(torch.where(small, torch.ones_like(x) * 0.5, x)))


def tanhc(x: Tensor) -> Tensor:
    """``tanh(t)/t`` as a function of ``x = t**2``."""
    return _piecewise(x, _TANHC, lambda x: torch.tanh(x.sqrt()) / x.sqrt())


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
    return _piecewise(x, _ARTANHC, _artanhc_closed)


def artanhc_derivative(x: Tensor) -> Tensor:
    """Derivative of `artanhc` with respect to ``x``."""
    return _piecewise(x, _derivative(_ARTANHC), lambda x: (1 / (1 - x) - _artanhc_closed(x)) / (2 * x))


def sinhc(x: Tensor) -> Tensor:
    """``sinh(t)/t`` as a function of ``x = t**2``."""
    return _piecewise(x, _SINHC, lambda x: sinh(x.sqrt()) / x.sqrt())


def sinhc_derivative(x: Tensor) -> Tensor:
    """Derivative of `sinhc` with respect to ``x``."""

    def closed(x: Tensor) -> Tensor:
        t = x.sqrt()
        return (torch.cosh(t) - sinh(t) / t) / (2 * x)

    return _piecewise(x, _derivative(_SINHC), closed)


def asinhc(x: Tensor) -> Tensor:
    """``asinh(t)/t`` as a function of ``x = t**2``."""
    return _piecewise(x, _ASINHC, lambda x: asinh(x.sqrt()) / x.sqrt())


def asinhc_derivative(x: Tensor) -> Tensor:
    """Derivative of `asinhc` with respect to ``x``."""

    def closed(x: Tensor) -> Tensor:
        t = x.sqrt()
        return (torch.rsqrt(1 + x) - asinh(t) / t) / (2 * x)

    return _piecewise(x, _derivative(_ASINHC), closed)
