"""Two tiny runs, hyperbolic and Euclidean, on scikit-learn's digits: trained once, shared by all tests here."""

import pytest

from manifold_resnet.training import Config, train


def digits_run(folder, **settings):
    given = {"epochs": 5, "batch_size": 32, "train_fraction": 0.6, "device": "cpu"} | settings
    return train(Config(dataset="digits", **given), folder, progress=False)


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Folders of a hyperbolic and a Euclidean run; tests must not change them."""
    root = tmp_path_factory.mktemp("runs")
    return [digits_run(root / kind, model=f"{kind}-4-4-8-resnet-8") for kind in ("hyperbolic", "euclidean")]
