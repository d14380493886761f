import copy
import io

import geoopt
import pytest
import torch
from manifold_resnet.optim import RiemannianAdam


def steps(optimizer, points, number, generator):
    for _ in range(number):
        for point in points:
            point.grad = torch.randn(point.shape, generator=generator)
        optimizer.step()


@pytest.mark.parametrize("how", ["saved", "pickled"])
def test_carries_on_bit_for_bit(how):
    ball = geoopt.PoincareBall(c=0.5)
    points = [geoopt.ManifoldParameter(torch.zeros(3, 4), manifold=ball), torch.nn.Parameter(torch.ones(5))]
    optimizer = RiemannianAdam(points, lr=0.05)
    steps(optimizer, points, 7, torch.Generator().manual_seed(0))
    if how == "saved":
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        again = copy.deepcopy(points)
        loaded = RiemannianAdam(again, lr=0.05)
        loaded.load_state_dict(torch.load(file, weights_only=True))
    else:
        loaded = copy.deepcopy(optimizer)
        again = [point for group in loaded.param_groups for point in group["params"]]
    steps(optimizer, points, 5, torch.Generator().manual_seed(1))
    steps(loaded, again, 5, torch.Generator().manual_seed(1))
    assert all(map(torch.equal, points, again))


def test_steps_as_geoopts():
    start = torch.full((4,), 0.2)
    ends = []
    for optimizer_class in (RiemannianAdam, geoopt.optim.RiemannianAdam):
        point = geoopt.ManifoldParameter(start.clone(), manifold=geoopt.PoincareBall(c=1.0))
        steps(optimizer_class([point], lr=0.05), [point], 5, torch.Generator().manual_seed(0))
        ends.append(point.detach())
    assert torch.equal(*ends)
