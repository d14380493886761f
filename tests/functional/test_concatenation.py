"""Beta-concatenation, split and flattening: inverses, what a linear layer sees, what becomes of norms."""

import pytest
import torch
from helpers import assert_close, assert_equal_with_gradients, generator, points
from hypothesis import given
from hypothesis import strategies as st
from operations import Arg, P

import manifold_resnet.functional as F

CHARTS = ("ball", "tangent", "hyperboloid")


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.sampled_from(CHARTS), st.integers(0, 2), st.data())
def test_split_undoes_concatenation(sizes, chart, dim, data):
    c = 10 ** data.draw(st.floats(-6, 1))
    shape = [2, 3, 2]
    g = generator(data.draw(st.integers(0, 1000)))
    parts = []
    for n in sizes:
        shape[dim] = n
        parts.append(F.convert(points(g, *shape, c=c, dim=dim, distance=2.0), "ball", chart, c=c, dim=dim))
    options = {"c": c, "dim": dim}
    joined = F.beta_concatenate(parts, **options, in_chart=chart, out_chart="hyperboloid")
    assert joined.shape[dim] == sum(sizes)
    split = F.beta_split(joined, sizes, **options, in_chart="hyperboloid", out_chart=chart)
    for part, other in zip(split, parts, strict=True):
        assert_close(part, other, 1e-12)
    again = F.beta_concatenate(split, **options, in_chart=chart, out_chart="hyperboloid")
    assert_close(again, joined, 1e-12)


def test_tensor_list_and_flattening_agree():
    x = points(generator(), 2, 3, 4, c=0.7, distance=2.0)
    joined = F.beta_concatenate(x, c=0.7)
    assert_close(F.beta_concatenate(x.unbind(-2), c=0.7), joined, 1e-14)
    assert_close(F.poincare_flatten(x, c=0.7, dim=-1), joined, 1e-14)
    assert_close(F.beta_concatenate([x[:, 0]], c=0.7), x[:, 0], 1e-14)
    split = F.beta_split(joined, 4, c=0.7)
    assert_close(torch.stack(split, 1), x, 1e-13)


def test_linear_layer_on_a_flattened_image_is_a_convolution_with_a_kernel_of_its_size():
    """In value and in all gradients: the normals are the same numbers in the same order."""
    g = generator()
    args = (P(3, 4, 2, 3, dim=1), Arg("normal", (5, 4, 2, 3)), Arg("offset", (5,)))

    def convolution(x, weight, bias, c):
        return F.poincare_conv2d(x, weight, bias, c=c).flatten(1)

    def linear(x, weight, bias, c):
        return F.poincare_linear(F.poincare_flatten(x, c=c), weight.flatten(1), bias, c=c)

    assert_equal_with_gradients(linear, convolution, [arg.make(g, 0.7) for arg in args], 0.7)


@pytest.mark.parametrize("sizes", [[8] * 9, [3, 30, 7], [2] * 64], ids=str)
def test_expected_norms_are_kept(sizes):
    """Of parts uniform on unit spheres, coordinates get the mean size that they have on the unit sphere of the sum."""
    g = generator()
    total, count = sum(sizes), 20_000

    def uniform(n):
        u = torch.randn(count, n, generator=g, dtype=torch.float64)
        return u / u.norm(dim=1, keepdim=True)

    joined = F.beta_concatenate([uniform(n) for n in sizes], c=1.0, in_chart="tangent", out_chart="tangent")
    expected = uniform(total)
    for part in joined.split(sizes, dim=1):
        assert part.abs().mean().item() == pytest.approx(expected.abs().mean().item(), rel=0.03)


def test_bounds():
    x = points(generator(), 5, 2, 3, c=1.0, distance=4.0)
    joined = F.beta_concatenate(x, c=1.0, max_distance=0.5)
    origin = torch.zeros_like(joined)
    assert (F.dist(joined, origin, c=1.0) <= 0.5 + 1e-12).all()
    for part in F.beta_split(x.flatten(1) / 2, 3, c=1.0, max_distance=0.1):
        assert (F.dist(part, torch.zeros_like(part), c=1.0) <= 0.1 + 1e-12).all()
