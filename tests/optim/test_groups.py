import io

import geoopt
import pytest
import torch
from helpers import TORCH
from manifold_resnet.optim import RiemannianAdam, RiemannianSGD, parameter_groups

from manifold_resnet.models import create_model
from manifold_resnet.nn import PoincareEmbedding, PoincareLinear


def test_optimizers_are_geoopts():
    assert issubclass(RiemannianAdam, geoopt.optim.RiemannianAdam)
    assert issubclass(RiemannianSGD, geoopt.optim.RiemannianSGD)


def test_only_kernels_and_matrices_decay():
    model = create_model("hyperbolic-4-4-4-resnet-8", learnable_c=True)
    decayed, kept = parameter_groups(model, weight_decay=0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert decayed["weight_decay"] == 0.1
    assert kept["weight_decay"] == 0
    assert all(names[id(p)].endswith("weight") and p.ndim >= 2 for p in decayed["params"])
    assert all(p.ndim < 2 for p in kept["params"])
    assert any(p is model.ball.isp_c for p in kept["params"])
    assert len(decayed["params"]) + len(kept["params"]) == len(names)


@pytest.mark.parametrize("optimizer", [RiemannianAdam, RiemannianSGD])
def test_weight_decay_leaves_the_second_group_alone(optimizer):
    layer = torch.nn.Linear(3, 2)
    before = [p.detach().clone() for p in layer.parameters()]
    stepper = optimizer(parameter_groups(layer, weight_decay=0.5, lr=0.1), lr=1.0)
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    stepper.step()
    assert stepper.param_groups[0]["lr"] == 0.1
    assert not torch.equal(layer.weight, before[0])
    assert torch.equal(layer.bias, before[1])


@pytest.mark.parametrize("optimizer", [RiemannianAdam, RiemannianSGD])
@pytest.mark.parametrize("weight_on", ["ball", "tangent"])
def test_weights_on_the_ball_decay_as_the_normals_they_stand_for(weight_on, optimizer, backend):
    """Adding weight decay is adding the normals' squared lengths to the loss."""

    def trained(weight_decay):
        ball = geoopt.PoincareBall(0.1).double()
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            PoincareLinear(5, 4, ball=ball, weight_on=weight_on), PoincareLinear(4, 3, ball=ball, weight_on=weight_on)
        )
        stepper = optimizer(parameter_groups(model, weight_decay), lr=0.01, **options)
        penalty = 0.0 if weight_decay else 0.05
        for _ in range(5):
            loss = model(x).square().sum()
            for layer in model:
                loss = loss + penalty * layer.normals().square().sum()
            stepper.zero_grad()
            loss.backward()
            stepper.step()
        return [layer.normals().detach() for layer in model]

    options = {"second_moment": "coordinate"} if optimizer is RiemannianAdam else {}
    g = torch.Generator().manual_seed(0)
    x = 0.1 * torch.randn(20, 5, generator=g, dtype=torch.float64)
    for decayed, penalised in zip(trained(0.1), trained(0.0), strict=True):
        # to first order: the points are close to the origin, where they are half the logarithm's argument
        torch.testing.assert_close(decayed, penalised, rtol=2e-3, atol=2e-4)


def test_decay_factors():
    ball = geoopt.PoincareBall(1.0)
    layers = [PoincareLinear(8, 3, ball=ball), PoincareEmbedding(7, 8, ball=ball), torch.nn.Linear(4, 4)]
    decayed, kept = parameter_groups(torch.nn.ModuleList(layers), weight_decay=0.1)
    assert decayed["param_names"] == ["0.weight", "1.weight", "2.weight"]
    assert decayed["decay_factors"] == pytest.approx([32, 1, 1])
    assert "decay_factors" not in kept
    assert "decay_factors" not in parameter_groups(layers[2], weight_decay=0.1)[0]


@pytest.mark.parametrize(
    ("factors", "error", "message"),
    [
        ([1.0, 1.0], ValueError, "one number per parameter of the group, 1; got 2"),
        ([-1.0], ValueError, "finite and 0 or more"),
        ([float("nan")], ValueError, "finite and 0 or more"),
        (2.0, TypeError, "list of numbers, got 2.0"),
        (["a"], TypeError, "list of numbers"),
    ],
)
def test_bad_decay_factors(factors, error, message):
    group = {"params": [torch.nn.Parameter(torch.ones(3))], "decay_factors": factors}
    with pytest.raises(error, match=message):
        RiemannianAdam([group])


class OtherBall(geoopt.PoincareBall):
    """Stepped by its own methods, not with the rows of other balls."""


@pytest.mark.parametrize("optimizer", [RiemannianAdam, RiemannianSGD])
def test_decay_factors_hold_for_every_kind_of_parameter(optimizer, backend):
    for manifold in (geoopt.PoincareBall(0.5), OtherBall(0.5), geoopt.Euclidean(), None):

        def stepped(decay, factor, manifold=manifold):
            point = torch.full((2, 3), 0.1, dtype=torch.float64)
            point = (
                torch.nn.Parameter(point)
                if manifold is None
                else geoopt.ManifoldParameter(point, manifold=manifold.double())
            )
            group = {"params": [point], "weight_decay": decay, "decay_factors": factor}
            stepper = optimizer([group], lr=0.1)
            late = torch.nn.Parameter(torch.ones(2))
            stepper.param_groups[0]["params"].append(late)  # has no factor of its own
            point.grad, late.grad = torch.full_like(point, 0.01), torch.ones_like(late)
            stepper.step()
            assert (late < 1).all()
            return point.detach()

        expected = stepped(0.06, [1.0])
        assert not torch.equal(expected, stepped(0.02, [1.0]))
        for factor in ([3.0], torch.tensor([3.0]), [torch.tensor(3.0)]):
            torch.testing.assert_close(stepped(0.02, factor), expected)


def test_state_of_a_version_without_decay_factors_goes_on_as_it_began(backend):
    layer = PoincareLinear(8, 3, ball=geoopt.PoincareBall(1.0), bias=False)
    stepper = RiemannianSGD(parameter_groups(layer, weight_decay=0.1), lr=0.1)
    state = stepper.state_dict()
    del state["param_groups"][0]["decay_factors"]
    stepper.load_state_dict(state)
    before = layer.weight.detach().clone()
    layer.weight.grad = torch.zeros_like(before)
    stepper.step()
    shrunk = 1 - 0.01 * ((1 - before.square().sum(1, keepdim=True)) / 2) ** 2
    torch.testing.assert_close(layer.weight.detach(), shrunk * before, rtol=1e-4, atol=1e-6)


def test_frozen_parameters_and_empty_groups_are_left_out():
    layer = torch.nn.Linear(3, 2)
    layer.bias.requires_grad_(False)
    (group,) = parameter_groups(layer, weight_decay=0.1)
    assert len(group["params"]) == 1
    assert "lr" not in group


def names_of(optimizer_or_groups):
    return [group["param_names"] for group in optimizer_or_groups]


def test_curvatures_have_a_learning_rate_of_their_own():
    model = create_model("hyperbolic-4-4-4-resnet-8", learnable_c=True)
    model.scaled = geoopt.Scaled(geoopt.Lorentz(k=2.0, learnable=True), 3.0, learnable=True)
    decayed, kept, curvature = parameter_groups(model, weight_decay=0.1, lr=0.2, lr_curvature=0.003)
    assert curvature["param_names"] == ["ball.isp_c", "scaled._log_scale", "scaled.base.k"]
    assert [p.ndim for p in curvature["params"]] == [0, 0, 0]
    assert curvature["weight_decay"] == 0
    assert (decayed["lr"], kept["lr"], curvature["lr"]) == (0.2, 0.2, 0.003)
    for stepper in (RiemannianAdam, RiemannianSGD):
        before = model.ball.isp_c.item()
        model.ball.isp_c.grad = torch.ones(())
        stepper([decayed, kept, curvature], lr=0.1).step()
        assert model.ball.isp_c.item() == pytest.approx(before - 0.003, rel=1e-4)


def test_without_a_rate_curvatures_stay_with_the_rest_and_never_decay():
    model = torch.nn.Linear(3, 2)
    model.ball = geoopt.PoincareBall(torch.ones(2, 1), learnable=True)  # one c per point
    decayed, kept = parameter_groups(model, weight_decay=0.1)
    assert names_of([decayed, kept]) == [["weight"], ["bias", "ball.isp_c"]]


def test_frozen_curvature_makes_no_group():
    model = create_model("hyperbolic-4-4-4-resnet-8", learnable_c=False)
    assert "ball.isp_c" in dict(model.named_parameters())
    groups = parameter_groups(model, lr_curvature=0.1)
    assert len(groups) == 2
    assert all("isp_c" not in name for names in names_of(groups) for name in names)


@pytest.mark.parametrize("rate", [None, 0.01])
@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD, RiemannianAdam, RiemannianSGD])
def test_names_follow_the_parameters_into_optimizer_and_checkpoint(optimizer, rate):
    model = create_model("hyperbolic-4-4-4-resnet-8", learnable_c=True)
    by_name = dict(model.named_parameters())
    stepper = optimizer(parameter_groups(model, 1e-4, lr_curvature=rate), lr=0.1)
    assert len(stepper.param_groups) == (2 if rate is None else 3)
    for group in stepper.param_groups:
        assert all(by_name[name] is p for name, p in zip(group["param_names"], group["params"], strict=True))
    assert sorted(sum(names_of(stepper.param_groups), [])) == sorted(by_name)
    buffer = io.BytesIO()
    torch.save(stepper.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    if TORCH < (2, 6):  # which forgets names that a checkpoint does not have
        return
    for group in state["param_groups"]:  # checkpoints of versions that kept no names
        del group["param_names"]
    again = optimizer(parameter_groups(model, 1e-4, lr_curvature=rate), lr=0.1)
    again.load_state_dict(state)
    assert names_of(again.param_groups) == names_of(stepper.param_groups)


def test_shared_parameters_come_once():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    model[1].weight = model[0].weight
    assert names_of(parameter_groups(model)) == [["0.weight"], ["0.bias", "1.bias"]]


@pytest.mark.parametrize(
    "bad", [{"weight_decay": -1.0}, {"weight_decay": float("nan")}, {"lr": 0.0}, {"lr_curvature": -0.1}]
)
def test_bad_values(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        parameter_groups(torch.nn.Linear(3, 2), **bad)
