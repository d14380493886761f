"""Where networks put test images: their embeddings on the Poincaré disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import geoopt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from manifold_resnet._errors import UserError
from manifold_resnet.experiments.outputs import progress_bar
from manifold_resnet.experiments.runs import Run, evenly
from manifold_resnet.functional import convert
from manifold_resnet.models import PoincareResNet
from manifold_resnet.nn import PoincareMLR
from manifold_resnet.plotting import plot_decision_regions, plot_points, reduce_to_disk

__all__ = ["Embedding", "disk_rows", "disk_summary", "embed", "plot_embeddings"]


@dataclass(frozen=True)
class Embedding:
    """Test images of a run in the Poincaré disk.

    Attributes
    ----------
    run : Run
        The network.
    ball : geoopt.PoincareBall
        Of the features and of the disk, in float64 on the CPU.
    dimension : int
        Of the features.
    index : Tensor
        ``(N,)``: which of the test images these are.
    points : Tensor
        ``(N, 2)``: ball points, float64.
    distance : Tensor
        ``(N,)``: geodesic distance of the features from the origin, before any reduction.
    labels, predictions : Tensor
        ``(N,)``, int64.
    pixels : Tensor
        ``(N, C, H, W)`` in [0, 1].
    """

    run: Run
    ball: geoopt.PoincareBall
    dimension: int
    index: Tensor
    points: Tensor
    distance: Tensor
    labels: Tensor
    predictions: Tensor
    pixels: Tensor


@torch.no_grad()
def embed(
    run: Run,
    *,
    limit: int | None = None,
    method: Literal["pca", "umap"] = "pca",
    seed: int = 0,
    progress: bool = False,
) -> Embedding:
    """Embed test images of a run in the disk.

    Parameters
    ----------
    run : Run
        A trained network with hyperbolic features. Two-dimensional ones are shown as they are, others by
        `reduce_to_disk`.
    limit : int, optional
        At most so many images, spread evenly over the test set.
    method : {"pca", "umap"}
        Of the reduction.
    seed : int
        Of UMAP.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Embedding
        Points, labels and predictions.

    Raises
    ------
    UserError
        If the network's features are Euclidean, or there are too few images for the reduction.

    Examples
    --------
    >>> import tempfile
    >>> from manifold_resnet.experiments import load_run
    >>> from manifold_resnet.training import Config, train
    >>> config = Config(dataset="digits", model="hyperbolic-2-2-4-resnet-8", epochs=1, train_fraction=0.05)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = load_run(train(config, f"{folder}/run", progress=False))
    >>> embedding = embed(run, limit=20)
    >>> embedding.dimension, embedding.points.shape
    (4, torch.Size([20, 2]))
    """
    ball = getattr(run.model, "ball", getattr(getattr(run.model, "expmap0", None), "ball", None))
    if ball is None:
        raise UserError(f"{run.name} is {run.config.model}: its features are Euclidean, and no points of a disk")
    points, labels, predictions, pixels = [], [], [], []
    loader = run.loader(limit=limit)
    with progress_bar(len(loader.dataset), "image", progress) as bar:
        for images, targets in loader:
            normalised = run.network.normalise(images.to(run.device))
            points.append(_features(run, normalised).double().cpu())
            predictions.append(run.model(normalised).argmax(1).cpu())
            labels.append(targets)
            pixels.append(images)
            bar.update(len(targets))
    x = torch.cat(points)
    c = ball.c.detach().double().cpu()
    exact = geoopt.PoincareBall(c.clone())  # geoopt changes the tensor it is given
    try:
        plane = x if x.shape[1] == 2 else reduce_to_disk(x, ball=exact, method=method, seed=seed)
    except ValueError as error:  # too few
        raise UserError(f"{error}; choose a larger --limit") from error
    distance = 2 * convert(x, "ball", "tangent", c=c).norm(dim=1)
    return Embedding(
        run, exact, x.shape[1], torch.from_numpy(evenly(len(run.test), limit)), plane, distance, torch.cat(labels),
        torch.cat(predictions), torch.cat(pixels),
    )  # fmt: skip


def _features(run: Run, images: Tensor) -> Tensor:
    """Pooled features as ball points in float64: float32 has no room for those far out."""
    if not isinstance(run.model, PoincareResNet):
        return run.model.features(images).double()
    u = run.model.features(images, out_chart="tangent").double()
    return convert(u, "tangent", "ball", c=run.model.ball.c.detach().double())


def disk_rows(embeddings: Sequence[Embedding]) -> list[dict[str, Any]]:
    """One row for each image of each run: class, prediction, ball coordinates and distance from the origin."""
    rows = []
    for e in embeddings:
        values = zip(e.index.tolist(), e.labels.tolist(), e.predictions.tolist(), e.points.tolist(),
                     e.distance.tolist(), strict=True)  # fmt: skip
        for index, label, prediction, (x, y), distance in values:
            rows.append(
                {"run": e.run.name, "image": index, "class": e.run.classes[label],
                 "predicted": e.run.classes[prediction], "x": x, "y": y, "distance": distance}
            )  # fmt: skip
    return rows


def disk_summary(embeddings: Sequence[Embedding]) -> list[dict[str, Any]]:
    """For each run, how far from the origin images lie that it gets right, and those it gets wrong."""
    summary = []
    for e in embeddings:
        correct = e.predictions == e.labels
        row: dict[str, Any] = {"run": e.run.name, "dimension": e.dimension, "c": float(e.ball.c)}
        row |= {"images": len(correct), "accuracy": float(correct.double().mean())}
        for name, chosen in (("distance_right", e.distance[correct]), ("distance_wrong", e.distance[~correct])):
            row[name] = float(chosen.mean()) if len(chosen) else None
            row[f"{name}_std"] = float(chosen.std()) if len(chosen) > 1 else None
        summary.append(row)
    return summary


def plot_embeddings(
    embeddings: Sequence[Embedding],
    titles: Mapping[str, str] | None = None,
    *,
    thumbnails: bool = False,
    method: str = "pca",
) -> Figure:
    """Draw embeddings side by side, coloured by class; images that a network gets wrong have a dark edge.

    Parameters
    ----------
    embeddings : sequence of Embedding
        Of one run or more with the same classes.
    titles : mapping, optional
        Names of runs to what the figure calls them.
    thumbnails : bool
        Show some of the images.
    method : str
        Of the reduction, for the titles.

    Returns
    -------
    matplotlib.figure.Figure
        One disk for each run. A network with two-dimensional features and hyperplanes for a classifier has its
        decision regions in the background.

    Raises
    ------
    ValueError
        If there are no embeddings.
    """
    if not embeddings:
        raise ValueError("no embeddings to draw")
    figure = Figure(figsize=(6.0 * len(embeddings) + 1.3, 6.3), layout="constrained")
    for k, (axes, e) in enumerate(zip(figure.subplots(1, len(embeddings), squeeze=False)[0], embeddings, strict=True)):
        classifier = getattr(e.run.model, "fc", None)
        if e.dimension == 2 and isinstance(classifier, PoincareMLR):
            plot_decision_regions(classifier, axes, ball=e.ball, boundaries=False)
        plot_points(
            e.points,
            e.labels,
            ball=e.ball,
            names=e.run.classes,
            thumbnails=e.pixels if thumbnails else None,
            thumbnail_size=0.1,
            legend=k == len(embeddings) - 1 and len(e.run.classes) <= 30,
            ax=axes,
            s=14 if len(e.labels) <= 2000 else 7,
        )
        wrong = e.points[e.predictions != e.labels]
        axes.scatter(*wrong.T, s=26, facecolors="none", edgecolors="0.1", linewidths=0.8, zorder=2.6)
        name = e.run.name if titles is None else titles[e.run.name]
        what = "features as they are" if e.dimension == 2 else f"{method.upper()} of {e.dimension} dimensions"
        axes.set_title(f"{name}\n{len(e.labels)} test images, {what}; circles: {len(wrong)} errors", fontsize=10)
    return figure
