"""Hand-written backward passes against finite differences, those of ball and charts twice."""

import pytest
import torch
from operations import BALL, CHARTS, OPERATIONS, operation


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
