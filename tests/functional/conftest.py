"""What the tests of the operations share."""

import shutil

import pytest
from operations import Operation, backends_of

import manifold_resnet as mr

BACKENDS = ("eager", "compiled")


def pytest_generate_tests(metafunc):
    """Tests that hold for every operation run with every backend."""
    names = {"test_equals_naive", "test_gradients", "test_edge_cases", "test_identities"}
    if metafunc.module.__name__.rpartition(".")[2] in names and "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", BACKENDS, indirect=True)


def pytest_collection_modifyitems(items):
    """But for operations that never ask for it."""

    def differs(item):
        params = item.callspec.params if hasattr(item, "callspec") else {}
        op = params.get("op")
        return not isinstance(op, Operation) or params.get("backend", "eager") in backends_of(str(op))

    items[:] = [item for item in items if differs(item)]


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
