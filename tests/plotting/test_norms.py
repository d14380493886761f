import pytest

from manifold_resnet.nn.init import INITIALISATIONS
from manifold_resnet.plotting import norms

DEPTHS = (20, 56, 110)


@pytest.fixture(scope="module")
def distances():
    return {
        init: norms.distances_through_convolutions(init, max(DEPTHS), c=1e-3, size=32, width=32)
        for init in INITIALISATIONS
    }


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("init", ["gaussian", "orthogonal", "identity"])
def test_norm_preserving_initialisations_keep_distances(distances, init, depth):
    # the zero padding costs some: the largest eigenvalue of a 3-pixel mean over 32 pixels is 0.997 per side
    assert 0.25 < distances[init][depth] / distances[init][0] < 2


@pytest.mark.parametrize("init", ["normal", "paper"])
def test_published_initialisations_lose_them(distances, init):
    assert distances[init][20] < 1e-2 * distances[init][0]


def test_networks_start_in_range():
    through = norms.distances_through_network("gaussian", 20)
    assert len(through) == 9
    assert 0.2 < min(through) <= max(through) < 10


def test_figure(monkeypatch):
    # what is drawn is tested above: here a stack that is cheap
    monkeypatch.setattr(norms, "distances_through_convolutions", lambda init, layers, **_: [1.0] * (layers + 1))
    figure = norms.plot_norms(depths=(8,))
    stack, network = figure.axes
    assert [line.get_label() for line in network.get_lines()] == list(INITIALISATIONS)
    assert stack.get_yscale() == "log"
