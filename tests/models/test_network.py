"""The network: equal to its layers one by one, the same for one image as for many, finite on every input."""

import copy
import math
import pickle

import geoopt
import pytest
import torch
from covering import pairs
from geoopt.optim import RiemannianAdam, RiemannianSGD
from helpers import TORCH, assert_close, generator

import manifold_resnet.functional as F
from manifold_resnet import nn, optim
from manifold_resnet.models import create_model

KINDS = ("hyperbolic", "euclidean", "euclideanwhypclass")
every_kind = pytest.mark.parametrize("kind", KINDS)


def make(kind="hyperbolic", dtype=torch.float32, seed=0, **options):
    torch.manual_seed(seed)
    return create_model(f"{kind}-4-6-8-resnet-8", num_classes=5, **options).to(dtype)


def images(n=4, size=9, channels=3, seed=0, dtype=torch.float32):
    return torch.randn(n, channels, size, size, generator=generator(seed), dtype=dtype)


def loss_of(model, x):
    return torch.nn.functional.cross_entropy(model(x), torch.arange(len(x)) % 5)


def train(model, steps=3, lr=1e-2, optimizer=RiemannianAdam):
    opt = optimizer(model.parameters(), lr=lr)
    for i in range(steps):
        opt.zero_grad()
        loss_of(model, images(seed=i).to(next(model.parameters()).dtype)).backward()
        opt.step()
    return model


def on_ball_points(model, x):
    """Layer by layer, every point on the ball, nothing fused."""
    relu = model.relu if model.relu is not None else torch.nn.Identity()
    x = relu(model.bn(model.conv(model.expmap0(x))))
    for group in (model.group1, model.group2, model.group3):
        for block in group:
            shortcut = x if block.downsample is None else block.downsample(x)
            x = relu(block.bn1(block.conv1(x)))
            x = block.bn2(block.conv2(x))
            x = relu(block.residual(x, shortcut))
    x = model.pool(x).flatten(1)
    logits = model.fc(x)
    return x, logits if model.head == "mlr" else F.logmap0(logits, c=model.ball.c)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"residual": "rf"},
        {"activation": None},
        {"mean": "frechet"},
        {"variant": "paper"},
        {"c": 1.0, "bias": False},
    ],
    ids=str,
)
def test_equals_its_layers_one_by_one(options, training):
    """In value and in gradients: the charts between layers change nothing."""
    model = train(make(dtype=torch.float64, learnable_c=True, **options)).train(training)
    model.zero_grad()
    twin = copy.deepcopy(model)
    x = images(dtype=torch.float64)
    features, logits = on_ball_points(twin, x)
    assert_close(model(x), logits, 1e-8)
    assert_close(copy.deepcopy(model).eval().features(x), on_ball_points(copy.deepcopy(twin).eval(), x)[0], 1e-8)
    for value in (loss_of(model, x), torch.nn.functional.cross_entropy(on_ball_points(twin, x)[1], torch.arange(4))):
        value.backward()
    for (n, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        if p.grad is not None:
            assert_close(p.grad, q.grad, 1e-7, n)


@every_kind
@pytest.mark.parametrize("variant", [None, "paper"])
def test_one_image_does_not_depend_on_the_others(kind, variant):
    model = train(make(kind, variant=variant)).eval()
    x = images(8)
    with torch.no_grad():
        together = model(x)
        assert_close(model(x[:1]), together[:1], 1e-5)
        assert_close(model(x.flip(0)).flip(0), together, 1e-5)
        assert together.std(0).min() > 1e-4  # the images make a difference


INPUTS = {
    "one": lambda: images(1),
    "33x33": lambda: images(2, 33),
    "zero": lambda: torch.zeros(3, 3, 9, 9),
    "constant": lambda: torch.full((3, 3, 9, 9), 0.7),
    "copies": lambda: images(1).expand(4, 3, 9, 9),
    "x1000": lambda: 1000 * images(),
    "x1e6": lambda: 1e6 * images(),
    "tiny": lambda: 1e-20 * images(),
    "one channel": lambda: images() * torch.tensor([1e4, 0.0, 0.0]).view(1, 3, 1, 1),
    "one far pixel": lambda: images().index_fill(3, torch.tensor([4]), 1e3),
}


@pairs
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("what", INPUTS)
@pytest.mark.parametrize(
    "options",
    [{}, {"bias": False}, {"variant": "paper"}, {"mean": "frechet", "c": 1.0}, {"activation": None, "c": 10.0}],
    ids=str,
)
def test_finite_on_every_input(options, what, training):
    """Outputs, gradients of all parameters and of the image, running statistics; and a step later again.

    No second step where the batch has no variance: norm by norm its gradients grow by 1/sqrt(eps), as the Euclidean
    twin's do, and the step would be of length 1e6.
    """
    model = make(learnable_c=True, **options).train(training)
    x = INPUTS[what]().clone().requires_grad_()
    opt = RiemannianSGD(model.parameters(), lr=1e-2)
    for _ in range(1 if what in ("zero", "tiny") else 2):
        opt.zero_grad()
        logits = model(x)
        assert logits.shape == (len(x), 5)
        assert logits.isfinite().all()
        torch.nn.functional.cross_entropy(logits, torch.arange(len(x)) % 5).backward()
        for n, p in [("image", x), *model.named_parameters()]:
            assert p.grad is not None, n
            assert p.grad.isfinite().all(), n
        assert all(b.isfinite().all() for b in model.buffers())
        opt.step()
    assert all(p.isfinite().all() for p in model.parameters())


def test_empty_batch():
    for kind in KINDS:
        assert make(kind).eval()(torch.zeros(0, 3, 9, 9)).shape == (0, 5)


@pytest.mark.parametrize("c", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("max_distance", [None, 0.5, 3.0])
def test_features_keep_within_the_bound(c, max_distance):
    model = make(c=c, max_distance=max_distance, dtype=torch.float64)
    bound = F.DEFAULT_MAX_DISTANCE / math.sqrt(c) if max_distance is None else max_distance
    for factor in (1.0, 1e3):
        x = factor * images(dtype=torch.float64)
        features = model.features(x)
        assert model.ball.check_point_on_manifold(features)
        assert (model.ball.dist0(features) <= bound * (1 + 1e-4)).all()
        u = model.features(x, out_chart="tangent")
        assert_close(u, F.logmap0(model.features(x), c=c), 1e-6)


@pytest.mark.parametrize("max_distance", [0.5, 2.0, None])
def test_monitor_counts_exactly_the_points_on_the_bound(max_distance):
    """Every layer's points, counted here by hooks from what the layer returned."""
    model = make(max_distance=max_distance, activation=None, dtype=torch.float64)
    bound = F.DEFAULT_MAX_DISTANCE / math.sqrt(0.025) if max_distance is None else max_distance
    counted = {}

    def count(name, layer, args, kwargs, out):
        c, dim = model.ball.c, layer.dim
        chart = kwargs.get("out_chart", "ball")
        distance = 2 * F.convert(out.detach(), chart, "tangent", c=c, dim=dim).norm(dim=dim)
        on_bound = (distance >= bound * (1 - 1e-5)).sum().item()
        before = counted.get(name, (0, 0))
        counted[name] = (before[0] + on_bound, before[1] + distance.numel())

    hooks = [
        layer.register_forward_hook(lambda *a, name=name: count(name, *a), with_kwargs=True)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.base.BoundedModule) and not isinstance(layer, nn.PoincareMLR)
    ]
    with nn.monitor_clipping(model) as monitor:
        for factor in (1.0, 30.0):
            model(factor * images(dtype=torch.float64))
    expected = {name: n / total for name, (n, total) in counted.items()}
    assert monitor.shares() == expected
    assert monitor.share() == sum(n for n, _ in counted.values()) / sum(t for _, t in counted.values())
    if max_distance is not None:
        assert 0 < monitor.share() < 1
    for hook in hooks:
        hook.remove()
    share = monitor.share()
    model(1e3 * images(dtype=torch.float64))
    assert monitor.share() == share


def test_defaults_hardly_clip():
    """At initialisation, on images as they come: less than one point in a hundred sits on the bound."""
    model = make()
    with nn.monitor_clipping(model) as monitor:
        model(images(8))
    assert monitor.share() < 0.01


@every_kind
def test_autocast(kind):
    """bfloat16 convolutions, everything radial in single precision: logits close by, gradients finite."""
    model = train(make(kind)).eval()
    x = images()
    expected = model(x).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(x)
        loss = torch.nn.functional.cross_entropy(logits.float(), torch.arange(4))
    torch.testing.assert_close(logits.float(), expected, atol=0.05 * expected.abs().max().item(), rtol=0.05)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    if kind == "hyperbolic":
        assert logits.dtype == torch.float32
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert model.train()(x).isfinite().all()


def test_compiles_to_one_graph():
    """Every kind of layer, in training: no breaks, the same values and gradients. (A whole network takes 30 s.)"""
    model = make()
    u = 0.3 * torch.randn(2, 6, 6, 6, generator=generator())

    def part(m, u):
        return m.fc(m.pool(m.group3[0](u), "tangent", "tangent").flatten(1), "tangent")

    twin = copy.deepcopy(model)
    expected = part(twin, u)
    expected.square().sum().backward()
    torch._dynamo.reset()
    try:
        logits = torch.compile(lambda u: part(model, u), fullgraph=True, backend="aot_eager")(u)
    except torch._dynamo.exc.Unsupported as error:
        if TORCH < (2, 8) and "ManifoldParameter" in str(error):
            pytest.skip("this torch cannot trace subclasses of parameters")
        raise
    assert_close(logits, expected, 1e-5)
    logits.square().sum().backward()
    for (n, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        if q.grad is not None:
            assert_close(p.grad, q.grad, 1e-4, n)
    assert_close(model.group3[0].bn1.running_mean, twin.group3[0].bn1.running_mean, 1e-5)


@pytest.fixture(scope="module")
def digits():
    data = pytest.importorskip("sklearn.datasets").load_digits()
    x = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    return x[:256], torch.tensor(data.target[:256])


@pytest.mark.parametrize(
    ("kind", "options", "optimizer", "lr"),
    [
        ("hyperbolic", {}, RiemannianAdam, 1e-2),
        ("hyperbolic", {"learnable_c": True}, RiemannianSGD, 3e-2),
        ("hyperbolic", {"variant": "paper"}, RiemannianAdam, 1e-2),
        ("hyperbolic", {"mean": "frechet", "residual": "rf", "head": "fc"}, RiemannianAdam, 1e-2),
        ("euclideanwhypclass", {}, RiemannianAdam, 1e-2),
        ("euclidean", {}, RiemannianAdam, 1e-2),
    ],
    ids=str,
)
def test_learns_digits(digits, kind, options, optimizer, lr):
    """A few steps on real images; weights stay on the ball."""
    x, y = digits
    torch.manual_seed(0)
    model = create_model(f"{kind}-4-6-8-resnet-8", in_channels=1, **options)
    opt = optimizer(model.parameters(), lr=lr)
    losses = []
    for i in range(24):
        batch = slice(64 * (i % 4), 64 * (i % 4) + 64)
        opt.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x[batch]), y[batch])
        loss.backward()
        opt.step()
        losses.append(loss.item())
    assert all(map(math.isfinite, losses))
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])
    for p in model.parameters():
        if isinstance(p, geoopt.ManifoldParameter):
            assert p.manifold.check_point_on_manifold(p)
    accuracy = (model.eval()(x).argmax(1) == y).float().mean()
    if kind == "hyperbolic" and not options:
        assert accuracy > 0.4


@every_kind
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "state_dict", "assign"])
def test_copies(kind, how):
    """The same logits, the same types, one ball."""
    model = train(make(kind, **({} if kind == "euclidean" else {"learnable_c": True})))
    if how in ("state_dict", "assign"):
        twin = make(kind, seed=1, **({} if kind == "euclidean" else {"learnable_c": True, "c": 2.0}))
        twin.load_state_dict(model.state_dict(), assign=how == "assign")
    else:
        twin = copy.deepcopy(model) if how == "deepcopy" else pickle.loads(pickle.dumps(model))
    assert_close(twin.eval()(images()), model.eval()(images()), 0.0)
    balls = {id(m.ball) for m in twin.modules() if hasattr(m, "ball")}
    assert len(balls) == (kind != "euclidean")
    for p, q in zip(twin.parameters(), model.parameters(), strict=True):
        assert type(p) is type(q)
        if isinstance(p, geoopt.ManifoldParameter):
            assert {id(p.manifold)} == balls


@pytest.mark.parametrize("optimizer", [optim.RiemannianAdam, optim.RiemannianSGD])
def test_resuming_is_exact(optimizer):
    """Model and optimizer stored after three steps, three more: bit by bit what six steps give."""

    def steps(model, opt, seeds):
        for seed in seeds:
            opt.zero_grad()
            loss_of(model, images(seed=seed)).backward()
            opt.step()

    first = make(learnable_c=True)
    opt = optimizer(first.parameters(), lr=1e-2)
    steps(first, opt, range(3))
    resumed = make(seed=1, learnable_c=True)
    resumed.load_state_dict(copy.deepcopy(first.state_dict()))
    again = optimizer(resumed.parameters(), lr=1e-2)
    again.load_state_dict(copy.deepcopy(opt.state_dict()))
    steps(first, opt, range(3, 6))
    steps(resumed, again, range(3, 6))
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), resumed.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("optimizer", [RiemannianAdam, RiemannianSGD])
def test_learnable_curvature_stays_finite(optimizer):
    model = make(learnable_c=True)
    start = model.ball.c.item()
    train(model, steps=50, lr=3e-2, optimizer=optimizer)
    assert math.isfinite(model.ball.c.item())
    assert model.ball.c.item() > 0
    assert model.ball.c.item() != start
    assert all(p.isfinite().all() for p in model.parameters())
    assert model.eval()(images()).isfinite().all()


def test_weights_that_left_the_ball():
    """c grew a hundredfold under weights near the boundary: finite, and the next step brings them back."""
    model = make()
    with torch.no_grad():
        for p in model.parameters():
            if isinstance(p, geoopt.ManifoldParameter) and p.dim() == 2:
                p.copy_(3.1 * torch.nn.functional.normalize(p.as_subclass(torch.Tensor), dim=1))
        model.ball.isp_c.fill_(10.0)
    loss_of(model, images()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    RiemannianSGD(model.parameters(), lr=1e-3).step()
    assert all(
        p.manifold.check_point_on_manifold(p) for p in model.parameters() if isinstance(p, geoopt.ManifoldParameter)
    )


def test_double_precision_and_back():
    model = make().eval()
    expected = model(images()).detach()
    assert_close(model.double()(images().double()).float().detach(), expected, 1e-4)
    assert model.ball.c.dtype == torch.float64
    assert_close(model.float()(images()).detach(), expected, 0.0)
