"""The guides' code runs, in the order in which it is read, and prints what they say it prints."""

import re
import warnings
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
GUIDES = sorted(path for path in (ROOT / "docs").glob("*.md") if "```python" in path.read_text(encoding="utf-8"))


def _blank(match):
    return "\n" * match[0].count("\n")


def run(path):
    """Run the blocks of Python in a guide, but for those that need files or processes; returns their names."""
    text = re.sub(r"^<!-- not run.*?^```$", _blank, path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    namespace = {"__name__": "guide"}
    for match in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        first = text.count("\n", 0, match.start(1))
        # keeps the guide's line numbers in tracebacks
        exec(compile("\n" * first + match[1], str(path), "exec"), namespace)
    return namespace


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.stem)
def test_guide(path, capsys, tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    dtype = torch.get_default_dtype()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", module="guide|manifold_resnet")
            namespace = run(path)
    finally:
        torch.set_default_dtype(dtype)
    printed = capsys.readouterr().out
    for table in re.findall(r"^```text\n(.*?)^```$", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        assert table in printed
    if path.stem == "mixing-manifolds":
        assert printed.count("is right") == 6
        assert "['frame', 'layers.1.weight', 'layers.3.weight']" in printed
        assert namespace["accuracy"] > 0.85


def test_guides_are_in_the_table_of_contents():
    contents = (ROOT / "docs" / "index.md").read_text(encoding="utf-8").split()
    assert [path.stem for path in GUIDES if path.stem not in contents] == []
