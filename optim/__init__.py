"""Riemannian optimizers, what to give them, and ways to look at what they do."""

from typing import Any

from manifold_resnet.optim.adam import RiemannianAdam
from manifold_resnet.optim.check import check_gradient
from manifold_resnet.optim.describe import describe_parameters
from manifold_resnet.optim.groups import parameter_groups
from manifold_resnet.optim.monitor import gradient_norms, measure
from manifold_resnet.optim.sgd import RiemannianSGD

__all__ = [
    "RiemannianAdam",
    "RiemannianMonitor",
    "RiemannianSGD",
    "check_gradient",
    "describe_parameters",
    "gradient_norms",
    "measure",
    "parameter_groups",
]


def __getattr__(name: str) -> Any:
    if name == "RiemannianMonitor":  # needs Lightning
        from manifold_resnet.optim.callback import RiemannianMonitor

        return RiemannianMonitor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
