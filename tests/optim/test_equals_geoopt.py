import copy
import functools

import geoopt
import pytest
import torch
from manifold_resnet.optim import RiemannianAdam, RiemannianSGD, _rows
from manifolds import parameters, set_gradients

from manifold_resnet import set_backend

ADAM = [
    {},
    {"betas": (0.8, 0.95), "eps": 1e-3},
    {"weight_decay": 0.1},
    {"amsgrad": True},
    {"stabilize": 7},
    {"amsgrad": True, "weight_decay": 0.03, "stabilize": 3},
]
SGD = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.5, "dampening": 0.2},
    {"momentum": 0.9, "nesterov": True},
    {"weight_decay": 0.1},
    {"momentum": 0.9, "weight_decay": 0.03, "stabilize": 5},
]
CASES = [(RiemannianAdam, geoopt.optim.RiemannianAdam, options) for options in ADAM]
CASES += [(RiemannianSGD, geoopt.optim.RiemannianSGD, options) for options in SGD]


def run(optimizer, points, steps):
    for step in steps:
        set_gradients(points, step)
        optimizer.step()


def difference(points, others):
    return max(float((p - q).detach().abs().max()) for p, q in zip(points, others, strict=True))


@functools.cache
def stepped_by_geoopt(case, dtype, steps):
    """Where geoopt's optimizer arrives, for both backends."""
    _, optimizer, options = CASES[case]
    points = parameters(dtype)
    run(optimizer(points, lr=1e-3, **options), points, range(steps))
    return points


@pytest.mark.parametrize(("dtype", "steps", "tolerance"), [(torch.float64, 200, 1e-10), (torch.float32, 50, 1e-6)])
@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda case: f"{CASES[case][0].__name__}-{CASES[case][2]}")
def test_two_hundred_steps(case, dtype, steps, tolerance, backend):
    """In single precision 50: there rounding differs, and grows with the steps."""
    optimizer, _, options = CASES[case]
    points, others = parameters(dtype), stepped_by_geoopt(case, dtype, steps)
    run(optimizer(points, lr=1e-3, **options), points, range(steps))
    scale = max(1.0, max(float(p.detach().abs().max()) for p in others))
    assert difference(points, others) <= tolerance * scale
    assert difference(points, parameters(dtype)) > 1e-3


@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda case: f"{CASES[case][0].__name__}-{CASES[case][2]}")
def test_large_parameters_in_parts(case, monkeypatch):
    """Without kernels they are stepped some rows at a time."""
    optimizer, _, options = CASES[case]
    results = []
    for large in (_rows.LARGE, 7):
        monkeypatch.setattr(_rows, "LARGE", large)
        points = parameters(torch.float64)
        with set_backend("eager"):
            run(optimizer(points, lr=1e-3, **options), points, range(5))
        results.append(points)
    assert any(_rows.is_large(point) for point in points)
    assert difference(*results) <= 1e-14


@pytest.mark.parametrize(("ours", "geoopts", "options"), CASES)
def test_parameters_without_gradient(ours, geoopts, options, backend):
    points, others = parameters(), parameters()
    for group, optimizer in ((points, ours(points, lr=1e-2, **options)), (others, geoopts(others, lr=1e-2, **options))):
        for step in range(6):
            set_gradients(group, step)
            for i, point in enumerate(group):
                if (i + step) % 3 == 0:
                    point.grad = None
            optimizer.step()
    assert difference(points, others) <= 1e-10


@pytest.mark.parametrize("direction", ["to ours", "to geoopt's"])
@pytest.mark.parametrize(("ours", "geoopts", "options"), CASES)
def test_checkpoints_go_both_ways(ours, geoopts, options, direction, backend):
    first, second = (geoopts, ours) if direction == "to ours" else (ours, geoopts)

    def saved(optimizer):
        points = parameters()
        stepper = optimizer(points, lr=1e-2, **options)
        run(stepper, points, range(5))
        return points, copy.deepcopy(stepper.state_dict())

    def resumed(optimizer, points, state):
        stepper = optimizer(points, lr=1e-2, **options)
        stepper.load_state_dict(state)
        run(stepper, points, range(5, 12))
        return points

    # geoopt's Adam computes its bias corrections in float32 once it was loaded: compare with itself, loaded
    expected = resumed(geoopts, *saved(geoopts)) if second is geoopts else parameters()
    if second is ours:
        run(geoopts(expected, lr=1e-2, **options), expected, range(12))
    assert difference(resumed(second, *saved(first)), expected) <= 1e-10


@pytest.mark.parametrize("optimizer", [RiemannianAdam, RiemannianSGD])
def test_gradients_are_left_alone(optimizer, backend):
    points = parameters()
    set_gradients(points, 0)
    before = [point.grad.clone() for point in points]
    settings = {"weight_decay": 0.1, "max_grad_norm": 0.1}
    stepper = optimizer(points, lr=0.1, **settings, **({"momentum": 0.9} if optimizer is RiemannianSGD else {}))
    stepper.step()
    stepper.step()
    assert all(map(torch.equal, before, (point.grad for point in points)))


@pytest.mark.parametrize("optimizer", [RiemannianAdam, RiemannianSGD])
def test_sparse_gradients_are_refused(optimizer):
    table = torch.nn.Embedding(4, 3, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer(table.parameters(), lr=0.1).step()


@pytest.mark.parametrize("make", [lambda x: x.t(), lambda x: x[:, ::2]], ids=["transposed", "strided"])
@pytest.mark.parametrize("optimizer", [RiemannianAdam, RiemannianSGD])
def test_non_contiguous(optimizer, make, backend):
    ball = geoopt.PoincareBall(1.0).double()
    memory = 0.2 * torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    options = {"momentum": 0.9} if optimizer is RiemannianSGD else {}
    results = []
    for contiguous in (False, True):
        x = make(memory.clone())
        x = geoopt.ManifoldParameter(x.contiguous() if contiguous else x, manifold=ball)
        run(optimizer([x], lr=0.01, **options), [x], range(4))
        results.append(x.detach())
    torch.testing.assert_close(*results, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (2, 0)])
def test_empty_and_single(shape, backend):
    x = geoopt.ManifoldParameter(torch.zeros(shape), manifold=geoopt.PoincareBall(1.0))
    run(RiemannianAdam([x], lr=0.01), [x], range(3))
    assert x.shape == shape
    assert bool(x.isfinite().all())
