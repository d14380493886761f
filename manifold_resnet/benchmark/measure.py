"""Time, memory, and agreement."""

from __future__ import annotations

import gc
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def interleave(contenders: Mapping[str, Callable[[], object]], rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of each call, the contenders taking turns, after one round that does not count.

    Taking turns makes a machine that is slow for a while slow for all of them.
    """

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for i in range(rounds + 1):
        for name, call in contenders.items():
            wait()
            start = time.perf_counter()
            call()
            wait()
            if i:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def summarise(seconds: Mapping[str, list[float]], reference: str) -> dict[str, dict[str, float]]:
    """Medians and quartiles, in seconds, and of the ratio to the reference in the same round."""

    def quartiles(values: list[float], name: str) -> dict[str, float]:
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
        return {name: middle, f"{name}_low": low, f"{name}_high": high}

    return {
        name: quartiles(values, "seconds")
        | quartiles([a / b for a, b in zip(values, seconds[reference], strict=True)], "ratio")
        for name, values in seconds.items()
    }


def kept_bytes(forward: Callable[[], Tensor], module: nn.Module) -> int:
    """Bytes that `forward` keeps for the backward pass, parameters aside; each memory counts once."""
    own = {p.untyped_storage().data_ptr() for p in [*module.parameters(), *module.buffers()]}
    seen: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = forward()  # alive while counting: memory of tensors that are gone is used again
    del loss
    return sum(seen.values())


def _memory(key: str) -> int | None:
    """Bytes that the process has (``VmRSS``) or had at most (``VmHWM``); None where Linux's files are missing."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key)), None)


def _peak_memory() -> int:
    peak = _memory("VmHWM")
    if peak is not None:
        return peak
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _measure_peak(make: Callable[..., tuple[Callable[[], object], Callable[[], object]]], args: tuple[Any, ...]) -> int:
    warm_up, step = make(*args)
    warm_up()
    gc.collect()
    before = _memory("VmRSS") or _peak_memory()
    step()
    return max(_peak_memory() - before, 0)


def peak_rise(make: Callable[..., tuple[Callable[[], object], Callable[[], object]]], *args: Any) -> int:
    """By how many bytes a call makes the memory of a fresh process rise at most.

    ``make(*args)`` returns two functions: one that loads what is needed, on little data, and the call itself.
    """
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_measure_peak, (make, args))


def largest_difference(a: list[Tensor], b: list[Tensor]) -> float:
    """Largest difference between tensors, relative to the largest entry of each."""
    return max(float((x - y).abs().max() / y.abs().max().clamp_min(1e-30)) for x, y in zip(a, b, strict=True))
