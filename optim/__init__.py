"""Riemannian optimizers and the parameter groups that go with them."""

from geoopt.optim import RiemannianSGD
from manifold_resnet.optim.adam import RiemannianAdam
from manifold_resnet.optim.groups import parameter_groups

__all__ = ["RiemannianAdam", "RiemannianSGD", "parameter_groups"]
