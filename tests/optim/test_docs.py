"""The guide's code runs, in the order in which it is read."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_mixing_manifolds(capsys):
    pytest.importorskip("sklearn")
    path = ROOT / "docs" / "mixing-manifolds.md"
    text = path.read_text(encoding="utf-8")
    namespace = {"__name__": "guide"}
    for match in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        first = text.count("\n", 0, match.start(1))
        # keeps the guide's line numbers in tracebacks
        exec(compile("\n" * first + match[1], str(path), "exec"), namespace)
    printed = capsys.readouterr().out
    (table,) = re.findall(r"^```text\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert table in printed
    assert printed.count("is right") == 6
    assert "['frame', 'layers.1.weight', 'layers.3.weight']" in printed
    assert namespace["accuracy"] > 0.85
