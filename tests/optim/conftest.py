import pytest

from manifold_resnet import set_backend


@pytest.fixture(params=["compiled", "eager"])
def backend(request):
    """Runs a test with the C++ kernels and with plain torch operations."""
    with set_backend(request.param):
        yield request.param
