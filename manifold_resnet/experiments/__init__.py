"""What the paper measured on trained networks, as functions and commands over the runs that ``train`` leaves."""

from manifold_resnet._errors import extra

with extra("train"):
    from manifold_resnet.experiments.runs import Run, load_run, load_runs

__all__ = ["Run", "load_run", "load_runs"]
