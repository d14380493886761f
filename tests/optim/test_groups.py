import geoopt
import pytest
import torch
from manifold_resnet.optim import RiemannianAdam, RiemannianSGD, parameter_groups

from manifold_resnet.models import create_model


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


def test_frozen_parameters_and_empty_groups_are_left_out():
    layer = torch.nn.Linear(3, 2)
    layer.bias.requires_grad_(False)
    (group,) = parameter_groups(layer, weight_decay=0.1)
    assert len(group["params"]) == 1
    assert "lr" not in group


@pytest.mark.parametrize("bad", [{"weight_decay": -1.0}, {"lr": 0.0}])
def test_bad_values(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        parameter_groups(torch.nn.Linear(3, 2), **bad)
