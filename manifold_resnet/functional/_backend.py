"""Where the elementwise bodies of the operations run: eagerly, or compiled by ``torch.compile``.

The hand-written forward and backward passes are made of a few `kernel` bodies each: pointwise work with reductions over
the channels or the pixels of tensors ``[B, C, N]``. There is one source for all devices. Eagerly a body is a chain of
torch operations; compiled it is one or two fused loops. Each body is compiled once, for all shapes, and
``torch.compile`` keeps the result on disk.
"""

from __future__ import annotations

import logging
import os
import threading
import types
import warnings
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import Parameter

Backend = Literal["auto", "compiled", "eager"]

_logger = logging.getLogger("manifold_resnet")
_ENVIRONMENT = "MANIFOLD_RESNET_BACKEND"
# below this many pixels the time a compilation takes is not worth it
_WORTHWHILE = 4096
# Sizes to compile for, different and large: with equal ones the code would only hold for tensors where they are equal,
# with small ones it would use one thread. Sizes 0 and 1 are special to torch.compile, and run eagerly.
_SIZES = (131, 17, 257)
_OPTIONS = {"cpp.enable_floating_point_contract_flag": "fast"}


class _State:
    chosen: Backend | None = None  # None: by the environment variable
    broken: str | None = None  # why compiling does not work on this machine
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
        ``"compiled"``: by ``torch.compile``, which needs a C++ compiler on CPU and Triton on GPU, takes a minute the
        first time on a machine (results are kept in ``TORCHINDUCTOR_CACHE_DIR``) and seconds in each later process;
        raises a RuntimeError where that does not work. ``"eager"``: plain torch operations. ``"auto"``: compiled
        for batches of 4,096 pixels and more where that works, else eager, with one warning.

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


def _transformed() -> bool:
    """Inside a transform of torch.func, or traced: operations must be seen one by one."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def _stand_in(t: Any) -> Any:
    """A tensor like `t` of the sizes to compile for."""
    if not isinstance(t, Tensor):
        return t
    sizes = _SIZES[1:2] if t.ndim == 1 else _SIZES[: t.ndim]
    return t.new_ones([1 if n == 1 else size for n, size in zip(t.shape, sizes, strict=True)])


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
        if torch.is_grad_enabled() or _transformed():  # a gradient of a gradient is wanted, or a graph
            return self.body(*args)
        backend = get_backend()
        if backend == "eager" or (_State.broken is not None and backend == "auto"):
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
            or largest.device.type not in ("cpu", "cuda")
        ):
            return self.body(*args)
        key += (largest.device.type, channels == 1)
        compiled = self._compiled.get(tuple(key))
        if compiled is None:
            compiled = self._compile(tuple(key), plain, backend)
            if compiled is None:
                return self.body(*args)
        return compiled(*plain)

    def _compile(self, key: tuple[Any, ...], args: list[Any], backend: Backend) -> Callable[..., Any] | None:
        with _State.lock:
            if key in self._compiled:
                return self._compiled[key]
            _logger.info("compiling %s", self.__name__)
            # torch.compile keeps and counts what it compiled by code object: each variant gets one of its own
            code = self.body.__code__.replace(co_name=f"{self.__name__}_{len(self._compiled)}")
            body = types.FunctionType(code, self.body.__globals__, self.__name__, self.body.__defaults__)
            try:
                compiled = torch.compile(body, fullgraph=True, dynamic=True, options=_known(self._options))
                compiled(*map(_stand_in, args))
            except Exception as error:  # whatever a compiler may raise
                reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
                hint = (
                    "torch.compile needs a C++ compiler (g++ or clang++, or the one in the environment variable CXX) "
                    "on CPU and Triton on GPU"
                )
                if backend == "compiled":
                    raise RuntimeError(f"the backend 'compiled' does not work here: {reason}. {hint}") from error
                _State.broken = reason
                warnings.warn(
                    f"manifold_resnet runs without compiled kernels, several times slower, because they could not be "
                    f"built: {reason}. {hint}; mr.set_backend('eager') silences this warning",
                    RuntimeWarning,
                    stacklevel=2,
                )
                return None
            self._compiled[key] = compiled
            return compiled


def _known(options: dict[str, Any]) -> dict[str, Any]:
    """Those of the options that this torch has."""
    known = torch._inductor.list_options()
    return {name: value for name, value in options.items() if name in known}


def kernel(body: Callable[..., Any] | None = None, *, materialise: bool = False) -> Any:
    """Make a function a `Kernel`; a decorator, with or without arguments."""
    if body is None:
        return lambda body: Kernel(body, materialise)
    return Kernel(body, materialise)
