"""Experiments that compare optimizers, as data: grids of optimizer, learning rate, parametrisation and seed."""

from manifold_resnet._errors import extra

with extra("train"):
    from manifold_resnet.optim.experiments.grid import Cell, Experiment, read_experiment, shipped
    from manifold_resnet.optim.experiments.report import summary
    from manifold_resnet.optim.experiments.run import Outcome, run_experiment

__all__ = ["Cell", "Experiment", "Outcome", "read_experiment", "run_experiment", "shipped", "summary"]
