"""What groups, transposed convolutions and max pooling are, spelled out with simpler operations."""

import math

import pytest
import torch
import torch.nn.functional as torch_F
from helpers import assert_close, assert_equal_with_gradients, generator
from operations import Arg, P

import manifold_resnet.functional as F
from manifold_resnet.functional import naive

SIZES = {1: (5,), 2: (4, 3), 3: (2, 3, 2)}


def tensors(*args, c=0.7):
    g = generator()
    return [arg.make(g, c) for arg in args]


def torch_layout(weight, groups):
    return torch.cat([w.transpose(0, 1) for w in weight.chunk(groups)])


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("groups", [2, 4])
def test_groups_are_convolutions_of_their_own(n, groups):
    """On their part of the tangent vectors; their coordinates in the hyperboloid chart make one point."""
    inputs, outputs = 4, 8
    x, weight, bias = tensors(
        P(2, inputs, *SIZES[n], dim=1),
        Arg("normal", (outputs, inputs // groups, *(2, 3, 1)[:n])),
        Arg("offset", (outputs,)),
    )
    options = {"stride": 2, "padding": 1}

    def composition(x, weight, bias, c):
        parts = zip(F.logmap0(x, c=c, dim=1).chunk(groups, 1), weight.chunk(groups), bias.chunk(groups), strict=True)
        charts = {"in_chart": "tangent", "out_chart": "hyperboloid"}
        coordinates = [F.poincare_conv(*part, **options, c=c, **charts) for part in parts]
        return F.convert(torch.cat(coordinates, 1), "hyperboloid", "ball", c=c, dim=1)

    def grouped(x, weight, bias, c):
        return F.poincare_conv(x, weight, bias, **options, groups=groups, c=c)

    assert_equal_with_gradients(grouped, composition, [x, weight, bias], 0.7)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_transposed_is_a_convolution_of_the_input_with_origins_in_between(n, stride):
    """Of the mirrored kernel, with the factor of as many pixels as reach an output pixel."""
    kernel = (4, 3, 2)[:n]
    x, weight, bias = tensors(P(2, 3, *SIZES[n], dim=1), Arg("normal", (5, 3, *kernel)), Arg("offset", (5,)))
    factor = F.beta_ratio(3, math.prod(max(k / stride, 1) for k in kernel)) / F.beta_ratio(3, math.prod(kernel))

    def composition(x, weight, bias, c):
        wide = x.new_zeros(*x.shape[:2], *((size - 1) * stride + 1 for size in x.shape[2:]))
        wide[(..., *[slice(None, None, stride)] * n)] = F.logmap0(x, c=c, dim=1) * factor
        border = [p for k in reversed(kernel) for p in (k - 2, k - 2)]  # padding 1
        mirrored = weight.flip(list(range(2, 2 + n)))
        return F.poincare_conv(torch_F.pad(wide, border), mirrored, bias, c=c, in_chart="tangent")

    def transposed(x, weight, bias, c):
        return F.poincare_conv_transpose(x, weight, bias, stride, padding=1, c=c)

    assert_equal_with_gradients(transposed, composition, [x, weight, bias], 0.7)


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_in_the_flat_limit(groups):
    """Twice torch's, with `s * weight`."""
    x, weight = tensors(P(2, 4, 3, 5, dim=1), Arg("normal", (6, 4 // groups, 4, 2)))
    x = 1e-4 * x
    y = F.poincare_conv_transpose2d(x, weight, stride=2, padding=(1, 0), groups=groups, c=1e-6)
    s = F.beta_ratio(4 // groups, 2)
    expected = torch_F.conv_transpose2d(x, torch_layout(weight, groups), None, 2, (1, 0), groups=groups)
    assert_close(y, 2 * s * expected, 1e-12)


@pytest.mark.parametrize("n", SIZES)
def test_transposed_places_pixels(n):
    """With a kernel as large as the stride and half the identity at one tap: pixels apart, no point moved."""
    (x,) = tensors(P(2, 3, *SIZES[n], dim=1))
    weight = torch.zeros(3, 3, *[2] * n, dtype=x.dtype)
    weight[(..., *[1] * n)] = 0.5 * torch.eye(3)
    y = F.poincare_conv_transpose(x, weight, stride=2, c=0.7)
    assert_close(y[(..., *[slice(1, None, 2)] * n)], x, 1e-12)
    assert (y != 0).sum() == x.numel()


def test_pixels_that_nothing_reaches():
    """With a stride larger than the kernel: the origin, or what the offsets make of it."""
    x, weight, bias = tensors(P(1, 3, 2, dim=1), Arg("normal", (4, 3, 1)), Arg("offset", (4,)))
    assert (F.poincare_conv_transpose(x, weight, stride=3, c=0.7)[:, :, 1:3] == 0).all()
    y = F.poincare_conv_transpose(x, weight, bias, stride=3, c=0.7)
    origin = F.poincare_linear(torch.zeros(1, 3, dtype=x.dtype), weight.flatten(1), bias, c=0.7)
    assert_close(y[:, :, 1:3], origin.unsqueeze(-1).expand(1, 4, 2), 1e-12)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("dilation", [1, 2])
def test_same_padding_in_other_dimensions(n, dilation):
    kernel = (2, 3, 4)[:n]
    x, weight = tensors(P(2, 3, *SIZES[n], dim=1), Arg("normal", (4, 3, *kernel)))
    options = {"padding": "same", "dilation": dilation}
    assert_equal_with_gradients(
        lambda *args, c: F.poincare_conv(*args, **options, c=c),
        lambda *args, c: naive.poincare_conv(*args, **options, c=c),
        [x, weight],
        0.7,
    )
    assert F.poincare_conv(x, weight, **options, c=0.7).shape == (2, 4, *SIZES[n])


# -- max pooling -----------------------------------------------------------------------------------


def test_points_move_as_a_whole():
    """Every point of the result is a point of its window, the farthest of them."""
    (x,) = tensors(P(2, 3, 6, 4, dim=1))
    y, indices = F.poincare_max_pool2d(x, 2, return_indices=True, c=0.7)
    assert indices.shape == (2, 1, 3, 2)
    windows = x.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)
    assert_close(y.norm(dim=1), windows.norm(dim=1).amax(-1), 1e-15)
    assert ((windows == y.unsqueeze(-1)).all(1).sum(-1) == 1).all()
    assert torch.equal(x.flatten(2).gather(2, indices.flatten(2).expand(-1, 3, -1)).view_as(y), y)
    back = torch_F.max_unpool2d(y, indices.expand_as(y), 2)
    assert ((back == x) | (back == 0)).all()
    assert (back.norm(dim=1) > 0).sum() == y[:, 0].numel()


@pytest.mark.parametrize("chart", ["ball", "tangent", "hyperboloid"])
def test_the_gradient_goes_to_the_points_chosen(chart):
    (x,) = tensors(P(2, 3, 6, 4, dim=1))
    x = F.convert(x, "ball", chart, c=0.7, dim=1).requires_grad_()
    y, indices = F.poincare_max_pool2d(x, 2, return_indices=True, c=0.7, in_chart=chart, out_chart=chart)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    chosen = torch.zeros_like(x[:, :1].flatten(2)).scatter(2, indices.flatten(2), 1.0).view(2, 1, 6, 4)
    assert_close(gradient, chosen.expand_as(x), 1e-12)


def test_of_equal_points_the_first_and_never_the_padding():
    x = torch.zeros(1, 2, 4)
    x[0, 0, 1], x[0, 1, 3] = 0.5, -0.5
    y, indices = F.poincare_max_pool1d(x, 4, return_indices=True, c=1.0)
    assert indices.item() == 1
    assert y.flatten().tolist() == [0.5, 0]
    _, indices = F.poincare_max_pool1d(torch.zeros(1, 2, 4), 2, padding=1, return_indices=True, c=1.0)
    assert indices.flatten().tolist() == [0, 1, 3]
