import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from manifold_resnet.cli import main
from manifold_resnet.experiments import load_run
from manifold_resnet.experiments.findings import Finding, find_results, shown_table
from manifold_resnet.experiments.results import write_results


class Page(HTMLParser):
    """Text, tables, images and links of a page."""

    def __init__(self, text):
        super().__init__()
        self.images, self.links, self.cells, self.text, self.open = [], [], [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.images += [given["src"]] if "src" in given else []
        self.links += [given["href"]] if "href" in given else []
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


@pytest.fixture(scope="module")
def three(runs, tmp_path_factory):
    """The two runs, and the first with another seed and accuracy, its name awkward and its images gone."""
    other = tmp_path_factory.mktemp("other") / "a<b>|c&d"
    shutil.copytree(runs[0], other)
    for path in (other / "checkpoints").glob("*.ckpt"):
        stored = torch.load(path, weights_only=True)
        stored["hyper_parameters"]["config"] |= {"seed": 1, "dataset": "folder:/gone/digits"}
        torch.save(stored, path)
    measured = json.loads((other / "test.json").read_text())
    measured["test_accuracy"] -= 0.1
    (other / "test.json").write_text(json.dumps(measured))
    return [*runs, other]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_report(three, elsewhere, capsys):
    runs = [str(run) for run in three]
    assert main(["disk", runs[0], "--limit", "40"]) == 0
    assert main(["fuse", runs[0], runs[1], "--limit", "40"]) == 0
    more = elsewhere / "experiments" / "more" / "attack"
    more.mkdir(parents=True)
    summary = [{"group": "hyperbolic", "epsilon": 8 / 255, "accuracy": 0.25, "accuracy_std": None}]
    write_results(more, "fgsm", [load_run(runs[0])], {"epsilons": [8 / 255]}, [{"correct": 1}], summary=summary)
    shutil.copy(elsewhere / "experiments" / "disk" / "disk.png", more / "fgsm.png")
    capsys.readouterr()
    assert main(["report", *runs, "-o", "out"]) == 0
    assert "left out" not in capsys.readouterr().out
    shutil.move(elsewhere / "out" / "report.html", elsewhere / "alone.html")
    page = Page((elsewhere / "alone.html").read_text(encoding="utf-8"))
    assert page.open == []
    assert len(page.images) == 3 + 3  # curves of each run, and a figure of each command
    for source in page.images:
        Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/png;base64,"), validate=True))).verify()
    assert all(link.startswith("#") for link in page.links)
    assert "a<b>|c&d" in page.cells
    accuracy = 100 * json.loads((three[0] / "test.json").read_text())["test_accuracy"]
    assert f"{accuracy - 5:.1f} ± {10 / 2**0.5:.1f}" in page.cells  # mean and deviation over the two seeds
    assert page.cells[page.cells.index("8/255") + 1] == "25.0"
    markdown = (elsewhere / "out" / "report.md").read_text(encoding="utf-8")
    figures = re.findall(r"!\[.*\]\((.*)\)", markdown)
    assert len(figures) == 6
    for figure in figures:
        Image.open(elsewhere / "out" / figure).verify()
    tables = [block.splitlines() for block in re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE)]
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1
    assert r"a<b>\|c&d" in markdown
    # the same again replaces it
    assert main(["report", runs[1], "-o", "out"]) == 0
    left = [line for line in capsys.readouterr().out.splitlines() if line.startswith("left out: ")]
    assert len(left) == 3
    assert "is about other runs too (hyperbolic" in left[0]
    assert len(re.findall(r"!\[", (elsewhere / "out" / "report.md").read_text())) == 1


def test_ablations_and_their_trainings(three, elsewhere):
    folder = elsewhere / "found" / "head"
    (folder / "cells" / "mlr-seed0").mkdir(parents=True)
    values = {"command": "ablate", "subject": "head", "text": "heads", "settings": {"task": {"epochs": 3}},
              "rows": [{"variant": "mlr", "head": "mlr", "test_accuracy": 0.9, "test_accuracy_std": 0.01}]}  # fmt: skip
    (folder / "ablate.json").write_text(json.dumps(values))
    (folder / "cells" / "mlr-seed0" / "ood.json").write_text("no results of ours")
    assert main(["report", str(three[0]), "-o", "out", "--include", "found"]) == 0
    markdown = (elsewhere / "out" / "report.md").read_text()
    assert "## Ablation: head" in markdown
    assert "Settings: epochs 3." in markdown
    assert "| mlr | 90.0 ± 1.0 |" in markdown


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda runs: [], "required: RUN"),
        (lambda runs: ["none"], "no such run"),
        (lambda runs: [str(runs[0]), str(runs[0])], "is given twice"),
        (lambda runs: [str(runs[0]), "--include", "none"], "--include none: no such folder"),
        (lambda runs: [str(runs[0]), "--include", "."], r"ood\.json is damaged .*; run its command again"),
        (lambda runs: [str(runs[0]), "-o", "file/report"], "cannot create .*; choose another --output"),
        (lambda runs: [str(runs[0]), "-o", "file"], "is not a folder; choose another --output"),
    ],
)
def test_mistakes(runs, elsewhere, change, expected, capsys):
    (elsewhere / "file").write_text("")
    (elsewhere / "ood.json").write_text("{")
    assert main(["report", *change(runs)]) == 2
    assert re.search(expected, capsys.readouterr().err)
    assert not list(elsewhere.rglob("report.*"))


def test_wide_rows_and_missing_values_read_well(tmp_path):
    wide = {"command": "fuse", "rows": [{f"name_{k}": k for k in range(9)} | {"first": 0.5}]}
    heads, cells = shown_table(Finding("fuse", tmp_path, wide))
    assert heads == ["", ""]
    assert cells[-1] == ["accuracy of the first", "50.0"]
    empty = {"command": "gradcam", "rows": [{"image": 1}], "similarity": []}
    assert shown_table(Finding("gradcam", tmp_path, empty)) == ([], [])
    assert find_results([tmp_path], set()) == ([], [])
