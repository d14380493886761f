"""Hand-written backward passes against finite differences, those of ball and charts twice."""

import math

import pytest
import torch
from helpers import generator
from operations import BALL, CHARTS, OPERATIONS, operation

import manifold_resnet.functional as F
from manifold_resnet.functional import naive


def inputs(op, c):
    tensors = [t.requires_grad_() for t in op.tensors(c, seed=1)]
    return *tensors, torch.tensor(c, dtype=torch.float64, requires_grad=True)


def as_positional(op):
    return lambda *args: op.fast(*args[:-1], c=args[-1])


@operation
def test_gradcheck(op):
    """Every entry of the Jacobian for the ball, a random projection of it (`fast_mode`) for layers."""
    fast_mode = op not in BALL + CHARTS
    assert torch.autograd.gradcheck(as_positional(op), inputs(op, 0.7), atol=1e-6, fast_mode=fast_mode)


@pytest.mark.parametrize("op", BALL + CHARTS, ids=str)
def test_gradgradcheck(op):
    assert torch.autograd.gradgradcheck(as_positional(op), inputs(op, 0.7), atol=1e-6)


@pytest.mark.parametrize("op", OPERATIONS, ids=str)
def test_only_the_gradients_asked_for(op):
    """Each gradient is the same when it is the only one asked for."""
    tensors = inputs(op, 0.7)
    expected = torch.autograd.grad(as_positional(op)(*tensors).sum(), tensors, materialize_grads=True)
    for i, gradient in enumerate(expected):
        alone = [t.detach().requires_grad_(i == j) for j, t in enumerate(tensors)]
        out = as_positional(op)(*alone).sum()
        actual = torch.zeros_like(gradient)  # the identity, for one, does not depend on c
        if out.requires_grad:
            (actual,) = torch.autograd.grad(out, alone[i])
        torch.testing.assert_close(actual, gradient, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("op", [op for op in BALL + CHARTS if op.pointwise], ids=str)
def test_function_transforms(op):
    """`torch.func`: vmap over points that have a curvature each, and Jacobians under vmap."""
    tensors = op.tensors(1.0)
    dim = op.kwargs.get("dim", op.args[0].dim)
    options = {"dim": dim - 1 if dim > 0 else dim} if "dim" in op.kwargs else {}
    count = tensors[0].shape[0]
    curvatures = torch.linspace(0.2, 1.0, count, dtype=torch.float64)

    def one(*args):
        return op.fast(*args[:-1], c=args[-1], **options)

    def loop(*args):
        return torch.stack([one(*(t[i] for t in args)) for i in range(count)])

    torch.testing.assert_close(torch.func.vmap(one)(*tensors, curvatures), loop(*tensors, curvatures))
    jacobians = torch.func.vmap(torch.func.jacrev(one))(*tensors, curvatures)
    for i in range(count):
        first = tensors[0][i].requires_grad_()
        rest = [t[i] for t in tensors[1:]]
        expected = torch.autograd.functional.jacobian(lambda x: one(x, *rest, curvatures[i]), first)  # noqa: B023
        torch.testing.assert_close(jacobians[i], expected)


def at_zero(layer):
    """A layer made of hyperplanes, with arguments that have zeros where layers start with them or pad."""
    g = generator()
    random = lambda *shape: 0.3 * torch.randn(shape, generator=g, dtype=torch.float64)  # noqa: E731
    offset = torch.zeros(3, dtype=torch.float64)
    if layer == "conv2d":
        x, weight = random(2, 2, 3, 3), random(3, 2, 2, 2)
        x[1] = 0
        return lambda *t: F.poincare_conv2d(*t[:3], c=t[3], in_chart="tangent"), (x, weight, offset)
    x, weight = random(3, 2), random(3, 2)
    x[1] = 0
    function = F.poincare_linear if layer == "linear" else F.poincare_mlr
    return lambda *t: function(*t[:3], c=t[3], in_chart="tangent"), (x, weight, offset)


@pytest.mark.parametrize("layer", ["conv2d", "linear", "mlr"])
def test_second_derivatives_at_zero(layer, backend):
    """Offsets start as zeros, and images are padded with zeros."""
    function, tensors = at_zero(layer)
    arguments = *[t.requires_grad_() for t in tensors], torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(function, arguments, atol=1e-6)
    plain = tuple(t.detach() for t in arguments)
    every = tuple(range(len(plain)))
    reverse, forward = torch.func.jacrev(function, every)(*plain), torch.func.jacfwd(function, every)(*plain)
    torch.testing.assert_close(forward, reverse, atol=1e-10, rtol=1e-10)


def test_tangent_vectors_too_long_for_sinh(backend):
    """They count as vectors as long as the number format allows, in the same direction: nothing overflows."""
    g = generator()
    direction = torch.nn.functional.normalize(torch.randn(4, 3, generator=g, dtype=torch.float64), dim=1)
    weight, offset = torch.randn(2, 3, generator=g, dtype=torch.float64), torch.tensor([0.1, -0.2], dtype=torch.float64)
    arguments = (200 * direction, weight, offset, torch.tensor(0.7, dtype=torch.float64))
    function = lambda *t: F.poincare_mlr(*t[:3], c=t[3], in_chart="tangent")  # noqa: E731
    bounded = 150 / math.sqrt(0.7) * direction
    torch.testing.assert_close(function(*arguments), function(bounded, *arguments[1:]), atol=1e-8, rtol=1e-8)
    assert torch.autograd.gradcheck(function, [t.requires_grad_() for t in arguments], atol=1e-6)

    def linear(*t):
        return F.poincare_linear(*t[:3], c=t[3], in_chart="tangent", out_chart="tangent", max_distance=3.0)

    assert torch.autograd.gradcheck(linear, arguments, atol=1e-6)
    pixels = (255 * torch.rand(2, 3, 5, 5, generator=g)).requires_grad_()  # images as they are
    y = F.poincare_conv2d(
        pixels, torch.randn(4, 3, 3, 3, generator=g), c=1.0, in_chart="tangent", out_chart="tangent", max_distance=6.0
    )
    assert y.isfinite().all()
    assert torch.autograd.grad(y.sum(), pixels)[0].isfinite().all()


@pytest.mark.parametrize("dst", ["tangent", "hyperboloid"])
@pytest.mark.parametrize("src", ["tangent", "hyperboloid"])
def test_global_pooling_in_charts(src, dst, backend):
    """Networks pool tangent vectors: an operation of its own, on more than a block of pixels, zeros among them."""
    g = generator()
    images = torch.randn(2, 3, 15, 14, generator=g, dtype=torch.float64)
    images[0, :, 2:5] = 0
    images[1] *= 1e-2
    c = torch.tensor(0.7, dtype=torch.float64)

    def pool(x, c):
        return F.poincare_adaptive_avg_pool2d(x, 1, c=c, in_chart=src, out_chart=dst)

    def composed(x, c):
        x = naive.convert(x, src, "ball", c=c, dim=1)
        return naive.convert(naive.poincare_adaptive_avg_pool2d(x, 1, c=c), "ball", dst, c=c, dim=1)

    cotangent = torch.randn(2, 3, 1, 1, generator=g, dtype=torch.float64)
    results = []
    for function in (pool, composed):
        x, k = images.clone().requires_grad_(), c.clone().requires_grad_()
        out = function(x, k)
        results.append((out, *torch.autograd.grad(out, (x, k), cotangent, materialize_grads=True)))
    for fast, plain in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, atol=1e-12, rtol=1e-10)
    few = images[:, :, :3, :2].clone().requires_grad_()
    assert torch.autograd.gradcheck(pool, (few, c.requires_grad_()), atol=1e-6)
    assert torch.autograd.gradgradcheck(pool, (few, c), atol=1e-6)
