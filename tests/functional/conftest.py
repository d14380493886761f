"""What the tests of the operations share."""

import shutil

import pytest

import manifold_resnet as mr

BACKENDS = ("eager", "compiled")


def pytest_generate_tests(metafunc):
    """Tests that hold for every operation run with every backend."""
    names = {"test_equals_naive", "test_gradients", "test_edge_cases", "test_identities"}
    if metafunc.module.__name__.rpartition(".")[2] in names and "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", BACKENDS, indirect=True)


@pytest.fixture(autouse=True)
def backend(request):
    """The backend a test runs with; the default one unless it is parametrised."""
    name = getattr(request, "param", None)
    if name is None:
        yield mr.get_backend()
        return
    if name == "compiled" and not any(map(shutil.which, ("g++", "clang++", "c++"))):
        pytest.skip("the compiled kernels need a C++ compiler")
    with mr.set_backend(name):
        yield name
