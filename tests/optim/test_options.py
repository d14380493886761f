import copy
import math
import pickle
import warnings

import geoopt
import pytest
import torch
from covering import pairs
from helpers import TORCH
from hypothesis import given, settings
from hypothesis import strategies as st
from manifold_resnet.optim import RiemannianAdam, RiemannianSGD
from manifolds import parameters, set_gradients

from manifold_resnet import set_backend
from manifold_resnet.functional import dist, expmap0, logmap0

OPTIMIZERS = [RiemannianAdam, RiemannianSGD]


def options_of(optimizer):
    return {"momentum": 0.9} if optimizer is RiemannianSGD else {}


def balls(shapes=((5, 4), (4,), (3, 7)), c=0.7, dtype=torch.float64, learnable=False, size=0.4):
    torch.manual_seed(0)
    ball = geoopt.PoincareBall(c, learnable=learnable).to(dtype)
    return [
        geoopt.ManifoldParameter(expmap0(size * torch.randn(s, dtype=dtype), c=ball.c.detach()), manifold=ball)
        for s in shapes
    ]


def inside(point):
    ball = point.manifold
    return (
        bool(point.isfinite().all())
        and float(point.detach().norm(dim=-1).max()) * math.sqrt(float(ball.c.detach())) < 1
    )


# -- points stay on the ball -----------------------------------------------------------------------------


@pairs
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("learnable", [False, True])
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_thousand_steps_while_the_curvature_moves(optimizer, exact, learnable, dtype, backend):
    generator = torch.Generator().manual_seed(1)
    ball = (geoopt.PoincareBallExact if exact else geoopt.PoincareBall)(1.0, learnable=learnable)
    points = [geoopt.ManifoldParameter(torch.zeros(s, dtype=dtype), manifold=ball) for s in ((5, 4), (3,))]
    trained = [*points, *([ball.isp_c] if learnable else [])]
    stepper = optimizer(trained, lr=1.0, weight_decay=1e-3, **options_of(optimizer))
    for step in range(1000):
        set_gradients(points, step, scale=10 ** float(torch.empty(()).uniform_(-3, 3, generator=generator)))
        if learnable:
            ball.isp_c.grad = torch.randn((), generator=generator)
        stepper.param_groups[0]["lr"] = 10 * float(torch.rand((), generator=generator))
        if step % 5 == 0:
            c = 10 ** float(torch.empty(()).uniform_(-6, 1, generator=generator))
            with torch.no_grad():
                ball.isp_c.copy_(torch.tensor(math.log(math.expm1(c))))
        stepper.step()
        assert all(inside(point) for point in points)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_ball_that_shrinks_in_the_step(optimizer, backend):
    points = balls(learnable=True, size=3.0)
    ball = points[0].manifold
    stepper = optimizer([*points, ball.isp_c], lr=0.5)
    for point in points:
        point.grad = torch.zeros_like(point)
    ball.isp_c.grad = torch.full_like(ball.isp_c, -10.0)
    before = float(ball.c.detach())
    stepper.step()
    assert float(ball.c.detach()) > before
    assert all(inside(point) for point in points)


# -- gradients that are not finite -----------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_gradients_that_are_not_finite(optimizer, bad, backend):
    points = parameters()
    names = [f"layer{i}.weight" for i in range(len(points))]
    for policy in ("raise", "skip"):
        group = {"params": points, "param_names": names}
        stepper = optimizer([group], lr=0.1, nonfinite=policy, **options_of(optimizer))
        set_gradients(points, 0)
        stepper.step()
        before, state = [p.detach().clone() for p in points], copy.deepcopy(stepper.state_dict())
        points[3].grad.view(-1)[1] = bad
        if policy == "raise":
            with pytest.raises(FloatingPointError, match=r"'layer3.weight' is not finite; no parameter was changed"):
                stepper.step()
        else:
            with pytest.warns(RuntimeWarning, match=r"'layer3.weight' is not finite; step skipped"):
                stepper.step()
        assert all(map(torch.equal, before, points))
        assert str(state) == str(stepper.state_dict())


def test_parameter_without_name_is_described(backend):
    (point,) = balls(((2, 3),))
    point.grad = torch.full_like(point, math.nan)
    with pytest.raises(FloatingPointError, match=r"parameter 0 of its group, of shape \(2, 3\) on PoincareBall"):
        RiemannianAdam([point], nonfinite="raise").step()


@pytest.mark.skipif(TORCH < (2, 6), reason="torch's optimizers take named parameters since 2.6")
def test_named_parameters():
    layer = torch.nn.Linear(2, 1)
    layer.weight.grad = torch.full_like(layer.weight, math.nan)
    stepper = RiemannianAdam(list(layer.named_parameters()), nonfinite="raise")
    with pytest.raises(FloatingPointError, match="'weight'"):
        stepper.step()


# -- gradient clipping -----------------------------------------------------------------------------------


def riemannian_norm(points):
    squares = []
    for p in points:
        tangent = p.manifold.egrad2rgrad(p, p.grad.clone()) if hasattr(p, "manifold") else p.grad
        # without keepdim, geoopt's balls multiply lengths and factors of different points
        inner = p.manifold.inner(p, tangent, keepdim=True) if hasattr(p, "manifold") else tangent.square()
        squares.append(inner.sum())
    return float(torch.stack(squares).sum().detach().sqrt())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_clipping_scales_to_the_riemannian_norm(optimizer, backend):
    points, scaled, free = parameters(), parameters(), parameters()
    for group in (points, scaled, free):
        set_gradients(group, 0)
    norm = riemannian_norm(points)
    for point in scaled:
        point.grad *= 0.01
    options = options_of(optimizer)
    optimizer(points, lr=0.1, max_grad_norm=0.01 * norm, **options).step()
    optimizer(scaled, lr=0.1, **options).step()
    for p, q in zip(points, scaled, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-5)
    set_gradients(free, 0)
    optimizer(free, lr=0.1, max_grad_norm=2 * norm, **options).step()
    unclipped = parameters()
    set_gradients(unclipped, 0)
    optimizer(unclipped, lr=0.1, **options).step()
    assert all(map(torch.equal, free, unclipped))


# -- decoupled weight decay ------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_decoupled_decay_shrinks_distances(optimizer, backend):
    points = balls()
    before = [p.detach().clone() for p in points]
    stepper = optimizer(points, lr=0.1, weight_decay=0.3, decoupled_weight_decay=True)
    for point in points:
        point.grad = torch.zeros_like(point)
    stepper.step()
    for p, q in zip(points, before, strict=True):
        c = p.manifold.c
        torch.testing.assert_close(logmap0(p, c=c), (1 - 0.03) * logmap0(q, c=c), rtol=1e-9, atol=1e-12)


def test_decoupled_decay_of_flat_parameters_is_adamws(backend):
    torch.manual_seed(0)
    start = torch.randn(3, 4, dtype=torch.float64)
    x, y = (torch.nn.Parameter(start.clone()) for _ in range(2))
    ours = RiemannianAdam([x], lr=0.1, weight_decay=0.2, decoupled_weight_decay=True)
    theirs = torch.optim.AdamW([y], lr=0.1, weight_decay=0.2)
    for step in range(20):
        set_gradients([x, y], step)
        y.grad = x.grad.clone()
        ours.step()
        theirs.step()
    torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_flat_limit(optimizer, backend):
    """A nearly flat ball steps as Euclidean space does, in coordinates twice as fine."""
    torch.manual_seed(0)
    start = 0.5 * torch.randn(4, 1, dtype=torch.float64)  # rows of one coordinate: second moments coincide too
    ball = geoopt.PoincareBall(1e-9).double()
    x = geoopt.ManifoldParameter(start.clone(), manifold=ball)
    y = torch.nn.Parameter(2 * start)
    settings = {"lr": 0.1, "weight_decay": 0.2, "decoupled_weight_decay": True, **options_of(optimizer)}
    if optimizer is RiemannianAdam:
        settings["eps"] = 0
    first, second = optimizer([x], **settings), optimizer([y], **settings)
    for step in range(10):
        set_gradients([y], step)
        x.grad = 2 * y.grad
        if optimizer is RiemannianSGD and step == 0:
            first.state[x]["momentum_buffer"] = torch.zeros_like(x.detach())
            second.state[y]["momentum_buffer"] = torch.zeros_like(y.detach())
        first.step()
        second.step()
    torch.testing.assert_close(2 * x.detach(), y.detach(), rtol=1e-6, atol=1e-6)


def test_decoupled_decay_on_lorentz_is_that_on_the_ball():
    from manifold_resnet.functional import from_lorentz, to_lorentz

    (x,) = balls(((5, 4),), c=1.0)
    lorentz = geoopt.Lorentz(k=1.0).double()
    y = geoopt.ManifoldParameter(to_lorentz(x.detach(), c=1.0), manifold=lorentz)
    for point in (x, y):
        point.grad = torch.zeros_like(point)
        RiemannianAdam([point], lr=0.1, weight_decay=0.5, decoupled_weight_decay=True).step()
    torch.testing.assert_close(from_lorentz(y.detach(), c=1.0), x.detach(), rtol=1e-8, atol=1e-8)


def test_no_origin_no_decoupled_decay():
    point = geoopt.ManifoldParameter(torch.eye(3), manifold=geoopt.Stiefel())
    with pytest.raises(ValueError, match=r"Stiefel.* has none.*weight_decay=0"):
        RiemannianAdam([point], weight_decay=0.1, decoupled_weight_decay=True)
    RiemannianAdam([{"params": [point], "weight_decay": 0}], weight_decay=0.1, decoupled_weight_decay=True)


# -- second moment per coordinate ------------------------------------------------------------------------


def test_second_moment_per_coordinate_on_the_line(backend):
    """With one coordinate per point the two second moments are the same."""
    ends = []
    for second_moment in ("point", "coordinate"):
        points = balls(((6, 1),))
        stepper = RiemannianAdam(points, lr=0.05, second_moment=second_moment)
        for step in range(10):
            set_gradients(points, step)
            stepper.step()
        ends.append(points[0].detach())
    torch.testing.assert_close(*ends, rtol=0, atol=1e-12)


def test_first_step_per_coordinate_has_the_same_length(backend):
    (x,) = balls(((5, 4),))
    before = x.detach().clone()
    set_gradients([x], 0)
    signs = x.grad.sign()
    RiemannianAdam([x], lr=1e-4, second_moment="coordinate").step()
    lengths = dist(x.detach(), before, c=x.manifold.c)
    torch.testing.assert_close(lengths, torch.full_like(lengths, 1e-4), rtol=1e-3, atol=0)
    assert torch.equal((before - x.detach()).sign(), signs)


def test_second_moments_agree_on_average(backend):
    moments = {}
    for second_moment in ("point", "coordinate"):
        points = balls()
        stepper = RiemannianAdam(points, lr=0.0, second_moment=second_moment)
        for step in range(3):
            set_gradients(points, step)
            stepper.step()
        moments[second_moment] = [stepper.state[p]["exp_avg_sq"].mean(-1) for p in points]
    torch.testing.assert_close(moments["point"], moments["coordinate"], rtol=1e-10, atol=0)


# -- devices, precision, copies --------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"amsgrad": True, "weight_decay": 0.1}])
def test_capturable_steps_are_the_same(options):
    points, others = parameters(), parameters()
    capturable = RiemannianAdam(points, lr=torch.tensor(0.01, dtype=torch.float64), capturable=True, **options)
    plain = RiemannianAdam(others, lr=0.01, **options)
    for step in range(5):
        set_gradients(points, step)
        set_gradients(others, step)
        capturable.step()
        plain.step()
    assert isinstance(capturable.state[points[0]]["step"], torch.Tensor)
    for p, q in zip(points, others, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-6)  # bias corrections are float32


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_no_value_is_read_on_the_way(optimizer):
    """Tensors without data can be stepped: nothing waits for a GPU, and a step can be captured."""
    ball = geoopt.PoincareBall(0.5, learnable=True).to("meta")
    points = [geoopt.ManifoldParameter.__new__(geoopt.ManifoldParameter, torch.empty(3, 4, device="meta"))]
    points[0].manifold = ball
    trained = [*points, ball.isp_c, torch.nn.Parameter(torch.empty(5, device="meta"))]
    options = {"momentum": 0.9} if optimizer is RiemannianSGD else {"capturable": True, "amsgrad": True}
    stepper = optimizer(trained, lr=0.1, weight_decay=0.1, decoupled_weight_decay=True, max_grad_norm=1.0, **options)
    for point in trained:
        point.grad = torch.empty_like(point)
    stepper.step()
    stepper.step()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_under_a_gradient_scaler(optimizer, backend):
    points, others = parameters(torch.float32), parameters(torch.float32)
    options = options_of(optimizer)
    stepper, plain = optimizer(points, lr=0.01, **options), optimizer(others, lr=0.01, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(3):
        set_gradients(points, step, scale=1024.0)
        scaler.scale(torch.zeros(()))
        scaler.step(stepper)
        scaler.update()
        set_gradients(others, step)
        plain.step()
    for p, q in zip(points, others, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-5)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_pickled_optimizers_go_on(optimizer, backend):
    points = balls()
    stepper = optimizer(points, lr=0.1, max_grad_norm=1.0, **options_of(optimizer))
    set_gradients(points, 0)
    stepper.step()
    again = pickle.loads(pickle.dumps(stepper))
    again.add_param_group({"params": [torch.nn.Parameter(torch.zeros(2))]})
    assert again.param_groups[1]["max_grad_norm"] == 1.0
    set_gradients([p for group in again.param_groups for p in group["params"]], 1)
    again.step()


def test_maximize_goes_uphill(backend):
    ends = []
    for sign in (1, -1):
        points = parameters()
        set_gradients(points, 0)
        for point in points:
            point.grad *= sign
        RiemannianAdam(points, lr=0.1, maximize=sign < 0).step()
        ends.append(points)
    for p, q in zip(*ends, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-12)


def test_closure_is_evaluated():
    (x,) = balls(((3, 4),))
    stepper = RiemannianAdam([x], lr=0.1)

    def closure():
        stepper.zero_grad()
        loss = x.square().sum()
        loss.backward()
        return loss

    first = stepper.step(closure)
    assert stepper.step(closure).item() < first.item()


@settings(deadline=None, max_examples=30)
@given(
    c=st.floats(1e-6, 10), lr=st.floats(1e-4, 10), size=st.floats(0, 5), seed=st.integers(0, 1000),
    second_moment=st.sampled_from(["point", "coordinate"]), decoupled=st.booleans(),
)  # fmt: skip
def test_backends_agree(c, lr, size, seed, second_moment, decoupled):
    ends = []
    for name in ("compiled", "eager"):
        with set_backend(name):
            points = balls(c=c, size=size)
            stepper = RiemannianAdam(
                points, lr=lr, weight_decay=0.05, second_moment=second_moment, decoupled_weight_decay=decoupled
            )
            for step in range(seed, seed + 3):
                set_gradients(points, step)
                stepper.step()
            assert all(inside(point) for point in points)
            ends.append(points)
    for p, q in zip(*ends, strict=True):
        radius = 1 / math.sqrt(c)
        torch.testing.assert_close(p.detach() / radius, q.detach() / radius, rtol=0, atol=1e-7)


# -- bad arguments ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer", "bad", "message"),
    [
        (RiemannianAdam, {"second_moment": "row"}, "second_moment must be 'point' or 'coordinate', got 'row'"),
        (RiemannianAdam, {"nonfinite": "warn"}, "nonfinite must be 'ignore', 'raise' or 'skip', got 'warn'"),
        (RiemannianSGD, {"max_grad_norm": 0}, "max_grad_norm must be above 0"),
        (RiemannianAdam, {"fused": True}, "fused=True is not supported"),
        (RiemannianAdam, {"capturable": True, "stabilize": 5}, "leave out one"),
        (RiemannianAdam, {"lr": -1.0}, "[Ii]nvalid learning rate"),
        (RiemannianSGD, {"momentum": -1.0}, "[Ii]nvalid momentum"),
    ],
)
def test_bad_arguments(optimizer, bad, message):
    with pytest.raises(ValueError, match=message):
        optimizer(balls(), **{"lr": 0.1, **bad})


def test_a_step_shows_no_warnings(backend):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        points = balls()
        set_gradients(points, 0)
        RiemannianAdam(points).step()


def test_sharded_parameters_are_refused(tmp_path):
    """`fully_shard` makes DTensors of them, which have no manifold."""
    from torch import distributed
    from torch.distributed.tensor import distribute_tensor

    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = distributed.device_mesh.init_device_mesh("cpu", (1,))
        sharded = torch.nn.Parameter(distribute_tensor(torch.zeros(2, 3), mesh))
        with pytest.raises(TypeError, match=r"is sharded \(a DTensor\).*DistributedDataParallel"):
            RiemannianAdam([sharded], lr=0.1)
    finally:
        distributed.destroy_process_group()
