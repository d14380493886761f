"""What each part of a Poincaré residual network is for: variants of one network, trained under one budget."""

from manifold_resnet.experiments.ablate.backward import compare_backward
from manifold_resnet.experiments.ablate.grid import SUBJECTS, Ablation, Subject, Variant
from manifold_resnet.experiments.ablate.run import BACKWARD, ablate, ablate_backward

__all__ = ["BACKWARD", "SUBJECTS", "Ablation", "Subject", "Variant", "ablate", "ablate_backward", "compare_backward"]
