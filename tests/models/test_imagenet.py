"""The ImageNet family: torchvision's structure, layer by layer; equal to plain geoopt; norms kept through its depth."""

import copy
import sys

import geoopt
import pytest
import torch
from helpers import assert_close, generator

import manifold_resnet as mr
from manifold_resnet import nn
from manifold_resnet.benchmark.naive import NaiveResNet
from manifold_resnet.models import PoincareResNet, create_model
from manifold_resnet.models.imagenet import DEPTHS

every_depth = pytest.mark.parametrize("depth", DEPTHS)


def narrow(depth=18, widths=(4, 6, 8, 8), c=0.3, dtype=torch.float64, **options):
    """The family's structure with few channels."""
    torch.manual_seed(0)
    block, blocks = DEPTHS[depth]
    ball = geoopt.PoincareBall(c, learnable=True)
    return PoincareResNet(widths, blocks, 5, stem="imagenet", block=block, ball=ball, **options).to(dtype)


def images(n=2, height=33, width=33, channels=3, dtype=torch.float64):
    return torch.randn(n, channels, height, width, generator=generator(), dtype=dtype)


def convolutions(module):
    return sorted(
        (m.in_channels, m.out_channels, tuple(m.kernel_size), tuple(m.stride), torch.Size(m.kernel_size).numel())
        for m in module.modules()
        if isinstance(m, torch.nn.Conv2d | nn.PoincareConv2d)
    )


@every_depth
def test_torchvisions_structure(depth):
    """Group by group: convolutions, norms; and as many parameters, but for the curvature."""
    torchvision = pytest.importorskip("torchvision")
    twin = getattr(torchvision.models, f"resnet{depth}")()
    model = getattr(mr.models, f"poincare_resnet{depth}")()
    assert convolutions(model.conv) == convolutions(twin.conv1)
    assert set(model.maxpool.kernel_size) == {twin.maxpool.kernel_size}
    for i, group in enumerate(model.groups, 1):
        other = getattr(twin, f"layer{i}")
        assert convolutions(group) == convolutions(other)
        assert [m.num_features for m in group.modules() if isinstance(m, nn.PoincareBatchNorm2d)].sort() == [
            m.num_features for m in other.modules() if isinstance(m, torch.nn.BatchNorm2d)
        ].sort()
    assert (model.fc.in_features, model.fc.num_classes) == (twin.fc.in_features, twin.fc.out_features)
    count, expected = (sum(p.numel() for p in m.parameters() if p.requires_grad) for m in (model, twin))
    assert count == expected


@pytest.mark.parametrize(("depth", "size"), [(18, (65, 57)), (34, (64, 64)), (50, (64, 33))])
def test_training_step(depth, size):
    torch.manual_seed(0)
    model = getattr(mr.models, f"poincare_resnet{depth}")(num_classes=7, in_channels=1, c=0.5)
    logits = model(images(2, *size, channels=1, dtype=torch.float32))
    assert logits.shape == (2, 7)
    torch.nn.functional.cross_entropy(logits, torch.tensor([0, 3])).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    optimizer = mr.optim.RiemannianAdam(model.parameters(), lr=1e-3)
    optimizer.step()
    for p in model.parameters():
        if isinstance(p, geoopt.ManifoldParameter):
            assert p.manifold.check_point_on_manifold(p)
    with torch.no_grad():
        assert model.eval()(images(1, *size, channels=1, dtype=torch.float32)).isfinite().all()


@pytest.mark.parametrize("size", [(33, 21), (7, 9), (1, 1)], ids=str)
@pytest.mark.parametrize("depth", [18, 50])
def test_equals_plain_geoopt(depth, size):
    """In value and gradients, c's included."""
    model = narrow(depth)
    x = images(2, *size)
    if size == (1, 1):  # nothing to normalise by, then: let the norms have something
        model.eval()
        assert model(x).isfinite().all()
        return
    labels = torch.tensor([1, 4])
    parameters = dict(model.named_parameters())
    results = []
    for network in (model, NaiveResNet(model)):
        loss = torch.nn.functional.cross_entropy(network(x), labels)
        results.append([loss, *torch.autograd.grad(loss, list(parameters.values()))])
    for name, a, b in zip(["loss", *parameters], *results, strict=True):
        assert_close(a.detach(), b.detach(), 1e-7 * max(1.0, b.abs().max().item()), name)


def test_copies():
    model = narrow(50, dtype=torch.float32)
    model(images(dtype=torch.float32))
    twin = narrow(50, c=1.0, dtype=torch.float32)
    twin.load_state_dict(model.state_dict())
    x = images(dtype=torch.float32)
    for other in (twin, copy.deepcopy(model)):
        assert torch.equal(other.eval()(x), model.eval()(x))
        assert {id(m.ball) for m in other.modules() if hasattr(m, "ball")} == {id(other.ball)}


@every_depth
def test_norms_are_kept_at_the_start(depth):
    """On photographs, the mean distance from the origin stays within a factor of 2 from the first group to the last."""
    photos = pytest.importorskip("sklearn.datasets").load_sample_images().images
    crops = [photo[i : i + 64, j : j + 64] for photo in photos for i, j in ((0, 0), (100, 200), (200, 300), (300, 500))]
    x = torch.stack([torch.tensor(crop) for crop in crops]).permute(0, 3, 1, 2) / 127.5 - 1
    model = narrow(depth, widths=(16, 32, 64, 128), c=0.1, dtype=torch.float32)
    distances = []
    for group in model.groups:
        group.register_forward_hook(lambda module, args, u: distances.append(2 * u.norm(dim=1).mean().item()))
    with torch.no_grad(), nn.monitor_clipping(model) as monitor:
        model(x)
    assert max(distances) < 2 * min(distances)
    assert min(distances) > 0.5
    assert monitor.share() < 0.01


def test_names_and_options():
    model = create_model("hyperbolic-resnet18", 7, in_channels=1, variant="paper", residual="rf", c=0.2)
    assert isinstance(model, PoincareResNet)
    assert isinstance(model.fc, nn.PoincareLinear)
    assert {m.weight_on for m in model.modules() if isinstance(m, nn.PoincareConv2d)} == {"tangent"}
    assert {m.order for m in model.modules() if isinstance(m, nn.PoincareResidual)} == {"rf"}
    assert model.ball.c.item() == pytest.approx(0.2)
    assert mr.models.poincare_resnet18(learnable_c=True, activation=None).ball.isp_c.requires_grad
    assert create_model("hyperbolic-resnet18").num_classes == 10
    assert mr.models.default_options("hyperbolic-resnet50", "paper")["head"] == "fc"


@pytest.mark.parametrize("kind", ["euclidean", "euclideanwhypclass"])
def test_torchvisions_networks(kind):
    torchvision = pytest.importorskip("torchvision")
    model = create_model(f"{kind}-resnet18", 7, in_channels=1).eval()
    assert isinstance(model, torchvision.models.ResNet)
    assert model(images(2, 40, 33, 1, torch.float32)).shape == (2, 7)
    assert isinstance(model.fc, torch.nn.Linear) is (kind == "euclidean")


def test_without_torchvision(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(
        ModuleNotFoundError, match=r'torchvision\S* is not installed.*pip install "manifold-resnet\[train\]"'
    ):
        create_model("euclidean-resnet18")
    assert create_model("hyperbolic-resnet18").maxpool is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stem": "large"}, "stem must be 'small' or 'imagenet', got 'large'"),
        ({"block": "wide"}, "block must be 'basic' or 'bottleneck', got 'wide'"),
        ({"widths": ()}, r"one of each for every group; got \(\)"),
        ({"blocks": (1, 1)}, r"widths and blocks .* got \(4, 8, 8\) and \(1, 1\)"),
        ({"blocks": 0}, "must be positive"),
        ({"compat": "authors", "scale": "scalar", "head": "fc", "stem": "imagenet"}, "needs stem='small'"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        PoincareResNet(**{"widths": (4, 8, 8), "blocks": 1, "ball": geoopt.PoincareBall(1.0), **arguments})


def test_unknown_depth():
    with pytest.raises(ValueError, match="depth of 'hyperbolic-resnet20' must be one of 18, 34, 50"):
        create_model("hyperbolic-resnet20")
