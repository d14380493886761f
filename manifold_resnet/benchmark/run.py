"""The measurements behind ``manifold-resnet benchmark``."""

from __future__ import annotations

import datetime
import logging
import os
import platform
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import geoopt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import manifold_resnet
from manifold_resnet import nn as hyperbolic
from manifold_resnet._errors import UserError
from manifold_resnet.benchmark.measure import interleave, kept_bytes, largest_difference, peak_rise, summarise
from manifold_resnet.benchmark.naive import NaiveResNet
from manifold_resnet.functional import naive, set_backend
from manifold_resnet.models import create_model
from manifold_resnet.models.hyperbolic import PoincareResNet
from manifold_resnet.models.imagenet import DEPTHS, WIDTHS
from manifold_resnet.optim import RiemannianAdam

_logger = logging.getLogger("manifold_resnet")
#: how far loss and gradients may be from the plain composition's, relative, in float64
AGREEMENT = 1e-6
_MODELS = tuple(f"resnet{depth}" for depth in DEPTHS)
_SWEEPS: dict[str, list[dict[str, Any]]] = {
    "width": [{"widths": w, "batch_size": 32} for w in ("8-16-32", "16-32-64", "32-64-128", "64-128-256")],
    "depth": [{"depth": d} for d in (20, 56, 110)],
    "batch": [{"batch_size": b} for b in (32, 64, 128, 256, 512)],
    "image": [{"image_size": s, "batch_size": 32} for s in (16, 32, 64)],
}


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Parameters
    ----------
    widths : str
        Channels of the three groups, for example ``"8-16-32"``.
    depth : int
        Depth of the networks, 6n + 2.
    batch_size, image_size : int or None
        Images in a batch, and their height and width. None: 128 of 32, with `model` 4 of 224.
    c : float
        The curvature of the ball is ``-c``.
    rounds : int or None
        Calls that count, of each contender (in sweeps more where a call is shorter: a machine is slow for tenths of
        seconds at a time). None: 15, with `model` 5.
    naive : bool or None
        Measure the plain composition of geoopt calls too (slow, and needs tens of times the memory). None: yes, but
        not with `model`.
    sweeps : tuple of {"width", "depth", "batch", "image"}
        What to vary, one after the other.
    device : {"cpu", "cuda"}
        Where.
    threads : int or None
        Threads on the CPU; None: as torch does.
    model : {None, "resnet18", "resnet34", "resnet50"}
        A network of the ImageNet family, next to torchvision's; takes the place of `widths` and `depth`.

    Raises
    ------
    UserError
        If a value makes no sense.

    Examples
    --------
    >>> from manifold_resnet.benchmark import Settings
    >>> Settings(widths="64-128-256", batch_size=32).name("hyperbolic")
    'hyperbolic-64-128-256-resnet-20'
    >>> Settings(rounds=0)
    Traceback (most recent call last):
        ...
    manifold_resnet._errors.UserError: rounds must be a positive integer, got 0
    """

    widths: str = "8-16-32"
    depth: int = 20
    batch_size: int = None  # type: ignore[assignment]  # filled in below, as the next three
    image_size: int = None  # type: ignore[assignment]
    c: float = 0.025
    rounds: int = None  # type: ignore[assignment]
    naive: bool = None  # type: ignore[assignment]
    sweeps: tuple[str, ...] = ()
    device: str = "cpu"
    threads: int | None = None
    model: str | None = None

    def __post_init__(self) -> None:
        if self.model is not None:
            self._check_model()
        usual = {"batch_size": 128, "image_size": 32, "rounds": 15, "naive": True}
        if self.model is not None:
            usual = {"batch_size": 4, "image_size": 224, "rounds": 5, "naive": False}
        for name, value in usual.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        for name in ("depth", "batch_size", "image_size", "rounds"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise UserError(f"{name} must be a positive integer, got {getattr(self, name)!r}")
        unknown = sorted(set(self.sweeps) - set(_SWEEPS))
        if unknown:
            raise UserError(f"unknown sweep {unknown[0]!r}; choose from {', '.join(_SWEEPS)}")
        if self.device not in ("cpu", "cuda"):
            raise UserError(f"device must be cpu or cuda, got {self.device!r}")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("there is no CUDA device here; leave out the device, or set it to cpu")
        if self.threads is not None and self.threads < 1:
            raise UserError(f"threads must be a positive integer, got {self.threads}")
        try:
            create_model(self.name("hyperbolic"), c=self.c)
        except ValueError as error:
            raise UserError(str(error)) from None

    def _check_model(self) -> None:
        if self.model not in _MODELS:
            raise UserError(f"unknown model {self.model!r}; choose from {', '.join(_MODELS)}")
        if (self.widths, self.depth) != (Settings.widths, Settings.depth):
            raise UserError(f"widths and depth do not go with model {self.model}: it has its own; leave them out")
        refused = "naive" if self.naive else "sweeps" if self.sweeps else None
        if refused is not None:
            raise UserError(f"{refused} does not go with model {self.model}; leave it out")

    @property
    def work(self) -> int:
        """What the multiplications in a step are proportional to, unless there is a `model`."""
        width = int(self.widths.partition("-")[0])
        return self.batch_size * self.image_size**2 * width**2 * self.depth

    def name(self, kind: str, depth: int | None = None) -> str:
        """Name of a model, as `create_model` takes it; `depth` takes the place of the settings' own."""
        if self.model is not None:
            return f"{kind}-{self.model}"
        return f"{kind}-{self.widths}-resnet-{self.depth if depth is None else depth}"

    def batch(self, size: int | None = None) -> tuple[Tensor, Tensor]:
        """Random images and labels: what is measured here does not depend on what they show."""
        g = torch.Generator().manual_seed(0)
        size = self.batch_size if size is None else size
        images = torch.randn(size, 3, self.image_size, self.image_size, generator=g)
        return images.to(self.device), torch.randint(0, 10, (size,), generator=g).to(self.device)


@dataclass
class _Contender:
    """A network with its optimizer, to be run under a backend."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    backend: str

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        with set_backend(self.backend):  # type: ignore[arg-type]
            return F.cross_entropy(self.model(images), labels)

    def step(self, images: Tensor, labels: Tensor) -> None:
        with set_backend(self.backend):  # type: ignore[arg-type]
            loss = F.cross_entropy(self.model(images), labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()

    def infer(self, images: Tensor) -> None:
        with torch.no_grad(), set_backend(self.backend):  # type: ignore[arg-type]
            self.model(images)


def _contender(settings: Settings, name: str) -> _Contender:
    torch.manual_seed(0)
    if name == "euclidean":
        model = create_model(settings.name("euclidean")).to(settings.device)
        return _Contender(model, torch.optim.Adam(model.parameters(), lr=1e-3), "eager")
    model = create_model(settings.name("hyperbolic"), c=settings.c).to(settings.device)
    if name == "naive":
        model = NaiveResNet(model)  # type: ignore[arg-type]
    optimizer = RiemannianAdam(model.parameters(), lr=1e-3)
    return _Contender(model, optimizer, "compiled" if name == "compiled" else "eager")


def _make_step(settings: Settings, name: str) -> tuple[Callable[[], object], Callable[[], object]]:
    """For `peak_rise`: runs in a process of its own."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    contender, images, small = _contender(settings, name), settings.batch(), settings.batch(2)
    return lambda: contender.step(*small), lambda: contender.step(*images)


def _peak(settings: Settings, name: str) -> int:
    if settings.device == "cpu":
        return peak_rise(_make_step, settings, name)
    warm_up, step = _make_step(settings, name)
    warm_up()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    return torch.cuda.max_memory_allocated() - before


def _agreement(settings: Settings) -> dict[str, float]:
    """How far loss and gradients are from the plain composition's, in float64, relative; for each backend.

    On two small images and depth 8, or with few channels, because of what the plain composition needs in memory.
    """
    settings = replace(settings, image_size=min(settings.image_size, 12))
    if settings.model is None:
        model = create_model(settings.name("hyperbolic", depth=8), c=settings.c)
    else:
        block, blocks = DEPTHS[int(settings.model.removeprefix("resnet"))]
        ball = geoopt.PoincareBall(settings.c)
        model = PoincareResNet((4, 6, 8, 8), blocks, stem="imagenet", block=block, ball=ball)
    model = model.to(settings.device).double()
    images, labels = settings.batch(2)

    def results(network: nn.Module, backend: str) -> list[Tensor]:
        with set_backend(backend):  # type: ignore[arg-type]
            loss = F.cross_entropy(network(images.double()), labels)
            return [loss.detach(), *torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])]

    expected = results(NaiveResNet(model), "eager")  # type: ignore[arg-type]
    return {backend: largest_difference(results(model, backend), expected) for backend in ("eager", "compiled")}


def _layers(settings: Settings, contenders: Iterable[str]) -> dict[str, Any]:
    """Forward and backward of single layers, at the sizes of the network's first group."""
    channels, size = int(settings.widths.partition("-")[0]), settings.image_size
    if settings.model is not None:
        channels, size = WIDTHS[0], max(size // 4, 1)
    ball = geoopt.PoincareBall(settings.c).to(settings.device)
    shape = (settings.batch_size, channels, size, size)
    g = torch.Generator().manual_seed(0)
    u = (0.2 * torch.randn(shape, generator=g)).to(settings.device)
    cotangent = torch.randn(shape, generator=g).to(settings.device)
    conv = hyperbolic.PoincareConv2d(channels, channels, 3, padding=1, ball=ball)
    norm = hyperbolic.PoincareBatchNorm2d(channels, ball=ball)
    add = hyperbolic.PoincareResidual(ball=ball)
    twins = (
        nn.Conv2d(channels, channels, 3, padding=1).to(settings.device),
        nn.BatchNorm2d(channels).to(settings.device),
    )
    c = ball.c
    x = naive.convert(u, "tangent", "ball", c=c, dim=1)
    h = naive.convert(u, "tangent", "hyperboloid", c=c, dim=1)
    charts = {"in_chart": "hyperboloid", "out_chart": "tangent", "relu": True}

    def plain_norm(x: Tensor) -> Tensor:
        y = naive.midpoint_batch_norm(x, gain=norm.gain(), center=norm.bias, c=c, scale=norm.scale, eps=norm.eps, dim=1)
        return naive.poincare_relu(y, c=c)

    layers: dict[str, tuple[Tensor, Callable[[Tensor], Tensor], Tensor, Callable[[Tensor], Tensor], Any]] = {
        "convolution": (
            u,
            twins[0],
            u,
            lambda u: conv(u, in_chart="tangent", out_chart="hyperboloid"),
            lambda x: naive.poincare_conv2d(x, conv.normals(), conv.bias, 1, 1, c=c),
        ),
        "norm and ReLU": (u, lambda u: twins[1](u).relu(), h, lambda h: norm(h, **charts), plain_norm),
        "residual and ReLU": (
            u,
            lambda u: (u + cotangent).relu(),
            h,
            lambda h: add(h, u, shortcut_chart="tangent", **charts),
            lambda x: naive.poincare_relu(naive.mobius_residual(x, x.detach(), c=c, dim=1), c=c),
        ),
    }
    results = {}
    for name, (flat_input, flat, points, ours, plain) in layers.items():

        def call(function: Callable[[Tensor], Tensor], value: Tensor, backend: str) -> Callable[[], object]:
            def run() -> None:
                with set_backend(backend):  # type: ignore[arg-type]
                    function(value.detach().requires_grad_()).backward(cotangent)

            return run

        calls = {
            "euclidean": call(flat, flat_input, "eager"),
            "eager": call(ours, points, "eager"),
            "compiled": call(ours, points, "compiled"),
            "naive": call(plain, x, "eager"),
        }
        seconds = interleave({k: calls[k] for k in contenders}, max(settings.rounds // 2, 2), settings.device)
        results[name] = summarise(seconds, "euclidean")
    return results


def _optimizer_steps(settings: Settings, contenders: dict[str, _Contender]) -> dict[str, Any]:
    """Steps of optimizers alone, next to torch's foreach Adam on the Euclidean network; the naive one is geoopt's."""
    optimizers: dict[str, torch.optim.Optimizer] = {name: made.optimizer for name, made in contenders.items()}
    optimizers["euclidean"] = torch.optim.Adam(contenders["euclidean"].model.parameters(), lr=1e-3, foreach=True)
    optimizers["naive"] = geoopt.optim.RiemannianAdam(contenders["eager"].model.parameters(), lr=1e-3)

    def step(name: str) -> Callable[[], object]:
        def run() -> None:
            with set_backend("compiled" if name == "compiled" else "eager"):
                optimizers[name].step()

        return run

    return summarise(interleave({n: step(n) for n in optimizers}, 3 * settings.rounds, settings.device), "euclidean")


def _network(settings: Settings, names: list[str], full: bool) -> dict[str, Any]:
    """Step, and with `full` inference, optimizer step, bytes kept and peak memory."""
    images, labels = settings.batch()
    contenders = {name: _contender(settings, name) for name in names}
    results: dict[str, Any] = {}

    def timed(key: str, call: Callable[[_Contender], Callable[[], object]]) -> None:
        calls = {name: call(contender) for name, contender in contenders.items()}
        results[key] = summarise(interleave(calls, settings.rounds, settings.device), "euclidean")

    timed("step", lambda contender: lambda: contender.step(images, labels))
    results["kept_bytes"] = {
        name: kept_bytes(lambda contender=contender: contender.loss(images, labels), contender.model)  # type: ignore[misc]
        for name, contender in contenders.items()
    }
    if full:
        results["optimizer"] = _optimizer_steps(settings, contenders)
        for contender in contenders.values():
            contender.model.eval()
        timed("inference", lambda contender: lambda: contender.infer(images))
    contenders.clear()
    results["peak_bytes"] = {name: _peak(settings, name) for name in names}
    return results


def _naive(settings: Settings) -> dict[str, Any]:
    """The plain composition next to the Euclidean network, on an eighth of the batch: it needs a lot of memory."""
    small = replace(settings, batch_size=max(settings.batch_size // 8, 2), rounds=max(settings.rounds // 3, 2))
    return {"batch_size": small.batch_size, **_network(small, ["euclidean", "compiled", "naive"], full=False)}


def _machine() -> dict[str, Any]:
    processor = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "geoopt": geoopt.__version__,
        "manifold_resnet": manifold_resnet.__version__,
        "date": datetime.date.today().isoformat(),
    }


def benchmark(settings: Settings) -> dict[str, Any]:
    """Measure step, inference, optimizer, layers and memory, in one process, contenders taking turns.

    The contenders are a Euclidean network of the same shape, the hyperbolic one with the backends "eager" and
    "compiled" (see `manifold_resnet.set_backend`), and the plain composition of geoopt calls on the same parameters
    ("naive").

    Parameters
    ----------
    settings : Settings
        What to measure.

    Returns
    -------
    dict
        ``settings``, ``machine``, ``agreement`` (largest relative difference of loss and gradients from the naive
        network's, float64), ``agrees``; ``network``, ``layers`` and ``sweeps``: seconds and ratios to the Euclidean
        network, medians and quartiles; bytes kept for the backward pass and the rise of memory in a step.

    Examples
    --------
    >>> from manifold_resnet.benchmark import Settings, benchmark
    >>> results = benchmark(Settings("4-4-8", depth=8, batch_size=2, image_size=8, rounds=2, naive=False))
    >>> results["agrees"]
    True
    >>> results["network"]["step"]["euclidean"]["ratio"]
    1.0
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    names = ["euclidean", "eager", "compiled"]
    _logger.info("comparing values and gradients with the plain composition of geoopt calls")
    try:
        agreement = _agreement(settings)
    except RuntimeError as error:
        raise UserError(str(error)) from error
    results: dict[str, Any] = {
        "settings": asdict(settings),
        "machine": _machine(),
        "agreement": agreement,
        "agrees": all(difference < AGREEMENT for difference in agreement.values()),
    }
    _logger.info("measuring %s", settings.name("hyperbolic"))
    results["network"] = _network(settings, names, full=True)
    _logger.info("measuring layers")
    results["layers"] = _layers(settings, [*names, "naive"] if settings.naive else names)
    if settings.naive:
        _logger.info("measuring the plain composition of geoopt calls")
        results["naive"] = _naive(settings)
    results["sweeps"] = {}
    for sweep in settings.sweeps:
        rows = []
        for changes in _SWEEPS[sweep]:
            changed = replace(settings, **changes)
            changed = replace(changed, rounds=settings.rounds * max(1, settings.work // changed.work))
            _logger.info("measuring %s, %s", changed.name("hyperbolic"), changes)
            rows.append({**changes, **_network(changed, ["euclidean", "compiled"], full=False)})
        results["sweeps"][sweep] = rows
    return results
