"""Runs: training into a folder, carrying on from it, and measuring what came out."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import signal
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy

from manifold_resnet._errors import UserError
from manifold_resnet.data import ImageData
from manifold_resnet.nn import convert_sync_batchnorm
from manifold_resnet.plotting.curves import plot_curves
from manifold_resnet.training.callbacks import Checkpoint, MetricsTable, ProgressBar, read_metrics, write_atomically
from manifold_resnet.training.checkpoints import checkpoint_path, load_weights, open_run, read_checkpoint, run_folder
from manifold_resnet.training.config import Config
from manifold_resnet.training.folders import free_folder, new_folder, next_free_folder, write_config
from manifold_resnet.training.module import Classifier
from manifold_resnet.training.processes import Processes, in_use, launch, leads, processes_of, torchrun_rank

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
        Called beside the usual ones; with ``config.devices`` above 1 in each process, of which they get copies.

    Returns
    -------
    Path
        The run's folder: ``config.yaml``, ``metrics.csv``, ``curves.png``, ``test.json``, ``checkpoints/best.ckpt``
        (highest validation accuracy; none without validation images) and ``last.ckpt``, ``tensorboard/``. A training
        that fails before its first epoch is complete leaves no folder. Under torchrun, the other processes return
        while the first one is measuring the test images.

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
    processes = processes_of(config)
    if not leads(config, processes):
        return _run(processes, config, None, progress, callbacks)
    folder = None if output is None else free_folder(Path(output).expanduser().absolute())
    data = config.open_data()
    data.setup()
    config = replace(in_use(config, processes), images=asdict(data.facts))
    folder = next_free_folder(config) if folder is None else new_folder(folder)
    try:
        write_config(folder, config)
        _run(processes, config, folder, progress, callbacks, data=data)
    except BaseException:
        if not checkpoint_path(folder, "last").exists():
            shutil.rmtree(folder, ignore_errors=True)
            if output is None:
                with contextlib.suppress(OSError):
                    folder.parent.rmdir()
        raise
    return folder


def resume(
    run: str | Path,
    *,
    epochs: int | None = None,
    data_dir: str | None = None,
    workers: int | None = None,
    device: str | None = None,
    devices: int | None = None,
    num_nodes: int | None = None,
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
    data_dir, workers, device, devices, num_nodes : optional
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
    changes |= {"devices": devices, "num_nodes": num_nodes}
    if torchrun_rank() is not None:  # it says how many processes there are, whatever there were
        old = replace(old, devices=None, num_nodes=None)
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
    processes = processes_of(config)
    if not leads(config, processes):
        return _run(processes, config, None, progress, callbacks)
    data = config.open_data()
    data.setup()
    if config.epochs == done:  # only the test is left
        _finish(Classifier(config.to_dict()), data, folder, progress)
        return folder
    config = in_use(config, processes)
    write_config(folder, config)
    (folder / "test.json").unlink(missing_ok=True)
    _run(processes, config, folder, progress, callbacks, data=data, ckpt_path=path)
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


def _run(
    processes: Processes | None,
    config: Config,
    folder: Path | None,
    progress: bool,
    callbacks: Sequence[lightning.Callback],
    ckpt_path: Path | None = None,
    data: ImageData | None = None,
) -> Path:
    """Train and test, in all processes; `config`, `folder` and `ckpt_path` are those of the first."""
    if processes is None:
        try:
            return launch(config, _run, config, folder, progress, callbacks, ckpt_path)
        except KeyboardInterrupt as interrupt:
            raise _interrupted(folder) from interrupt
    with processes.connected(config.accelerator()):
        config, folder, ckpt_path = processes.tell((config, folder, ckpt_path))
        if data is None:
            data = config.open_data()
            data.setup()
        lightning.seed_everything(config.seed, verbose=False)
        classifier = Classifier(config.to_dict())
        _fit(processes, classifier, data, folder, progress, callbacks, ckpt_path)
    if processes.first:
        _finish(classifier, data, folder, progress)
    return folder


def _trainer(config: Config, processes: Processes, folder: Path | None, progress: bool, **options: Any) -> Any:
    callbacks = list(options.pop("callbacks", ()))
    if progress:
        callbacks.append(ProgressBar())
    accelerator = config.accelerator()
    if processes.size > 1:
        # synchronised norms have equal statistics; Lightning converts torch's own norms, which only GPUs have
        strategy = DDPStrategy(broadcast_buffers=False)
        options |= {"strategy": strategy, "plugins": [LightningEnvironment()], "sync_batchnorm": accelerator == "gpu"}
    return lightning.Trainer(
        accelerator=accelerator,
        devices=processes.local_size,
        num_nodes=processes.nodes,
        use_distributed_sampler=False,
        precision=_PRECISION[config.precision],
        callbacks=callbacks,
        enable_progress_bar=progress,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        **options,
    )


def _fit(
    processes: Processes,
    classifier: Classifier,
    data: ImageData,
    folder: Path,
    progress: bool,
    callbacks: Sequence[lightning.Callback],
    ckpt_path: Path | None,
) -> None:
    config = classifier.config
    if processes.first:
        size = sum(p.numel() for p in classifier.model.parameters())
        count = f"{len(data.train)} training, {len(data.val or ())} validation, {len(data.test)} test images"
        _log.info("%s: %s, %s classes", config.dataset, count, len(data.facts.classes))
        _log.info("%s: %s parameters, %s epochs", config.model, f"{size:,}", config.epochs)
        if processes.size > 1:
            _log.info("%s processes on %s machines share each batch", processes.size, processes.nodes)
        _log.info("run folder: %s", folder)
    if processes.size > 1:
        convert_sync_batchnorm(classifier.model)
    checkpoints = {
        "dirpath": folder / "checkpoints",
        "enable_version_counter": False,
        "save_on_train_epoch_end": True,
    }
    last = Checkpoint(filename="last", **checkpoints)
    best = Checkpoint(filename="best", monitor="val_accuracy", mode="max", **checkpoints)
    writers = [MetricsTable(folder / "metrics.csv"), *([best] if data.val is not None else []), last]
    with _lightning_runs(folder, draws=processes.first):
        trainer = _trainer(
            config,
            processes,
            folder,
            progress,
            max_epochs=config.epochs,
            accumulate_grad_batches=config.accumulate,
            log_every_n_steps=1,
            logger=TensorBoardLogger(folder, name="", version="tensorboard", default_hp_metric=False),
            callbacks=[*callbacks, *writers],
        )
        trainer.fit(classifier, datamodule=data, ckpt_path=ckpt_path)


def _finish(classifier: Classifier, data: ImageData, folder: Path, progress: bool) -> None:
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


def _test(classifier: Classifier, data: ImageData, path: Path, epoch: int, progress: bool) -> dict[str, Any]:
    trainer = _trainer(classifier.config, Processes(), None, progress, logger=False, enable_checkpointing=False)
    measured = trainer.test(classifier, datamodule=data, verbose=False)[0]
    return {
        "test_accuracy": measured["test_accuracy"],
        "test_loss": measured["test_loss"],
        "images": len(data.test),
        "checkpoint": path.name,
        "epoch": epoch,
    }


def _interrupted(folder: Path | None, draws: bool = True) -> TrainingInterrupted:
    """What to raise after Ctrl-C; the curves are drawn up to here."""
    if folder is None or not checkpoint_path(folder, "last").exists():
        return TrainingInterrupted(None)
    if draws:
        _draw(folder)
    return TrainingInterrupted(folder)


def _draw(folder: Path) -> None:
    plot_curves(read_metrics(folder / "metrics.csv"), title=folder.name).savefig(folder / "curves.png", dpi=150)


@contextlib.contextmanager
def _lightning_runs(folder: Path | None, draws: bool = True) -> Iterator[None]:
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
        raise _interrupted(folder, draws) from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
