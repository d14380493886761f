"""Results that commands left in folders: which there are, and how they read as tables."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manifold_resnet._errors import UserError

__all__ = ["Finding", "find_results", "percent_or_number", "shown_table"]

#: Commands, in the order of a report, and their titles.
_TITLES = {
    "ood": "Out-of-distribution detection",
    "fgsm": "Accuracy under attack: FGSM",
    "pgd": "Accuracy under attack: PGD",
    "fuse": "Two networks combined",
    "gradcam": "Where the networks look: Grad-CAM",
    "disk": "Test images on the Poincaré disk",
    "ablate": "Ablation",
}
_NOTES = {
    "fuse": "Shares in percent.",
    "gradcam": "Mean correlation of the maps of two networks.",
    "disk": "Accuracy in percent; geodesic distance from the origin of images that are classified right, and wrong: "
    "mean ± standard deviation over images.",
}
_HEADS = {
    "group": "model",
    "ood": "outliers",
    "fpr95": "FPR95 (low)",
    "auroc": "AUROC",
    "aupr": "AUPR",
    "aupr_out": "AUPR, outliers positive",
    "distance_right": "distance, right",
    "distance_wrong": "distance, wrong",
    "run_first": "first run",
    "run_second": "second run",
    "first": "accuracy of the first",
    "second": "accuracy of the second",
    "mean_softmax": "accuracy of the mean softmax",
    "mean_logits": "accuracy of the mean logits",
    "either": "either is right",
    "agreement": "both say the same",
    "second_corrects_first": "errors of the first that the second has right",
    "first_corrects_second": "errors of the second that the first has right",
    "fixed_of_first": "errors of the first that the mean softmax has right",
    "fixed_of_second": "errors of the second that the mean softmax has right",
    "broken_of_first": "right answers of the first that the mean softmax has wrong",
    "broken_of_second": "right answers of the second that the mean softmax has wrong",
}
_SHARES = {
    "accuracy", "lowest", "highest", "fpr95", "auroc", "aupr", "aupr_out", "first", "second", "mean_softmax",
    "mean_logits", "either", "agreement", "second_corrects_first", "first_corrects_second", "fixed_of_first",
    "fixed_of_second", "broken_of_first", "broken_of_second",
}  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """What one command wrote.

    Attributes
    ----------
    command : str
        Its name; of an attack, the attack's.
    folder : Path
        Where it wrote.
    values : dict
        The JSON file.
    """

    command: str
    folder: Path
    values: dict[str, Any]

    @property
    def title(self) -> str:
        """A heading."""
        title = _TITLES[self.command]
        return f"{title}: {self.values['subject']}" if self.command == "ablate" else title

    @property
    def note(self) -> str:
        """What the numbers of the table are."""
        return _NOTES.get(self.command, "Shares in percent; mean ± standard deviation over seeds.")

    @property
    def images(self) -> list[Path]:
        """Figures that the command wrote beside its numbers."""
        return [path for path in (self.folder / f"{self.command}.png",) if path.exists()]


def find_results(folders: Iterable[str | Path], digests: set[str]) -> tuple[list[Finding], list[str]]:
    """Search folders for results of runs.

    Parameters
    ----------
    folders : iterable of str or Path
        Searched with what is below them, but for the trainings of ablations.
    digests : set of str
        Of the runs' checkpoints; results of others are left out. Those of ablations have none, and are all taken.

    Returns
    -------
    findings : list of Finding
        In the order of a report.
    left_out : list of str
        What was left out, and why.

    Raises
    ------
    UserError
        If a folder is missing, or a file is damaged.
    """
    findings: dict[Path, Finding] = {}
    left_out = []
    for given in folders:
        root = Path(given).expanduser().absolute()
        if not root.is_dir():
            raise UserError(f"--include {given}: no such folder")
        for command in _TITLES:
            for path in sorted(root.rglob(f"{command}.json")):
                if "cells" in path.relative_to(root).parts or path in findings:
                    continue
                values = _read(path)
                if values is None or values.get("command") != command:
                    continue
                strangers = [run["name"] for run in values.get("runs", ()) if run["digest"] not in digests]
                if strangers:
                    left_out.append(f"{path} is about other runs too ({', '.join(strangers)})")
                    continue
                findings[path] = Finding(command, path.parent, values)
    order = list(_TITLES)
    return sorted(findings.values(), key=lambda finding: order.index(finding.command)), left_out


def _read(path: Path) -> dict[str, Any] | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); run its command again") from error
    return values if isinstance(values, dict) and isinstance(values.get("rows"), list) else None


def shown_table(finding: Finding) -> tuple[list[str], list[list[str]]]:
    """The table of a finding as heads and cells of text: its summary over seeds where it has one.

    Parameters
    ----------
    finding : Finding
        Of any command.

    Returns
    -------
    heads : list of str
    rows : list of list of str
        Empty if there is nothing to tabulate. A single wide row becomes a table of two columns.
    """
    values = finding.values
    if finding.command == "ablate":
        from manifold_resnet.experiments.ablate.report import shown_rows

        return shown_rows(values["rows"])
    rows: Sequence[dict[str, Any]] = values.get("summary") or values.get("similarity") or values["rows"]
    if finding.command == "gradcam" and "similarity" in values:
        rows = values["similarity"]
    if not rows:
        return [], []
    names = [name for name in rows[0] if not name.endswith("_std")]
    cells = [[percent_or_number(name, row[name], row.get(f"{name}_std")) for name in names] for row in rows]
    heads = [_HEADS.get(name, name.replace("_", " ")) for name in names]
    if len(rows) == 1 and len(names) > 8:
        return ["", ""], [list(pair) for pair in zip(heads, cells[0], strict=True)]
    return heads, cells


def percent_or_number(name: str, value: Any, deviation: float | None = None) -> str:
    """Write a value: shares as percents, other numbers with three digits; with a standard deviation if there is one.

    Examples
    --------
    >>> percent_or_number("auroc", 0.912, 0.01), percent_or_number("epsilon", 0.0031373)
    ('91.2 ± 1.0', '0.8/255')
    """
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, float):
        return str(value)
    if name == "epsilon":
        return f"{255 * value:.3g}/255"
    factor, digits = (100.0, ".1f") if name in _SHARES else (1.0, ".3g")
    if not math.isfinite(value):
        return "-"
    return f"{factor * value:{digits}}" + ("" if deviation is None else f" ± {factor * deviation:{digits}}")
