import math

import pytest
from matplotlib.figure import Figure

from manifold_resnet.plotting import plot_curves


def rows(epochs, **other):
    return [
        {"epoch": e, "train_loss": 2.0 / e, "train_accuracy": 0.5, "val_loss": 1.0, "val_accuracy": 0.1 * e} | other
        for e in range(1, epochs + 1)
    ]


@pytest.mark.parametrize("epochs", [1, 2, 40])
def test_lines(epochs):
    figure = plot_curves(rows(epochs), "run")
    assert isinstance(figure, Figure)
    loss, accuracy = figure.axes
    assert [len(line.get_xdata()) for line in loss.lines] == [epochs, epochs]
    assert f"epoch {epochs}" in accuracy.get_legend().get_texts()[-1].get_text()
    assert loss.get_yscale() == "log"


def test_without_validation():
    figure = plot_curves(rows(3, val_loss=None, val_accuracy=None))
    assert [len(axes.lines) for axes in figure.axes] == [1, 1]


@pytest.mark.parametrize("loss", [0.0, math.nan, math.inf])
def test_losses_without_a_logarithm(tmp_path, loss):
    figure = plot_curves(rows(3, train_loss=loss))
    assert figure.axes[0].get_yscale() == "linear"
    figure.savefig(tmp_path / "curves.png")


def test_nothing_to_draw():
    with pytest.raises(ValueError, match="rows is empty"):
        plot_curves([])
