"""Models for images, and their names."""

from manifold_resnet.models.euclidean import EuclideanResNet
from manifold_resnet.models.hyperbolic import PoincareResNet
from manifold_resnet.models.imagenet import poincare_resnet18, poincare_resnet34, poincare_resnet50
from manifold_resnet.models.registry import create_model, default_options

__all__ = [
    "EuclideanResNet",
    "PoincareResNet",
    "create_model",
    "default_options",
    "poincare_resnet18",
    "poincare_resnet34",
    "poincare_resnet50",
]
