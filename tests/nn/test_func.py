"""The transforms of `torch.func` over every layer: per-sample gradients, Jacobians, second derivatives; compiling.

And what else watches the operations: forward mode, dispatch modes.
"""

import geoopt
import pytest
import torch
from helpers import TORCH, generator
from layers import every_layer, make_ball
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, vmap
from torch.utils.flop_counter import FlopCounterMode

from manifold_resnet import nn, set_backend

C = 0.7
traces_parameters = pytest.mark.skipif(TORCH < (2, 8), reason="this torch cannot trace subclasses of parameters")


def parameters(layer):
    """All of them, c included, as plain tensors."""
    return {n: p.detach().as_subclass(torch.Tensor).clone() for n, p in layer.named_parameters()}


def prepared(kind):
    """A layer in evaluation (batch norms would mix samples; dropout stays on), its parameters and inputs."""
    layer = kind.layer(C)
    if "dropout" not in kind.label:
        layer.eval()
    return layer, parameters(layer), kind.x(C)


def assert_equal(actual, expected):
    assert actual.keys() == expected.keys()
    for name in actual:
        torch.testing.assert_close(
            actual[name], expected[name], rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
        )


@every_layer
def test_per_sample_gradients(kind):
    """`vmap(grad(loss))` over samples is the loop over samples, for every parameter."""
    layer, params, inputs = prepared(kind)

    def loss(params, *x):
        out = functional_call(layer, params, tuple(t.unsqueeze(0) for t in x))
        return (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum()

    in_dims = (None, *[0] * len(inputs))
    gradients = vmap(grad(loss), in_dims=in_dims, randomness="same")(params, *inputs)
    for i in range(len(inputs[0])):
        leaves = {n: p.clone().requires_grad_() for n, p in params.items()}
        value = loss(leaves, *(x[i] for x in inputs))
        one = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
        assert_equal({n: g[i] for n, g in gradients.items()}, dict(zip(leaves, one, strict=True)))


@every_layer
def test_jacobians(kind):
    """Batches of gradients, `jacrev` and `jacfwd` are the Jacobian of autograd, for inputs and every parameter."""
    layer, params, inputs = prepared(kind)
    arguments = {"x": inputs[0][:1], **params}
    rest = [x[:1] for x in inputs[1:]]

    def function(arguments):
        arguments = dict(arguments)
        y = functional_call(layer, arguments, (arguments.pop("x"), *rest)).flatten()
        return y[:: max(len(y) // 6, 1)]

    leaves = {n: t.clone().requires_grad_() for n, t in arguments.items()}
    out, options = function(leaves), {"retain_graph": True, "materialize_grads": True}
    rows = [torch.autograd.grad(y, list(leaves.values()), **options) for y in out]
    expected = {n: torch.stack(column) for n, column in zip(leaves, zip(*rows, strict=True), strict=True)}
    batch = torch.eye(len(out), dtype=out.dtype)
    batched = torch.autograd.grad(out, list(leaves.values()), batch, is_grads_batched=True, allow_unused=True)
    assert_equal(
        {n: torch.zeros_like(expected[n]) if g is None else g for n, g in zip(leaves, batched, strict=True)}, expected
    )
    assert_equal(jacrev(function)(arguments), expected)
    assert_equal(jacfwd(function, randomness="same")(arguments), expected)


@every_layer
def test_second_derivatives(kind):
    """Hessian-vector products: forward over reverse mode and reverse over reverse are autograd's."""
    layer, _, inputs = prepared(kind)

    def function(x):
        return layer(x, *[t[:1] for t in inputs[1:]]).sin().sum()

    x = inputs[0][:1]
    v = torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x)
    _, expected = torch.autograd.functional.hvp(function, x, v)
    _, forward = jvp(grad(function), (x,), (v,))
    reverse = grad(lambda x: (grad(function)(x) * v).sum())(x)
    torch.testing.assert_close(forward, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(reverse, expected, rtol=1e-9, atol=1e-9)


@traces_parameters
def test_layers_compile_without_graph_breaks():
    """`torch.compile` of those that networks are not made of by default."""
    ball = make_ball(C)
    net = torch.nn.Sequential(
        nn.ExpMap0(ball=ball, dim=1),
        nn.PoincareConv2d(2, 4, 3, padding=1, groups=2, ball=ball),
        nn.PoincareMaxPool2d(2, ball=ball),
        nn.PoincareConvTranspose2d(4, 2, 4, 2, 1, groups=2, ball=ball),
        nn.PoincareDropout2d(0.0, ball=ball),
        nn.PoincareFlatten(ball=ball),
        nn.PoincareMLR(32, 3, ball=ball),
    )
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    u = 0.3 * torch.randn(2, 2, 4, 4, generator=generator(), dtype=torch.float64)
    results = []
    for function in (net, compiled):
        x = u.clone().requires_grad_()
        out = function(x)
        results.append([out, *torch.autograd.grad(out.sin().sum(), [x, *net.parameters()])])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    table = nn.PoincareEmbedding(5, 3, ball=ball)
    indices = torch.arange(4)
    torch.testing.assert_close(torch.compile(table, fullgraph=True, backend="eager")(indices), table(indices))


@every_layer
def test_forward_mode_of_autograd(kind):
    """Without `torch.func`: as `jvp`."""
    layer, _, (x, *others) = prepared(kind)
    tangent = torch.randn(x.shape, generator=generator(3), dtype=x.dtype) if x.is_floating_point() else None
    if tangent is None or "dropout" in kind.label:
        return
    with forward_ad.dual_level():
        pushed = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, tangent), *others)).tangent
    torch.testing.assert_close(pushed, jvp(lambda x: layer(x, *others), (x,), (tangent,))[1], rtol=1e-10, atol=1e-10)


@traces_parameters
@pytest.mark.parametrize("backend", ["eager", "auto"])
def test_dispatch_modes(backend):
    """Fake tensors have no memory to work in, and counters of operations want to see each."""
    conv = nn.PoincareConv2d(3, 4, 3, ball=geoopt.PoincareBall(C))
    norm = nn.PoincareBatchNorm2d(4, ball=conv.ball)
    x = 0.1 * torch.rand(2, 3, 20, 20, generator=generator())
    with set_backend(backend):
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            assert conv(mode.from_tensor(x), "tangent", "tangent").shape == (2, 4, 18, 18)
        with FlopCounterMode(display=False) as counter:
            norm(conv(x), out_chart="tangent").sum().backward()
    # multiplications and additions: forward, and backward for the kernels
    assert counter.get_total_flops() >= 2 * 2 * (2 * 18 * 18 * 4 * 3 * 9)


@traces_parameters
@pytest.mark.parametrize("training", [True, False])
def test_images_compile_without_graph_breaks(training):
    """Where the first layers need no gradient, and with frozen layers."""
    ball = geoopt.PoincareBall(C)
    net = torch.nn.Sequential(
        nn.ExpMap0(ball=ball, dim=1),
        nn.PoincareConv2d(3, 4, 3, ball=ball).requires_grad_(False),
        nn.PoincareReLU(ball=ball),
        nn.PoincareConv2d(4, 4, 3, ball=ball),
        nn.PoincareBatchNorm2d(4, ball=ball),
    ).double()
    net.train(training)
    images = torch.randn(2, 3, 8, 8, generator=generator(), dtype=torch.float64)
    torch._dynamo.reset()
    actual = torch.compile(net, fullgraph=True, backend="eager")(images)
    torch.testing.assert_close(actual, net.train(training)(images), rtol=1e-12, atol=1e-12)
