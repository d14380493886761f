"""Riemannian optimizers and the parameter groups that go with them."""

from geoopt.optim import RiemannianSGD

from .adam import RiemannianAdam
from .groups import parameter_groups

__all__ = ["RiemannianAdam", "RiemannianSGD", "parameter_groups"]
