"""Backends: choosing one, building the kernels, and that all give the same results."""

import math
import shutil
import warnings
from pathlib import Path

import geoopt
import pytest
import torch

import manifold_resnet as mr
import manifold_resnet.functional as F
from manifold_resnet.functional import _native
from manifold_resnet.functional._backend import _State
from manifold_resnet.functional._eager import radial

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="the compiled kernels need a C++ compiler"
)


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """As in a process that has not built anything, on a machine that has not either."""
    monkeypatch.setattr(_State, "chosen", None)
    monkeypatch.setattr(_State, "library", None)
    monkeypatch.setattr(_State, "broken", None)
    monkeypatch.setenv("MANIFOLD_RESNET_CACHE", str(tmp_path))
    monkeypatch.delenv("MANIFOLD_RESNET_BACKEND", raising=False)


def block(channels=5, dtype=torch.float64, c=0.7, **options):
    """Convolution, norm, ReLU, residual: every fused operation, in one function of images."""
    torch.manual_seed(0)
    ball = geoopt.PoincareBall(c).to(dtype)
    conv = mr.nn.PoincareConv2d(channels, channels, 3, padding=1, ball=ball, **options)
    norm = mr.nn.PoincareBatchNorm2d(channels, ball=ball, **options)
    add = mr.nn.PoincareResidual(ball=ball, **options)
    layers = torch.nn.ModuleList([conv, norm, add])
    with torch.no_grad():
        conv.bias.uniform_(-0.2, 0.2)
        norm.bias.copy_(geoopt.ManifoldTensor(0.1 * torch.rand(channels, dtype=dtype), manifold=ball))
        norm.log_scale.uniform_(0, 1)

    def forward(u):
        h = conv(u, in_chart="tangent", out_chart="hyperboloid")
        h = norm(h, in_chart="hyperboloid", out_chart="hyperboloid")
        return add(h, u, in_chart="hyperboloid", shortcut_chart="tangent", out_chart="tangent", relu=True)

    return layers, forward


def results(layers, forward, u, backend):
    """Output, all gradients and running statistics."""
    state = {k: v.clone() for k, v in layers.state_dict().items()}
    u = u.detach().requires_grad_()
    with mr.set_backend(backend):
        out = forward(u)
        cotangent = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
        gradients = torch.autograd.grad(out, [u, *(p for p in layers.parameters() if p.requires_grad)], cotangent)
    buffers = [b.clone() for b in layers.buffers()]
    layers.load_state_dict(state)
    return [out.detach(), *gradients, *buffers]


@needs_compiler
@pytest.mark.parametrize("options", [{}, {"max_distance": 0.5}], ids=["default", "bounded"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("shape", [(2, 1, 1), (3, 17, 23), (1, 12, 31), (40, 4, 5)], ids=str)
def test_compiled_equals_eager(shape, training, options):
    """Also for numbers of pixels that fill no block of the kernels, and for one image."""
    layers, forward = block(**options)
    layers.train(training)
    batch, *size = shape
    # a zero shortcut would leave points exactly on the bound, where gradients may be either side's
    u = torch.randn(batch, 5, *size, dtype=torch.float64)
    for a, b in zip(*(results(layers, forward, u, backend) for backend in ("compiled", "eager")), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("max_distance", [None, 0.5], ids=["unbounded", "bounded"])
@pytest.mark.parametrize("chart", ["tangent", "hyperboloid"])
@pytest.mark.parametrize(
    ("forward", "backward"),
    [
        ("eager", "eager"),
        pytest.param("compiled", "compiled", marks=needs_compiler),
        pytest.param("eager", "compiled", marks=needs_compiler),
        pytest.param("compiled", "eager", marks=needs_compiler),
    ],
)
def test_each_backward_pass_is_the_first(forward, backward, chart, max_distance):
    """What a backward pass uses it leaves as it was, and it does not need the same kernels as the forward pass."""
    layers, _ = block(max_distance=max_distance)
    conv, norm, add = layers
    u = torch.randn(3, 5, 6, 7, dtype=torch.float64, requires_grad=True)
    leaves = [u, *(p for p in layers.parameters() if p.requires_grad)]
    with mr.set_backend(forward):
        h = conv(u, in_chart="tangent", out_chart="hyperboloid")
        v = norm(h, in_chart="hyperboloid", out_chart=chart, relu=chart == "tangent")
        y = add(h, v, in_chart="hyperboloid", shortcut_chart=chart, out_chart=chart, relu=chart == "tangent")
        cotangent = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
        expected = torch.autograd.grad(y, leaves, cotangent, retain_graph=True)
    with mr.set_backend(backward):
        first, second = (torch.autograd.grad(y, leaves, cotangent, retain_graph=True) for _ in range(2))
    for a, b, c in zip(first, second, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
        torch.testing.assert_close(a, c, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("options", [{}, {"max_distance": 0.5}], ids=["default", "bounded"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("shape", [(2, 1, 1), (5, 17, 23), (1, 12, 31)], ids=str)
def test_eager_equals_bodies(shape, training, options, monkeypatch):
    """The passes in place against what they stand for, in one piece and in several."""
    layers, forward = block(**options)
    layers.train(training)
    batch, *size = shape
    u = torch.randn(batch, 5, *size, dtype=torch.float64)
    whole = results(layers, forward, u, "eager")
    monkeypatch.setattr(radial, "_PIECE", 2 * u[0].numel() * u.element_size())
    pieces = results(layers, forward, u, "eager")
    monkeypatch.setattr(_State, "native", False)
    bodies = results(layers, forward, u, "eager")
    for a, b, c in zip(whole, pieces, bodies, strict=True):
        torch.testing.assert_close(a, c, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(b, c, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("max_distance", [None, math.inf, 0.5])
@pytest.mark.parametrize("radius", [0.0, 0.2, 0.9])
def test_eager_norms_with_near_and_far_centers(radius, max_distance, monkeypatch):
    """The norm of the result follows from its time part or, with far centres and near bounds, from its coordinates."""
    g = torch.Generator().manual_seed(0)
    h = torch.randn(6, 4, 5, 5, generator=g, dtype=torch.float64)
    center, gain = radius * torch.tensor([0.5, -0.5, 0.5, 0.5]).double(), torch.rand(4, generator=g).double()
    charts = {"in_chart": "hyperboloid", "out_chart": "tangent"}

    def results():
        inputs = [t.clone().requires_grad_() for t in (h, gain, center)]
        y = F.midpoint_batch_norm(
            inputs[0], None, None, *inputs[1:], scale="channel", c=1.0, max_distance=max_distance, **charts
        )
        return y, *torch.autograd.grad((y * h).sum(), inputs)

    with mr.set_backend("eager"):
        eager = results()
        monkeypatch.setattr(_State, "native", False)
        bodies = results()
    for a, b in zip(eager, bodies, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("order", ["fr", "rf"])
@pytest.mark.parametrize("distance", [1.0, 4.0, 12.0])
def test_bound_holds_where_sums_cancel(distance, order):
    """In single precision, where rounding leaves nothing of the sum of far points that are almost opposite."""
    x = torch.nn.functional.normalize(torch.randn(4, 3, 50), dim=1) * distance
    charts = {"in_chart": "tangent", "shortcut_chart": "tangent", "out_chart": "tangent"}
    shortcut = -x + 0.01 * distance * torch.randn_like(x)
    with mr.set_backend("eager"):
        z = F.mobius_residual(x, shortcut, c=1.0, order=order, max_distance=0.5, **charts)
    assert (2 * z.norm(dim=1)).max() <= 0.5 * (1 + 1e-5)


@pytest.mark.parametrize("order", ["fr", "rf"])
def test_bound_is_exact_in_the_flat_limit(order):
    """In single precision: with a small c, points that reach the bound hardly differ from the origin."""
    g = torch.Generator().manual_seed(0)
    x, shortcut = torch.randn(2, 4, 3, 50, generator=g)
    charts = {"in_chart": "tangent", "shortcut_chart": "tangent", "out_chart": "tangent"}
    with mr.set_backend("eager"):
        z = F.mobius_residual(x, shortcut, c=1e-6, order=order, max_distance=2.0, **charts)
        w = F.midpoint_batch_norm(
            x, None, None, torch.ones(3), scale="channel", c=1e-6, in_chart="tangent", out_chart="tangent",
            max_distance=2.0,
        )  # fmt: skip
    for actual, flat in ((z, x + shortcut), (w, torch.nn.functional.batch_norm(x, None, None, training=True))):
        distances = 2 * flat.norm(dim=1, keepdim=True)
        assert (distances < 2).any()
        assert (distances > 2).any()
        torch.testing.assert_close(actual, flat * (2 / distances).clamp(max=1), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 3.0])
def test_eager_is_as_precise_as_the_bodies(scale, monkeypatch):
    """In single precision, near the origin and far from it: the errors of both against double precision."""
    layers, forward = block(dtype=torch.float32)
    exact_layers, exact_forward = block()
    exact_layers.load_state_dict(layers.state_dict())
    u = scale * torch.randn(16, 5, 12, 12)
    eager = results(layers, forward, u, "eager")
    monkeypatch.setattr(_State, "native", False)
    bodies = results(layers, forward, u, "eager")
    exact = results(exact_layers, exact_forward, u.double(), "eager")

    def error(actual):
        pairs = ((a, e) for a, e in zip(actual, exact, strict=True) if e.is_floating_point() and e.any())
        return sum(float((a - e).norm() / e.norm()) for a, e in pairs)

    assert error(eager) < 2 * error(bodies)


@pytest.mark.parametrize("order", ["fr", "rf"])
@pytest.mark.parametrize("c", [1e-6, 0.7, 10.0])
def test_eager_has_the_bodies_gradient_for_curvature(c, order, monkeypatch):
    g = torch.Generator().manual_seed(0)
    scale = min(c**-0.5, 1.5)
    h, u = (torch.randn(3, 4, 5, 6, generator=g, dtype=torch.float64) for _ in range(2))
    weight = torch.randn(4, 4, 3, 3, generator=g, dtype=torch.float64)
    offset, center = (0.1 * scale * torch.randn(4, generator=g, dtype=torch.float64) for _ in range(2))
    ball = {"c": torch.tensor(c, dtype=torch.float64, requires_grad=True), "max_distance": 3 * scale}

    def gradients():
        v = F.poincare_conv2d(scale * u, weight, offset, padding=1, **ball, in_chart="tangent", out_chart="tangent")
        w = F.midpoint_batch_norm(
            h, None, None, None, center, scale="channel", **ball, in_chart="hyperboloid", out_chart="hyperboloid"
        )
        charts = {"in_chart": "hyperboloid", "shortcut_chart": "tangent", "out_chart": "tangent"}
        out = F.mobius_residual(w, v, order=order, **ball, **charts)
        return torch.autograd.grad((out * torch.linspace(-1, 1, 6).double()).sum(), ball["c"])

    with mr.set_backend("eager"):
        (eager,) = gradients()
        monkeypatch.setattr(_State, "native", False)
        (bodies,) = gradients()
    torch.testing.assert_close(eager, bodies, rtol=1e-9, atol=0)


def test_forward_and_backward_with_different_backends():
    """What one backend keeps, the other can use."""
    layers, forward = block(max_distance=20.0)
    u = torch.randn(3, 5, 9, 9, dtype=torch.float64, requires_grad=True)
    gradients = []
    for first, second in (("eager", "auto"), ("auto", "eager")):
        with mr.set_backend(first):
            loss = forward(u).square().sum()
        with mr.set_backend(second):
            gradients.append(torch.autograd.grad(loss, [u, *(p for p in layers.parameters() if p.requires_grad)]))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@needs_compiler
def test_learnable_curvature_has_the_same_gradient():
    ball = geoopt.PoincareBall(0.7, learnable=True).double()
    conv = mr.nn.PoincareConv2d(3, 4, 3, ball=ball)
    u = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    gradients = []
    for backend in ("compiled", "eager"):
        with mr.set_backend(backend):
            out = conv(u, in_chart="tangent", out_chart="hyperboloid")
            gradients += torch.autograd.grad(out.square().sum(), ball.isp_c)
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=0)


@needs_compiler
@pytest.mark.parametrize("layers_in", [torch.bfloat16, torch.float32], ids=str)
def test_mixed_precision_is_promoted_as_in_eager(layers_in):
    """Kernels read memory as one dtype: with several, they are not used."""
    ball = geoopt.PoincareBall(0.7)
    norm = mr.nn.PoincareBatchNorm2d(5, ball=ball)
    norm.log_scale.data.uniform_(0, 1)
    norm.to(layers_in)
    add = mr.nn.PoincareResidual(ball=ball)
    h, other = torch.randn(3, 5, 9, 9, dtype=torch.float64), torch.randn(3, 5, 9, 9)
    outputs = []
    for backend in ("compiled", "eager"):
        norm.reset_running_stats()
        with mr.set_backend(backend):
            outputs.append((norm(h, in_chart="hyperboloid", out_chart="tangent"), add(0.05 * h, 0.05 * other)))
    for a, b in zip(*outputs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@needs_compiler
def test_nothing_uninitialised_is_read():
    layers, forward = block()
    u = torch.randn(3, 5, 7, 9, dtype=torch.float64)
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        assert all(t.isfinite().all() for t in results(layers, forward, u, "compiled") if t.is_floating_point())
    finally:
        torch.use_deterministic_algorithms(False)


@needs_compiler
def test_repeats_exactly_and_hardly_depends_on_threads():
    layers, forward = block(dtype=torch.float32)
    u = torch.randn(8, 5, 16, 16)
    threads = torch.get_num_threads()
    first, second = (results(layers, forward, u, "compiled") for _ in range(2))
    try:
        torch.set_num_threads(3)
        other = results(layers, forward, u, "compiled")
    finally:
        torch.set_num_threads(threads)
    for a, b, c in zip(first, second, other, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c, rtol=1e-4, atol=1e-5)


@needs_compiler
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
def test_without_gradients(context):
    layers, forward = block()
    layers.eval()
    u = torch.randn(3, 5, 7, 9, dtype=torch.float64)
    with mr.set_backend("compiled"):
        expected = forward(u).detach()
        with context():
            torch.testing.assert_close(forward(u), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["eager", pytest.param("compiled", marks=needs_compiler)])
def test_kept_for_the_backward_pass(name):
    """Two tensors of the size of the activations for convolution, norm and ReLU, the Euclidean network's count."""
    from manifold_resnet.benchmark.measure import kept_bytes

    ball = geoopt.PoincareBall(0.1)
    conv = mr.nn.PoincareConv2d(64, 64, 3, padding=1, ball=ball)
    norm = mr.nn.PoincareBatchNorm2d(64, ball=ball)
    u = torch.randn(4, 64, 16, 16, requires_grad=True)

    def forward():
        h = conv(u, in_chart="tangent", out_chart="hyperboloid")
        v = norm(h, in_chart="hyperboloid", out_chart="tangent", relu=True)
        return v, conv(v, in_chart="tangent", out_chart="hyperboloid")

    with mr.set_backend(name):
        full, kernel = u.numel() * 4, conv.weight.numel() * 4
        # u, h, v and the second h; per pixel of 64 channels, and per layer, a few numbers
        assert kept_bytes(forward, torch.nn.ModuleList([conv, norm])) < 4.2 * full + 2.1 * kernel


def test_choosing(fresh, monkeypatch):
    assert mr.get_backend() == "auto"
    monkeypatch.setenv("MANIFOLD_RESNET_BACKEND", "eager")
    assert mr.get_backend() == "eager"
    with mr.set_backend("compiled"):
        assert mr.get_backend() == "compiled"
        with mr.set_backend("auto"):
            assert mr.get_backend() == "auto"
        assert mr.get_backend() == "compiled"
    assert mr.get_backend() == "eager"
    mr.set_backend("auto")
    assert mr.get_backend() == "auto"


def test_unknown_backends(fresh, monkeypatch):
    with pytest.raises(ValueError, match="must be one of auto, compiled, eager; got 'fast'"):
        mr.set_backend("fast")
    monkeypatch.setenv("MANIFOLD_RESNET_BACKEND", "quick")
    with pytest.raises(ValueError, match="environment variable MANIFOLD_RESNET_BACKEND must be one of .* got 'quick'"):
        mr.get_backend()


@needs_compiler
def test_built_once(fresh, tmp_path, monkeypatch):
    library = _native.build()
    assert library.parent == tmp_path
    assert [p.name for p in tmp_path.iterdir()] == [library.name], "no half-written files"
    monkeypatch.setattr(_native, "_run", lambda command: "" if "--version" in command else pytest.fail("built again"))
    monkeypatch.setattr(_native, "_processor", lambda: "")
    with pytest.raises(pytest.fail.Exception):  # another processor: another build
        _native.build()


@needs_compiler
def test_compiler_without_openmp(fresh, monkeypatch):
    """As on a Mac: one thread, the same results."""
    run = _native._run

    def without(command):
        if "-fopenmp" in command:
            raise RuntimeError("unsupported option '-fopenmp'")
        return run(["-O0" if part == "-O3" else part for part in command])  # a third of the time to build

    monkeypatch.setattr(_native, "_run", without)
    layers, forward = block()
    u = torch.randn(5, 5, 17, 23, dtype=torch.float64)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        compiled, eager = (results(layers, forward, u, backend) for backend in ("compiled", "eager"))
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(compiled, eager, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@needs_compiler
def test_cache_folder_that_cannot_be_written(fresh, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MANIFOLD_RESNET_CACHE", str(tmp_path / "file" / "folder"))

    def compiler(command):
        """Compiles nothing, in no time."""
        if "-o" in command:
            Path(command[command.index("-o") + 1]).write_bytes(b"library")
        return ""

    monkeypatch.setattr(_native, "_run", compiler)
    library = _native.build()
    assert library.read_bytes() == b"library"
    assert tmp_path not in library.parents


@pytest.mark.parametrize("compiler", ["/no/such/compiler", "false"])
def test_without_a_compiler(fresh, monkeypatch, compiler):
    """One warning, the same results; an error if compiled kernels were asked for."""
    monkeypatch.setenv("CXX", compiler)
    layers, forward = block()
    u = torch.randn(3, 5, 17, 17, dtype=torch.float64)
    with pytest.warns(RuntimeWarning, match=r"without compiled kernels.*CXX.*set_backend\('eager'\)") as caught:
        auto = results(layers, forward, u, "auto")
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again, eager = results(layers, forward, u, "auto"), results(layers, forward, u, "eager")
    for a, b, c in zip(auto, again, eager, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
    with pytest.raises(RuntimeError, match="backend 'compiled' could not be built"):
        results(layers, forward, u, "compiled")


@needs_compiler
def test_torch_compile(fresh, monkeypatch):
    """What a GPU runs, on the CPU: the bodies of a convolution and a residual, compiled by torch.compile."""
    monkeypatch.setattr(_State, "native", False)
    torch.manual_seed(0)
    ball = geoopt.PoincareBall(0.1)
    conv = mr.nn.PoincareConv2d(4, 4, 3, padding=1, ball=ball)
    add = mr.nn.PoincareResidual(ball=ball)
    u = torch.randn(5, 4, 9, 9).relu()

    def forward(u):
        h = conv(u, in_chart="tangent", out_chart="hyperboloid")
        return add(h, u, in_chart="hyperboloid", shortcut_chart="tangent", out_chart="tangent", relu=True)

    with torch.no_grad():
        outputs = []
        for backend in ("compiled", "eager"):
            with mr.set_backend(backend):
                outputs.append(forward(u))
                outputs.append(forward(u[:4, :, :4, :4]))  # equal sizes: no second compilation, no other result
    torch.set_flush_denormal(False)  # what torch 2.4 compiles sets it, for the whole process
    for compiled, eager in zip(outputs[:2], outputs[2:], strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-5)
