"""Names, options, sizes: `create_model`."""

import geoopt
import pytest
import torch
from covering import pairs

from manifold_resnet import nn
from manifold_resnet.models import EuclideanResNet, PoincareResNet, create_model

KINDS = ("hyperbolic", "euclidean", "euclideanwhypclass")
every_kind = pytest.mark.parametrize("kind", KINDS)


def name(kind, depth=8, widths="4-6-8"):
    return f"{kind}-{widths}-resnet-{depth}"


def step(model, images):
    """Logits, after a backward pass that reached every parameter with finite gradients."""
    logits = model(images)
    assert logits.isfinite().all()
    torch.nn.functional.cross_entropy(logits, torch.arange(len(logits)) % logits.shape[1]).backward()
    for n, p in model.named_parameters():
        if p.requires_grad:
            assert p.grad is not None, n
            assert p.grad.isfinite().all(), n
    return logits


@every_kind
def test_names(kind):
    model = create_model(name(kind, 14, "3-5-9"), num_classes=7, in_channels=1)
    assert isinstance(model, PoincareResNet if kind == "hyperbolic" else EuclideanResNet)
    for group, width in ((model.group1, 3), (model.group2, 5), (model.group3, 9)):
        assert len(group) == 2  # depth = 6 blocks + 2
        assert all(block.conv2.out_channels == width for block in group)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 7)
    hyperbolic_head = isinstance(model.fc, nn.PoincareMLR)
    assert hyperbolic_head is (kind != "euclidean")


def convolutions(model):
    return [
        (m.in_channels, m.out_channels, tuple(m.kernel_size), tuple(m.stride))
        for m in model.modules()
        if isinstance(m, torch.nn.Conv2d | nn.PoincareConv2d)
    ]


@pytest.mark.parametrize("depth", [8, 20, 32])
def test_the_twin_has_the_same_structure(depth):
    """Convolution by convolution: channels, kernel, stride; as many norms; the same spatial sizes."""
    hyperbolic, *twins = (create_model(name(kind, depth)) for kind in KINDS)
    norms = sum(isinstance(m, nn.PoincareBatchNorm2d) for m in hyperbolic.modules())
    shortcuts = 2
    assert len(convolutions(hyperbolic)) == depth - 1 + shortcuts  # and the classifier is the last layer
    for twin in twins:
        assert convolutions(twin) == convolutions(hyperbolic)
        assert sum(isinstance(m, torch.nn.BatchNorm2d) for m in twin.modules()) == norms


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("resnet-20", "unknown model 'resnet-20': the scheme is hyperbolic.*depth = 6n"),
        ("hyperbolic-8-16-resnet-20", "unknown model.*scheme"),
        ("spherical-8-16-32-resnet-20", "unknown model.*hyperbolic.euclidean.euclideanwhypclass"),
        ("hyperbolic-8-16-32-resnet-20 ", "unknown model"),
        ("hyperbolic-8-16-32-resnet", "unknown model"),
        ("", "unknown model"),
        ("hyperbolic-8-16-32-resnet-18", r"6n \+ 2.*try 20"),
        ("euclidean-8-16-32-resnet-2", r"6n \+ 2.*try 8"),
        ("hyperbolic-8-0-32-resnet-20", "widths .* must be positive"),
    ],
)
def test_unknown_names(bad, message):
    with pytest.raises(ValueError, match=message):
        create_model(bad)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("hyperbolic", {"c": 0.0}, "c must be positive and finite.*got 0"),
        ("hyperbolic", {"c": -1.0}, "c must be positive and finite.*got -1"),
        ("euclideanwhypclass", {"c": float("nan")}, "c must be positive and finite.*got nan"),
        ("hyperbolic", {"c": 1e4}, "c must be positive and finite|represent"),
        ("hyperbolic", {"variant": "best"}, "variant must be None or one of paper; got 'best'"),
        ("hyperbolic", {"num_classes": 0}, "num_classes and in_channels must be positive, got 0 and 3"),
        ("euclidean", {"in_channels": 0}, "must be positive, got 10 and 0"),
        ("hyperbolic", {"residual": "ff"}, "'fr'.*'rf'.*got 'ff'"),
        ("hyperbolic", {"activation": "gelu"}, "activation must be 'relu' or None, got 'gelu'"),
        ("hyperbolic", {"mean": "median"}, "mean must be one of.*got 'median'"),
        ("hyperbolic", {"scale": "matrix"}, "scale must be one of.*got 'matrix'"),
        ("hyperbolic", {"head": "linear"}, "head must be 'mlr' or 'fc', got 'linear'"),
        ("hyperbolic", {"init": "he"}, "init must be one of.*got 'he'"),
        ("euclideanwhypclass", {"init": "he"}, "init must be one of.*got 'he'"),
        ("hyperbolic", {"weight_on": "sphere"}, "weight_on must be.*got 'sphere'"),
        ("hyperbolic", {"max_distance": -1.0}, "max_distance must be.*got -1"),
        ("hyperbolic", {"dropout": 0.5}, "do not take the option dropout; options: activation, .*weight_on"),
        ("euclideanwhypclass", {"residual": "rf"}, "do not take the option residual; options: compat, init"),
        ("euclidean", {"init": "identity"}, "euclidean models do not take the option init; options: none"),
    ],
)
def test_wrong_options(kind, options, message):
    with pytest.raises(ValueError, match=message):
        create_model(name(kind), **options)


@every_kind
@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 3, 8), (3, 8, 8), (2, 8, 8, 3)], ids=str)
def test_images_of_another_shape(kind, shape):
    with pytest.raises(ValueError, match=r"images must have shape \(batch, 3, H, W\), got \(.*in_channels="):
        create_model(name(kind))(torch.zeros(shape))


@pairs
@every_kind
@pytest.mark.parametrize("size", [8, 9, 17, 32, (33, 12)], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_image_sizes(kind, size, channels):
    size = (size, size) if isinstance(size, int) else size
    torch.manual_seed(0)
    model = create_model(name(kind), num_classes=5, in_channels=channels)
    assert step(model, torch.randn(2, channels, *size)).shape == (2, 5)


OPTIONS = [
    {},
    {"residual": "rf"},
    {"activation": None},
    {"mean": "frechet"},
    {"mean": "frechet", "scale": "scalar"},
    {"scale": "scalar"},
    {"head": "fc"},
    {"variant": "paper"},
    {"variant": "paper", "head": "mlr", "init": "orthogonal"},
    {"learnable_c": True},
    {"learnable_c": True, "variant": "paper", "c": 1.0},
    {"bias": False},
    {"weight_on": "tangent"},
    {"init": "identity"},
    {"max_distance": 3.0},
    {"max_distance": float("inf")},
    {"c": 1e-4},
    {"c": 10.0},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options(options):
    """Each one trains, and arrives where it belongs."""
    torch.manual_seed(0)
    model = create_model(name("hyperbolic"), **options)
    step(model, torch.randn(3, 3, 9, 9))
    model.eval()(torch.randn(1, 3, 9, 9))
    paper = {"init": "paper", "scale": "scalar", "head": "fc", "weight_on": "tangent", "bias": True}
    chosen = (paper if options.get("variant") else {}) | options
    convs = [m for m in model.modules() if isinstance(m, nn.PoincareConv2d)]
    norms = [m for m in model.modules() if isinstance(m, nn.PoincareBatchNorm2d)]
    residuals = [m for m in model.modules() if isinstance(m, nn.PoincareResidual)]
    assert {m.init for m in convs} == {chosen.get("init", "gaussian")}
    assert {m.weight_on for m in convs} == {chosen.get("weight_on", "ball")}
    assert {m.bias is not None for m in convs} == {chosen.get("bias", False)}
    assert {m.mean for m in norms} == {chosen.get("mean", "midpoint")}
    assert {m.scale for m in norms} == {chosen.get("scale", "channel")}
    assert {m.order for m in residuals} == {chosen.get("residual", "fr")}
    assert {m.max_distance for m in (*convs, *norms, *residuals)} == {chosen.get("max_distance")}
    assert isinstance(model.fc, nn.PoincareLinear if chosen.get("head") == "fc" else nn.PoincareMLR)
    assert any(isinstance(m, nn.PoincareReLU) for m in model.modules()) is ("activation" not in options)
    assert {id(m.ball) for m in model.modules() if hasattr(m, "ball")} == {id(model.ball)}
    assert model.ball.c.item() == pytest.approx(options.get("c", 0.1 if options.get("variant") else 0.025), rel=1e-3)
    assert model.ball.isp_c.requires_grad is options.get("learnable_c", False)
    weights = [p for p in model.parameters() if isinstance(p, geoopt.ManifoldParameter)]
    assert len(weights) == len(norms) + (len(convs) + 1 if chosen.get("weight_on") != "tangent" else 0)
    assert all(p.manifold is model.ball for p in weights)


@pytest.mark.parametrize("options", [{}, {"learnable_c": True, "c": 1.0}, {"variant": "paper"}], ids=str)
def test_options_of_the_hyperbolic_classifier(options):
    model = create_model(name("euclideanwhypclass"), **options)
    step(model, torch.randn(3, 3, 9, 9))
    assert model.fc.weight_on == ("tangent" if options.get("variant") else "ball")
    assert model.fc.ball.isp_c.requires_grad is options.get("learnable_c", False)
    assert model.fc.ball.check_point_on_manifold(model.features(torch.randn(2, 3, 9, 9)))


def test_variants_leave_the_euclidean_model_alone():
    torch.manual_seed(0)
    plain = create_model(name("euclidean")).state_dict()
    torch.manual_seed(0)
    variant = create_model(name("euclidean"), variant="paper", c=3.0).state_dict()
    assert all(torch.equal(plain[k], variant[k]) for k in plain)


@every_kind
def test_seeds_reproduce(kind):
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(torch.cat([p.detach().flatten() for p in create_model(name(kind)).parameters()]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_the_paper_depths_and_widths():
    """The name in the README, and its parameter count beside the twin's."""
    hyperbolic, twin = (create_model(name(kind, 20, "8-16-32")) for kind in ("hyperbolic", "euclidean"))
    count = {m: sum(p.numel() for p in m.parameters() if p.requires_grad) for m in (hyperbolic, twin)}
    twin_offsets = 16 + 32  # of its shortcuts
    assert count[hyperbolic] == count[twin] - twin_offsets
