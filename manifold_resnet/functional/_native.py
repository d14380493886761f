"""The kernels in ``kernels.cpp``: building, loading, calling them.

They are compiled by the system's C++ compiler, for this machine, in seconds, on first use, and kept in a cache folder
(``MANIFOLD_RESNET_CACHE``, or ``manifold_resnet`` in the user's cache folder). Nothing is built when the package is
installed, so that it installs everywhere.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_FLAGS = [
    "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-std=c++17", "-shared",
    "-fPIC",
]  # fmt: skip
_int64, _double, _pointer = ctypes.c_int64, ctypes.c_double, ctypes.c_void_p
Geometry = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]  # strides, paddings, dilations
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

    def _run(self, name: str, x: Tensor, *args: Tensor | int | float | None) -> None:
        """Run a kernel on pixels shaped as `x` ``[B, C, N]``. Tensors must be contiguous."""
        self._call(name, x.dtype, tuple(x.shape), args)

    def _call(self, name: str, dtype: torch.dtype, shape: Sequence[int], args: Sequence[Any]) -> None:
        function = self._functions.get((name, dtype))
        if function is None:
            function = self._library[f"{name}_{_TYPES[dtype]}"]
            function.restype = None
            function.argtypes = [_int64] * 4 + [_type(a) for a in args]
            self._functions[name, dtype] = function  # when it is complete: other threads take it from here
        function(*shape, torch.get_num_threads(), *[a.data_ptr() if isinstance(a, Tensor) else a for a in args])

    def step(
        self,
        name: str,
        points: Sequence[Tensor],
        numbers: Sequence[float | int],
        tensors: Sequence[Sequence[Tensor] | None],
        *columns: Sequence[float],
    ) -> None:
        """Step rows of ball points with an optimizer, "adam" or "sgd". All tensors must be contiguous."""
        length, count = points[0].shape[-1], len(points)
        pointers, doubles = _pointer * count, _double * count
        rows = (_int64 * count)(*[point.numel() // length for point in points])
        lists = [None if ts is None else pointers(*[t.data_ptr() for t in ts]) for ts in (points, *tensors)]
        numbers_of = [doubles(*column) for column in columns]
        self._call(name, points[0].dtype, (count, 1, length), [*numbers, rows, *lists, *numbers_of])

    def directions(self, weight: Tensor, c: Tensor, scale: float | None, factor: float) -> tuple[Tensor, Tensor]:
        """`_hyperplanes._directions`."""
        weight = weight.contiguous()
        out, norm = torch.empty_like(weight), weight.new_empty(weight.shape[0])
        self._run("directions", _rows(weight), weight, c, -1.0 if scale is None else scale, factor, out, norm)
        return out, norm

    def directions_backward(
        self,
        grad: Tensor | None,
        grad_norm: Tensor | None,
        weight: Tensor,
        c: Tensor,
        scale: float | None,
        factor: float,
    ) -> tuple[Tensor, Tensor]:
        """`_hyperplanes._directions_backward`."""
        weight, grad, grad_norm = weight.contiguous(), _contiguous(grad), _contiguous(grad_norm)
        out, by_c = torch.empty_like(weight), weight.new_empty(())
        scale = -1.0 if scale is None else scale
        self._run("directions_backward", _rows(weight), grad, grad_norm, weight, c, scale, factor, out, by_c)
        return out, by_c

    def lift(self, x: Tensor, c: Tensor, cap: float) -> Tensor:
        """From a point of the ball ``[C]`` to the hyperboloid chart, within the distance ``cap/sqrt(c)``."""
        x = x.as_subclass(Tensor).contiguous()
        out = torch.empty_like(x)
        self._run("lift", x.view(1, -1, 1), x, c, cap, out)
        return out

    def lift_backward(self, grad: Tensor, x: Tensor, c: Tensor, cap: float) -> tuple[Tensor, Tensor]:
        """Gradients of `lift` for the point and c."""
        grad, x = grad.contiguous(), x.as_subclass(Tensor).contiguous()
        out, by_c = torch.empty_like(x), x.new_empty(())
        self._run("lift_backward", x.view(1, -1, 1), grad, x, c, cap, out, by_c)
        return out, by_c

    def convolution_inputs(
        self, v: Tensor, weight: Tensor, c: Tensor, scale: float | None, factor: float, window: tuple[int, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of 1d or 2d images, see `window`: `directions` of the kernels, their lengths; the patches' squared norms."""
        v, weight, rows = v.contiguous(), weight.contiguous(), weight.shape[0]
        images, channels, pixels = v.shape[0], v.shape[1], math.prod(v.shape[2:])
        height, width = window[2:4]
        scratch, square = v.new_empty(images, pixels), v.new_empty(images, 1, height * width)
        normals, norm = torch.empty_like(weight), weight.new_empty(rows)
        numbers = rows, c, -1.0 if scale is None else scale, factor
        self._call(
            "convolution_inputs", v.dtype, (images, channels, pixels),
            (v, weight, *numbers, *window, scratch, normals, norm, square),
        )  # fmt: skip
        return normals, norm, square

    def convolution_gradients(
        self,
        grad_normals: Tensor | None,
        grad_norm: Tensor | None,
        grad_square: Tensor,
        grad_v: Tensor | None,
        v: Tensor,
        weight: Tensor,
        c: Tensor,
        scale: float | None,
        factor: float,
        window: tuple[int, ...],
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Backward pass of `convolution_inputs`: adds to `grad_v`; gradients for it, the weight and c."""
        v, weight = v.contiguous(), weight.contiguous()
        grad_square, grad_v = grad_square.contiguous(), _contiguous(grad_v)
        grad_weight = by_c = None
        if grad_normals is not None:
            grad_normals = grad_normals.contiguous()
            grad_weight, by_c = torch.empty_like(weight), weight.new_empty(())
        numbers = weight.shape[0], c, -1.0 if scale is None else scale, factor
        self._call(
            "convolution_gradients", v.dtype, (v.shape[0], v.shape[1], math.prod(v.shape[2:])),
            (
                grad_normals, _contiguous(grad_norm), grad_square, v, weight, *numbers, *window, grad_v, grad_weight,
                by_c,
            ),
        )  # fmt: skip
        return grad_v, grad_weight, by_c

    def hyperplanes(
        self,
        inner: Tensor,
        square: Tensor,
        norm: Tensor,
        offset: Tensor | None,
        c: Tensor,
        limit: Tensor | None,
        is_input: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """`_hyperplanes._hyperplanes`, in the memory of `inner` if possible; no excess without `limit`."""
        inner = inner.to(square.dtype).contiguous()
        if is_input:
            inner = inner.new_empty(0).set_(inner)  # autograd does not want to see an input again
        pixels = inner.shape[0], inner.shape[1], square.shape[2]
        slope = square.new_empty(pixels[0], 1, pixels[2])
        excess = None if limit is None else torch.empty_like(slope)
        square, offset = square.contiguous(), _contiguous(offset)
        self._call("hyperplanes", inner.dtype, pixels, (inner, square, norm, offset, c, limit, inner, excess, slope))
        return inner, excess, slope

    def hyperplanes_backward(
        self,
        grad: Tensor,
        h: Tensor,
        excess: Tensor | None,
        slope: Tensor,
        square: Tensor,
        norm: Tensor,
        offset: Tensor | None,
        c: Tensor,
        limit: Tensor | None,
        needs_c: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
        """Gradients for the first five arguments of `_hyperplanes._hyperplanes`."""
        pixels = h.shape[0], h.shape[1], slope.shape[2]
        outputs = pixels[1]
        grad, h, square, offset = grad.contiguous(), h.contiguous(), square.contiguous(), _contiguous(offset)
        grad_inner, grad_square, sums = torch.empty_like(h), torch.empty_like(slope), h.new_empty(2 * outputs + 1)
        if excess is not None and excess.shape != slope.shape:
            excess = excess.expand_as(slope).contiguous()
        self._call(
            "hyperplanes_backward", h.dtype, pixels,
            (grad, h, excess, slope, square, norm, offset, c, limit, grad_inner, grad_square, sums),
        )  # fmt: skip
        by_offset = None if offset is None else sums[outputs:-1]
        return grad_inner, grad_square, sums[:outputs], by_offset, sums[-1] if needs_c else None

    def midpoint(self, x: Tensor, c: Tensor, from_tangent: bool, to_tangent: bool) -> Tensor:
        """`pooling._midpoint`."""
        x = x.contiguous()
        out = x.new_empty(*x.shape[:2], 1)
        self._run("midpoint", x, x, c, from_tangent, to_tangent, out)
        return out

    def midpoint_backward(
        self, grad: Tensor, x: Tensor, c: Tensor, from_tangent: bool, to_tangent: bool
    ) -> tuple[Tensor, Tensor]:
        """`pooling._midpoint_backward`; of the gradient for c one part per image."""
        grad, x = grad.contiguous(), x.contiguous()
        grad_x, by_c = torch.empty_like(x), x.new_empty(x.shape[0])
        self._run("midpoint_backward", x, grad, x, c, from_tangent, to_tangent, grad_x, by_c)
        return grad_x, by_c

    def batch_norm(
        self,
        h: Tensor,
        mean: Tensor | None,
        variance: Tensor | None,
        gain: Tensor,
        center: Tensor,
        c: Tensor,
        limit: Tensor,
        eps: float,
        tangent: bool,
        relu: bool,
        base_gain: float | None,
        cap: float,
    ) -> tuple[Tensor, ...]:
        """`_channel_norm._batch_norm`; the bound `cap` as in `lift`."""
        h = h.contiguous()
        out, xi, log, split = torch.empty_like(h), _pixels(h), _pixels(h), h.shape[1] + 1
        statistics = h.new_empty(2 * split - 1)
        given = _contiguous(mean), _contiguous(variance), gain.contiguous(), center.contiguous()
        affine = -1.0 if base_gain is None else base_gain, cap
        self._run("batch_norm", h, h, *given, c, limit, float(eps), tangent, relu, *affine, out, xi, log, statistics)
        return out, statistics[:split], statistics[split:], xi, log, h.new_empty(0)

    def batch_norm_backward(
        self,
        grad: Tensor,
        result: Tensor | None,
        h: Tensor,
        mean: Tensor | None,
        variance: Tensor | None,
        gain: Tensor,
        center: Tensor,
        c: Tensor,
        limit: Tensor,
        sums: Tensor,
        batch_variance: Tensor,
        xi: Tensor,
        log: Tensor,
        factors: Tensor,
        eps: float,
        tangent: bool,
        base_gain: float | None,
        cap: float,
        needs_c: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor, Tensor, Tensor | None]:
        """Gradients for the first six arguments of `_channel_norm._batch_norm`; `factors` are not needed."""
        grad, h, channels = grad.contiguous(), h.contiguous(), h.shape[1]
        grad_h, scratch, gradients = (
            torch.empty_like(h),
            h.new_empty(3, h.shape[0], h.shape[2]),
            h.new_empty(4 * channels + 1),
        )
        given = _contiguous(mean), _contiguous(variance), gain.contiguous(), center.contiguous()
        affine = -1.0 if base_gain is None else base_gain, cap
        self._run(
            "batch_norm_backward", h, grad, result, h, *given, c, limit, float(eps), tangent, *affine, xi, log, sums,
            batch_variance, grad_h, scratch, gradients,
        )  # fmt: skip
        by_mean = None if mean is None else gradients[:channels]
        by_variance = None if variance is None else gradients[channels : 2 * channels]
        by_gain, by_center = gradients[2 * channels : 3 * channels], gradients[3 * channels : -1]
        return grad_h, by_mean, by_variance, by_gain, by_center, gradients[-1] if needs_c else None

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
    ) -> tuple[Tensor, Tensor]:
        """`residual._sum` and ReLU."""
        x, shortcut = x.contiguous(), shortcut.contiguous()
        out = torch.empty_like(x)
        self._run("residual", x, x, shortcut, c, limit, x_first, shortcut_tangent, tangent, relu, out)
        return out, x.new_empty(0)

    def residual_backward(
        self,
        grad: Tensor,
        result: Tensor | None,
        x: Tensor,
        shortcut: Tensor,
        c: Tensor,
        limit: Tensor,
        numbers: Tensor,
        x_first: bool,
        shortcut_tangent: bool,
        tangent: bool,
        needs_c: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`residual._residual_backward`; `numbers` are not needed."""
        grad, x, shortcut = grad.contiguous(), x.contiguous(), shortcut.contiguous()
        grad_x, grad_shortcut, by_c = torch.empty_like(x), torch.empty_like(x), x.new_empty(())
        self._run(
            "residual_backward", x, grad, result, x, shortcut, c, limit, x_first, shortcut_tangent, tangent, grad_x,
            grad_shortcut, by_c,
        )  # fmt: skip
        return grad_x, grad_shortcut, by_c


def _type(argument: Any) -> type:
    """What a kernel takes an argument as: integers have 64 bits, tensors, lists of them and None are pointers."""
    return _double if isinstance(argument, float) else _int64 if isinstance(argument, int) else _pointer


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _rows(weight: Tensor) -> Tensor:
    return weight.view(weight.shape[0], 1, -1)


@lru_cache(maxsize=256)
def window(size: tuple[int, ...], kernel: tuple[int, ...], geometry: Geometry) -> tuple[int, ...]:
    """Sizes of 1d or 2d images and of the result, kernel, strides, paddings, dilations; all two-dimensional."""
    flat = len(kernel) == 1
    sizes, kernel_size = [*[1] * flat, *size], [*[1] * flat, *kernel]
    strides, paddings, dilations = ([*[neutral] * flat, *g] for neutral, g in zip((1, 0, 1), geometry, strict=True))
    out = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(sizes, kernel_size, strides, paddings, dilations, strict=True)
    ]
    return (*sizes, *out, *kernel_size, *strides, *paddings, *dilations)


def _pixels(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], 1, x.shape[2])
