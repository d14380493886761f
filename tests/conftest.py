"""Settings every test shares."""

import os
from collections import defaultdict

import pytest
from hypothesis import settings

# derandomised: a red test stays red when run again
settings.register_profile("default", deadline=None, derandomize=True, max_examples=25, database=None)
settings.load_profile("default")

# before torch is imported: processes that share the cores among them, not threads that fight for them
if "PYTEST_XDIST_WORKER" in os.environ:
    _share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(_share, 1)))


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="all combinations of parameters, not only all pairs")


def pytest_configure(config):
    config.addinivalue_line("markers", "covering: of the product of its parameters, only rows that hold all pairs")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """Some files are run in this process: workers would take longer to start than the tests."""
    return min(os.cpu_count() or 1, 4) if config.args == config.getini("testpaths") else 0


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    from covering import covering

    if config.getoption("full"):
        return
    groups = defaultdict(list)
    for item in items:
        if item.get_closest_marker("covering"):
            groups[item.nodeid.partition("[")[0]].append(item)
    dropped = []
    for group in groups.values():
        # a value is one object in all rows
        kept = set(covering([{name: id(value) for name, value in item.callspec.params.items()} for item in group]))
        dropped += [item for i, item in enumerate(group) if i not in kept]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        gone = set(dropped)
        items[:] = [item for item in items if item not in gone]
