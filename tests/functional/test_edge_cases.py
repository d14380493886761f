"""Zero vectors, the boundary, odd batches and layouts, bounds, and what callers get wrong."""

import math

import pytest
import torch
from covering import pairs
from helpers import TOLERANCES, assert_close, generator, points, tangents
from operations import OPERATIONS, Operation, P, boundary, curvature, operation, zeros

import manifold_resnet.functional as F

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
POINTWISE = [op for op in OPERATIONS if op.pointwise]
WITH_NORMALS = [op for op in OPERATIONS if op.args[1:] and op.args[1].kind == "normal"]
BOUNDED = [op for op in OPERATIONS if "max_distance" in op.kwargs]


def value_and_gradients(op, tensors, c, dtype):
    inputs = [t.detach().to(dtype).requires_grad_() for t in tensors]
    inputs.append(torch.tensor(c, dtype=dtype, requires_grad=True))
    # a batch of equal points has variance zero
    options = {"eps": 1e-5} if op.name == "midpoint_batch_norm" else {}
    out = op.fast(*inputs[:-1], c=inputs[-1], **options)
    cotangent = torch.randn(out.shape, generator=generator(1), dtype=torch.float64).to(dtype)
    return out.detach(), torch.autograd.grad(out, inputs, cotangent, materialize_grads=True)


def assert_finite(out, gradients):
    assert out.isfinite().all()
    for i, gradient in enumerate(gradients):
        assert gradient.isfinite().all(), f"gradient of argument {i}: {gradient}"


def assert_on_the_ball(op, out, c):
    # a mean comes without the dimensions averaged over, here all after its own
    dim = op.kwargs.get("dim", op.args[0].dim) if op.pointwise or out.ndim > 2 else -1
    if op.returns == "point":
        assert (math.sqrt(c) * out.norm(dim=dim) < 1).all()


# -- zero vectors and the boundary -----------------------------------------------------------------


@pairs
@dtypes
@curvature
@operation
def test_zero_vectors(op, c, dtype):
    assert_finite(*value_and_gradients(op, zeros(op, c), c, dtype))


@pairs
@dtypes
@curvature
@pytest.mark.parametrize("op", WITH_NORMALS, ids=str)
def test_zero_normals(op, c, dtype):
    """A hyperplane without a normal: logit zero, coordinate zero."""
    tensors = op.tensors(c)
    tensors[1] = torch.zeros_like(tensors[1])
    out, gradients = value_and_gradients(op, tensors, c, dtype)
    assert_finite(out, gradients)
    assert (out == 0).all()


@pairs
@dtypes
@curvature
@operation
def test_near_the_boundary(op, c, dtype):
    out, gradients = value_and_gradients(op, boundary(op, c), c, dtype)
    assert_finite(out, gradients)
    assert_on_the_ball(op, out, c)


@pairs
@dtypes
@pytest.mark.parametrize("radius", [1.0, 1.5, 1e3])
@operation
def test_outside_the_ball(op, dtype, radius):
    """Points that rounding (or a caller) put on or beyond the boundary give finite results."""
    tensors = [
        radius * t / (1 - 1e-6) if arg.kind == "point" else t for t, arg in zip(boundary(op, 1.0), op.args, strict=True)
    ]
    out, gradients = value_and_gradients(op, tensors, 1.0, dtype)
    assert_finite(out, gradients)
    assert_on_the_ball(op, out, 1.0)


@dtypes
@curvature
def test_gradient_at_zero_vectors(c, dtype):
    """The derivative is exactly the limit: for exponential and logarithm at the origin, the identity."""
    zero = torch.zeros(3, dtype=dtype)
    identity = torch.eye(3, dtype=dtype)
    x = points(generator(), 3, c=c, distance=2.0).to(dtype)
    tolerance = TOLERANCES[dtype].value
    half = 2 / F.lambda_x(x, c=c)
    for function, expected in (
        (lambda u: F.expmap0(u, c=c), identity),
        (lambda u: F.logmap0(u, c=c), identity),
        (lambda u: F.mobius_add(u, zero, c=c), identity),
        (lambda u: F.mobius_add(zero, u, c=c), identity),
        (lambda u: F.mobius_add(x, u, c=c), half * identity),
        (lambda u: F.expmap(x, u, c=c), identity),
        (lambda u: F.logmap(x, x + u, c=c), identity),
        (lambda u: F.lambda_x(u, c=c), torch.zeros(3, dtype=dtype)),
        (lambda u: F.dist(x, x + u, c=c) ** 2, torch.zeros(3, dtype=dtype)),
        (lambda u: F.convert(u, "tangent", "hyperboloid", c=c), 2 * math.sqrt(c) * identity),
        (lambda u: F.convert(u, "hyperboloid", "tangent", c=c), identity / (2 * math.sqrt(c))),
        (lambda u: F.convert(u, "hyperboloid", "ball", c=c), identity / (2 * math.sqrt(c))),
        (lambda u: F.to_lorentz(u, c=c), torch.cat((torch.zeros(1, 3), 2 * torch.eye(3))).to(dtype)),
    ):
        scale = max(1.0, expected.abs().max().item())
        assert_close(torch.autograd.functional.jacobian(function, zero) / scale, expected / scale, tolerance)


@dtypes
def test_tiny_vectors_keep_their_digits(dtype):
    """No additive safety constant: a vector of length 1e-12 comes back with all its digits."""
    u = 1e-12 * torch.randn(5, 3, generator=generator(), dtype=torch.float64).to(dtype)
    for result in (
        F.logmap0(F.expmap0(u, c=1.0), c=1.0),
        F.convert(F.convert(u, "tangent", "hyperboloid", c=1.0), "hyperboloid", "tangent", c=1.0),
        F.poincare_linear(u, torch.eye(3, dtype=dtype) / 2, c=1.0),
        F.midpoint(u.expand(4, 5, 3), c=1.0, reducedim=0),
        F.frechet_mean(u.expand(4, 5, 3), c=1.0, reducedim=0),
    ):
        torch.testing.assert_close(result, u, rtol=100 * torch.finfo(dtype).eps, atol=0)
    torch.testing.assert_close(F.dist(u, -u, c=1.0), 4 * u.norm(dim=-1), rtol=100 * torch.finfo(dtype).eps, atol=0)


@dtypes
def test_far_away_in_the_unbounded_charts(dtype):
    """Points 30 curvature radii away, where the ball has no digits in float32."""
    u = torch.tensor([[15.0, 0.0], [0.0, -9.0], [3.0, 4.0]], dtype=dtype).requires_grad_()
    back = F.convert(F.convert(u, "tangent", "hyperboloid", c=1.0), "hyperboloid", "tangent", c=1.0)
    torch.testing.assert_close(back, u, rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(back.sum(), u)
    torch.testing.assert_close(gradient, torch.ones_like(u), rtol=1e-4, atol=1e-4)
    axes = torch.eye(2, dtype=dtype) / 2
    out = F.poincare_linear(u, axes, c=1.0, in_chart="tangent", out_chart="tangent")
    torch.testing.assert_close(out, u, rtol=1e-5, atol=1e-5)
    logit = F.poincare_mlr(u[:1], axes[:1], c=1.0, in_chart="tangent")
    torch.testing.assert_close(logit, torch.tensor([[30.0]], dtype=dtype), rtol=1e-5, atol=0)


# -- batches, layouts, numbers ---------------------------------------------------------------------


@pytest.mark.parametrize("op", POINTWISE, ids=str)
def test_rows_do_not_depend_on_each_other(op):
    """A batch of one gives what it gave inside a larger batch, and keeps its dimensions."""
    tensors = op.tensors(1.0)
    batch = tensors[0].shape[0]
    batched = [arg.is_vector and len(arg.shape) > 1 and arg.shape[0] == batch for arg in op.args]
    batched = [b or arg.kind == "lorentz" for b, arg in zip(batched, op.args, strict=True)]
    one = [t[:1] if b else t for t, b in zip(tensors, batched, strict=True)]
    torch.testing.assert_close(op.fast(*one, c=1.0), op.fast(*tensors, c=1.0)[:1], atol=1e-13, rtol=1e-13)


@pytest.mark.parametrize("op", POINTWISE, ids=str)
def test_empty_batch(op):
    tensors = op.tensors(1.0)
    batch = tensors[0].shape[0]
    inputs = [
        (t[:0] if arg.kind in ("point", "tangent", "hyperboloid", "lorentz") and t.ndim > 1 else t)
        for t, arg in zip(tensors, op.args, strict=True)
    ]
    inputs = [t.detach().requires_grad_() for t in inputs]
    c = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    out = op.fast(*inputs, c=c)
    full = op.fast(*tensors, c=1.0)
    assert batch == full.shape[0]
    assert out.shape == (0, *full.shape[1:])
    gradients = torch.autograd.grad(out.sum(), [*inputs, c], materialize_grads=True)
    for gradient, t in zip(gradients, [*inputs, c], strict=True):
        assert gradient.shape == t.shape
        assert (gradient == 0).all()


@operation
def test_layout_does_not_matter(op):
    """Transposed, expanded and channels-last inputs give the same values and gradients."""

    def run(tensors):
        inputs = [t.requires_grad_() for t in tensors]
        out = op.fast(*inputs, c=1.0)
        cotangent = torch.randn(out.shape, generator=generator(2), dtype=torch.float64)
        return [out.detach(), *torch.autograd.grad(out, inputs, cotangent, materialize_grads=True)]

    expected = run(op.tensors(1.0))
    reversed_strides = [t.mT.contiguous().mT if t.ndim > 1 else t for t in op.tensors(1.0)]
    gaps = [torch.stack((t, t), -1)[..., 0] for t in op.tensors(1.0)]
    last = [t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t for t in op.tensors(1.0)]
    for layout in (reversed_strides, gaps, last):
        for actual, other in zip(run([t.detach() for t in layout]), expected, strict=True):
            torch.testing.assert_close(actual, other, atol=1e-12, rtol=1e-12)


@operation
def test_inputs_are_not_modified(op):
    tensors = op.tensors(1.0)
    copies = [t.clone().requires_grad_() for t in tensors]
    c = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    out = op.fast(*copies, c=c)
    if out.requires_grad:
        out.sum().backward()
    for copy, t in zip(copies, tensors, strict=True):
        assert torch.equal(copy.detach(), t)
    assert c.item() == 1.0


def test_expanded_input():
    x = points(generator(), 1, 3, 1, 1, c=1.0, dim=1).expand(2, 3, 4, 4)
    op = Operation("poincare_relu", (P(2, 3, 4, 4, dim=1),))
    torch.testing.assert_close(op.fast(x, c=1.0), op.fast(x.contiguous(), c=1.0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_single(dtype):
    """Half precision cannot keep a point off the boundary: results are float32, and on the ball."""
    u = tangents(generator(), 6, 4, c=1.0, distance=20.0).to(dtype)
    x = F.expmap0(u, c=1.0)
    assert x.dtype == torch.float32
    assert (x.norm(dim=-1) < 1).all()
    torch.testing.assert_close(x, F.expmap0(u.float(), c=1.0))
    assert F.mobius_add(x.to(dtype), x, c=1.0).dtype == torch.float32


def test_autocast_leaves_the_geometry_alone():
    """Under autocast convolutions and matrix products may run in bfloat16; radial scalars never do."""
    g = generator()
    x, y = points(g, 6, 4, c=1.0).float(), points(g, 6, 4, c=1.0).float()
    z = 0.2 * torch.randn(5, 4, generator=g)
    images, kernel = points(g, 2, 4, 5, 5, c=1.0, dim=1).float(), 0.2 * torch.randn(6, 2, 3, 3, generator=g)
    layers = {
        0.0: [lambda: F.mobius_add(x, y, c=1.0), lambda: F.dist(x, y, c=1.0), lambda: F.midpoint(x, c=1.0)]
        + [lambda: F.midpoint_batch_norm(x, c=1.0), lambda: F.logmap0(x, c=1.0)]
        + [lambda: F.poincare_max_pool2d(images, 2, c=1.0), lambda: F.poincare_flatten(images, c=1.0)],
        2e-2: [lambda: F.poincare_linear(x, z, c=1.0), lambda: F.poincare_mlr(x, z, c=1.0)]
        + [lambda: F.poincare_conv2d(images, kernel, groups=2, c=1.0)]
        + [lambda: F.poincare_conv_transpose2d(images, kernel, stride=2, groups=2, c=1.0)],
    }
    for tolerance, functions in layers.items():
        for function in functions:
            expected = function()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                actual = function()
            assert actual.dtype == torch.float32
            torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)
    images, kernel = images.double(), kernel.double()  # which it leaves alone, as torch's layers
    expected = F.poincare_conv2d(images, kernel, groups=2, c=1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(F.poincare_conv2d(images, kernel, groups=2, c=1.0), expected, rtol=0, atol=0)


def test_dtypes_promote():
    g = generator()
    x, y = points(g, 5, 3, c=1.0), points(g, 5, 3, c=1.0).float()
    assert F.mobius_add(x, y, c=1.0).dtype == torch.float64
    assert F.dist(y, x, c=1.0).dtype == torch.float64


def test_curvature_extremes_keep_to_the_ball():
    for c in (1e-6, 10.0):
        x = F.expmap0(tangents(generator(), 6, 4, c=1.0, distance=100.0) / math.sqrt(c), c=c)
        assert (math.sqrt(c) * x.norm(dim=-1) <= 1 - 1e-5 + 1e-12).all()


# -- bounds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", BOUNDED, ids=str)
def test_max_distance(op):
    """Points farther out land on the sphere, in their direction; the others do not notice."""
    c, dim = 1.0, op.args[0].dim
    chart = op.kwargs.get("dst", "ball")
    bound = op.kwargs["max_distance"]
    free = F.convert(op.fast(*op.tensors(c), c=c, max_distance=math.inf), chart, "tangent", c=c, dim=dim)
    clipped = F.convert(op.fast(*op.tensors(c), c=c), chart, "tangent", c=c, dim=dim)
    distance = 2 * free.norm(dim=dim, keepdim=True)
    assert (distance > bound).any()
    expected = torch.where(distance > bound, free / distance * bound, free)
    assert_close(clipped, expected, 1e-10)


@pytest.mark.parametrize("op", BOUNDED, ids=str)
def test_no_radial_gradient_on_the_bound(op):
    """Where the bound is active, a push outwards moves nothing."""
    tensors = [t.requires_grad_() for t in op.tensors(1.0)]
    chart, dim = op.kwargs.get("dst", "ball"), op.args[0].dim
    out = op.fast(*tensors, c=1.0, max_distance=1e-3)
    norm = F.convert(out, chart, "tangent", c=1.0, dim=dim).norm(dim=dim)
    assert_close(norm.detach(), torch.full_like(norm, 0.5e-3), 1e-12)
    # a point at the origin itself has no direction to go: none here
    for gradient in torch.autograd.grad((out * out.detach()).sum(), tensors):
        assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("distance", [0.7, 3.0], ids=["below", "above"])
@pytest.mark.parametrize("src", ["ball", "tangent", "hyperboloid"])
@pytest.mark.parametrize("dst", ["ball", "tangent", "hyperboloid"])
def test_gradcheck_on_both_sides_of_the_bound(src, dst, distance):
    u = tangents(generator(), 4, 3, c=0.5)
    u = u / u.norm(dim=-1, keepdim=True) * distance / 2
    x = F.convert(u, "tangent", src, c=0.5).requires_grad_()
    c = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, c: F.convert(x, src, dst, c=c, max_distance=1.5), (x, c), atol=1e-7)


def test_default_bound():
    """`max_distance=None` is the documented default, in units of the curvature radius."""
    for c in (0.1, 10.0):
        u = tangents(generator(), 6, 4, c=c, distance=20.0)
        default = F.convert(u, "tangent", "hyperboloid", c=c, max_distance=None)
        explicit = F.convert(u, "tangent", "hyperboloid", c=c, max_distance=F.DEFAULT_MAX_DISTANCE / math.sqrt(c))
        torch.testing.assert_close(default, explicit, atol=0, rtol=1e-12)


def test_project():
    x = torch.tensor([[0.5, 0.0], [3.0, 4.0]], dtype=torch.float64)
    torch.testing.assert_close(F.project(x, c=0.25)[0], x[0], atol=0, rtol=0)
    torch.testing.assert_close(F.project(x, c=0.25)[1], x[1] / 5 * 2 * (1 - 1e-5), atol=0, rtol=1e-15)
    torch.testing.assert_close(F.project(x.float(), c=0.25)[1].norm().item(), 2 * (1 - 4e-3), atol=0, rtol=1e-6)
    torch.testing.assert_close(F.project(x, c=0.25, eps=0.5)[1].norm().item(), 1.0, atol=0, rtol=1e-15)


def test_relu_in_the_same_pass():
    """What `relu=True` fuses is the ReLU after the conversion."""
    g = generator()
    x, y = points(g, 5, 4, c=1.0), points(g, 5, 4, c=1.0)
    for bound in (math.inf, 1.0):
        options = {"c": 1.0, "max_distance": bound}
        expected = F.convert(x, "ball", "tangent", **options).relu()
        torch.testing.assert_close(F.convert(x, "ball", "tangent", relu=True, **options), expected)
        options |= {"dim": -1, "out_chart": "tangent"}
        expected = F.mobius_residual(x, y, **options).relu()
        torch.testing.assert_close(F.mobius_residual(x, y, relu=True, **options), expected)
    with pytest.raises(ValueError, match="relu"):
        F.mobius_residual(x, y, c=1.0, dim=-1, relu=True)


def test_named_conversions():
    x = points(generator(), 2, 4, 3, c=0.5, dim=1)
    h, u = (F.convert(x, "ball", chart, c=0.5, dim=1) for chart in ("hyperboloid", "tangent"))
    for actual, expected in (
        (F.ball_to_hyperboloid(x, c=0.5, dim=1), h),
        (F.hyperboloid_to_ball(h, c=0.5, dim=1), x),
        (F.tangent_to_hyperboloid(u, c=0.5, dim=1), h),
        (F.hyperboloid_to_tangent(h, c=0.5, dim=1), u),
    ):
        torch.testing.assert_close(actual, expected, atol=1e-13, rtol=1e-13)


def test_frechet_mean_of_points_spread_far():
    """The flow converges however far the points are apart, and stops early when told to."""
    x = F.expmap0(tangents(generator(), 8, 3, c=1.0, distance=11.0), c=1.0)
    m = F.frechet_mean(x, c=1.0)
    assert_close(F.logmap(m, x, c=1.0).mean(0), torch.zeros(3, dtype=torch.float64), 1e-9)
    rough = F.frechet_mean(x, c=1.0, tol=0.1)
    assert 1e-9 < F.dist(m, rough, c=1.0) < 1.0
    assert F.dist(m, F.frechet_mean(x, c=1.0, max_iter=1), c=1.0) > 1e-9


# -- broadcasting and wrong calls ------------------------------------------------------------------


def test_broadcasting_counts_dim_afterwards():
    """As in the rest of torch: `dim` is a dimension of the result, whatever shapes go in."""
    g = generator()
    x = points(g, 2, 4, 3, c=1.0, dim=1)
    b = points(g, 4, c=1.0)
    expected = F.mobius_add(x, b.view(1, 4, 1).expand_as(x), c=1.0, dim=1)
    torch.testing.assert_close(F.mobius_add(x, b.view(4, 1), c=1.0, dim=1), expected)
    torch.testing.assert_close(F.mobius_add(x, b.view(4, 1), c=1.0, dim=-2), expected)
    assert F.dist(x, b.view(4, 1), c=1.0, dim=1).shape == (2, 3)
    assert F.dist(x, b.view(4, 1), c=1.0, dim=1, keepdim=True).shape == (2, 1, 3)


def test_weights_broadcast():
    x = points(generator(), 3, 5, 4, c=1.0)
    w = torch.rand(5, generator=generator(), dtype=torch.float64)
    for mean in (
        F.midpoint,
        F.frechet_mean,
        lambda *args, **kw: F.frechet_variance(args[0], None, *args[1:], **kw),
    ):
        torch.testing.assert_close(mean(x, w, c=1.0, reducedim=1), mean(x, w.expand(3, 5), c=1.0, reducedim=1))


X, IMAGES = torch.zeros(5, 4), torch.zeros(2, 3, 6, 6)
KERNEL = torch.ones(4, 3, 3, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: F.expmap0(X, c=0.0), r"c .*0"),
        (lambda: F.expmap0(X, c=-1.0), r"c .*-1"),
        (lambda: F.expmap0(X, c=math.nan), r"c .*nan"),
        (lambda: F.expmap0(X, c=torch.ones(3)), r"c .*\(3,\)"),
        (lambda: F.mobius_add(X, torch.zeros(3), c=1.0), r"\(5, 4\).*\(3,\)"),
        (lambda: F.gyration(X, X, torch.zeros(3), c=1.0), r"\(5, 4\).*\(3,\)"),
        (lambda: F.project(X, c=1.0, eps=2.0), "eps.*2"),
        (lambda: F.convert(X, "klein", "ball", c=1.0), "klein"),
        (lambda: F.convert(X, "ball", "klein", c=1.0), "klein"),
        (lambda: F.convert(X, "ball", "ball", c=1.0, max_distance=0.0), "max_distance.*0"),
        (lambda: F.poincare_mlr(X, torch.zeros(3, 5), c=1.0), r"4|5"),
        (lambda: F.poincare_mlr(X, torch.zeros(5), c=1.0), r"weight.*\(5,\)"),
        (lambda: F.poincare_linear(X, torch.zeros(3, 4), torch.zeros(4), c=1.0), r"bias.*\(3,\).*\(4,\)"),
        (lambda: F.poincare_linear(X, torch.zeros(3, 4), c=1.0, out_chart="klein"), "klein"),
        (lambda: F.poincare_conv2d(X, KERNEL, c=1.0), r"x .*\(5, 4\)"),
        (lambda: F.poincare_conv2d(torch.zeros(2, 4, 6, 6), KERNEL, c=1.0), r"x .*3.*\(2, 4, 6, 6\)"),
        (lambda: F.poincare_conv2d(IMAGES, torch.ones(4, 3, 3), c=1.0), r"weight.*\(4, 3, 3\)"),
        (lambda: F.poincare_conv2d(IMAGES, KERNEL, torch.zeros(3), c=1.0), r"bias.*\(4,\).*\(3,\)"),
        (lambda: F.poincare_conv2d(IMAGES, KERNEL, dilation=4, c=1.0), r"kernel.*\(6, 6\)"),
        (lambda: F.poincare_conv2d(IMAGES, KERNEL, stride=0, c=1.0), "stride.*0"),
        (lambda: F.poincare_conv2d(IMAGES, KERNEL, padding=(1, 1, 1), c=1.0), "padding"),
        (lambda: F.poincare_conv2d(IMAGES, KERNEL, padding="full", c=1.0), "padding.*full"),
        (lambda: F.poincare_conv2d(IMAGES, KERNEL, stride=2, padding="same", c=1.0), "same.*stride"),
        (lambda: F.poincare_conv2d(IMAGES, KERNEL, groups=3, c=1.0), r"groups .*\(9\).*\(4\).*got 3"),
        (lambda: F.poincare_conv2d(IMAGES, KERNEL, groups=2, c=1.0), r"x .*6.*2 groups.*\(2, 3, 6, 6\)"),
        (lambda: F.poincare_conv2d(IMAGES, KERNEL, groups=0, c=1.0), "groups .*0"),
        (lambda: F.poincare_mlr(IMAGES, torch.zeros(5, 4), dim=1, c=1.0), r"4 features in dim=1.*\(2, 3, 6, 6\)"),
        (lambda: F.poincare_conv_transpose(X, KERNEL, c=1.0), r"x .*\(5, 4\)"),
        (lambda: F.poincare_conv_transpose2d(IMAGES, torch.ones(4, 3, 3), c=1.0), r"weight.*\(4, 3, 3\)"),
        (lambda: F.poincare_conv_transpose2d(IMAGES, KERNEL, torch.zeros(3), c=1.0), r"bias.*\(4,\).*\(3,\)"),
        (lambda: F.poincare_conv_transpose2d(IMAGES, KERNEL, padding=5, c=1.0), r"padding \(5, 5\).*\(6, 6\)"),
        (lambda: F.poincare_conv_transpose2d(IMAGES, KERNEL, output_padding=1, c=1.0), r"output_padding.*\(1, 1\)"),
        (lambda: F.poincare_conv_transpose2d(IMAGES, KERNEL, c=1.0, out_chart="klein"), "klein"),
        (lambda: F.poincare_max_pool2d(X, 2, c=1.0), r"\(5, 4\)"),
        (lambda: F.poincare_max_pool2d(IMAGES, 7, c=1.0), r"\(2, 3, 6, 6\)"),
        (lambda: F.poincare_max_pool2d(IMAGES, 2, padding=2, c=1.0), r"\(2, 3, 6, 6\).*pad"),
        (lambda: F.poincare_flatten(IMAGES, 2, 3, c=1.0), r"enclose dim=1.* got 2 and 3"),
        (lambda: F.poincare_flatten(IMAGES, 1, 4, c=1.0), r"end_dim=4.*\(2, 3, 6, 6\)"),
        (lambda: F.beta_concatenate([], c=1.0), "points"),
        (lambda: F.beta_concatenate([X, X[0]], c=1.0), r"\(5, 4\), \(4,\)"),
        (lambda: F.beta_concatenate([X, X[:3]], c=1.0), r"equal shapes.*\(5, 4\), \(3, 4\)"),
        (lambda: F.beta_concatenate(X, dim=0, c=1.0), r"\(\.\.\., k, n\).*dim=0"),
        (lambda: F.beta_split(X, 3, c=1.0), "4 dimensions.*got 3"),
        (lambda: F.beta_split(X, [3, 2], c=1.0), r"4 dimensions.*got \[3, 2\]"),
        (lambda: F.poincare_dropout(X, 2.0, c=1.0), "p must be a probability.*2"),
        (lambda: F.poincare_dropout(X, c=1.0, channelwise=True, dim=0), r"\(5, 4\) along dim=0"),
        (lambda: F.midpoint(X, c=1.0, reducedim=1), "reducedim"),
        (lambda: F.midpoint(X, torch.ones(4), c=1.0), r"weights.*\(5,\).*\(4,\)"),
        (lambda: F.frechet_mean(X, torch.ones(4), c=1.0), r"weights.*\(5,\).*\(4,\)"),
        (lambda: F.frechet_mean(X, c=1.0, max_iter=0), "max_iter"),
        (lambda: F.frechet_variance(X, torch.zeros(3), c=1.0), r"\(5, 4\)"),
        (lambda: F.midpoint_batch_norm(X, c=1.0, about="median"), "median"),
        (lambda: F.midpoint_batch_norm(X, c=1.0, scale="matrix"), "matrix"),
        (lambda: F.midpoint_batch_norm(X, gain=torch.ones(4), c=1.0), r"gain.*\(4,\)"),
        (lambda: F.midpoint_batch_norm(X, center=torch.zeros(5), c=1.0), r"center.*\(4,\).*\(5,\)"),
        (lambda: F.midpoint_batch_norm(X[:0], c=1.0), "empty"),
        (lambda: F.mobius_residual(X, torch.zeros(3, 4), c=1.0), r"\(5, 4\).*\(3, 4\)"),
        (lambda: F.mobius_residual(X, X, c=1.0, order="ff"), "ff"),
        (lambda: F.poincare_relu(X, c=1.0, in_chart="klein"), "klein"),
        (lambda: F.poincare_avg_pool2d(X, 2, c=1.0), r"\(5, 4\)"),
        (lambda: F.poincare_adaptive_avg_pool2d(X, 2, c=1.0), r"\(5, 4\)"),
    ],
)
def test_wrong_calls_say_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "name",
    ["expmap0", "logmap0", "lambda_x", "project", "poincare_relu", "midpoint", "poincare_dropout", "poincare_flatten"],
)
def test_wrong_types_say_what_is_wrong(name):
    function = getattr(F, name)
    with pytest.raises(TypeError, match=r"x|u|int64"):
        function(torch.zeros(2, 3, dtype=torch.long), c=1.0)
    with pytest.raises(TypeError, match="list"):
        function([[0.0, 0.1]], c=1.0)


@pytest.mark.parametrize("distance", [2.0, 6.0, 10.0])
def test_global_pooling_of_equal_points_is_that_point(distance, backend):
    """In single precision, far from the origin, too: rounding must not move the mean off the hyperboloid."""
    u = torch.nn.functional.normalize(torch.randn(256, 16, 1, 1, generator=generator()), dim=1) * distance / 2
    for size in (1, 2) if backend == "compiled" else (1,):  # the kernels add up in double precision
        pixels = u.expand(-1, -1, size, size)
        pooled = F.poincare_adaptive_avg_pool2d(pixels, 1, c=1.0, in_chart="tangent", out_chart="tangent")
        torch.testing.assert_close(pooled, u, atol=1e-5, rtol=1e-5)


def test_global_pooling_at_the_end_of_the_number_format(backend):
    h = torch.nn.functional.normalize(torch.randn(1, 4, 1, 1, generator=generator()), dim=1) * math.sinh(39.0)
    h.requires_grad_()
    c = torch.tensor(1.0, requires_grad=True)
    pooled = F.poincare_adaptive_avg_pool2d(h, 1, c=c, in_chart="hyperboloid", out_chart="hyperboloid")
    torch.testing.assert_close(pooled, h)
    grad_h, grad_c = torch.autograd.grad(pooled.sum(), (h, c), allow_unused=True)
    assert grad_h.isfinite().all()
    assert grad_c is None  # it plays no part between these charts


def test_pooled_points_may_be_changed_in_place(backend):
    x = (0.1 * torch.randn(3, 4, 9, 9, generator=generator())).requires_grad_()
    for chart in ("ball", "tangent"):
        F.poincare_adaptive_avg_pool2d(x, 1, c=1.0, in_chart=chart, out_chart=chart).mul_(2).sum().backward()


def test_batches_of_gradients(backend):
    """``jacobian(vectorize=True)`` hands over tensors without numbers of their own."""
    points = 0.1 * torch.randn(3, 4, generator=generator(), dtype=torch.float64)
    images = 0.1 * torch.randn(1, 2, 17, 16, generator=generator(), dtype=torch.float64)
    normals = torch.ones(2, 4, dtype=torch.float64)
    charts = {"in_chart": "tangent", "out_chart": "tangent"}
    for function, x in (
        (lambda x: F.poincare_mlr(x, normals, c=1.0), points),
        (lambda x: F.poincare_adaptive_avg_pool2d(x, 1, c=1.0, **charts), images),
    ):
        jacobian = torch.autograd.functional.jacobian
        torch.testing.assert_close(jacobian(function, x, vectorize=True), jacobian(function, x))


def test_offsets_of_another_precision_and_no_features(backend):
    x, weight = 0.1 * torch.randn(3, 4, generator=generator()), torch.randn(5, 4, generator=generator())
    offset = torch.full((5,), 0.1, dtype=torch.float64)
    for function in (F.poincare_mlr, F.poincare_linear):
        leaves = [t.clone().requires_grad_() for t in (x, weight, offset)]
        y = function(*leaves, c=1.0)
        torch.testing.assert_close(y, function(x.double(), weight.double(), offset, c=1.0), atol=1e-5, rtol=1e-5)
        gradients = torch.autograd.grad(y.sum(), leaves)
        assert [g.dtype for g in gradients] == [torch.float32, torch.float32, torch.float64]
        assert function(torch.zeros(3, 0), torch.zeros(5, 0), c=1.0).shape == (3, 5)


def test_arguments_are_checked_whatever_came_before():
    x, weight = torch.zeros(3, 4, 9, 9), torch.zeros(6, 4, 3, 3)
    for stride in ((1, 2), [1, 2]):
        assert F.poincare_conv2d(x, weight, stride=stride, c=1.0).shape == (3, 6, 7, 4)
    for stride in ((1, 2.0), [1, 2.0], [[1], [1]], {1}):  # some of them equal one that is right
        with pytest.raises(ValueError, match="stride must be an integer >= 1 or 2 of them"):
            F.poincare_conv2d(x, weight, stride=stride, c=1.0)


@pytest.mark.parametrize(("dtype", "distance", "offset"), [(torch.float32, 15.0, 8.0), (torch.float64, 140.0, 50.0)])
def test_hyperplanes_so_far_away_that_their_distances_have_no_sinh_to_square(backend, dtype, distance, offset):
    x, weight, bias = (
        torch.tensor(t, dtype=dtype, requires_grad=True)
        for t in ([[distance, 0.0]], [[1e-3, 0.0], [0.0, 0.0]], [-offset, -offset])
    )
    h = F.poincare_linear(x, weight, bias, c=1.0, in_chart="tangent", out_chart="hyperboloid")
    expected = math.sinh(2e-3 * (2 * distance + 2 * offset))
    torch.testing.assert_close(h, torch.tensor([[expected, 0.0]], dtype=dtype), rtol=1e-5, atol=1e-6)
    grads = torch.autograd.grad(h.sum(), (x, weight, bias))
    assert all(g.isfinite().all() for g in grads)
    torch.testing.assert_close(grads[0][0, 0].item(), 2 * 2e-3 * math.hypot(1, expected), rtol=1e-5, atol=0.0)


def gradients(function, tensors, dtype):
    """Of a sum with weights over the result."""
    leaves = [t.to(dtype).requires_grad_() for t in tensors]
    y = function(*leaves)
    return torch.autograd.grad(y, leaves, torch.linspace(-1, 1, y.numel()).to(dtype).view_as(y))


@pytest.mark.parametrize("noise", [1e-1, 1e-3, 1e-5])
@pytest.mark.parametrize("order", ["fr", "rf"])
def test_gradients_of_sums_that_cancel(order, noise, backend):
    """In single precision: the factor to tangent vectors near the origin comes from squares that rounding changes."""
    u = 2 * torch.nn.functional.normalize(torch.randn(4, 3, 50), dim=1)
    charts = {"in_chart": "hyperboloid", "shortcut_chart": "tangent", "out_chart": "tangent"}
    tensors = F.convert(u, "tangent", "hyperboloid", c=1.0, dim=1), noise * torch.randn_like(u) - u
    single, double = (
        gradients(lambda x, r: F.mobius_residual(x, r, c=1.0, order=order, **charts), tensors, dtype)
        for dtype in (torch.float32, torch.float64)
    )
    for a, b in zip(single, double, strict=True):
        assert (a.double() - b).norm() < 4e-5 * b.norm()


@pytest.mark.parametrize("noise", [1e-2, 1e-3, 1e-4])
def test_gradients_of_norms_that_bring_points_to_the_origin(noise, backend):
    direction = torch.nn.functional.normalize(torch.tensor([1.0, -0.5, 0.3]), dim=0)
    u = noise * torch.randn(4, 3, 50) - math.atanh(0.95) * direction[:, None]

    def norm(u, center):
        one = torch.ones_like(center)
        return F.midpoint_batch_norm(
            u, torch.zeros_like(one), one, one, center, eps=0.0, scale="channel", c=1.0, in_chart="tangent",
            out_chart="tangent",
        )  # fmt: skip

    single, double = (gradients(norm, (u, 0.95 * direction), t) for t in (torch.float32, torch.float64))
    assert (single[0].double() - double[0]).norm() < 4e-5 * double[0].norm()
    assert (single[1].double() - double[1]).norm() < 1e-3 * double[1].norm()
