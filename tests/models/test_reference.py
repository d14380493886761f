"""Weights from elsewhere: they load, compute there and here the same where they mean the same, and fail clearly."""

import geoopt
import pytest
import torch
from helpers import assert_close
from reference_data import REFERENCE, images, weights

import manifold_resnet as mr
from manifold_resnet import nn
from manifold_resnet.functional import logmap0
from manifold_resnet.models import create_model, load_reference_state_dict, update_bn

FAR = float("inf")  # HypLL keeps points where geoopt does
AUTHORS = [case for case in REFERENCE if case.startswith("authors")]
HYPERBOLIC = "authors-hyperbolic"


def theirs(case, **options):
    """State dict in their layout, and the case."""
    about = REFERENCE[case]
    shapes = about["shapes"]
    shapes = REFERENCE[shapes]["shapes"] if isinstance(shapes, str) else shapes
    return weights(shapes, gain=about["gain"], c=about["c"] or 1.0, **options), about


def ours(about, **options):
    torch.manual_seed(5)
    options = {} if about["model"].startswith("euclidean-") else {"variant": "paper", **options}
    return create_model(about["model"], 10 if "features" in about else 5, **options)


@pytest.mark.parametrize("weight_on", ["ball", "tangent"])
@pytest.mark.parametrize("case", AUTHORS)
def test_compat_equals_the_authors_code(case, weight_on):
    state, about = theirs(case)
    model = ours(about, weight_on=weight_on)
    load_reference_state_dict(model, state, compat="authors")
    model.train(about["training"])
    expected = torch.tensor(about["logits"]).view(2, 5)
    assert_close(model(images(2, 3, 32, 32)).detach(), expected, 1e-5 * max(1, expected.abs().max().item()))
    if model.__class__.__name__ == "PoincareResNet":  # what is right is something else
        model.set_compat(None)
        assert (model(images(2, 3, 32, 32)) - expected).abs().max() > 1e-2


def test_compat_has_gradients_and_takes_their_sizes_only():
    model = ours(REFERENCE[HYPERBOLIC], compat="authors", learnable_c=True)
    logits = model(images(2, 3, 36, 40))
    logits.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert model.features(images(2, 3, 32, 32), out_chart="ball").shape == (2, 8)
    for size in ((33, 32), (28, 28), (64, 64)):
        with pytest.raises(ValueError, match=rf"32 to 60 pixels.*got {size[0]} x {size[1]}"):
            model(images(1, 3, *size))


def test_hypll_network_up_to_the_pooling():
    state, about = theirs("hypll-network")
    model = ours(about, mean="frechet", max_distance=FAR)
    conversion = load_reference_state_dict(model, state)
    assert conversion.source == "hypll"
    assert model.ball.c.item() == pytest.approx(torch.nn.functional.softplus(torch.tensor(0.1)).item())
    for module in model.modules():
        if isinstance(module, nn.PoincareBatchNorm2d):
            module.eps = 1e-6
    found = []
    model.group3.register_forward_hook(lambda module, args, out: found.append(out.detach()))
    model(0.3 * images(2, 3, 12, 12))
    assert_close(found[0], torch.tensor(about["features"]).view(2, 8, 3, 3), 1e-5)


LAYERS = {
    "conv": lambda ball: nn.PoincareConv2d(3, 4, 3, 2, 1, ball=ball, max_distance=FAR),
    "conv without bias": lambda ball: nn.PoincareConv2d(3, 4, (1, 2), ball=ball, max_distance=FAR, bias=False),
    "linear": lambda ball: nn.PoincareLinear(5, 3, ball=ball, max_distance=FAR, weight_on="tangent"),
    "norm midpoint": lambda ball: nn.PoincareBatchNorm2d(3, ball=ball, max_distance=FAR, scale="scalar", eps=1e-6),
    "norm frechet": lambda ball: nn.PoincareBatchNorm2d(
        3, ball=ball, max_distance=FAR, scale="scalar", mean="frechet", eps=1e-6
    ),
    "norm 1d": lambda ball: nn.PoincareBatchNorm1d(5, ball=ball, max_distance=FAR, scale="scalar", eps=1e-6),
}


@pytest.mark.parametrize("name", LAYERS)
def test_hypll_layers(name):
    about = REFERENCE["hypll-layers"][name]
    ball = geoopt.PoincareBall(0.7)
    layer = LAYERS[name](ball)
    load_reference_state_dict(layer, weights(about["shapes"], c=0.5))
    u = 0.5 * images(*about["input"])
    x = nn.ExpMap0(ball=ball, dim=1, max_distance=FAR)(u)
    assert_close(layer(x).detach(), torch.tensor(about["output"]).view(about["output_shape"]), 1e-5)


def test_values_arrive_where_they_belong():
    state, about = theirs(HYPERBOLIC)
    model = ours(about, weight_on="ball", c=1.0)
    conversion = load_reference_state_dict(model, state)
    assert conversion.c == pytest.approx(0.1)
    assert model.ball.c.item() == pytest.approx(0.1)
    kernel = state["group2.0.conv1.weights"].t().view(6, 4, 3, 3)
    assert_close(model.group2[0].conv1.normals().detach(), kernel, 1e-5)
    assert isinstance(model.group2[0].conv1.weight, geoopt.ManifoldParameter)
    assert_close(logmap0(model.bn.bias, c=model.ball.c).detach(), state["bn.norm.mean"], 1e-6)
    assert_close(model.bn.gain().detach() ** 2, state["bn.norm.var"], 1e-6)
    assert model.ball.check_point_on_manifold(model.bn.bias)


@pytest.mark.parametrize(
    ("case", "compat", "expected"),
    [
        (HYPERBOLIC, None, ["running statistics", "1e-06 there", "conformal", "width", "8 x 8", "max_distance"]),
        (HYPERBOLIC, "authors", ["statistics of the batch"]),
        ("authors-euclideanwhypclass", None, ["conformal", "logits", "max_distance"]),
        ("authors-euclideanwhypclass", "authors", []),
        ("authors-euclidean", None, []),
        ("hypll-network", None, ["running statistics", "1e-06 there", "midpoint", "HAvgPool2d", "logits", "max_dist"]),
    ],
)
def test_differences_are_told(case, compat, expected):
    state, about = theirs(case)
    conversion = load_reference_state_dict(ours(about), state, compat=compat)
    assert len(conversion.differences) == len(expected)
    for difference, part in zip(conversion.differences, expected, strict=True):
        assert part in difference


def test_wrappers_around_a_state_dict():
    """DataParallel's names, HypLL's tensors, and both."""

    class Wrapped:
        def __init__(self, tensor):
            self.tensor = tensor

    state, about = theirs("hypll-network")
    expected, model = ours(about), ours(about)
    load_reference_state_dict(expected, state)
    wrapped = {f"module.{k}": Wrapped(v) if k.endswith(("weights", "z")) else v for k, v in state.items()}
    load_reference_state_dict(model, wrapped)
    named = {f"{k}.tensor" if k.endswith(("weights", "z")) else k: v for k, v in state.items()}
    for other in (wrapped, named):
        model = ours(about)
        load_reference_state_dict(model, other)
        for a, b in zip(model.state_dict().values(), expected.state_dict().values(), strict=True):
            assert torch.equal(a, b)


def test_learned_curvatures_have_to_be_settled():
    state, about = theirs(HYPERBOLIC)
    state["group1.0.conv1.ball.isp_c"] = torch.tensor(0.3)
    model = ours(about)
    with pytest.raises(ValueError, match=r"layer by layer \(\S+ is 0.1, group1.0.conv1.ball.isp_c is 0.3\).*pass c="):
        load_reference_state_dict(model, state)
    assert load_reference_state_dict(model, state, c=0.2).c == 0.2
    assert model.ball.c.item() == pytest.approx(0.2)


def change(**changes):
    def apply(state):
        return {k: v for k, v in (state | changes).items() if v is not None}

    return apply


MISTAKES = {
    "missing": (change(**{"bn.norm.mean": None}), {}, {}, "lacks bn.norm.mean, which the model needs"),
    "unknown": (change(**{"extra.weights": torch.zeros(2)}), {}, {}, "no place for extra.weights"),
    "shape": (change(**{"fc.z": torch.zeros(8, 7)}), {}, {}, r"fc.z has shape \(8, 7\) and the model needs \(8, 5\)"),
    "scale": (change(**{"bn.norm.var": torch.tensor(-1.0)}), {}, {}, "bn.norm.var is -1, .* must be positive"),
    "source": (change(), {"source": "hypll"}, {}, "of the authors' code, not of HypLL: pass source='authors'"),
    "no source": (change(), {"source": "mine"}, {}, "source must be .*, got 'mine'"),
    "nobody's": (lambda state: {"a": torch.zeros(1)}, {}, {}, "neither of the authors' code .* first names are a"),
    "our own": (lambda state: {"bn.log_scale": torch.zeros(())}, {}, {}, "use|load it with model.load_state_dict"),
    "compat": (change(), {"compat": "me"}, {}, "compat must be None or 'authors', got 'me'"),
    "per channel": (change(), {}, {"scale": "channel"}, "bn must have scale='scalar'.*variant='paper'"),
    "compat of a head": (change(), {"compat": "authors"}, {"head": "mlr"}, "needs head='fc', got 'mlr'"),
    "no offsets": (change(), {}, {"bias": False}, "bias has no place in a layer without offsets.*bias=True"),
    "c": (change(), {"c": -1.0}, {}, "c must be positive and finite, got -1"),
    "negative c": (lambda s: {k: -v if "isp_c" in k else v for k, v in s.items()}, {}, {}, r"c is -0.1 \(.*pass c="),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_leave_the_model_alone(mistake):
    edit, arguments, options, message = MISTAKES[mistake]
    state, about = theirs(HYPERBOLIC)
    model = ours(about, **options)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_reference_state_dict(model, edit(state), **arguments)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert model.compat is None


def test_other_mistakes():
    state, about = theirs("hypll-network")
    with pytest.raises(
        ValueError, match="compat='authors' is for state dicts of the authors' code; this one is of HypLL"
    ):
        load_reference_state_dict(ours(about), state, compat="authors")
    with pytest.raises(TypeError, match="mapping of names to tensors, got list"):
        load_reference_state_dict(ours(about), [1])
    with pytest.raises(TypeError, match="epoch must be a tensor, got int"):
        load_reference_state_dict(ours(about), {"epoch": 3})
    layer = nn.PoincareConv2d(3, 4, 3, ball=geoopt.PoincareBall(1.0))
    with pytest.raises(ValueError, match="for networks made by create_model, got PoincareConv2d"):
        load_reference_state_dict(layer, {"weights": torch.zeros(27, 4)}, "authors", compat="authors")


def test_update_bn():
    """One batch: evaluation is what training was. Several: the plain average; modes and momenta are put back."""
    state, about = theirs(HYPERBOLIC)
    model = ours(about).double()
    load_reference_state_dict(model, state)
    x = images(400, 3, 8, 8).double()
    expected = model(x).detach()
    update_bn([(x, None)], model.eval())
    assert not model.training
    assert {m.momentum for m in model.modules() if isinstance(m, nn.PoincareBatchNorm2d)} == {0.1}
    assert_close(model(x).detach(), expected, 1e-3)  # up to the variance's n/(n - 1)
    update_bn(x.split(100), model)
    sums = model.bn.running_sums.clone()
    update_bn([x], model)
    assert_close(sums, model.bn.running_sums, 1e-12)
    with pytest.raises(ValueError, match="no batches"):
        update_bn([], model)
    assert mr.models.update_bn is update_bn
