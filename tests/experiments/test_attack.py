import json

import pytest
import torch
from matplotlib.figure import Figure

from manifold_resnet._errors import UserError
from manifold_resnet.experiments import attack as module
from manifold_resnet.experiments import load_runs
from manifold_resnet.experiments.attack import attack, attack_summary, parse_epsilons, perturb
from manifold_resnet.experiments.figures import plot_attack
from manifold_resnet.experiments.results import write_results


@pytest.fixture(scope="module")
def loaded(runs):
    return load_runs(runs)


def batch(run, count=16):
    return next(iter(run.loader(limit=count)))


def gradient(network, pixels, labels):
    pixels = pixels.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(network(pixels), labels, reduction="sum")
    return torch.autograd.grad(loss, pixels)[0]


@pytest.mark.parametrize("which", [0, 1])
def test_fgsm_is_a_step_along_the_sign_of_the_gradient(loaded, which):
    network = loaded[which].network
    pixels, labels = batch(loaded[which])
    expected = (pixels + 0.05 * gradient(network, pixels, labels).sign()).clamp(0, 1)
    assert torch.equal(perturb(network, pixels, labels, "fgsm", 0.05), expected)


@pytest.mark.parametrize("which", [0, 1])
def test_gradients_of_pixels_are_right(loaded, which):
    """Of trained networks, down to the pixels, against differences in float64."""
    network = load_runs([loaded[which].path])[0].network.double()
    pixels, labels = batch(loaded[which], 4)
    pixels = pixels.double()
    direction = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def loss(step):
        return torch.nn.functional.cross_entropy(network(pixels + step * direction), labels, reduction="sum").item()

    expected = (loss(1e-6) - loss(-1e-6)) / 2e-6
    assert (gradient(network, pixels, labels) * direction).sum().item() == pytest.approx(expected, rel=1e-5)


def test_pgd_by_hand(loaded):
    network = loaded[0].network
    pixels, labels = batch(loaded[0])
    epsilon, steps = 0.06, 3
    torch.manual_seed(5)
    expected = (pixels + torch.rand_like(pixels) * epsilon * 2 - epsilon).clamp(0, 1)
    for _ in range(steps):
        moved = expected + 2.5 * epsilon / steps * gradient(network, expected, labels).sign()
        expected = (pixels + (moved - pixels).clamp(-epsilon, epsilon)).clamp(0, 1)
    before = torch.random.get_rng_state()
    made = perturb(network, pixels, labels, "pgd", epsilon, steps, seed=5)
    torch.testing.assert_close(made, expected)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(made, perturb(network, pixels, labels, "pgd", epsilon, steps, seed=5))


def test_images_a_network_is_sure_of_are_attacked_too():
    """Logits 25 apart: a softmax in float32 is 1, its gradient 0."""
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1, 2, bias=False))
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([[50.0], [0.0]]))
    pixels = torch.full((1, 1, 1, 1), 0.5)
    assert gradient(network, pixels, torch.tensor([0])) == 0
    assert perturb(network, pixels, torch.tensor([0]), "fgsm", 0.1).item() == pytest.approx(0.4)


def test_accuracies(loaded, tmp_path):
    epsilons = [0.01, 0.1]
    rows = attack(loaded, "fgsm", epsilons, limit=80)
    for run in loaded:
        mine = {row["epsilon"]: row for row in rows if row["run"] == run.name}
        assert list(mine) == [0.0, *epsilons]
        pixels, labels = next(iter(run.loader(limit=80)))
        for epsilon, row in mine.items():
            given = (pixels + epsilon * gradient(run.network, pixels, labels).sign()).clamp(0, 1)
            assert row["correct"] == (run.network(given).argmax(1) == labels).sum().item()
            assert row["accuracy"] == row["correct"] / 80
        assert mine[0.1]["accuracy"] < mine[0.0]["accuracy"]
    stronger = attack(loaded, "pgd", [0.1], steps=5, limit=80)
    for run in loaded:
        weak = next(row for row in rows if (row["run"], row["epsilon"]) == (run.name, 0.1))
        strong = next(row for row in stronger if (row["run"], row["epsilon"]) == (run.name, 0.1))
        assert strong["correct"] <= weak["correct"]
    summary = attack_summary(rows, {"hyperbolic": "a", "euclidean": "a"})
    clean = [row["accuracy"] for row in rows if row["epsilon"] == 0]
    assert summary[0] == {
        "group": "a", "epsilon": 0.0, "seeds": 2, "accuracy": pytest.approx(sum(clean) / 2),
        "accuracy_std": pytest.approx(abs(clean[0] - clean[1]) / 2**0.5), "lowest": min(clean), "highest": max(clean),
    }  # fmt: skip
    figure = plot_attack(summary, "title")
    assert isinstance(figure, Figure)
    figure.savefig(tmp_path / "attack.png")


def test_nothing_is_measured_twice(loaded, tmp_path, monkeypatch):
    file = tmp_path / "fgsm.json"

    def keep(rows):
        write_results(tmp_path, "fgsm", loaded, {}, rows)

    first = attack(loaded, "fgsm", [0.01], limit=20, keep=keep)
    assert json.loads(file.read_text())["rows"] == first
    measured = []
    monkeypatch.setattr(module, "_count_correct", lambda run, method, epsilon, *_: measured.append(epsilon) or 7)
    assert attack(loaded, "fgsm", [0.01], limit=20, earlier=file) == first
    assert measured == []
    attack(loaded, "fgsm", [0.01, 0.02], limit=20, earlier=file)
    assert measured == [0.02, 0.02]
    attack(loaded, "fgsm", [0.01], limit=21, earlier=file)
    assert measured[2:] == [0.0, 0.01, 0.0, 0.01]
    attack(loaded, "pgd", [0.01], limit=20, earlier=file)
    assert measured[6:] == [0.01, 0.01]  # clean images are the same for every attack


def test_epsilons():
    assert parse_epsilons("0.8/255, 1.6/255") == [0.8 / 255, 1.6 / 255]
    assert parse_epsilons("1,.5,.5") == [0.5, 1.0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2", r"above 0 and at most 1; got 2; did you mean 2/255\?"),
        ("0.1,8", r"got 8; did you mean 8/255\?"),
        ("0", "got 0$"),
        ("-1/255", "got -1/255$"),
        ("300/255", "got 300/255$"),
        ("nan", "got nan$"),
        ("1/0", "numbers separated by commas, .*; got '1/0'"),
        ("", "numbers separated by commas, .*; got ''"),
        ("0.1;0.2", "got '0.1;0.2'"),
    ],
)
def test_epsilons_out_of_range(text, expected):
    with pytest.raises(UserError, match=expected):
        parse_epsilons(text)


def test_mistakes(loaded):
    pixels, labels = batch(loaded[0], 2)
    with pytest.raises(UserError, match="unknown attack 'cw'; choose from fgsm, pgd"):
        attack(loaded, "cw")
    with pytest.raises(UserError, match="unknown attack 'cw'"):
        perturb(loaded[0].network, pixels, labels, "cw", 0.1)
    with pytest.raises(UserError, match=r"got 2; did you mean 2/255"):
        attack(loaded, "fgsm", [2])
    with pytest.raises(UserError, match="--steps must be 1 or more, got 0"):
        perturb(loaded[0].network, pixels, labels, "pgd", 0.1, steps=0)
