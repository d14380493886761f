"""Training, evaluation and the folders they leave behind."""

from .._errors import extra

with extra("train"):
    from .checkpoints import load_run
    from .config import Config
    from .run import TrainingInterrupted, evaluate, resume, train

__all__ = ["Config", "TrainingInterrupted", "evaluate", "load_run", "resume", "train"]
