"""Figures of trainings; every function returns a ``matplotlib.figure.Figure`` to show or save."""

from manifold_resnet._errors import extra

with extra("train"):
    from manifold_resnet.plotting.curves import plot_curves

__all__ = ["plot_curves"]
