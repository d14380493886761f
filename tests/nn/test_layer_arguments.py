"""Wrong arguments are refused where they are given, by a message that says what came and what was expected."""

import math

import geoopt
import pytest
import torch

from manifold_resnet import nn

BALL = geoopt.PoincareBall(1.0)
MAKE = {
    "linear": lambda **kw: nn.PoincareLinear(3, 4, **{"ball": BALL} | kw),
    "mlr": lambda **kw: nn.PoincareMLR(3, 4, **{"ball": BALL} | kw),
    "conv1d": lambda **kw: nn.PoincareConv1d(3, 4, 3, **{"ball": BALL} | kw),
    "conv2d": lambda **kw: nn.PoincareConv2d(3, 4, 3, **{"ball": BALL} | kw),
    "conv3d": lambda **kw: nn.PoincareConv3d(3, 4, 3, **{"ball": BALL} | kw),
    "conv_transpose1d": lambda **kw: nn.PoincareConvTranspose1d(3, 4, 3, **{"ball": BALL} | kw),
    "conv_transpose2d": lambda **kw: nn.PoincareConvTranspose2d(3, 4, 3, **{"ball": BALL} | kw),
    "conv_transpose3d": lambda **kw: nn.PoincareConvTranspose3d(3, 4, 3, **{"ball": BALL} | kw),
    "norm1d": lambda **kw: nn.PoincareBatchNorm1d(3, **{"ball": BALL} | kw),
    "norm2d": lambda **kw: nn.PoincareBatchNorm2d(3, **{"ball": BALL} | kw),
    "norm3d": lambda **kw: nn.PoincareBatchNorm3d(3, **{"ball": BALL} | kw),
    "relu": lambda **kw: nn.PoincareReLU(**{"ball": BALL} | kw),
    "pool": lambda **kw: nn.PoincareAvgPool2d(2, **{"ball": BALL} | kw),
    "adaptive_pool": lambda **kw: nn.PoincareAdaptiveAvgPool2d(2, **{"ball": BALL} | kw),
    "max_pool1d": lambda **kw: nn.PoincareMaxPool1d(2, **{"ball": BALL} | kw),
    "max_pool2d": lambda **kw: nn.PoincareMaxPool2d(2, **{"ball": BALL} | kw),
    "max_pool3d": lambda **kw: nn.PoincareMaxPool3d(2, **{"ball": BALL} | kw),
    "flatten": lambda **kw: nn.PoincareFlatten(**{"ball": BALL} | kw),
    "dropout": lambda **kw: nn.PoincareDropout(**{"ball": BALL} | kw),
    "dropout1d": lambda **kw: nn.PoincareDropout1d(**{"ball": BALL} | kw),
    "dropout2d": lambda **kw: nn.PoincareDropout2d(**{"ball": BALL} | kw),
    "dropout3d": lambda **kw: nn.PoincareDropout3d(**{"ball": BALL} | kw),
    "lookup": lambda **kw: nn.PoincareEmbedding(3, 4, **{"ball": BALL} | kw),
    "residual": lambda **kw: nn.PoincareResidual(**{"ball": BALL} | kw),
    "expmap0": lambda **kw: nn.ExpMap0(**{"ball": BALL} | kw),
    "logmap0": lambda **kw: nn.LogMap0(**{"ball": BALL} | kw),
}
every_layer = pytest.mark.parametrize("name", MAKE)


@every_layer
@pytest.mark.parametrize(
    ("ball", "kind"), [(1.0, "float"), (None, "NoneType"), (geoopt.Lorentz(), "Lorentz"), (geoopt.Sphere(), "Sphere")]
)
def test_another_manifold(name, ball, kind):
    with pytest.raises(TypeError, match=rf"geoopt\.PoincareBall, got {kind}"):
        MAKE[name](ball=ball)


@every_layer
@pytest.mark.parametrize("c", [0.0, -1.0, math.nan, math.inf])
def test_curvature_that_is_not_positive(name, c):
    with pytest.raises(ValueError, match="c must be positive and finite.*got c="):
        MAKE[name](ball=geoopt.PoincareBall(c))


SIZES = {"linear": 2, "mlr": 2, "lookup": 2, "conv": 3, "norm": 1, "pool": 1, "max": 1, "adaptive": 1}


@every_layer
def test_ball_is_required_and_keyword_only(name):
    make = type(MAKE[name]())
    sizes = [3] * next((n for start, n in SIZES.items() if name.startswith(start)), 0)
    with pytest.raises(TypeError, match="ball"):
        make(*sizes)
    with pytest.raises(TypeError):
        make(*sizes, BALL)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        *((n, {"init": "he"}, "init must be one of identity, paper, normal, gaussian, orthogonal; got 'he'")
          for n in ("linear", "mlr", "conv1d", "conv2d", "conv_transpose2d")),
        ("linear", {"init": None}, "init must be one of .*; got None"),
        *((n, {"weight_on": "sphere"}, "weight_on must be 'ball' or 'tangent', got 'sphere'")
          for n in ("linear", "mlr", "conv2d")),
        *((n, {"max_distance": d}, f"max_distance must be a positive .*; got {d}")
          for n in ("linear", "conv2d", "norm1d", "norm2d", "residual", "expmap0", "flatten", "dropout", "dropout2d")
          for d in (0, -1.0, math.nan)),
        ("norm2d", {"mean": "median"}, "mean must be one of midpoint, frechet; got 'median'"),
        ("norm1d", {"scale": "matrix"}, "scale must be one of scalar, channel; got 'matrix'"),
        ("norm2d", {"eps": 0.0}, "eps must be positive, got 0"),
        ("norm2d", {"eps": math.nan}, "eps must be positive, got nan"),
        ("norm2d", {"momentum": 1.5}, "momentum must be between 0 and 1 or None .*, got 1.5"),
        ("norm2d", {"momentum": -0.1}, "momentum must be .*, got -0.1"),
        ("residual", {"order": "ff"}, "order must be 'fr' .* or 'rf' .*, got 'ff'"),
        ("conv2d", {"stride": 0}, "stride must be an integer >= 1 or 2 of them, got 0"),
        ("conv2d", {"stride": (1, 1, 1)}, r"stride must be .*, got \(1, 1, 1\)"),
        ("conv3d", {"dilation": (1, 0, 1)}, r"dilation must be an integer >= 1 or 3 of them, got \(1, 0, 1\)"),
        ("conv2d", {"padding": -1}, "padding must be an integer >= 0 or 2 of them, got -1"),
        ("conv2d", {"padding": "full"}, "padding must be 'same', 'valid' or integers, got 'full'"),
        ("conv1d", {"padding": (1, 1)}, r"padding must be an integer >= 0 or 1 of them, got \(1, 1\)"),
        ("conv2d", {"padding": "same", "stride": 2}, r"padding='same' needs stride 1, got \(2, 2\)"),
        *((n, {"groups": g}, f"groups must be a positive integer, got {g}")
          for n in ("conv1d", "conv_transpose2d") for g in (0, -1, 1.5)),
        *((n, {"groups": 3}, r"groups must divide the numbers of input \(3\) and output \(4\) channels, got 3")
          for n in ("conv2d", "conv_transpose3d")),
        ("conv_transpose2d", {"padding": "same"}, "padding must be an integer >= 0 or 2 of them, got 'same'"),
        ("conv_transpose2d", {"output_padding": 1}, r"output_padding must be smaller than the stride \(1, 1\) or"),
        ("conv_transpose1d", {"stride": (2, 2)}, r"stride must be an integer >= 1 or 1 of them, got \(2, 2\)"),
        ("conv_transpose1d", {"dilation": 0}, "dilation must be an integer >= 1 or 1 of them, got 0"),
        ("max_pool2d", {"padding": 2}, "padding must be at most half of kernel_size 2, got 2"),
        ("max_pool2d", {"stride": 0}, "stride must be an integer >= 1 or 2 of them, got 0"),
        ("max_pool3d", {"dilation": (1, 1)}, r"dilation must be an integer >= 1 or 3 of them, got \(1, 1\)"),
        *((n, {"p": p}, f"p must be a probability, between 0 and 1, got {p}")
          for n in ("dropout", "dropout2d") for p in (-0.1, 1.5, math.nan)),
        ("lookup", {"padding_idx": 3}, "padding_idx must be the index of one of 3 points, got 3"),
        ("lookup", {"std": -1.0}, "std must be a number from 0 up, or None .*, got -1"),
    ],
)  # fmt: skip
def test_unknown_values(name, options, message):
    with pytest.raises(ValueError, match=message):
        MAKE[name](**options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.PoincareLinear(0, 4, ball=BALL), "input .* must be a positive integer, got 0"),
        (lambda: nn.PoincareLinear(3, -4, ball=BALL), "output .* must be a positive integer, got -4"),
        (lambda: nn.PoincareMLR(3, 0, ball=BALL), "output .* must be a positive integer, got 0"),
        (lambda: nn.PoincareConv2d(0, 4, 3, ball=BALL), "input channels .* must be a positive integer, got 0"),
        (lambda: nn.PoincareConv2d(3, 4, 0, ball=BALL), "kernel_size must be an integer >= 1 or 2 of them, got 0"),
        (lambda: nn.PoincareConv2d(3, 4, (3,), ball=BALL), r"kernel_size must be .*, got \(3,\)"),
        (lambda: nn.PoincareConvTranspose2d(3, 0, 3, ball=BALL), "output .* must be a positive integer, got 0"),
        (lambda: nn.PoincareMaxPool2d(0, ball=BALL), "kernel_size must be an integer >= 1 or 2 of them, got 0"),
        (lambda: nn.PoincareEmbedding(0, 3, ball=BALL), "num_embeddings must be a positive integer, got 0"),
        (lambda: nn.PoincareEmbedding(3, 2.5, ball=BALL), "embedding_dim must be a positive integer, got 2.5"),
        (lambda: nn.PoincareBatchNorm2d(0, ball=BALL), "num_features must be positive, got 0"),
    ],
)
def test_sizes(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("linear", (5, 2), r"3 features .*got x of shape \(5, 2\)"),
        ("mlr", (5, 2), r"3 features .*got x of shape \(5, 2\)"),
        ("conv1d", (2, 2, 6), r"\(batch, 3, W\).*got \(2, 2, 6\)"),
        ("conv1d", (2, 3), r"\(batch, 3, W\).*got \(2, 3\)"),
        ("conv2d", (2, 2, 6, 6), r"\(batch, 3, H, W\).*got \(2, 2, 6, 6\)"),
        ("conv2d", (3, 6, 6), r"\(batch, 3, H, W\).*got \(3, 6, 6\)"),
        ("conv2d", (1, 3, 2, 6), r"kernel of size \(3, 3\).* spatial size \(2, 6\)"),
        ("conv3d", (2, 3, 6, 6), r"\(batch, 3, D, H, W\).*got \(2, 3, 6, 6\)"),
        ("norm1d", (5, 2), r"\(batch, 3\) or \(batch, 3, \*\), got \(5, 2\)"),
        ("norm1d", (5, 3, 2, 2), r"\(batch, 3\) or \(batch, 3, \*\), got \(5, 3, 2, 2\)"),
        ("norm2d", (5, 2, 4, 4), r"\(batch, 3, \*, \*\), got \(5, 2, 4, 4\)"),
        ("norm2d", (5, 3), r"\(batch, 3, \*, \*\), got \(5, 3\)"),
        ("norm3d", (5, 3, 4, 4), r"\(batch, 3, \*, \*, \*\), got \(5, 3, 4, 4\)"),
        ("pool", (5, 3), r"\(batch, channels, H, W\), got \(5, 3\)"),
        ("conv_transpose2d", (2, 2, 6, 6), r"\(batch, 3, H, W\).*got \(2, 2, 6, 6\)"),
        ("conv_transpose1d", (2, 3), r"\(batch, 3, W\).*got \(2, 3\)"),
        ("max_pool1d", (5, 3), r"\(batch, channels, W\), got \(5, 3\)"),
        ("max_pool2d", (2, 3, 1, 4), r"cannot pool images of shape \(2, 3, 1, 4\)"),
        ("dropout2d", (2, 3, 4), r"\(batch, channels, H, W\), got \(2, 3, 4\)"),
        ("flatten", (3,), r"must be dimensions of x, got x of shape \(3,\)"),
        ("adaptive_pool", (3, 4, 4), r"\(batch, channels, H, W\), got \(3, 4, 4\)"),
    ],
)
def test_input_of_another_shape(name, shape, message):
    with pytest.raises(ValueError, match=message):
        MAKE[name]()(torch.zeros(shape))


def test_shortcut_of_another_shape():
    with pytest.raises(ValueError, match=r"same shape, got \(1, 3, 5\) and \(1, 3, 4\)"):
        nn.PoincareResidual(ball=BALL)(torch.zeros(1, 3, 5), torch.zeros(1, 3, 4))


SHAPES = {"1d": (2, 3, 6), "2d": (2, 3, 6, 6), "3d": (2, 3, 6, 6, 6)}


@pytest.mark.parametrize("name", [name for name in MAKE if name != "lookup"])
def test_unknown_charts_and_integers(name):
    layer = MAKE[name]()
    x = torch.zeros(SHAPES.get(name[-2:], (2, 3, 3, 3)))
    inputs = (x, x) if name == "residual" else (x,)
    charts = [c for c in ("in_chart", "shortcut_chart", "out_chart") if c in layer.forward.__code__.co_varnames]
    for chart in charts:
        with pytest.raises(ValueError, match="must be one of ball, tangent, hyperboloid; got 'klein'"):
            layer(*inputs, **{chart: "klein"})
    with pytest.raises(TypeError, match=r"floating point tensor, got torch.int64"):
        layer(*(t.long() for t in inputs))


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.PoincareLinear(3.5, 4, ball=BALL),
        lambda: nn.PoincareLinear("3", 4, ball=BALL),
        lambda: nn.PoincareConv2d(3, 4, 2.5, ball=BALL),
        lambda: nn.PoincareBatchNorm2d(3.5, ball=BALL),
        lambda: nn.PoincareLinear(3, 4, ball=BALL, max_distance="6"),
        lambda: nn.PoincareBatchNorm2d(3, ball=BALL, eps="small"),
        lambda: nn.PoincareAvgPool2d(0, ball=BALL),
        lambda: nn.PoincareAvgPool2d((2, 2, 2), ball=BALL),
        lambda: nn.PoincareAvgPool2d(2, padding=2, ball=BALL),
        lambda: nn.PoincareAvgPool2d(2, stride=0, ball=BALL),
        lambda: nn.PoincareMaxPool2d(2, padding=-1, ball=BALL),
        lambda: nn.PoincareDropout("half", ball=BALL),
        lambda: nn.PoincareAdaptiveAvgPool2d(-1, ball=BALL),
        lambda: nn.PoincareAdaptiveAvgPool2d((1, 1, 1), ball=BALL),
    ],
)
def test_numbers_of_the_wrong_kind(make):
    """The message names the argument's value: it is not an error from somewhere inside."""
    with pytest.raises((ValueError, TypeError), match=r"must be.*got"):
        make()


OFF_THE_BALL = ["linear", "mlr", "conv2d", "norm2d", "relu", "residual", "logmap0"]
OFF_THE_BALL += ["conv_transpose2d", "max_pool2d", "flatten", "dropout", "dropout2d"]


@pytest.mark.parametrize("name", OFF_THE_BALL)
def test_points_off_the_ball(name):
    layer = MAKE[name]()
    x = torch.full(SHAPES.get(name[-2:], (2, 3, 3, 3)), 2.0)
    with pytest.raises(ValueError, match=r"off the ball: the largest norm is .*, the ball of c=.* has radius"):
        layer(*((x, x) if name == "residual" else (x,)))


@pytest.mark.parametrize("name", [*OFF_THE_BALL, "expmap0"])
def test_what_is_no_tensor_of_numbers(name):
    layer = MAKE[name]()
    shape = SHAPES.get(name[-2:], (2, 3, 3, 3))
    for x, came in ((None, "NoneType"), ([0.1], "list"), (torch.zeros(shape, dtype=torch.complex64), "complex64")):
        with pytest.raises(TypeError, match=f"x must be .*, got .*{came}"):
            layer(*((x, x) if name == "residual" else (x,)))


@pytest.mark.parametrize("name", OFF_THE_BALL)
@pytest.mark.parametrize("chart", ["in_chart", "out_chart"])
def test_unknown_charts(name, chart):
    if name in ("mlr", "logmap0") and chart == "out_chart":  # they return no points
        return
    layer = MAKE[name]()
    x = torch.zeros(SHAPES.get(name[-2:], (2, 3, 3, 3)))
    with pytest.raises(ValueError, match=f"^{chart} must be one of ball, tangent, hyperboloid; got 'euclid'"):
        layer(*((x, x) if name == "residual" else (x,)), **{chart: "euclid"})
