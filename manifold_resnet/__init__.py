"""Residual networks that live entirely on the Poincaré ball, built on geoopt."""

import warnings as _warnings

with _warnings.catch_warnings():  # geoopt compiles functions with a deprecated tool when it is imported
    _warnings.filterwarnings("ignore", category=FutureWarning, message=".*torch.jit.*")
    _warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*torch.jit.*")
    import geoopt as _geoopt  # noqa: F401

from manifold_resnet import functional, models, nn
from manifold_resnet.functional import get_backend, set_backend

__all__ = ["functional", "get_backend", "models", "nn", "set_backend"]
__version__ = "0.1.0"
