"""The kernels in ``kernels.cpp``: building, loading, calling them.

They are compiled by the system's C++ compiler, for this machine, in seconds, on first use, and kept in a cache folder
(``MANIFOLD_RESNET_CACHE``, or ``manifold_resnet`` in the user's cache folder). Nothing is built when the package is
installed, so that it installs everywhere.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

_FLAGS = [
    "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-std=c++17", "-shared",
    "-fPIC",
]  # fmt: skip
_TYPES = {torch.float32: "float32", torch.float64: "float64"}


def _compiler() -> list[str]:
    if "CXX" in os.environ:
        return shlex.split(os.environ["CXX"])
    for name in ("g++", "clang++", "c++"):
        if shutil.which(name) is not None:
            return [name]
    raise RuntimeError("no C++ compiler found (g++, clang++ or c++; the environment variable CXX names another)")


def _cache() -> Path:
    if "MANIFOLD_RESNET_CACHE" in os.environ:
        return Path(os.environ["MANIFOLD_RESNET_CACHE"])
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "manifold_resnet"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "manifold_resnet"


def _processor() -> str:
    """What the code is compiled for: a cache may be shared by machines that differ."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))


def _run(command: list[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        lines = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
        raise RuntimeError(f"{command[0]} failed: {lines[0]}")
    return result.stdout


def build() -> Path:
    """Compile the kernels unless that was done before.

    Returns
    -------
    Path
        The shared library.

    Raises
    ------
    RuntimeError
        If there is no compiler, or it fails.
    OSError
        If it cannot be started.
    """
    source = resources.files("manifold_resnet.functional").joinpath("kernels.cpp").read_text()
    compiler = _compiler()
    parts = [source, *compiler, _run([*compiler, "--version"]), *_FLAGS, platform.machine(), _processor()]
    name = f"kernels-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:20]}.so"
    folder = _cache()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        folder = Path(tempfile.mkdtemp(prefix="manifold_resnet-"))
    library = folder / name
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=folder) as work:
            file, result = Path(work) / "kernels.cpp", Path(work) / name
            file.write_text(source)
            command = [*compiler, *_FLAGS, str(file), "-o", str(result)]
            try:
                _run([*command, "-fopenmp"])
            except RuntimeError:  # a compiler without OpenMP: one thread
                _run(command)
            result.replace(library)  # at once: another process sees all of it or nothing
    return library


class Library:
    """The kernels as functions of tensors.

    Raises
    ------
    RuntimeError, OSError
        If they cannot be built or loaded.
    """

    def __init__(self) -> None:
        self._library = ctypes.CDLL(str(build()))
        self._functions: dict[tuple[str, torch.dtype], Callable[..., None]] = {}

    def _function(self, name: str, dtype: torch.dtype) -> Callable[..., None]:
        function = self._functions.get((name, dtype))
        if function is None:
            function = self._functions[name, dtype] = self._library[f"{name}_{_TYPES[dtype]}"]
            function.restype = None  # type: ignore[attr-defined]
        return function

    def _run(self, name: str, x: Tensor, *args: Tensor | int | None) -> None:
        """Run a kernel on pixels shaped as `x` ``[B, C, N]``."""
        images, channels, pixels = x.shape
        kept = [a.contiguous() if isinstance(a, Tensor) else a for a in args]  # alive until the kernel is done
        self._function(name, x.dtype)(
            ctypes.c_int64(images),
            ctypes.c_int64(channels),
            ctypes.c_int64(pixels),
            torch.get_num_threads(),
            *[ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor) else a for a in kept],
        )

    def square(self, v: Tensor) -> Tensor:
        """`conv._square`."""
        out = _pixels(v)
        self._run("square", v, v, out)
        return out

    def points(
        self,
        inner: Tensor,
        square: Tensor,
        two_norm: Tensor,
        cosh_r: Tensor,
        sinh_r: Tensor,
        c: Tensor,
        limit: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`_hyperplanes._points`, in the memory of `inner` if possible."""
        inner = inner.to(square.dtype).contiguous()
        inner = inner.new_empty(0).set_(inner)  # autograd does not want to see an input again
        excess, slope = _pixels(inner), _pixels(inner)
        self._run("points", inner, inner, square, two_norm, cosh_r, sinh_r, c, limit, inner, excess, slope)
        return inner, excess, slope

    def points_backward(
        self,
        grad: Tensor,
        h: Tensor,
        excess: Tensor,
        slope: Tensor,
        square: Tensor,
        two_norm: Tensor,
        inverse_norm: Tensor,
        cosh_r: Tensor,
        sinh_r: Tensor,
        c: Tensor,
        limit: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Gradients for inner products and squared norms, and the sums of `_hyperplanes._differentiate`."""
        grad_inner, grad_square, sums = _like(h), _pixels(h), _sums(3 * h.shape[1] + 1)
        self._run(
            "points_backward", h, grad, h, excess, slope, square, two_norm, inverse_norm, cosh_r, sinh_r, c, limit,
            grad_inner, grad_square, sums,
        )  # fmt: skip
        by_norm, by_q, by_cosh, by_c = sums.to(h.dtype).split([h.shape[1]] * 3 + [1])
        return grad_inner, grad_square, by_norm, by_q, by_cosh, by_c

    def mean_sums(self, h: Tensor) -> Tensor:
        """`batch_norm._mean_sums`."""
        sums = _sums(h.shape[1] + 1)
        self._run("mean_sums", h, h, sums)
        return (sums / (h.shape[0] * h.shape[2])).to(h.dtype)

    def moments(self, h: Tensor, m: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`batch_norm._moments`."""
        xi, log, sums = _pixels(h), _pixels(h), _sums(h.shape[1])
        self._run("moments", h, h, m, c, xi, log, sums)
        return xi, log, (sums / (h.shape[0] * h.shape[2])).to(h.dtype)

    def recenter(
        self,
        h: Tensor,
        m: Tensor,
        xi: Tensor,
        log: Tensor,
        ratio: Tensor,
        beta: Tensor,
        c: Tensor,
        limit: Tensor,
        tangent: bool,
        relu: bool,
    ) -> Tensor:
        """`batch_norm._recenter` and ReLU."""
        out = _like(h)
        self._run("recenter", h, h, m, xi, log, ratio, beta, c, limit, tangent, relu, out)
        return out

    def recenter_backward(
        self,
        grad: Tensor,
        result: Tensor | None,
        h: Tensor,
        m: Tensor,
        xi: Tensor,
        log: Tensor,
        ratio: Tensor,
        beta: Tensor,
        c: Tensor,
        limit: Tensor,
        tangent: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`batch_norm._recenter_backward`."""
        channels = h.shape[1]
        grad_u, sums = _like(h), _sums(2 * channels + 2)
        self._run("recenter_backward", h, grad, result, h, m, xi, log, ratio, beta, c, limit, tangent, grad_u, sums)
        along_w, grad_beta, _, by_c = sums.to(h.dtype).split([channels, channels, 1, 1])
        return grad_u, along_w, grad_beta, by_c

    def center_backward(
        self,
        grad_u: Tensor,
        h: Tensor,
        m: Tensor,
        xi: Tensor,
        log: Tensor,
        ratio: Tensor,
        decay: Tensor,
        c: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """`batch_norm._center_backward`."""
        by_h, by_m, inverse_time, sums = _pixels(h), _pixels(h), _pixels(h), _sums(h.shape[1] + 2)
        self._run("center_backward", h, grad_u, h, m, xi, log, ratio, decay, c, by_h, by_m, inverse_time, sums)
        grad_mean, by_c, _ = sums.to(h.dtype).split([h.shape[1], 1, 1])
        return by_h, by_m, inverse_time, grad_mean, by_c

    def input_backward(
        self,
        grad_u: Tensor,
        h: Tensor,
        m: Tensor,
        xi: Tensor,
        log: Tensor,
        ratio: Tensor,
        decay: Tensor,
        by_h: Tensor,
        by_m: Tensor,
        inverse_time: Tensor,
        constant: Tensor,
        to_excess: Tensor,
    ) -> Tensor:
        """`batch_norm._input_backward`, in place of `grad_u`."""
        self._run(
            "input_backward", h, grad_u, h, m, xi, log, ratio, decay, by_h, by_m, inverse_time, constant, to_excess,
            grad_u,
        )  # fmt: skip
        return grad_u

    def residual(
        self,
        x: Tensor,
        shortcut: Tensor,
        c: Tensor,
        limit: Tensor,
        x_first: bool,
        shortcut_tangent: bool,
        tangent: bool,
        relu: bool,
    ) -> Tensor:
        """`residual._sum` and ReLU."""
        out = _like(x)
        self._run("residual", x, x, shortcut, c, limit, x_first, shortcut_tangent, tangent, relu, out)
        return out

    def residual_backward(
        self,
        grad: Tensor,
        result: Tensor | None,
        x: Tensor,
        shortcut: Tensor,
        c: Tensor,
        limit: Tensor,
        x_first: bool,
        shortcut_tangent: bool,
        tangent: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`residual._sum_backward`."""
        grad_x, grad_shortcut, sums = _like(x), _like(x), _sums(1)
        self._run(
            "residual_backward", x, grad, result, x, shortcut, c, limit, x_first, shortcut_tangent, tangent, grad_x,
            grad_shortcut, sums,
        )  # fmt: skip
        return grad_x, grad_shortcut, sums.to(x.dtype)


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _pixels(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], 1, x.shape[2])


def _sums(count: int) -> Tensor:
    return torch.empty(count, dtype=torch.float64)
