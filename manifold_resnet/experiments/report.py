"""All tables and figures of runs in one document."""

from __future__ import annotations

import base64
import io
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import jinja2
import yaml

from manifold_resnet._errors import UserError
from manifold_resnet.experiments.findings import Finding, find_results, percent_or_number, shown_table
from manifold_resnet.experiments.results import group_labels, percent, spread
from manifold_resnet.experiments.runs import Run, load_run
from manifold_resnet.plotting.curves import plot_curves
from manifold_resnet.training import Config
from manifold_resnet.training.callbacks import read_metrics, write_atomically

__all__ = ["Part", "Section", "report"]


@dataclass
class Part:
    """A piece of a document.

    Attributes
    ----------
    kind : {"text", "table", "figure", "code"}
        What it is.
    text : str
        The text itself, or what a table, figure or code shows.
    heads, rows : list
        Of a table.
    image : bytes
        Of a figure, as PNG.
    code : str
        Of code.
    """

    kind: Literal["text", "table", "figure", "code"]
    text: str = ""
    heads: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    image: bytes = b""
    code: str = ""
    file: str = ""

    @property
    def base64(self) -> str:
        """The image as text."""
        return base64.b64encode(self.image).decode("ascii")


@dataclass
class Section:
    """A headed part of a document."""

    title: str
    parts: list[Part] = field(default_factory=list)


def report(runs: Sequence[str | Path], output: str | Path, *, include: Iterable[str | Path] = ()) -> list[str]:
    """Write ``report.html``, which needs no other file, and ``report.md`` with its ``figures/``.

    Parameters
    ----------
    runs : sequence of str or Path
        Folders of runs; their data sets need not be there.
    output : str or Path
        Folder to write to; an earlier report there is replaced, nothing else.
    include : iterable of str or Path
        Folders to search for what ``ood``, ``attack``, ``gradcam``, ``fuse``, ``disk`` and ``ablate`` wrote. Results of
        runs that are not among `runs` are left out, ablations are all taken.

    Returns
    -------
    list of str
        What was left out, and why, in words.

    Raises
    ------
    UserError
        If a run is missing or damaged, a folder to include is missing, or nothing can be written.

    Examples
    --------
    >>> import tempfile
    >>> from manifold_resnet.training import Config, train
    >>> config = Config(dataset="digits", model="euclidean-2-2-2-resnet-8", epochs=1, train_fraction=0.05)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = train(config, f"{folder}/run", progress=False)
    ...     left_out = report([run], f"{folder}/report")
    ...     sorted(path.name for path in Path(folder, "report").iterdir())
    ['figures', 'report.html', 'report.md']
    """
    if not runs:
        raise UserError("no run given; name the folder of one or more, as `manifold-resnet train` prints it")
    folder = Path(output).expanduser().absolute()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is not a folder; choose another --output")
    loaded = [load_run(run, device="cpu") for run in runs]
    folders = [_folder(run) for run in loaded]
    for index, path in enumerate(folders):
        if path in folders[:index]:
            raise UserError(f"the run {runs[index]} is given twice; name each once")
    digests = {digest for run in loaded for digest in _digests(run)}
    findings, left_out = find_results(include, digests)
    sections = [_accuracies(loaded, folders), _curves(loaded, folders)]
    sections += [_section(finding) for finding in findings]
    sections.append(_settings(loaded, folders))
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("manifold-resnet", "torch"))
    title = "Report on " + (folders[0].name if len(runs) == 1 else f"{len(runs)} runs")
    _write(folder, title, f"Made with {versions}.", sections)
    return left_out


def _folder(run: Run) -> Path:
    return run.path.parent.parent if run.path.parent.name == "checkpoints" else run.path.parent


def _digests(run: Run) -> list[str]:
    """Of all checkpoints of a run: commands may have measured the best or the last."""
    return [replace(run, path=path).digest for path in {run.path, *(_folder(run) / "checkpoints").glob("*.ckpt")}]


def _accuracies(runs: Sequence[Run], folders: Sequence[Path]) -> Section:
    section = Section("Accuracy")
    labels = group_labels(runs)
    measured = [_read_json(folder / "test.json") for folder in folders]
    rows = []
    for label in dict.fromkeys(labels):
        own = [i for i, other in enumerate(labels) if other == label]
        found = [measured[i] for i in own if measured[i]]
        seeds = ", ".join(str(runs[i].seed) for i in own)
        accuracy = percent(*spread([m["test_accuracy"] for m in found])) if found else "-"
        minutes = spread([m["train_seconds"] / 60 for m in found if "train_seconds" in m])[0] if found else None
        data = ", ".join(dict.fromkeys(_data(runs[i].config) for i in own))
        rows.append([label, data, seeds, accuracy, "-" if minutes is None else f"{minutes:.1f}"])
    text = "Accuracy on the test set of the epoch that is best in validation, in percent; mean ± standard deviation "
    heads = ["model", "data", "seeds", "test accuracy", "minutes of training"]
    section.parts.append(Part("table", text + "over seeds.", heads, rows))
    if len(runs) > len(rows):
        each = [
            [folder.name, label, str(run.seed), percent(m["test_accuracy"]) if m else "-",
             f"{m['test_loss']:.3f}" if m else "-", str(m["epoch"]) if m else "-"]
            for run, folder, label, m in zip(runs, folders, labels, measured, strict=True)
        ]  # fmt: skip
        section.parts.append(Part("table", "", ["run", "model", "seed", "test accuracy", "test loss", "epoch"], each))
    return section


def _data(config: Config) -> str:
    name = config.dataset
    name = Path(name.removeprefix("folder:")).name if name.startswith("folder:") else name
    return name if config.train_fraction == 1 else f"{name}, {100 * config.train_fraction:g} % of it"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); `manifold-resnet evaluate` measures again") from error


def _curves(runs: Sequence[Run], folders: Sequence[Path]) -> Section:
    section = Section("Training")
    for run, folder in zip(runs, folders, strict=True):
        path = folder / "metrics.csv"
        if path.exists() and (rows := read_metrics(path)):
            image = io.BytesIO()
            plot_curves(rows).savefig(image, format="png", dpi=110)
            section.parts.append(Part("figure", f"{folder.name}: {run.config.model}, seed {run.seed}",
                                      image=image.getvalue()))  # fmt: skip
    if not section.parts:
        section.parts.append(Part("text", "The runs have no metrics.csv."))
    return section


def _settings(runs: Sequence[Run], folders: Sequence[Path]) -> Section:
    section = Section("Settings")
    names = [setting.name for setting in fields(Config) if setting.name != "images"]
    values = {name: [getattr(run.config, name) for run in runs] for name in names}
    differ = [name for name in names if len({repr(value) for value in values[name]}) > 1 and name != "data_dir"]
    if differ:
        rows = [
            [folder.name, *(percent_or_number("", values[name][i]) for name in differ)]
            for i, folder in enumerate(folders)
        ]
        section.parts.append(Part("table", "Settings that differ between the runs.", ["run", *differ], rows))
    for run, folder in zip(runs, folders, strict=True):
        shown = {name: value for name, value in asdict(run.config).items() if name not in ("images", "data_dir")}
        code = yaml.safe_dump(shown, sort_keys=False, allow_unicode=True).rstrip()
        section.parts.append(Part("code", f"all settings of {folder.name}", code=code))
    return section


def _section(finding: Finding) -> Section:
    section = Section(finding.title)
    names = ", ".join(run["name"] for run in finding.values.get("runs", ()))
    settings = finding.values.get("settings", {})
    settings = {**settings.get("task", {}), **settings}
    about = ", ".join(
        f"{key} {_setting(key, value)}"
        for key, value in settings.items()
        if key != "ablation" and not isinstance(value, dict)
    )
    text = finding.values.get("text", "")
    for line in (
        text[:1].upper() + text[1:],
        f"Runs: {names}." if names else "",
        f"Settings: {about}." if about else "",
    ):
        if line:
            section.parts.append(Part("text", line))
    heads, rows = shown_table(finding)
    if rows:
        section.parts.append(Part("table", finding.note, heads, rows))
    for image in finding.images:
        section.parts.append(Part("figure", finding.title, image=image.read_bytes()))
    return section


def _setting(name: str, value: Any) -> str:
    if isinstance(value, list):
        return " ".join(_setting(name, item) for item in value)
    if value is None:
        return "all" if name == "limit" else "default"
    return percent_or_number("epsilon" if name == "epsilons" else "", value)


def _write(folder: Path, title: str, subtitle: str, sections: Sequence[Section]) -> None:
    figures = [part for section in sections for part in section.parts if part.kind == "figure"]
    try:
        (folder / "figures").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create {folder}: {error.strerror}; choose another --output") from error
    for number, part in enumerate(figures, 1):
        ascii_text = unicodedata.normalize("NFKD", part.text.lower()).encode("ascii", "ignore").decode()
        name = re.sub(r"[^a-z0-9.-]+", "-", ascii_text)[:60].strip("-")
        part.file = f"figures/{number:02}-{name}.png"
        (folder / part.file).write_bytes(part.image)
    values = {"title": title, "subtitle": subtitle, "sections": sections}
    loader = jinja2.PackageLoader("manifold_resnet.experiments", "templates")
    options: dict[str, Any] = {
        "loader": loader,
        "trim_blocks": True,
        "lstrip_blocks": True,
        "keep_trailing_newline": True,
    }
    html = jinja2.Environment(autoescape=True, **options)
    markdown = jinja2.Environment(autoescape=False, **options)
    markdown.filters["row"] = _markdown_row
    markdown.filters["rule"] = lambda heads: _markdown_row(["---"] * len(heads))
    write_atomically(folder / "report.html", html.get_template("report.html.j2").render(values))
    write_atomically(folder / "report.md", markdown.get_template("report.md.j2").render(values))


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in cells)} |"
