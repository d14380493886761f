"""Figures of trainings; every function returns a ``matplotlib.figure.Figure`` to show or save."""

from .._errors import extra

with extra("train"):
    from .curves import plot_curves

__all__ = ["plot_curves"]
