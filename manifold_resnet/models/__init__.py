"""Models for images, and their names."""

from manifold_resnet.models.euclidean import EuclideanResNet
from manifold_resnet.models.files import convert_checkpoint, load_model
from manifold_resnet.models.hyperbolic import PoincareResNet
from manifold_resnet.models.imagenet import poincare_resnet18, poincare_resnet34, poincare_resnet50
from manifold_resnet.models.reference import Conversion, load_reference_state_dict
from manifold_resnet.models.registry import create_model, default_options
from manifold_resnet.models.statistics import update_bn

__all__ = [
    "Conversion",
    "EuclideanResNet",
    "PoincareResNet",
    "convert_checkpoint",
    "create_model",
    "default_options",
    "load_model",
    "load_reference_state_dict",
    "poincare_resnet18",
    "poincare_resnet34",
    "poincare_resnet50",
    "update_bn",
]
