"""Two small runs, hyperbolic and Euclidean, on scikit-learn's digits: trained once, shared by all tests here."""

import pytest

from manifold_resnet.training import Config, train


def digits_run(folder, model, **other):
    """A few seconds of training, to accuracies far above chance and far from perfect."""
    settings = {"epochs": 3, "batch_size": 32, "lr": 0.03, "train_fraction": 0.6, "augment": "none", "device": "cpu"}
    return train(Config(dataset="digits", model=model, **settings | other), folder, progress=False)


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Folders of a hyperbolic and a Euclidean run; tests must not change them."""
    root = tmp_path_factory.mktemp("runs")
    return [digits_run(root / kind, f"{kind}-4-4-8-resnet-8") for kind in ("hyperbolic", "euclidean")]
