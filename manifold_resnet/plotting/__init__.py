"""Figures: the Poincaré disk and what lies in it, and the curves of trainings.

Functions for the disk take matplotlib Axes and return them; `plot_curves` returns a ``matplotlib.figure.Figure``.
"""

from manifold_resnet._errors import extra

with extra("train"):
    from manifold_resnet.plotting._disk import PALETTE
    from manifold_resnet.plotting.curves import plot_curves
    from manifold_resnet.plotting.disk import plot_disk, plot_geodesic, plot_hyperplane, plot_tessellation
    from manifold_resnet.plotting.points import plot_points, plot_trajectory
    from manifold_resnet.plotting.reduction import recenter, reduce_to_disk
    from manifold_resnet.plotting.regions import plot_decision_regions

__all__ = [
    "PALETTE",
    "plot_curves",
    "plot_decision_regions",
    "plot_disk",
    "plot_geodesic",
    "plot_hyperplane",
    "plot_points",
    "plot_tessellation",
    "plot_trajectory",
    "recenter",
    "reduce_to_disk",
]
