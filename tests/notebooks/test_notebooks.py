"""Every notebook runs from top to bottom without a warning, and is stored with what it shows."""

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))
LARGEST = 600_000  # bytes
every_notebook = pytest.mark.parametrize("name", NOTEBOOKS)


def read(name):
    return nbformat.read(FOLDER / name, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def complaints(notebook):
    """What cells wrote to the standard error stream: warnings, progress bars, logs."""
    return [
        output["text"]
        for cell in code(notebook)
        for output in cell.outputs
        if output.output_type == "stream" and output.name == "stderr"
    ]


def kinds(cell):
    """The sorts of output of a cell, which do not depend on the machine."""
    return {mime for output in cell.outputs for mime in output.get("data", {}) if mime.startswith("image/")}


def test_there_are_notebooks():
    assert NOTEBOOKS


@every_notebook
def test_notebook_runs(name, tmp_path):
    stored, notebook = read(name), read(name)
    for cell in code(notebook):
        cell.outputs, cell.execution_count = [], None
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()  # raises at the first error
    assert not complaints(notebook)
    for before, after in zip(code(stored), code(notebook), strict=True):
        assert kinds(before) == kinds(after), f"stored output is not that of the cell:\n{after.source}"


@every_notebook
def test_outputs_are_stored(name):
    notebook = read(name)
    nbformat.validate(notebook)
    cells = code(notebook)
    counts = [cell.execution_count for cell in cells]
    assert counts == list(range(1, len(cells) + 1)), "run all cells, in order, and save"
    assert any(kinds(cell) for cell in cells)
    assert not complaints(notebook)
    assert not [o for cell in cells for o in cell.outputs if o.output_type == "error"]
    assert (FOLDER / name).stat().st_size < LARGEST
