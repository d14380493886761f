import pytest
import torch
from matplotlib.figure import Figure
from torch.nn import functional

from manifold_resnet._errors import UserError
from manifold_resnet.experiments import load_runs
from manifold_resnet.experiments.figures import plot_cams
from manifold_resnet.experiments.gradcam import gradcam, heat_maps


@pytest.fixture(scope="module")
def loaded(runs):
    return load_runs(runs)


@pytest.mark.parametrize("layer", ["group2", None])
@pytest.mark.parametrize("which", [0, 1])
def test_maps_by_hand(loaded, which, layer):
    run = loaded[which]
    pixels, _ = next(iter(run.loader(limit=12)))
    kept = []
    block = getattr(run.model, layer or "group3")[-1]
    hook = block.register_forward_hook(lambda module, given, out: kept.append(out))
    logits = run.network(pixels.requires_grad_())
    hook.remove()
    targets = logits.argmax(1)
    (gradient,) = torch.autograd.grad(logits[torch.arange(12), targets].sum(), kept[0])
    maps = (gradient.mean((2, 3), keepdim=True) * kept[0]).sum(1, keepdim=True).relu()
    maps = functional.interpolate(maps, (8, 8), mode="bilinear").squeeze(1)
    expected = maps / maps.amax((1, 2), keepdim=True).clamp_min(1e-30)
    made = heat_maps(run, pixels.detach(), targets, layer)
    assert made.shape == (12, 8, 8)
    torch.testing.assert_close(made, expected.detach(), rtol=1e-4, atol=1e-4)
    assert not made.requires_grad
    assert not block._forward_hooks


def test_grid(loaded, tmp_path):
    grid = gradcam(loaded, 7, limit=100)
    assert grid.images.shape == (7, 1, 8, 8)
    assert (grid.found, grid.searched) == (100, 100)
    assert set(grid.maps) == {"hyperbolic", "euclidean"}
    assert len(grid.rows) == 14
    for place, index in enumerate(grid.indices):
        pixels, label = loaded[0].test[index]
        assert torch.equal(grid.images[place], pixels)
        assert grid.labels[place] == label
        for row in grid.rows:
            if row["image"] == index:
                run = loaded[row["run"] == "euclidean"]
                logits = run.network(pixels[None])[0]
                assert row["predicted"] == run.classes[logits.argmax()]
                assert row["probability"] == pytest.approx(logits.softmax(0).max().item(), abs=1e-4)
                assert row["right"] == (logits.argmax() == label)
    first, second = (grid.maps[name].flatten(1) for name in ("hyperbolic", "euclidean"))
    expected = [torch.corrcoef(torch.stack(pair))[0, 1].nan_to_num() for pair in zip(first, second, strict=True)]
    assert grid.similarity["hyperbolic", "euclidean"] == pytest.approx(sum(expected).item() / 7, abs=1e-4)
    figure = plot_cams(grid, {"hyperbolic": "a", "euclidean": "b"}, loaded[0].classes)
    assert isinstance(figure, Figure)
    assert len(figure.axes) == 21
    figure.savefig(tmp_path / "gradcam.png")


@pytest.mark.parametrize("count", [1, 48])
def test_figures_of_few_and_of_many_images(loaded, count):
    grid = gradcam(loaded[:1], count, limit=60)
    assert len(plot_cams(grid, {"hyperbolic": "a"}, loaded[0].classes).axes) == 2 * count


def test_errors_only(loaded):
    grid = gradcam(loaded, 40, errors_only=True, limit=120)
    assert 0 < grid.found < 120
    for index in grid.indices:
        assert not all(row["right"] for row in grid.rows if row["image"] == index)


def test_mistakes(loaded, monkeypatch):
    for count in (0, 49):
        with pytest.raises(UserError, match=f"--count must be from 1 to 48, got {count}"):
            gradcam(loaded, count)
    with pytest.raises(UserError, match="hyperbolic has no layer 'group4'; choose from group1, group2, group3"):
        gradcam(loaded, 1, layer="group4", limit=10)
    pixels, labels = next(iter(loaded[0].loader(limit=360)))
    right = (loaded[0].network(pixels).argmax(1) == labels).nonzero().flatten().tolist()
    monkeypatch.setitem(loaded[0].__dict__, "test", torch.utils.data.Subset(loaded[0].test, right))
    with pytest.raises(UserError, match="no errors among .* leave out --errors-only"):
        gradcam(loaded[:1], 2, errors_only=True)
    with pytest.raises(UserError, match="differ in number or size"):
        gradcam(loaded, 2)
