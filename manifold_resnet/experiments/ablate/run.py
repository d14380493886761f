"""Run an ablation: trainings first, then what is measured without them."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from manifold_resnet._errors import UserError
from manifold_resnet.experiments.ablate.backward import compare_backward
from manifold_resnet.experiments.ablate.grid import Ablation
from manifold_resnet.experiments.ablate.measure import norms_at_start, seconds_per_step
from manifold_resnet.experiments.ablate.plot import plot_backward
from manifold_resnet.experiments.ablate.report import read_measured, save_figure, write_csv, write_json
from manifold_resnet.optim.experiments.run import Outcome, run_experiment
from manifold_resnet.training import Config
from manifold_resnet.training.callbacks import write_atomically

__all__ = ["BACKWARD", "ablate", "ablate_backward"]

_log = logging.getLogger("manifold_resnet.experiments")
#: The ablation that trains nothing.
BACKWARD = "backward"


def ablate(
    ablation: Ablation,
    folder: str | Path,
    *,
    limit: int | None = None,
    norm_depths: Sequence[int] = (20, 56, 110),
    progress: bool = False,
) -> Outcome:
    """Run what is not done yet; after an interruption, even a kill, the same call carries on.

    Parameters
    ----------
    ablation : Ablation
        What to run.
    folder : str or Path
        For ``cells/<variant>-seed<seed>``, each a run folder, and for ``ablate.json``, ``ablate.csv`` (the table),
        ``trainings.csv``, ``curves.csv``, ``ablate.png``, ``config.yaml`` and ``log.txt``.
    limit : int, optional
        Stop after so many trainings.
    norm_depths : sequence of int
        Depths of the new networks that an ablation of ``init`` or ``gain`` measures distances through.
    progress : bool
        Show a progress bar where there is a terminal; elsewhere the log says it.

    Returns
    -------
    Outcome
        All results so far.

    Raises
    ------
    UserError
        If the folder holds something else, or a training can't start. One that diverges is a result.

    Examples
    --------
    >>> import tempfile
    >>> from manifold_resnet.experiments.ablate import Ablation, ablate
    >>> settings = {"dataset": "digits", "model": "hyperbolic-2-2-2-resnet-8", "epochs": 1, "train_fraction": 0.05}
    >>> ablation = Ablation("head", settings, {"head": ("mlr", "fc")}, seeds=(0,))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     outcome = ablate(ablation, folder)
    >>> [(cell.label, result.status) for cell, result in outcome.results]
    [('mlr', 'finished'), ('fc', 'finished')]
    """
    folder = Path(folder).expanduser().absolute()
    outcome = run_experiment(ablation, folder, limit=limit, progress=progress)
    measured = read_measured(folder)
    if ablation.name in ("init", "gain"):
        done = {(row["variant"], row["depth"]) for row in measured.get("norms", ())}
        names = [variant.label for variant in ablation.without_depth]
        wanted = {(v, d) for d in norm_depths for v in names}
        if not wanted <= done:
            measured["norms"] = norms_at_start(ablation, norm_depths, tell=_log.info)
    if ablation.name == "norm" and {row["variant"] for row in measured.get("steps", ())} != set(ablation.labels):
        measured["steps"] = seconds_per_step(ablation, tell=_log.info)
    if measured:
        write_atomically(folder / "measured.json", json.dumps(measured, indent=1) + "\n")
        ablation.write(outcome, folder, figure=True)
    return outcome


def ablate_backward(
    settings: Mapping[str, Any], folder: str | Path, depths: Sequence[int], *, count: int = 8, rounds: int = 3
) -> list[dict[str, Any]]:
    """Compare backward passes and write ``ablate.json``, ``ablate.csv`` and ``ablate.png``; depths done are kept.

    Parameters
    ----------
    settings, depths, count, rounds
        See `compare_backward`.
    folder : str or Path
        Where to write.

    Returns
    -------
    list of dict
        See `compare_backward`.

    Raises
    ------
    UserError
        If the folder holds something else, or the settings are wrong.

    Examples
    --------
    >>> import tempfile
    >>> from manifold_resnet.experiments.ablate import ablate_backward
    >>> settings = {"dataset": "digits", "model": "hyperbolic-2-2-2-resnet-8"}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     rows = ablate_backward(settings, folder, (8,), count=2, rounds=1)
    >>> [row["contender"] for row in rows]
    ['euclidean', 'hand-written', 'naive']
    """
    folder = Path(folder).expanduser().absolute()
    about = {"task": {k: v for k, v in settings.items() if k not in ("data_dir", "device", "workers")}, "count": count}
    done: Sequence[dict[str, Any]] = ()
    path = folder / "ablate.json"
    if path.exists():
        try:
            earlier = json.loads(path.read_text(encoding="utf-8"))
            subject, before, done = earlier["subject"], earlier["settings"], earlier["rows"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}); remove it, or choose another --output") from error
        if subject != BACKWARD or before != about:
            raise UserError(f"{folder} holds an ablation of {subject} with other settings; choose another --output")
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not a folder of an ablation, and not empty; choose another --output")
    rows: list[dict[str, Any]] = list(done)
    for depth in depths:  # each is kept as soon as it is measured
        rows = compare_backward(settings, sorted({depth, *(row["depth"] for row in rows)}), count=count,
                                rounds=rounds, done=rows, tell=_log.info)  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        text = "hand-written backward passes or automatic ones: memory and time against depth"
        write_json(path, {"subject": BACKWARD, "text": text, "settings": about, "rows": rows})
        write_csv(folder / "ablate.csv", rows)
    base = Config.from_dict(dict(settings))
    family, data = base.model.rpartition("-")[0], base.dataset.rpartition("/")[2]
    title = f"backward: {family}, batch of {count}, {data}"
    save_figure(plot_backward(rows, title), folder / "ablate.png")
    return rows
