"""Out-of-distribution detection: whether networks notice images of a kind they were not trained on.

The paper (van Spengler et al. 2023, sec. 4) follows Liu et al., *Energy-based Out-of-distribution Detection* (NeurIPS
2020): every image gets a score, and the test images (in distribution) are to be told from outliers by it.

Scores come from pytorch-ood: it is maintained (0.4 is of October 2026), Apache-licensed, and needs nothing but torch,
torchvision, scipy and numpy. Its metrics are not used: there, outliers are the positive class of the false positive
rate, which turns the papers' FPR95 around. Those here are scikit-learn's, with test images as the positive class.
Textures, Places365 and SVHN are torchvision's.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from torch import Tensor
from torch.utils.data import Dataset

from manifold_resnet._errors import UserError, extra
from manifold_resnet.data import DATASETS, OUTLIERS, open_outliers
from manifold_resnet.experiments.outputs import Outputs, announce, outputs, progress_bar
from manifold_resnet.experiments.results import spread
from manifold_resnet.experiments.runs import Run, evenly, short_name

__all__ = ["SCORES", "Detection", "detection_metrics", "ood", "ood_summary"]

#: Test images per outlier in the areas under precision-recall curves, as in the papers.
IMAGES_PER_OUTLIER = 5


def _detector(name: str) -> Callable[[Outputs], Tensor]:
    def score(seen: Outputs) -> Tensor:
        with extra("experiments"):
            from pytorch_ood import detector
        return getattr(detector, name).score(seen.logits)

    return score


#: Name of a score to the function that gives an image's outlier score: the higher, the stranger the image.
SCORES: dict[str, Callable[[Outputs], Tensor]] = {
    "energy": _detector("EnergyBased"),
    "softmax": _detector("MaxSoftmax"),
    "distance": lambda seen: -seen.distance,  # uncertain images lie near the origin
    "maxlogit": _detector("MaxLogit"),
}

METRICS = ("fpr95", "auroc", "aupr", "aupr_out")
DEFAULT_SCORES = ("energy", "softmax", "distance")
DEFAULT_SETS = ("patches", "inverted", "noise")


class _Changed(Dataset):
    """The test images, changed."""

    def __init__(self, images: Dataset, change: Callable[[Tensor, int], Tensor]):
        self.images, self.change = images, change

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        pixels, label = self.images[index]
        return self.change(pixels, index), label


def _noise(pixels: Tensor, index: int) -> Tensor:
    return torch.rand(pixels.shape, generator=torch.Generator().manual_seed(int(index)))


#: Outliers made of the run's own test images.
CHANGES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "inverted": lambda pixels, index: 1 - pixels,
    "upside-down": lambda pixels, index: pixels.flip(-2),
    "noise": _noise,
}


@dataclass(frozen=True)
class Detection:
    """How well outliers are told from test images.

    Attributes
    ----------
    rows : list of dict
        For each run, score and set of outliers: ``fpr95``, ``auroc``, ``aupr``, ``aupr_out`` (all between 0 and 1,
        see `detection_metrics`), and the numbers of images. The set ``"mean"`` is the mean over the sets.
    scores : dict
        ``(run name, score, set)`` to the outlier scores, an array with one entry per image. The set ``"test"`` holds
        those of the test images.
    """

    rows: list[dict[str, str | int | float]]
    scores: dict[tuple[str, str, str], np.ndarray]


def detection_metrics(inside: np.ndarray, outside: np.ndarray) -> dict[str, float]:
    """How well a score tells images in distribution from outliers.

    Parameters
    ----------
    inside, outside : array of float
        Outlier scores of test images and of outliers: the higher, the stranger.

    Returns
    -------
    dict
        ``fpr95``: share of outliers that pass where at least 95 % of the test images do (test images are the positive
        class; the lower the better). ``auroc``: probability that an outlier's score is above a test image's, ties
        counting half (the same whichever class is positive). ``aupr``: area under the precision-recall curve, test
        images being positive; ``aupr_out``: outliers being positive; both for five test images per outlier, as in
        Liu et al., by weighting, so that they don't depend on how many outliers there are.

    Raises
    ------
    ValueError
        If there are no images of one kind, or a score is not a number.

    Examples
    --------
    >>> metrics = detection_metrics([0.0, 1.0, 2.0], [1.5, 3.0])
    >>> {name: round(float(value), 3) for name, value in metrics.items()}
    {'fpr95': 0.5, 'auroc': 0.833, 'aupr': 0.97, 'aupr_out': 0.688}
    """
    inside, outside = np.asarray(inside, dtype=np.float64), np.asarray(outside, dtype=np.float64)
    if not len(inside) or not len(outside):
        raise ValueError(f"need scores of both kinds, got {len(inside)} of test images and {len(outside)} of outliers")
    scores = np.concatenate([inside, outside])
    if np.isnan(scores).any():
        raise ValueError(
            f"{np.isnan(scores).sum()} of {len(scores)} scores are not a number; did the training diverge?"
        )
    is_outlier = np.repeat([0, 1], [len(inside), len(outside)])
    weight = np.where(is_outlier, len(inside) / len(outside) / IMAGES_PER_OUTLIER, 1.0)
    passed, kept, _ = roc_curve(1 - is_outlier, -scores, drop_intermediate=False)
    return {
        "fpr95": passed[np.argmax(kept >= 0.95)],
        "auroc": roc_auc_score(is_outlier, scores),
        "aupr": average_precision_score(1 - is_outlier, -scores, sample_weight=weight),
        "aupr_out": average_precision_score(is_outlier, scores, sample_weight=weight),
    }


def ood(
    runs: Sequence[Run],
    sets: Sequence[str] = DEFAULT_SETS,
    *,
    scores: Sequence[str] = DEFAULT_SCORES,
    data_dir: str | None = None,
    limit: int | None = None,
    progress: bool = False,
) -> Detection:
    """Measure how well outliers are told from the test images of runs.

    Parameters
    ----------
    runs : sequence of Run
        Trained networks, from `load_runs`.
    sets : sequence of str
        Outliers: ``"inverted"``, ``"upside-down"`` (the test images changed), ``"noise"`` (uniform pixels), or a name
        that `open_outliers` knows. They are brought to the size and colours of the run's images.
    scores : sequence of str
        Names in ``SCORES``. ``"distance"`` is that of the features from the origin, 2 |log0(x)|; of Euclidean networks,
        the features' norm.
    data_dir : str, optional
        Where downloaded data sets are kept; by default where the first run has them.
    limit : int, optional
        At most so many images of each set, spread evenly.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Detection
        Metrics and scores.

    Raises
    ------
    UserError
        If a set or score is unknown, or images are missing, or are those a run was trained on.
    """
    unknown = [name for name in scores if name not in SCORES]
    if unknown or not scores:
        raise UserError(
            f"unknown score {unknown[0]!r}; choose from {', '.join(SCORES)}" if unknown else "no score given"
        )
    opened = {}
    for name in sets:
        label = short_name(name)
        if label in opened:
            raise UserError(f"the outliers {label} are given twice; name each set once")
        for run in runs:
            if name == run.config.dataset or _path(name) == _path(run.config.dataset):
                raise UserError(f"{name} is what {run.name} was trained on; name other images")
        opened[label] = name if name in CHANGES else _open(name, data_dir or runs[0].config.data_dir)
    if not opened:
        raise UserError("no outliers given; name some with --ood")

    def images(run: Run, label: str) -> Dataset:
        if label == "test":
            return run.test
        found = opened[label]
        return _Changed(run.test, CHANGES[found]) if isinstance(found, str) else run.view(found)

    work = [(run, label, images(run, label)) for run in runs for label in ("test", *opened)]
    found: dict[tuple[str, str, str], np.ndarray] = {}
    with progress_bar(sum(len(evenly(len(part), limit)) for _, _, part in work), "image", progress) as bar:
        for run, label, part in work:
            announce(bar, f"{run.name}: {label}")
            seen = outputs(run, run.loader(part, limit), bar)
            for score in scores:
                found[run.name, score, label] = SCORES[score](seen).numpy()
    return Detection([row for run in runs for score in scores for row in _rows(run, score, opened, found)], found)


def ood_summary(
    rows: Sequence[Mapping[str, Any]], groups: Mapping[str, str]
) -> list[dict[str, str | int | float | None]]:
    """Mean and standard deviation over runs that differ in their seed alone.

    Parameters
    ----------
    rows : sequence of mapping
        Of a `Detection`.
    groups : mapping
        Run name to the name of its group, see `group_labels`.

    Returns
    -------
    list of dict
        For each group, score and set of outliers: how many ``seeds``, and of each metric the mean and, with ``_std``,
        the sample standard deviation (None for one seed).

    Examples
    --------
    >>> metrics = {"fpr95": 0.5, "auroc": 0.75, "aupr": 0.9, "aupr_out": 0.5}
    >>> rows = [{"run": run, "score": "energy", "ood": "svhn", **metrics} for run in ("a", "b")]
    >>> line = ood_summary(rows, {"a": "twins", "b": "twins"})[0]
    >>> line["seeds"], line["auroc"], line["auroc_std"]
    (2, 0.75, 0.0)
    """
    members: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        members.setdefault((groups[row["run"]], row["score"], row["ood"]), []).append(row)
    summary = []
    for (group, score, label), found in members.items():
        line: dict[str, str | int | float | None] = {"group": group, "score": score, "ood": label, "seeds": len(found)}
        for metric in METRICS:
            line[metric], line[f"{metric}_std"] = spread([row[metric] for row in found])
        summary.append(line)
    return summary


def _path(name: str) -> Path | str:
    """A folder wherever the path leads, or the name itself."""
    return Path(name.removeprefix("folder:")).expanduser().resolve() if name.startswith("folder:") else name


def _open(name: str, data_dir: str) -> object:
    if not name.startswith("folder:") and name not in OUTLIERS and name not in DATASETS:
        known = [*CHANGES, *OUTLIERS, *DATASETS]
        close = difflib.get_close_matches(name, known, n=1)
        guess = f" (did you mean {close[0]}?)" if close else ""
        raise UserError(f"unknown outliers {name!r}{guess}; choose from {', '.join(known)}, or folder:PATH")
    return open_outliers(name, data_dir)


def _rows(
    run: Run, score: str, sets: Sequence[str], found: dict[tuple[str, str, str], np.ndarray]
) -> list[dict[str, str | int | float]]:
    about = {"run": run.name, "model": run.config.model, "seed": run.seed, "score": score}
    inside = found[run.name, score, "test"]
    rows = []
    for label in sets:
        outside = found[run.name, score, label]
        metrics = {name: float(value) for name, value in detection_metrics(inside, outside).items()}
        rows.append({**about, "ood": label, **metrics, "test_images": len(inside), "ood_images": len(outside)})
    mean = {name: float(np.mean([row[name] for row in rows])) for name in metrics}
    total = sum(row["ood_images"] for row in rows)
    return [*rows, {**about, "ood": "mean", **mean, "test_images": len(inside), "ood_images": total}]
