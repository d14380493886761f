"""Runs: training into a folder, carrying on from it, and measuring what came out."""

from __future__ import annotations

import contextlib
import json
import logging
import platform
import re
import shutil
import signal
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.loggers import TensorBoardLogger

from manifold_resnet._errors import UserError
from manifold_resnet.plotting.curves import plot_curves
from manifold_resnet.training.callbacks import Checkpoint, MetricsTable, ProgressBar, read_metrics, write_atomically
from manifold_resnet.training.checkpoints import checkpoint_path, load_weights, open_run, read_checkpoint, run_folder
from manifold_resnet.training.config import Config
from manifold_resnet.training.module import Classifier

__all__ = ["TrainingInterrupted", "evaluate", "resume", "train"]

_log = logging.getLogger(__name__)
_PRECISION = {"32": "32-true", "bf16": "bf16-mixed", "64": "64-true"}


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C during training.

    Parameters
    ----------
    folder : Path or None
        The run, to be resumed; ``None`` if no epoch was finished and nothing is left.

    Examples
    --------
    >>> from pathlib import Path
    >>> from manifold_resnet.training import TrainingInterrupted
    >>> TrainingInterrupted(Path("runs/digits-1")).folder.name
    'digits-1'
    """

    def __init__(self, folder: Path | None):
        super().__init__()
        self.folder = folder


def train(
    config: Config,
    output: str | Path | None = None,
    *,
    progress: bool = True,
    callbacks: Sequence[lightning.Callback] = (),
) -> Path:
    """Train a network and measure it on the test set.

    Parameters
    ----------
    config : Config
        The settings; what they leave open is filled in.
    output : str or Path, optional
        Folder to write to, new or empty; by default the next free ``runs/<dataset>-<model>-<number>``.
    progress : bool
        Show a progress bar.
    callbacks : sequence of lightning.Callback
        Called beside the usual ones.

    Returns
    -------
    Path
        The run's folder: ``config.yaml``, ``metrics.csv``, ``curves.png``, ``test.json``,
        ``checkpoints/best.ckpt`` (highest validation accuracy; none without validation images) and
        ``last.ckpt``, ``tensorboard/``. A training that fails before its first epoch is complete leaves no
        folder.

    Raises
    ------
    UserError
        If settings or data don't allow a training, or the folder holds something already.
    TrainingInterrupted
        On Ctrl-C, the finished epochs saved.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from manifold_resnet.training import Config, train
    >>> config = Config(model="hyperbolic-2-2-2-resnet-8", epochs=1, train_fraction=0.1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = train(config, Path(folder) / "run", progress=False)
    ...     (run / "config.yaml").exists(), (run / "curves.png").exists()
    (True, True)
    """
    config = replace(config.resolved(), images=None)
    config.accelerator()
    folder = None if output is None else _check_free(Path(output).expanduser().absolute())
    data = config.open_data()
    data.setup()
    config = replace(config, images=asdict(data.facts))
    lightning.seed_everything(config.seed, verbose=False)
    classifier = Classifier(config.to_dict())
    folder = _next_free(config) if folder is None else _make(folder)
    try:
        _write_config(folder, config)
        _fit(classifier, data, folder, progress, callbacks)
    except BaseException:
        if not checkpoint_path(folder, "last").exists():
            shutil.rmtree(folder, ignore_errors=True)
            if output is None:
                with contextlib.suppress(OSError):
                    folder.parent.rmdir()
        raise
    _finish(classifier, data, folder, progress)
    return folder


def resume(
    run: str | Path,
    *,
    epochs: int | None = None,
    data_dir: str | None = None,
    workers: int | None = None,
    device: str | None = None,
    progress: bool = True,
    callbacks: Sequence[lightning.Callback] = (),
) -> Path:
    """Carry on a training after its last finished epoch; the result is that of a training never stopped.

    Parameters
    ----------
    run : str or Path
        A run's folder.
    epochs : int, optional
        A new total. Only a constant learning rate allows it: the other schedules were laid out for the old
        one.
    data_dir, workers, device : optional
        As in ``Config``; what else is set can't change.
    progress, callbacks :
        As in ``train``.

    Returns
    -------
    Path
        The same folder.

    Raises
    ------
    UserError
        If there is nothing to carry on, the checkpoint is damaged, or the data are not those of the run.
    TrainingInterrupted
        On Ctrl-C, the finished epochs saved.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from manifold_resnet.training import Config, resume, train
    >>> config = Config(model="hyperbolic-2-2-2-resnet-8", epochs=1, train_fraction=0.1, schedule="constant")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = train(config, Path(folder) / "run", progress=False)
    ...     _ = resume(run, epochs=2, progress=False)
    ...     len((run / "metrics.csv").read_text().splitlines())  # a header and two epochs
    3
    """
    folder = run_folder(run)
    path = checkpoint_path(folder, "last")
    checkpoint = read_checkpoint(path)
    old = Config.from_dict(checkpoint["hyper_parameters"]["config"], str(path))
    changes = {"epochs": epochs, "data_dir": data_dir, "workers": workers, "device": device}
    config = replace(old, **{key: value for key, value in changes.items() if value is not None}).resolved()
    config.accelerator()
    done = checkpoint["epoch"] + 1
    if config.epochs != old.epochs and old.schedule != "constant":
        raise UserError(
            f"{folder} trains for {old.epochs} epochs, and its {old.schedule} schedule of the learning "
            "rate was laid out for them; only runs with --schedule constant can change --epochs: start a new "
            "run"
        )
    if config.epochs < done or (config.epochs == done and (folder / "test.json").exists()):
        raise UserError(
            f"{folder} has finished its training, {done} of {done} epochs; see `manifold-resnet evaluate {folder}`"
        )
    data = config.open_data()
    data.setup()
    classifier = Classifier(config.to_dict())
    if config.epochs > done:
        _write_config(folder, config)
        (folder / "test.json").unlink(missing_ok=True)
        _fit(classifier, data, folder, progress, callbacks, ckpt_path=path)
    _finish(classifier, data, folder, progress)
    return folder


def evaluate(
    run: str | Path,
    checkpoint: str = "best",
    *,
    dataset: str | None = None,
    data_dir: str | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    device: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Measure a run on its test set; nothing is written.

    Parameters
    ----------
    run : str or Path
        A run's folder, wherever it is now, or a checkpoint file.
    checkpoint : {"best", "last"}
        Which of a folder's checkpoints; a run without validation images has only the last one.
    dataset, data_dir, batch_size, workers, device : optional
        Instead of the run's own; another data set must have the same classes.
    progress : bool
        Show a progress bar.

    Returns
    -------
    dict
        ``test_accuracy`` and ``test_loss``, the number of ``images``, the ``checkpoint`` file's name and its
        ``epoch``.

    Raises
    ------
    UserError
        If the run or its test images are missing or damaged.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from manifold_resnet.training import Config, evaluate, train
    >>> config = Config(model="hyperbolic-2-2-2-resnet-8", epochs=1, train_fraction=0.1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = train(config, Path(folder) / "run", progress=False)
    ...     evaluate(run, progress=False)["images"]
    360
    """
    path, stored = open_run(run, checkpoint)
    changes = {
        "dataset": dataset,
        "data_dir": data_dir,
        "batch_size": batch_size,
        "workers": workers,
        "device": device,
    }
    config = Config.from_dict(stored["hyper_parameters"]["config"], str(path))
    config = replace(config, **{key: value for key, value in changes.items() if value is not None}).resolved()
    config.accelerator()
    data = config.open_data()
    data.setup("test")
    classifier = Classifier(config.to_dict())
    load_weights(classifier, stored, path)
    with _lightning_runs(None):
        return _test(classifier, data, path, stored["epoch"] + 1, progress)


def _trainer(config: Config, folder: Path | None, progress: bool, **options: Any) -> lightning.Trainer:
    callbacks = list(options.pop("callbacks", ()))
    if progress:
        callbacks.append(ProgressBar())
    return lightning.Trainer(
        accelerator=config.accelerator(),
        devices=1,
        precision=_PRECISION[config.precision],
        callbacks=callbacks,
        enable_progress_bar=progress,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        **options,
    )


def _fit(
    classifier: Classifier,
    data: lightning.LightningDataModule,
    folder: Path,
    progress: bool,
    callbacks: Sequence[lightning.Callback],
    ckpt_path: Path | None = None,
) -> None:
    config = classifier.config
    size = sum(p.numel() for p in classifier.model.parameters())
    count = f"{len(data.train)} training, {len(data.val or ())} validation, {len(data.test)} test images"
    _log.info("%s: %s, %s classes", config.dataset, count, len(data.facts.classes))
    _log.info("%s: %s parameters, %s epochs", config.model, f"{size:,}", config.epochs)
    _log.info("run folder: %s", folder)
    checkpoints = {
        "dirpath": folder / "checkpoints",
        "enable_version_counter": False,
        "save_on_train_epoch_end": True,
    }
    last = Checkpoint(filename="last", **checkpoints)
    best = Checkpoint(filename="best", monitor="val_accuracy", mode="max", **checkpoints)
    writers = [MetricsTable(folder / "metrics.csv"), *([best] if data.val is not None else []), last]
    with _lightning_runs(folder):
        trainer = _trainer(
            config,
            folder,
            progress,
            max_epochs=config.epochs,
            log_every_n_steps=1,
            logger=TensorBoardLogger(folder, name="", version="tensorboard", default_hp_metric=False),
            callbacks=[*callbacks, *writers],
        )
        trainer.fit(classifier, datamodule=data, ckpt_path=ckpt_path)


def _finish(classifier: Classifier, data: lightning.LightningDataModule, folder: Path, progress: bool) -> None:
    _draw(folder)
    path = checkpoint_path(folder, "best")
    if not path.exists():
        path = checkpoint_path(folder, "last")
    stored = read_checkpoint(path)
    load_weights(classifier, stored, path)
    with _lightning_runs(folder):
        results = _test(classifier, data, path, stored["epoch"] + 1, progress)
    results["train_seconds"] = round(sum(row["seconds"] for row in read_metrics(folder / "metrics.csv")), 1)
    write_atomically(folder / "test.json", json.dumps(results, indent=2) + "\n")


def _test(
    classifier: Classifier, data: lightning.LightningDataModule, path: Path, epoch: int, progress: bool
) -> dict[str, Any]:
    trainer = _trainer(classifier.config, None, progress, logger=False, enable_checkpointing=False)
    measured = trainer.test(classifier, datamodule=data, verbose=False)[0]
    return {
        "test_accuracy": measured["test_accuracy"],
        "test_loss": measured["test_loss"],
        "images": len(data.test),
        "checkpoint": path.name,
        "epoch": epoch,
    }


def _draw(folder: Path) -> None:
    plot_curves(read_metrics(folder / "metrics.csv"), title=folder.name).savefig(folder / "curves.png", dpi=150)


def _write_config(folder: Path, config: Config) -> None:
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "geoopt", "lightning"))
    comment = f"Python {platform.python_version()}, {packages}; manifold-resnet train --config reads this file"
    write_atomically(folder / "config.yaml", config.to_yaml(comment))


def _check_free(folder: Path) -> Path:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "holds a run already" if (folder / "config.yaml").exists() else "exists and is not an empty folder"
        raise UserError(f"{folder} {what}; choose another --output, or carry a run on with --resume")
    return folder


def _make(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create {folder}: {error.strerror}; choose another --output") from error
    return folder


def _next_free(config: Config) -> Path:
    name = config.dataset
    if name.startswith("folder:"):
        name = re.sub(r"[^\w.-]+", "_", Path(name.removeprefix("folder:")).name) or "folder"
    parent = _make(Path("runs").absolute())
    number = 1
    while True:
        folder = parent / f"{name}-{config.model}-{number}"
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder


@contextlib.contextmanager
def _lightning_runs(folder: Path | None) -> Iterator[None]:
    """Keep Lightning's hints about devices, workers and logging quiet, and turn its exit on Ctrl-C into ours.

    Lightning leaves the process with code 1 and goes on ignoring Ctrl-C.
    """
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    handler = signal.getsignal(signal.SIGINT)
    try:
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\.")
            yield
    except SystemExit as error:
        signal.signal(signal.SIGINT, handler)
        kept = folder is not None and checkpoint_path(folder, "last").exists()
        if kept:
            _draw(folder)
        raise TrainingInterrupted(folder if kept else None) from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
