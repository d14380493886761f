"""Every operation equals the plain composition of geoopt calls, in value and in all gradients."""

import functools
import math

import pytest
import torch
from covering import pairs
from helpers import (
    TOLERANCES,
    assert_close,
    assert_equal_with_gradients,
    generator,
    points,
    value_and_gradients,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from operations import LAYERS, LINEAR, NORM, OPERATIONS, Arg, Operation, P, curvature, operation, scaled

from manifold_resnet.functional import convert, naive

CHARTS = ("ball", "tangent", "hyperboloid")
ROWS = {str(op): op for op in OPERATIONS}


@functools.cache
def truth(name, c):
    """The naive composition's value and gradients, for every backend and chart that is compared with them."""
    op = ROWS[name]
    return value_and_gradients(op.naive, op.tensors(c), c)


@curvature
@operation
def test_equals_naive(op, c):
    assert_equal_with_gradients(op.fast, truth(str(op), c), op.tensors(c), c)


@pairs
@pytest.mark.parametrize("c", [1e-6, 1e-3, 10.0])
@pytest.mark.parametrize("op", [op for op in OPERATIONS if not op.bounded], ids=str)
def test_homothety(op, c):
    """Curvature only sets the unit of length, also far out on an all but flat ball, where geoopt is inexact.

    With lengths measured in 1/sqrt(c), result and gradients are those of the ball of curvature 1, and the
    gradient for c is zero.
    """
    value, gradients = truth(str(op), 1.0)
    expected = value, [*gradients[:-1], torch.zeros((), dtype=torch.float64)]
    assert_equal_with_gradients(scaled(op), expected, op.tensors(1.0), c)


@operation
def test_float32(op):
    """In single precision the result is that of double precision, but for the nearer bound of `project`."""

    def reference(*tensors, c):
        y = op.naive(*tensors, c=c)
        if op.returns != "point" or y.ndim != tensors[0].ndim:  # no points, or means, which lie further inside
            return y
        return naive.project(y, c=c, dim=op.args[0].dim, eps=4e-3)

    tensors = [t.float() for t in op.tensors(1.0)]
    assert_equal_with_gradients(op.fast, reference, tensors, 1.0, torch.float32)


def in_charts(op, in_chart, out_chart):
    """A layer on ball points that converts them, runs in other charts, and converts the result."""
    options = {"in_chart": in_chart} | ({"out_chart": out_chart} if out_chart else {})
    dim = op.args[0].dim
    vectors = sum(arg.is_vector for arg in op.args) if op.name == "beta_concatenate" else 1
    out_dim = op.kwargs.get("start_dim", dim)

    def layer(x, *rest, c):
        others = [convert(y, "ball", in_chart, c=c, dim=dim) for y in rest[: vectors - 1]]
        rest = (*others, *rest[vectors - 1 :])
        if op.name == "mobius_residual":
            shortcut_chart = CHARTS[(CHARTS.index(in_chart) + 1) % 3]
            options["shortcut_chart"] = shortcut_chart
            rest = (convert(rest[0], "ball", shortcut_chart, c=c, dim=dim),)
        y = op.fast(convert(x, "ball", in_chart, c=c, dim=dim), *rest, c=c, **options)
        return convert(y, out_chart, "ball", c=c, dim=out_dim) if out_chart else y

    return layer


BETWEEN_POINTS = [op for op in [*LINEAR, *NORM, *LAYERS] if op.returns == "point"]


@pairs
@pytest.mark.parametrize("out_chart", CHARTS)
@pytest.mark.parametrize("in_chart", CHARTS)
@pytest.mark.parametrize("op", BETWEEN_POINTS, ids=str)
def test_charts(op, in_chart, out_chart):
    """A layer in other charts is the layer on the ball between conversions."""
    assert_equal_with_gradients(in_charts(op, in_chart, out_chart), truth(str(op), 0.5), op.tensors(0.5), 0.5)


@pytest.mark.parametrize("in_chart", CHARTS)
@pytest.mark.parametrize("op", [op for op in LINEAR if op.returns == "number"], ids=str)
def test_charts_of_numbers(op, in_chart):
    assert_equal_with_gradients(in_charts(op, in_chart, None), truth(str(op), 0.5), op.tensors(0.5), 0.5)


@st.composite
def convolutions(draw):
    """A convolution, transposed or not, of random geometry in 1 to 3 dimensions, with an input that it fits."""
    n = draw(st.integers(1, 3))

    def sizes(least, most):
        return tuple(draw(st.integers(least, most)) for _ in range(n))

    kernel, stride, padding, dilation, extra = sizes(1, 3), sizes(1, 3), sizes(0, 2), sizes(1, 2), sizes(0, 3)
    image = tuple(
        max(d * (k - 1) + 1 - 2 * p, 1) + e for k, p, d, e in zip(kernel, padding, dilation, extra, strict=True)
    )
    batch, inputs, outputs = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    groups = draw(st.integers(1, 3))
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    transposed = draw(st.booleans())
    if transposed:
        image = tuple(
            max(math.ceil((2 * p - d * (k - 1)) / s), 0) + 1 + e
            for k, s, p, d, e in zip(kernel, stride, padding, dilation, extra, strict=True)
        )
        options["output_padding"] = tuple(
            draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)
        )
    args = (P(batch, groups * inputs, *image, dim=1), Arg("normal", (groups * outputs, inputs, *kernel)))
    if draw(st.booleans()):
        args += (Arg("offset", (groups * outputs,)),)
    return Operation(f"poincare_conv{'_transpose' * transposed}", args, options)


@settings(max_examples=50)
@given(convolutions(), st.sampled_from([0.1, 1.0, 10.0]), st.integers(0, 1000))
def test_convolution_geometry(op, c, seed):
    x, weight, *bias = tensors = op.tensors(c, seed)
    assert_equal_with_gradients(op.fast, op.naive, tensors, c)
    if "transpose" in op.name:  # torch has inputs first
        weight = torch.cat([w.transpose(0, 1) for w in weight.chunk(op.kwargs["groups"])])
    conv = getattr(torch, f"{op.name.removeprefix('poincare_')}{x.ndim - 2}d")
    assert op.fast(*tensors, c=c).shape == conv(x, weight, *bias, **op.kwargs).shape


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_convolution_padding_by_name(padding):
    op = Operation(
        "poincare_conv2d",
        (P(2, 3, 5, 4, dim=1), Arg("normal", (4, 3, 2, 3))),
        {"padding": padding, "dilation": (1, 2)},
    )
    if padding == "same":
        assert op.fast(*op.tensors(1.0), c=1.0).shape == (2, 4, 5, 4)
    else:
        op = Operation(op.name, op.args[:1] + (Arg("normal", (4, 3, 2, 2)),), {"padding": padding})
    assert_equal_with_gradients(op.fast, op.naive, op.tensors(1.0), 1.0)


@given(st.integers(0, 1000), st.lists(st.integers(1, 3), min_size=1, max_size=4), st.data())
def test_shapes_and_dims(seed, shape, data):
    """Any number of dimensions, the manifold along any of them."""
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    g = generator(seed)
    for op in (
        Operation("mobius_add", (P(*shape, dim=dim), P(*shape, dim=dim)), {"dim": dim}),
        Operation("dist", (P(*shape, dim=dim), P(*shape, dim=dim)), {"dim": dim}),
        Operation("midpoint", (P(*shape, dim=dim),), {"dim": dim}),
        Operation("poincare_relu", (P(*shape, dim=dim),), {"dim": dim}),
        Operation("midpoint_batch_norm", (P(*shape, dim=dim),), {"dim": dim, "eps": 1.0}),
    ):
        tensors = [points(g, *shape, c=1.0, dim=dim, distance=2.0) for _ in op.args]
        assert_equal_with_gradients(op.fast, op.naive, tensors, 1.0)


@pytest.mark.parametrize("c", [1e-6, 1.0])
@operation
def test_c_as_number_and_tensor(op, c):
    """c may be a number, a tensor, or a tensor of another dtype."""
    tensors = op.tensors(c)
    expected = op.fast(*tensors, c=c)
    tolerance = TOLERANCES[torch.float64].value
    assert_close(op.fast(*tensors, c=torch.tensor(c, dtype=torch.float64)), expected, tolerance)
    assert_close(op.fast(*tensors, c=torch.tensor([c], dtype=torch.float64)), expected, tolerance)
    if c == 1.0:
        assert_close(op.fast(*tensors, c=torch.tensor(c, dtype=torch.float32)), expected, tolerance)
        assert_close(op.fast(*tensors, c=1), expected, tolerance)
