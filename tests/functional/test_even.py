"""The even functions under every radial map against 40 digits, on both sides of series and closed form."""

import mpmath
import pytest
import torch

from manifold_resnet.functional import _even

FUNCTIONS = {"tanhc": mpmath.tanh, "artanhc": mpmath.atanh, "sinhc": mpmath.sinh, "asinhc": mpmath.asinh}
# relative; derivatives lose the digits that (cosh t - sinh(t)/t) / t^2 cancels at the switch
LIMITS = {torch.float64: (5e-14, 2e-13), torch.float32: (2e-5, 2e-5)}


def relative_error(actual, exact, arguments):
    with mpmath.workdps(40):
        return max(abs(mpmath.mpf(a) / exact(mpmath.mpf(x)) - 1) for a, x in zip(actual, arguments, strict=True))


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_value_and_derivative(name, dtype):
    def exact(x):
        return FUNCTIONS[name](mpmath.sqrt(x)) / mpmath.sqrt(x)

    x = torch.logspace(-6, 0, 120, dtype=torch.float64) * 0.999
    if name != "artanhc":
        x = torch.cat((x, torch.linspace(1, 400, 30, dtype=torch.float64)))
    x = x.to(dtype)
    value, derivative = getattr(_even, name)(x), getattr(_even, f"{name}_derivative")(x)
    value_limit, derivative_limit = LIMITS[dtype]
    assert relative_error(value.tolist(), exact, x.tolist()) < value_limit
    slope = lambda x: mpmath.diff(exact, x)  # noqa: E731
    assert relative_error(derivative.tolist(), slope, x.tolist()) < derivative_limit


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("name", ["sinh", "asinh"])
def test_odd_functions(name, dtype):
    """No cancellation for negative arguments or small ones."""
    x = torch.logspace(-15, 1.7 if name == "sinh" else 15, 80, dtype=torch.float64).to(dtype)
    x = torch.cat((x, -x))
    actual = getattr(_even, name)(x)
    assert relative_error(actual.tolist(), getattr(mpmath, name), x.tolist()) < 4 * torch.finfo(dtype).eps
    assert (getattr(_even, name)(torch.zeros(1, dtype=dtype)) == 0).all()
