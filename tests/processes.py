"""Running a function in several processes that make up one gloo process group."""

from __future__ import annotations

import contextlib
import pickle
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

TIMEOUT = 300  # seconds; a collective that one process does not join would wait for ever


def in_processes(function: Callable[..., Any], count: int, *args: Any) -> list[Any]:
    """The results of `function(rank, *args)`, which must be importable, in `count` processes."""
    with tempfile.TemporaryDirectory() as folder:
        context = mp.get_context("spawn")
        processes = [
            context.Process(target=_work, args=(function, rank, count, folder, args), daemon=True)
            for rank in range(count)
        ]
        for process in processes:
            process.start()
        try:
            for process in processes:
                process.join(TIMEOUT)
        finally:
            hanging = [process for process in processes if process.is_alive()]
            for process in hanging:
                process.kill()
        results = []
        for rank, process in enumerate(processes):
            path = Path(folder, f"{rank}.pickle")
            assert process not in hanging, f"process {rank} hangs"
            assert path.exists(), f"process {rank} died with exit code {process.exitcode}"
            result = pickle.loads(path.read_bytes())
            assert not isinstance(result, _Failure), f"process {rank} failed:\n{result.text}"
            results.append(result)
        return results


class _Failure:
    def __init__(self, text: str) -> None:
        self.text = text


def _work(function: Callable[..., Any], rank: int, count: int, folder: str, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count)
        result = function(rank, *args)
    except BaseException:
        result = _Failure(traceback.format_exc())
    path = Path(folder, f"{rank}.partial")
    path.write_bytes(pickle.dumps(result))
    path.rename(path.with_suffix(".pickle"))
    with contextlib.suppress(Exception):
        dist.destroy_process_group()
