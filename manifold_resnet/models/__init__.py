"""Models for images, and their names."""

from manifold_resnet.models.euclidean import EuclideanResNet
from manifold_resnet.models.hyperbolic import PoincareResNet
from manifold_resnet.models.registry import create_model, default_options

__all__ = ["EuclideanResNet", "PoincareResNet", "create_model", "default_options"]
