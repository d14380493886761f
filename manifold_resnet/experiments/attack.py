"""Adversarial attacks: accuracy on test images whose pixels are changed to deceive the network.

The paper (van Spengler et al. 2023, sec. 4) attacks with the fast gradient sign method (FGSM; Goodfellow et al. 2015);
projected gradient descent (PGD; Madry et al. 2018) is the stronger test. Both come from captum: it is maintained (0.9
is of April 2026), part of the PyTorch ecosystem, draws Grad-CAM as well, and depends on nothing that training does not
need anyway. Of the others, torchattacks has had no release since 2023 and foolbox none since 2024, and their
requirements have aged; adversarial-robustness-toolbox is a framework for far more than these two attacks.

Weak attacks flatter. Captum takes gradients below 1e-6 for zero, which spares just the images a network is surest of;
here nothing is rounded off, and the loss is taken in float64, where a softmax close to one still has a gradient.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from manifold_resnet._errors import UserError, extra
from manifold_resnet.experiments.outputs import announce, progress_bar
from manifold_resnet.experiments.results import read_results, spread
from manifold_resnet.experiments.runs import Run, evenly, short_name

__all__ = ["ATTACKS", "attack", "attack_summary", "parse_epsilons", "perturb"]

ATTACKS = ("fgsm", "pgd")
DEFAULT_EPSILONS = (0.8 / 255, 1.6 / 255, 2.4 / 255, 3.2 / 255)
_STEPS = 10


def parse_epsilons(text: str) -> list[float]:
    """Numbers such as ``"0.8/255,1.6/255"`` or ``"0.01"``, separated by commas.

    Parameters
    ----------
    text : str
        Each a number or a fraction.

    Returns
    -------
    list of float
        Sorted; shares of the range of pixels, above 0 and at most 1.

    Raises
    ------
    UserError
        If one is no number, or out of range.

    Examples
    --------
    >>> parse_epsilons("2/255, 0.5")
    [0.00784313725490196, 0.5]
    """
    values = []
    for part in text.split(","):
        above, slash, below = part.partition("/")
        try:
            value = float(above) / float(below) if slash else float(above)
        except (ValueError, ZeroDivisionError):
            raise UserError(
                f"--epsilon must be numbers separated by commas, such as 0.8/255,1.6/255; got {part.strip()!r}"
            ) from None
        values.append(_checked(value, part.strip()))
    return sorted(set(values))


def _checked(epsilon: float, text: str) -> float:
    if not 0 < epsilon <= 1:
        hint = f"; did you mean {text}/255?" if 1 < epsilon <= 255 and "/" not in text else ""
        raise UserError(f"--epsilon is in pixels between 0 and 1, so above 0 and at most 1; got {text}{hint}")
    return epsilon


def perturb(
    network: nn.Module, pixels: Tensor, labels: Tensor, attack: str, epsilon: float, steps: int = _STEPS, seed: int = 0
) -> Tensor:
    """Change images so that a network mistakes them.

    Parameters
    ----------
    network : torch.nn.Module
        Maps pixels to logits, such as ``run.network``.
    pixels : Tensor
        ``(batch, C, H, W)`` in [0, 1].
    labels : Tensor
        ``(batch,)``, the true classes.
    attack : {"fgsm", "pgd"}
        One step along the sign of the loss's gradient, or `steps` smaller ones of ``2.5 * epsilon / steps`` from a
        random start, each followed by a projection (Madry et al. 2018).
    epsilon : float
        The most any pixel changes by.
    steps : int
        Of ``"pgd"``.
    seed : int
        Of the random start.

    Returns
    -------
    Tensor
        Pixels ``(batch, C, H, W)`` in [0, 1].

    Raises
    ------
    UserError
        If the attack is unknown, or epsilon or the number of steps out of range.

    Examples
    --------
    >>> import torch
    >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2, 2, bias=False))
    >>> _ = network[1].weight.data.copy_(torch.tensor([[1.0, -1.0], [0.0, 0.0]]))
    >>> pixels = torch.tensor([[[[0.5, 0.95]]]])  # the label's logit is the first pixel less the second
    >>> perturb(network, pixels, torch.tensor([0]), "fgsm", 0.1)
    tensor([[[[0.4000, 1.0000]]]])
    """
    with extra("experiments"):
        from captum.robust import FGSM, PGD
    if attack not in ATTACKS:
        raise UserError(f"unknown attack {attack!r}; choose from {', '.join(ATTACKS)}")
    if steps < 1:
        raise UserError(f"--steps must be 1 or more, got {steps}")
    _checked(epsilon, f"{epsilon:g}")
    made = (FGSM if attack == "fgsm" else PGD)(network, _loss, lower_bound=0.0, upper_bound=1.0)
    (made if attack == "fgsm" else made.fgsm).zero_thresh = 0.0
    devices = [pixels.device] if pixels.is_cuda else []
    with torch.random.fork_rng(devices), warnings.catch_warnings():
        torch.manual_seed(seed)
        warnings.filterwarnings("ignore", message="Input Tensor .* did not already require gradients")
        if attack == "fgsm":
            return made.perturb(pixels.clone(), epsilon, labels).detach()
        step = 2.5 * epsilon / steps
        return made.perturb(pixels.clone(), epsilon, step, steps, labels, random_start=True).detach()


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(logits.double(), labels, reduction="none")


def attack(
    runs: Sequence[Run],
    method: str = "fgsm",
    epsilons: Sequence[float] = DEFAULT_EPSILONS,
    *,
    steps: int = _STEPS,
    limit: int | None = None,
    earlier: Path | None = None,
    keep: Callable[[list[dict[str, Any]]], None] | None = None,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Measure accuracy on test images under attack.

    Parameters
    ----------
    runs : sequence of Run
        Trained networks, from `load_runs`.
    method : {"fgsm", "pgd"}
        See `perturb`; labels are the true ones, the attack is free in what it makes of an image.
    epsilons : sequence of float
        The most a pixel changes by, as a share of its range. Images are normalised after the attack.
    steps : int
        Of ``"pgd"``.
    limit : int, optional
        At most so many images, spread evenly over the test set.
    earlier : Path, optional
        JSON file of an earlier call; what it holds of the same networks, images and settings is not measured again.
    keep : callable, optional
        Gets all rows so far after each measurement, to write them.
    progress : bool
        Show a progress bar.

    Returns
    -------
    list of dict
        For each run and epsilon, 0 (clean) first: ``accuracy``, ``correct`` of ``images``.

    Raises
    ------
    UserError
        If the method is unknown, or a number out of range.
    """
    if method not in ATTACKS:
        raise UserError(f"unknown attack {method!r}; choose from {', '.join(ATTACKS)}")
    for epsilon in epsilons:
        _checked(epsilon, f"{epsilon:g}")
    stored = None if earlier is None else read_results(earlier)
    known = {_key(row): row for row in stored["rows"]} if stored else {}
    asked = [_about(run, method, epsilon, steps, limit) for run in runs for epsilon in (0.0, *epsilons)]
    owners = [run for run in runs for _ in (0.0, *epsilons)]
    todo = sum(row["images"] for row in asked if _key(row) not in known)
    rows: list[dict[str, Any]] = []
    with progress_bar(todo, "image", progress) as bar:
        for run, row in zip(owners, asked, strict=True):
            if _key(row) in known:
                rows.append(row | {name: known[_key(row)][name] for name in ("correct", "accuracy")})
                continue
            announce(bar, f"{run.name}: epsilon {255 * row['epsilon']:g}/255")
            correct = _count_correct(run, method, row["epsilon"], steps, limit, bar)
            rows.append(row | {"correct": correct, "accuracy": correct / row["images"]})
            if keep is not None:
                keep(rows)
    return rows


def attack_summary(rows: Sequence[Mapping[str, Any]], groups: Mapping[str, str]) -> list[dict[str, Any]]:
    """Accuracy over runs that differ in their seed alone.

    Parameters
    ----------
    rows : sequence of mapping
        What `attack` returns.
    groups : mapping
        Run name to the name of its group, see `group_labels`.

    Returns
    -------
    list of dict
        For each group and epsilon: how many ``seeds``, the ``accuracy``'s mean, and its ``accuracy_std`` (None for one
        seed), ``lowest`` and ``highest``.

    Examples
    --------
    >>> rows = [{"run": run, "epsilon": 0.1, "accuracy": value} for run, value in (("a", 0.5), ("b", 0.75))]
    >>> attack_summary(rows, {"a": "twins", "b": "twins"})[0]["accuracy"]
    0.625
    """
    members: dict[tuple[str, float], list[float]] = {}
    for row in rows:
        members.setdefault((groups[row["run"]], row["epsilon"]), []).append(row["accuracy"])
    summary = []
    for (group, epsilon), found in members.items():
        mean, deviation = spread(found)
        line = {"group": group, "epsilon": epsilon, "seeds": len(found), "accuracy": mean, "accuracy_std": deviation}
        summary.append({**line, "lowest": min(found), "highest": max(found)})
    return summary


def _about(run: Run, method: str, epsilon: float, steps: int, limit: int | None) -> dict[str, Any]:
    return {
        "run": run.name,
        "model": run.config.model,
        "seed": run.seed,
        "digest": run.digest,
        "dataset": short_name(run.config.dataset),
        "attack": method if epsilon else "none",
        "steps": 0 if not epsilon else 1 if method == "fgsm" else steps,
        "epsilon": epsilon,
        "images": len(evenly(len(run.test), limit)),
    }


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("digest", "dataset", "attack", "steps", "epsilon", "images"))


def _count_correct(run: Run, method: str, epsilon: float, steps: int, limit: int | None, bar: tqdm) -> int:
    correct = 0
    for index, (pixels, labels) in enumerate(run.loader(limit=limit)):
        pixels, labels = pixels.to(run.device), labels.to(run.device)
        if epsilon:
            pixels = perturb(run.network, pixels, labels, method, epsilon, steps, seed=index)
        with torch.no_grad():
            correct += int((run.network(pixels).argmax(1) == labels).sum())
        bar.update(len(labels))
    return correct
