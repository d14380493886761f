"""Batch norm over several processes: the same as in one process with the joint batch."""

import copy
import itertools

import geoopt
import pytest
import torch
from helpers import TOLERANCES, assert_close, generator, points, value_and_gradients
from processes import in_processes

import manifold_resnet as mr
from manifold_resnet import nn
from manifold_resnet.functional import naive
from manifold_resnet.functional._synchronised import sum_of_squares

SHAPES = {1: (9, 4), 2: (9, 4, 3, 2), 3: (9, 4, 1, 3, 2)}
# images per process; none at all at times
SHARES = [(5, 4), (8, 1), (9, 0)]
CASES = [
    *itertools.product((2,), ("channel", "scalar"), (torch.float64, torch.float32), SHARES, (0.5,), (0.3,)),
    *itertools.product((1, 3), ("channel", "scalar"), (torch.float64,), SHARES[:1], (1e-6, 10.0), (None,)),
]


def case(n, scale, dtype, c, momentum):
    """A norm with a learned centre, scale and curvature; three batches, and cotangents for them."""
    g = generator(3)
    ball = geoopt.PoincareBall(torch.tensor(c, dtype=dtype), learnable=True)
    norm = getattr(nn, f"PoincareBatchNorm{n}d")(4, ball=ball, scale=scale, momentum=momentum, sync=True)
    with torch.no_grad():
        norm.bias.copy_(points(g, 4, c=c, distance=1.0))
        norm.log_scale.copy_(0.3 * torch.randn(norm.log_scale.shape, generator=g))
    batches = [points(g, *SHAPES[n], c=c, dim=1, distance=3.0).to(dtype) for _ in range(3)]
    cotangents = [torch.randn(SHAPES[n], generator=g).to(dtype) / 10 for _ in range(3)]
    return norm, batches, cotangents


def outcome(norm, batches, cotangents, rows):
    """What comes out, the gradients of inputs and of parameters, and the running statistics."""
    outputs, gradients = [], []
    charts = ("ball", "tangent", "hyperboloid")
    for x, cotangent, chart in zip(batches, cotangents, charts, strict=True):
        x = x[rows].clone().requires_grad_()
        y = norm(x, out_chart=chart, relu=chart == "tangent")
        (y * cotangent[rows]).sum().backward()
        outputs.append(y.detach())
        gradients.append(x.grad)
    parameters = {name: p.grad.as_subclass(torch.Tensor) for name, p in norm.named_parameters()}
    buffers = {name: b for name, b in norm.named_buffers() if name in dict(norm._buffers)}
    return outputs, gradients, parameters, buffers


def share(rank):
    results = []
    for n, scale, dtype, sizes, c, momentum in CASES:
        start = sum(sizes[:rank])
        results.append(outcome(*case(n, scale, dtype, c, momentum), slice(start, start + sizes[rank])))
    norm, batches, _ = case(2, "channel", torch.float64, 0.5, 0.3)
    before = copy.deepcopy(norm.state_dict())
    norm(batches[0][:0])
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())  # nothing seen
    norm.eval()
    if rank == 0:  # evaluation, and a group of one process, wait for nobody
        norm(batches[0])
    groups = [torch.distributed.new_group([i]) for i in range(2)]
    alone = nn.convert_sync_batchnorm(norm, groups[rank]).train()
    return results, outcome(alone, batches, batches, slice(rank, None))[0]


def test_two_processes_equal_one_with_the_joint_batch():
    """All cases in one test, because processes take long to start."""
    shares = in_processes(share, 2)
    for i, (n, scale, dtype, sizes, c, momentum) in enumerate(CASES):
        about = f"{n}d, {scale}, {dtype}, {sizes}, c={c}"
        outputs, gradients, parameters, buffers = outcome(*case(n, scale, dtype, c, momentum), slice(None))
        value, gradient = (1e-12, 1e-11) if dtype == torch.float64 else (1e-6, 1e-5)
        parts = [results[i] for results, _ in shares]
        for together, whole in ((0, outputs), (1, gradients)):
            for step, expected in enumerate(whole):
                got = torch.cat([part[together][step] for part in parts])
                assert_close(got, expected, gradient if together else value, f"{about}, step {step}")
        for name, expected in parameters.items():
            assert_close(sum(part[2][name] for part in parts), expected, gradient, f"{about}, {name}")
        for name, expected in buffers.items():
            for part in parts:
                assert_close(part[3][name], expected, value, f"{about}, {name}")
    # a group of one process is a plain norm
    norm, batches, _ = case(2, "channel", torch.float64, 0.5, 0.3)
    for rank, (_, outputs) in enumerate(shares):
        expected = outcome(copy.deepcopy(norm), batches, batches, slice(rank, None))[0]
        assert all(map(torch.equal, outputs, expected))


@pytest.mark.parametrize("c", [1e-6, 0.5, 10.0])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_sums_of_squares(c, dtype):
    """Equal to the composition of geoopt calls, with all gradients."""
    g = generator()
    h = naive.convert(points(g, 3, 4, 5, c=c, dim=1), "ball", "hyperboloid", c=c, dim=1)
    m = naive.convert(points(g, 4, c=c, distance=2.0), "ball", "hyperboloid", c=c)

    def plain(h, m, c):
        h, m = (naive.convert(p, "hyperboloid", "ball", c=c, dim=d) for p, d in ((h, 1), (m.view(1, 4, 1), 1)))
        w = naive.logmap0(naive.mobius_add(-m.expand_as(h), h, c=c, dim=1), c=c, dim=1)
        return c * (w * w).sum((0, 2))

    def ours(h, m, c):
        return c * sum_of_squares(h, m, c)

    value, gradients = value_and_gradients(ours, [h, m], c, dtype)
    expected, expected_gradients = value_and_gradients(plain, [h, m], c)
    tolerance = TOLERANCES[dtype]
    assert_close(value, expected, tolerance.value)
    for got, wanted in zip(gradients[:2], expected_gradients[:2], strict=True):
        assert_close(got, wanted, tolerance.gradient)
    assert_close(c * gradients[2], c * expected_gradients[2], tolerance.gradient)


def test_gradients_of_sums_of_squares():
    g = generator()
    h, m = (torch.randn(shape, generator=g, dtype=torch.float64).requires_grad_() for shape in ((2, 3, 2), (3,)))
    c = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(sum_of_squares, (h, m, c))
    assert torch.autograd.gradgradcheck(sum_of_squares, (h, m, c))


def test_conversion_and_its_limits():
    ball = geoopt.PoincareBall(1.0)
    model = mr.models.create_model("hyperbolic-2-2-2-resnet-8")
    before = list(model.state_dict())
    assert nn.convert_sync_batchnorm(model) is model
    assert list(model.state_dict()) == before
    norms = [m for m in model.modules() if isinstance(m, nn.PoincareBatchNorm2d)]
    assert all(m.sync for m in norms)
    assert "sync=True" in repr(norms[0])
    assert copy.deepcopy(norms[0]).sync
    model(torch.randn(2, 3, 8, 8))  # without processes a plain norm
    frechet = nn.PoincareBatchNorm2d(2, ball=ball, mean="frechet")
    mixed = torch.nn.Sequential(nn.PoincareBatchNorm2d(2, ball=ball), frechet)
    with pytest.raises(ValueError, match="1 has mean='frechet'; only mean='midpoint'"):
        nn.convert_sync_batchnorm(mixed)
    assert not mixed[0].sync
    with pytest.raises(ValueError, match="only midpoints can be synchronised"):
        nn.PoincareBatchNorm2d(2, ball=ball, mean="frechet", sync=True)
