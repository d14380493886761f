"""Training in several processes: starting them, or finding out which of torchrun's this one is."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from manifold_resnet import get_backend, set_backend
from manifold_resnet._errors import UserError
from manifold_resnet.training.config import Config

__all__ = ["Processes", "in_use", "launch", "leads", "processes_of", "reports", "torchrun_rank"]

_GRACE = 10.0  # seconds that processes have to end after another has failed


@dataclass(frozen=True)
class Processes:
    """The processes of a training, seen from one of them.

    Attributes
    ----------
    rank, size : int
        Number of this process, from 0, and how many there are.
    local_rank, local_size : int
        The same on this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def first(self) -> bool:
        """The one that writes, and measures the test images."""
        return self.rank == 0

    @property
    def nodes(self) -> int:
        """Number of machines."""
        return self.size // self.local_size

    @contextmanager
    def connected(self, accelerator: str) -> Iterator[None]:
        """Hold a process group of torch.distributed, where there are several processes."""
        if self.size == 1:
            yield
            return
        store = os.environ.get(_STORE)
        if accelerator == "gpu":
            torch.cuda.set_device(self.local_rank)
        dist.init_process_group(
            "nccl" if accelerator == "gpu" else "gloo",
            init_method=None if store is None else f"file://{store}",
            rank=self.rank,
            world_size=self.size,
        )
        try:
            yield
        finally:
            dist.destroy_process_group()

    def tell(self, value: Any) -> Any:
        """What the first process passes in, in all connected ones."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]


def torchrun_rank() -> int | None:
    """The number of this process among those of torchrun; None if it was started otherwise."""
    return int(os.environ["RANK"]) if dist.is_available() and dist.is_torchelastic_launched() else None


def reports() -> bool:
    """Whether this is the process that reports to the user: the first one, or the one that launches it."""
    rank = torchrun_rank()
    return (int(os.environ.get("NODE_RANK") or 0) if rank is None else rank) == 0


def processes_of(config: Config) -> Processes | None:
    """The processes that a training runs in: this one alone, or those of torchrun; None if they are to be launched.

    Raises
    ------
    UserError
        If the settings can't be trained in so many processes, or are not those that torchrun was given.
    """
    own: Processes | None = Processes()
    if torchrun_rank() is not None:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        own = Processes(*(int(os.environ[name]) for name in names))
        for flag, given, found in (
            ("--devices", config.devices, own.local_size),
            ("--num-nodes", config.num_nodes, own.nodes),
        ):
            if given not in (None, found):
                raise UserError(f"{flag} {given} does not fit torchrun, which started {found}; leave {flag} out")
        devices, size = own.local_size, own.size
    else:
        devices = config.devices or 1
        size = devices * (config.num_nodes or 1)
        own = own if size == 1 else None
    _check(config, devices, size)
    return own


def leads(config: Config, processes: Processes | None) -> bool:
    """Whether this process opens the data and makes the folder: the first one, or the one that launches it."""
    return processes.first if processes is not None else _node(config.num_nodes or 1) == 0


def in_use(config: Config, processes: Processes | None) -> Config:
    """The settings with the numbers of torchrun's processes, if there are several, filled in."""
    if processes is None or processes.size == 1:
        return config
    return replace(config, devices=processes.local_size, num_nodes=processes.nodes)


def _check(config: Config, devices: int, size: int) -> None:
    gpu = config.accelerator() == "gpu"
    if gpu and devices > torch.cuda.device_count():
        raise UserError(f"--devices {devices}: this machine has {torch.cuda.device_count()} GPUs")
    if size == 1:
        return
    if not dist.is_available():
        raise UserError("this PyTorch is built without torch.distributed; train with --devices 1")
    if config.batch_size < size:
        raise UserError(
            f"--batch-size {config.batch_size} is the number of images per step over all {size} processes, and leaves "
            f"some of them without images; make it {size} or more"
        )
    if config.mean is None and not gpu:
        raise UserError(
            f"{config.model} in several processes needs GPUs: torch synchronises Euclidean batch norms on GPUs only; "
            "use --devices 1"
        )
    if config.mean == "frechet":
        raise UserError(
            "--mean frechet can't be synchronised over processes; use --mean midpoint, or --devices 1 and one node"
        )


_STORE = "MANIFOLD_RESNET_STORE"  # in launched processes: a file that they find each other with


def launch(config: Config, function: Callable[..., Any], *arguments: Any) -> Any:
    """Run ``function(processes, *arguments)`` in ``config.devices`` new processes on this machine.

    The function and its arguments are pickled. With several machines the environment says where they meet, as
    torchrun's does: ``MASTER_ADDR``, ``MASTER_PORT`` and ``NODE_RANK``.

    Returns
    -------
    object
        What the first process on this machine returned.

    Raises
    ------
    UserError
        If the environment lacks the meeting point.
    KeyboardInterrupt
        On Ctrl-C, after the processes have ended.
    Exception
        What a process raised. The others are stopped.
    """
    devices, nodes = config.devices or 1, config.num_nodes or 1
    node = _node(nodes)
    context = multiprocessing.get_context("spawn")
    threads = max(1, torch.get_num_threads() // devices)
    log = logging.getLogger("manifold_resnet")
    level = log.getEffectiveLevel() if log.hasHandlers() else logging.WARNING
    workers: dict[Connection, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        store = None if nodes > 1 else str(Path(folder, "store"))
        try:
            for local in range(devices):
                ours, theirs = context.Pipe(duplex=False)
                processes = Processes(node * devices + local, devices * nodes, local, devices)
                setting = (processes, node, store, threads, level, get_backend())
                workers[ours] = context.Process(target=_work, args=(theirs, setting, function, arguments))
                workers[ours].start()
                theirs.close()
            return _results(workers)[0]
        finally:
            for worker in workers.values():
                worker.join(_GRACE)
                if worker.is_alive():
                    worker.kill()
                    worker.join()


def _node(nodes: int) -> int:
    if nodes == 1:
        return 0
    names = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK")
    missing = [name for name in names if not os.environ.get(name)]
    if missing:
        raise UserError(
            f"--num-nodes {nodes} needs {' and '.join(missing)} in the environment of each machine: address and free "
            "port of the first one, and the number of this one, from 0; or start with torchrun"
        )
    return int(os.environ["NODE_RANK"])


def _results(workers: dict[Connection, Any]) -> list[Any]:
    """What the processes answer, in their order; raises what the first of them to fail raised."""
    waiting, results, failures = dict(workers), dict.fromkeys(workers), []
    interrupted = False
    while waiting:
        try:
            ready = wait(list(waiting), timeout=_GRACE if failures else None)
        except KeyboardInterrupt:
            for worker in waiting.values():
                if interrupted:  # a second time: at once
                    worker.kill()
                else:
                    os.kill(worker.pid, signal.SIGINT)
            interrupted = True
            continue
        if not ready:
            break
        for connection in ready:
            worker = waiting.pop(connection)
            try:
                results[connection], error, text = connection.recv()
            except EOFError:
                worker.join()
                error, text = RuntimeError(f"a training process ended with exit code {worker.exitcode}"), ""
            if error is not None:
                error.__cause__ = RuntimeError(f"in a training process:\n{text}")
                failures.append(error)
                if len(failures) == 1 and not interrupted:
                    for other in waiting.values():
                        other.terminate()
    if interrupted or any(isinstance(error, KeyboardInterrupt) for error in failures[:1]):
        raise KeyboardInterrupt
    for error in [error for error in failures if isinstance(error, UserError)] or failures:
        raise error
    return list(results.values())


def _work(connection: Connection, setting: tuple[Any, ...], function: Callable[..., Any], arguments: Any) -> None:
    processes, node, store, threads, level, backend = setting
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # a terminal's Ctrl-C goes to the first process, which passes it on
    threading.Thread(target=_follow_parent, daemon=True).start()
    torch.set_num_threads(threads)
    set_backend(backend)
    os.environ.update(
        RANK=str(processes.rank), WORLD_SIZE=str(processes.size), LOCAL_RANK=str(processes.local_rank),
        NODE_RANK=str(node), **({} if store is None else {_STORE: store}),
    )  # fmt: skip
    if processes.first:
        log = logging.getLogger("manifold_resnet")
        log.setLevel(level)
        log.addHandler(logging.StreamHandler(sys.stdout))
    try:
        answer = (function(processes, *arguments), None, "")
    except BaseException as error:
        answer = (None, _portable(error), traceback.format_exc())
    connection.send(answer)
    connection.close()


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGINT)


def _portable(error: BaseException) -> BaseException:
    """The error itself if it survives being sent, else one with its text."""
    if isinstance(error, KeyboardInterrupt):
        return KeyboardInterrupt()
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
