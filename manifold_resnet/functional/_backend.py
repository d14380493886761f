"""Where the elementwise bodies of the operations run.

The hand-written forward and backward passes are made of a few `kernel` bodies each: pointwise work with reductions over
the channels or the pixels of tensors ``[B, C, N]``. What runs is

- on CPUs with compiled kernels ``kernels.cpp`` (see `native`), where each layer is a few passes over memory;
- on CPUs without them the same passes as torch operations in place (see `fused` and the package ``_eager``);
- on GPUs with compiled kernels the bodies, each compiled once for all shapes by ``torch.compile``, which keeps results
  on disk;
- elsewhere, and where operations must be seen one by one (second derivatives, ``torch.func``), the bodies as they are.

On CPUs ``torch.compile`` of the same bodies takes 60 s instead of 4 s to build and was slower: it materialises what it
should not, and a training step makes hundreds of calls around each of which it spends as long as a small kernel takes.
"""

from __future__ import annotations

import logging
import os
import threading
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeVar, get_args

import geoopt
import torch
from torch import Tensor
from torch.nn import Parameter

from manifold_resnet.functional._native import Library

Backend = Literal["auto", "compiled", "eager"]

Passes = TypeVar("Passes")

_logger = logging.getLogger("manifold_resnet")
_ENVIRONMENT = "MANIFOLD_RESNET_BACKEND"
# tensors that hold their numbers as torch does; others may be anything, such as fakes without numbers
_PLAIN = (Tensor, Parameter, geoopt.ManifoldTensor, geoopt.ManifoldParameter)
_DTYPES = (torch.float32, torch.float64)
# with fewer pixels it makes no difference
_WORTHWHILE = 256
# Sizes to compile for, different and large: with equal ones the code would only hold for tensors where they are equal,
# with small ones it would use one thread. Sizes 0 and 1 are special to torch.compile, and run eagerly.
_SIZES = (131, 17, 257)
_OPTIONS = {"cpp.enable_floating_point_contract_flag": "fast"}


class _State:
    chosen: Backend | None = None  # None: by the environment variable
    broken: str | None = None  # why compiling does not work on this machine
    library: Library | None = None
    native = True  # tests set it to False, to try on CPU what is for GPUs
    lock = threading.RLock()


def get_backend() -> Backend:
    """The backend in use, as given to `set_backend` or in the environment variable ``MANIFOLD_RESNET_BACKEND``.

    Returns
    -------
    {"auto", "compiled", "eager"}
        ``"auto"`` unless something else was asked for.

    Raises
    ------
    ValueError
        If the environment variable names no backend.

    Examples
    --------
    >>> import manifold_resnet as mr
    >>> with mr.set_backend("eager"):
    ...     mr.functional.get_backend()
    'eager'
    """
    if _State.chosen is not None:
        return _State.chosen
    name = os.environ.get(_ENVIRONMENT, "auto")
    return _checked(name, f"the environment variable {_ENVIRONMENT}")


def _checked(name: str, source: str) -> Backend:
    if name not in get_args(Backend):
        raise ValueError(f"{source} must be one of {', '.join(get_args(Backend))}; got {name!r}")
    return name  # type: ignore[return-value]


class set_backend:  # noqa: N801, a function to its users, as torch.set_grad_enabled
    """Choose how the elementwise parts of the layers run; results agree up to rounding.

    Takes effect at once; as a context manager, until its end. Not for use inside functions that are compiled with
    ``torch.compile`` themselves: there the bodies become part of the surrounding graph whatever the backend.

    Parameters
    ----------
    name : {"auto", "compiled", "eager"}
        ``"compiled"``: kernels for this machine, built on first use and kept on disk. On CPU that takes a C++ compiler
        and seconds, and ``MANIFOLD_RESNET_CACHE`` names the folder; on GPU it takes Triton and about a minute, and
        ``TORCHINDUCTOR_CACHE_DIR`` names the folder. Raises a RuntimeError where it does not work. ``"eager"``: plain
        torch operations. ``"auto"``: compiled where that works (but for batches of images with fewer than 256 pixels
        together), else eager, with one warning.

    Raises
    ------
    ValueError
        If there is no such backend.

    Examples
    --------
    >>> import manifold_resnet as mr
    >>> with mr.set_backend("eager"):
    ...     mr.get_backend()
    'eager'
    """

    def __init__(self, name: Backend) -> None:
        self._before = _State.chosen
        _State.chosen = _checked(name, "the backend")

    def __enter__(self) -> None:
        return None

    def __exit__(self, *exception: object) -> None:
        _State.chosen = self._before


class _Local(threading.local):
    bodies = False


_local = _Local()


@contextmanager
def bodies_only() -> Iterator[None]:
    """Operations one by one, none in the memory of its arguments: transforms of torch.func come back to these."""
    before, _local.bodies = _local.bodies, True
    try:
        yield
    finally:
        _local.bodies = before


def transformed() -> bool:
    """Inside a transform of torch.func or a dispatch mode, or traced: operations must be seen one by one."""
    return (
        _local.bodies
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
    )


def _stand_in(t: Any) -> Any:
    """A random tensor like `t` of the sizes to compile for."""
    if not isinstance(t, Tensor):
        return t
    sizes = _SIZES[1:2] if t.ndim == 1 else _SIZES[: t.ndim]
    return 0.5 + torch.rand_like(t.new_empty([1 if n == 1 else size for n, size in zip(t.shape, sizes, strict=True)]))


def _broken(backend: Backend, error: Exception) -> None:
    """Raise if compiling was asked for, else warn that it does not work."""
    reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
    hint = "They need a C++ compiler on CPU (g++, clang++ or the one in the environment variable CXX) and Triton on GPU"
    if backend == "compiled":
        raise RuntimeError(f"the kernels of the backend 'compiled' could not be built: {reason}. {hint}") from error
    _State.broken = reason
    warnings.warn(
        f"manifold_resnet runs without compiled kernels, several times slower, because they could not be built: "
        f"{reason}. {hint}; mr.set_backend('eager') silences this warning",
        RuntimeWarning,
        stacklevel=3,
    )


def _direct(x: Tensor, *others: Tensor | None) -> bool:
    """Whether numbers in memory, in one dtype, are all there is to `x` and others, and nobody watches what is done.

    With mixed dtypes torch's type promotion is wanted.
    """
    if not x.is_cpu or torch.is_grad_enabled() or not _State.native or transformed():
        return False
    dtype = x.dtype
    if type(x) not in _PLAIN or dtype not in _DTYPES:
        return False
    for t in others:  # noqa: SIM110, each layer asks several times, and a generator takes twice as long
        if t is not None and t.dtype != dtype:
            return False
    return True


def _library(x: Tensor, parameter: bool) -> Library | None:
    """The C++ kernels, if they are wanted for what is `_direct`."""
    backend = get_backend()
    if backend == "eager" or (_State.broken is not None and backend == "auto"):
        return None
    if not parameter and x.numel() < x.shape[1] * (1 if backend == "compiled" else _WORTHWHILE):
        return None
    if _State.library is None:
        with _State.lock:
            try:
                _State.library = _State.library or Library()
            except (RuntimeError, OSError) as error:
                _broken(backend, error)
    return _State.library


def native(x: Tensor, *others: Tensor | None, parameter: bool = False) -> Library | None:
    """The C++ kernels, if they are to be used for images `x` ``[B, C, ...]`` (or a parameter) and others."""
    return _library(x, parameter) if _direct(x, *others) else None


def fused(eager: Passes, x: Tensor, *others: Tensor | None, parameter: bool = False) -> Library | Passes | None:
    """The C++ kernels or, without them, `eager`, torch operations in place; None where neither may be used."""
    if not _direct(x, *others):
        return None
    library = _library(x, parameter)
    return eager if library is None and x.numel() > 0 else library


class _Capture:
    """A backend of torch.compile that keeps the compiled graph, so that it can be called without guards.

    `Kernel` knows by itself for which arguments a graph holds, and there are hundreds of calls in a training step: what
    torch.compile does around each of them costs as much as a kernel.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.graph: Any = None
        self.inputs: list[Any] = []
        self.call: Callable[..., Any] | None = None

    def __call__(self, graph: Any, inputs: list[Any]) -> Callable[..., Any]:
        from torch._inductor.compile_fx import compile_fx

        self.graph, self.inputs = graph, inputs
        self.call = compile_fx(graph, inputs, config_patches=self.options)
        return self.call

    def direct(self, names: Sequence[str]) -> Callable[..., Any] | None:
        """``f(arguments, sizes)`` that calls the graph; None if its inputs are not what they should be."""
        call, order = self.call, []
        if call is None:
            return None
        placeholders = [node for node in self.graph.graph.nodes if node.op == "placeholder"]
        for node, example in zip(placeholders, self.inputs, strict=True):
            if isinstance(example, Tensor):
                name = node.name.removeprefix("l_").removeprefix("L_").removesuffix("_")
                if name not in names:
                    return None
                order.append((True, names.index(name)))
            elif int(example) in _SIZES:
                order.append((False, _SIZES.index(int(example))))
            else:
                return None
        return lambda args, sizes: call(*[args[i] if is_argument else sizes[i] for is_argument, i in order])


class Kernel:
    """A body that runs eagerly or compiled, whatever `get_backend` and the arguments allow.

    Parameters
    ----------
    body : callable
        Takes contiguous tensors or None, then other arguments, each value of which is compiled anew; returns a tensor
        or a tuple of them. Tensors are ``[B, C, N]``, with ones for what they do not depend on, ``[B, C]``, ``[C]`` or
        0-d.
    materialise : bool
        Write intermediate results that are used several times to memory, rather than computing them several times:
        for bodies whose results per pixel enter results per element.
    """

    def __init__(self, body: Callable[..., Any], materialise: bool) -> None:
        self.body = body
        self.__name__ = body.__name__.strip("_")
        self.__doc__ = body.__doc__
        self._options = _OPTIONS | ({"realize_opcount_threshold": 3} if materialise else {})
        self._compiled: dict[tuple[Any, ...], Callable[..., Any]] = {}

    def __call__(self, *args: Any) -> Any:
        """Run the body, without recording operations if it is compiled."""
        if torch.is_grad_enabled() or transformed():  # a gradient of a gradient is wanted, or a graph
            return self.body(*args)
        backend = get_backend()
        if backend == "eager" or (_State.broken is not None and backend == "auto"):
            return self.body(*args)
        if args[0].device.type == "cpu" and _State.native:  # kernels.cpp has what is worth it
            return self.body(*args)
        plain, key = [], [torch.is_inference_mode_enabled()]
        largest = args[0]
        for t in args:
            if not isinstance(t, Tensor):
                key.append(t)
            elif type(t) is Tensor or type(t) is Parameter:
                key.append(t.dtype)
                if t.ndim == 3 and t.numel() > largest.numel():
                    largest = t
                if t.requires_grad or not t.is_contiguous():
                    t = t.detach().contiguous()
            else:
                return self.body(*args)
            plain.append(t)
        images, channels, pixels = largest.shape
        if (
            images < 2
            or pixels < 2
            or (backend == "auto" and images * pixels < _WORTHWHILE)
            or largest.numel() >= 1 << 31  # indices may have 32 bits
            or largest.device.type not in ("cpu", "cuda")
        ):
            return self.body(*args)
        key += (largest.device.type, channels == 1)
        compiled = self._compiled.get(tuple(key))
        if compiled is None:
            compiled = self._compile(tuple(key), plain, backend)
            if compiled is None:
                return self.body(*args)
        return compiled(plain, (images, channels, pixels))

    def _compile(self, key: tuple[Any, ...], args: list[Any], backend: Backend) -> Callable[..., Any] | None:
        with _State.lock:
            if key in self._compiled:
                return self._compiled[key]
            _logger.info("compiling %s", self.__name__)
            # torch.compile keeps and counts what it compiled by code object: each variant gets one of its own
            code = self.body.__code__.replace(co_name=f"{self.__name__}_{len(self._compiled)}")
            body = types.FunctionType(code, self.body.__globals__, self.__name__, self.body.__defaults__)
            try:
                compiled = _compile(body, list(map(_stand_in, args)), self._options)
            except Exception as error:  # whatever a compiler may raise
                _broken(backend, error)
                return None
            self._compiled[key] = compiled
            return compiled


def _compile(body: types.FunctionType, args: list[Any], options: dict[str, Any]) -> Callable[..., Any]:
    """``f(arguments, sizes)``, compiled for all sizes."""
    known = torch._inductor.list_options()
    capture = _Capture({name: value for name, value in options.items() if name in known})
    compiled = torch.compile(body, backend=capture, fullgraph=True, dynamic=True)
    guarded = compiled(*args)
    outputs = guarded if isinstance(guarded, tuple) else (guarded,)
    direct = capture.direct(body.__code__.co_varnames)
    given = [] if direct is None else list(direct(args, _SIZES))
    present = [i for i, t in enumerate(outputs) if t is not None]
    if direct is None or len(given) != len(present):
        return lambda args, sizes: compiled(*args)
    if not all(torch.equal(outputs[i], t) for i, t in zip(present, given, strict=True)):
        return lambda args, sizes: compiled(*args)
    if not isinstance(guarded, tuple):
        return lambda args, sizes: direct(args, sizes)[0]
    if len(present) == len(outputs):
        return direct

    def with_none(args: list[Any], sizes: tuple[int, ...]) -> tuple[Tensor | None, ...]:
        results: list[Tensor | None] = [None] * len(outputs)
        for i, t in zip(present, direct(args, sizes), strict=True):
            results[i] = t
        return tuple(results)

    return with_none


def kernel(body: Callable[..., Any] | None = None, *, materialise: bool = False) -> Any:
    """Make a function a `Kernel`; a decorator, with or without arguments."""
    if body is None:
        return lambda body: Kernel(body, materialise)
    return Kernel(body, materialise)
