"""Every public name has an example in its docstring, and the examples show what happens."""

import configparser
import doctest
import importlib
import inspect
from pathlib import Path

import pytest
import torch

from manifold_resnet import nn

ROOT = Path(__file__).parents[1]


def public_objects():
    """``{dotted name: function or class}`` of everything in the ``__all__`` of the installed packages, each once."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    found = {}
    for package in map(importlib.import_module, config["options"]["packages"].split()):
        for name in getattr(package, "__all__", ()):
            value = getattr(package, name)
            if (inspect.isclass(value) or inspect.isroutine(value)) and value not in found.values():
                found[f"{package.__name__}.{name}"] = value
    return found | {"manifold_resnet.nn.init.initialisation": nn.init.initialisation}


OBJECTS = public_objects()


def place(failure):
    line = (failure.test.lineno or 0) + failure.example.lineno + 1
    return f"{failure.test.filename}:{line}: {failure.example.source.strip()}"


@pytest.fixture
def one_process(monkeypatch):
    """Memory is measured in processes of their own, which takes long."""
    from manifold_resnet.benchmark import run

    monkeypatch.setattr(run, "_peak", lambda settings, name: 1)


@pytest.mark.parametrize("name", OBJECTS)
def test_example(name, tmp_path, monkeypatch, one_process):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    value = OBJECTS[name]
    finder = doctest.DocTestFinder(exclude_empty=True)
    tests = [test for test in finder.find(value, name, globs={}) if test.examples]
    assert any(test.name == name for test in tests), f"{name} needs an Examples section that runs"
    runner = doctest.DebugRunner(optionflags=doctest.ELLIPSIS)
    for test in tests:
        try:
            runner.run(test)
        except doctest.DocTestFailure as failure:
            pytest.fail(f"{place(failure)} gave\n{failure.got}")
        except doctest.UnexpectedException as failure:
            pytest.fail(f"{place(failure)} raised {failure.exc_info[1]!r}")
    assert list(tmp_path.iterdir()) == [], "an example leaves files behind"
