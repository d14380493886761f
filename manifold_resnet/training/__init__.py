"""Training, evaluation and the folders they leave behind."""

from manifold_resnet._errors import extra

with extra("train"):
    from manifold_resnet.training.checkpoints import load_run
    from manifold_resnet.training.config import Config
    from manifold_resnet.training.run import TrainingInterrupted, evaluate, resume, train

__all__ = ["Config", "TrainingInterrupted", "evaluate", "load_run", "resume", "train"]
