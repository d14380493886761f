"""Riemannian optimizers and the parameter groups that go with them."""

from manifold_resnet.optim.adam import RiemannianAdam
from manifold_resnet.optim.groups import parameter_groups
from manifold_resnet.optim.sgd import RiemannianSGD

__all__ = ["RiemannianAdam", "RiemannianSGD", "parameter_groups"]
