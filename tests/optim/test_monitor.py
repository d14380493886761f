import copy
import io
import math

import geoopt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from image_folders import write_digits
from manifold_resnet.optim.check import check_gradient
from manifold_resnet.optim.monitor import gradient_norms, measure

import manifold_resnet as mr

lightning = pytest.importorskip("lightning")
training = pytest.importorskip("manifold_resnet.training")


def module(**parameters):
    model = torch.nn.Module()
    for name, value in parameters.items():
        setattr(model, name, value)
    return model


def lorentz_points(manifold, u):
    return manifold.expmap0(torch.cat([torch.zeros_like(u[..., :1]), u], -1))


# manifolds, and how two points of them come from coordinates of shape (..., 9)
MANIFOLDS = {
    "ball": (lambda: geoopt.PoincareBall(c=0.7), lambda m, u: m.expmap0(u)),
    "Lorentz": (lambda: geoopt.Lorentz(k=1.4), lorentz_points),
    "sphere": (geoopt.Sphere, lambda m, u: m.projx(u)),
    "SPD": (
        geoopt.SymmetricPositiveDefinite,
        lambda m, u: torch.linalg.matrix_exp(0.2 * (u.unflatten(-1, (3, 3)) + u.unflatten(-1, (3, 3)).mT)),
    ),
    "Euclidean": (lambda: geoopt.Euclidean(1), lambda m, u: u),
    "projected sphere": (lambda: geoopt.SphereProjection(k=0.3), lambda m, u: 0.3 * u),
}


@pytest.mark.parametrize("scale", [None, 3.0])
@pytest.mark.parametrize("name", MANIFOLDS)
@given(st.integers(0, 2**31), st.integers(1, 5))
def test_distances_grow_by_one_per_distance_moved(name, scale, seed, count):
    make, points = MANIFOLDS[name]
    manifold = make().double()
    u = torch.randn(2, count, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x, y = points(manifold, u)
    if scale is not None:
        manifold = geoopt.Scaled(manifold, scale).double()
    model = module(x=geoopt.ManifoldParameter(x, manifold=manifold), y=torch.nn.Parameter(y, requires_grad=False))
    manifold.dist(model.x, model.y).sum().backward()
    assert gradient_norms(model) == {"x": pytest.approx(count**0.5, rel=1e-5)}


@given(st.integers(0, 2**31), st.floats(0.05, 5), st.integers(1, 4))
def test_ball_points_divide_by_the_conformal_factor(seed, c, count):
    ball = geoopt.PoincareBall(torch.tensor(c, dtype=torch.float64))
    u, gradient = torch.randn(2, count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = geoopt.ManifoldParameter(ball.expmap0(u), manifold=ball)
    x.grad = gradient
    factor = 2 / (1 - ball.c * (x.detach() ** 2).sum(-1))
    expected = ((gradient.norm(dim=-1) / factor) ** 2).sum().sqrt().item()
    assert gradient_norms(module(x=x))["x"] == pytest.approx(expected, rel=1e-9)


def test_products_and_stiefel_agree_with_the_gradient_check():
    stiefel = geoopt.CanonicalStiefel()
    product = geoopt.ProductManifold((geoopt.PoincareBall(), 3), (geoopt.Scaled(geoopt.Sphere(), 2.0), 4))
    torch.manual_seed(0)
    for manifold, start in ((stiefel, torch.randn(5, 3)), (product, 0.4 * torch.randn(2, 7))):
        manifold = manifold.double()
        x = geoopt.ManifoldParameter(manifold.projx(start.double()), manifold=manifold)
        check = check_gradient(lambda p: p.sin().sum(), x)
        x.sin().sum().backward()
        assert check.ok
        assert gradient_norms(module(x=x))["x"] == pytest.approx(check.gradient_norm, rel=1e-9)


def test_gradients_are_left_alone():
    torch.manual_seed(0)
    lorentz = geoopt.Lorentz()
    points = [
        geoopt.ManifoldParameter(lorentz.random_normal(3, 4)),
        geoopt.ManifoldParameter(geoopt.PoincareBall().random(3, 4)),
        geoopt.ManifoldParameter(
            torch.cat([lorentz.random_normal(2, 4), torch.zeros(2, 3)], 1),
            geoopt.ProductManifold((lorentz, 4), (geoopt.PoincareBall(), 3)),
        ),
        torch.nn.Parameter(torch.ones(3)),
    ]
    model = torch.nn.ParameterList(points)
    for p in points:
        p.grad = torch.randn(p.shape)
    before = [(p.detach().clone(), p.grad.clone()) for p in points]
    measure(model)
    for p, (value, gradient) in zip(points, before, strict=True):
        assert torch.equal(p, value)
        assert torch.equal(p.grad, gradient)


def test_parameters_without_gradient_are_passed_over():
    model = torch.nn.Linear(3, 2)
    assert gradient_norms(model) == {}
    assert measure(model) == {}
    model.bias.grad = torch.tensor([3.0, 4.0])
    assert gradient_norms(model) == {"bias": 5.0}
    assert measure(model) == {"gradient_norm": 5.0}


def test_sparse_gradients_and_mixed_dtypes():
    model = module(table=torch.nn.Embedding(5, 2, sparse=True), scale=torch.nn.Parameter(torch.ones(()).double()))
    (model.table(torch.tensor([1, 1, 3])).sum() * model.scale).backward()
    norms = gradient_norms(model)
    assert norms["table.weight"] == pytest.approx(10**0.5)
    assert model.table.weight.grad.is_sparse


@given(st.lists(st.lists(st.floats(0, 3), min_size=1, max_size=4), min_size=1, max_size=3), st.floats(0.1, 4))
def test_distances_and_radii(distances, c):
    ball = geoopt.PoincareBall(torch.tensor(c, dtype=torch.float64))
    model = module(plain=torch.nn.Parameter(torch.full((3,), 1e6)))
    for i, group in enumerate(distances):
        u = torch.zeros(len(group), 3, dtype=torch.float64)
        u[:, 1] = torch.tensor(group, dtype=torch.float64) / 2
        model.register_parameter(f"x{i}", geoopt.ManifoldParameter(ball.expmap0(u), manifold=ball))
    flat = sum(distances, [])
    measured = measure(model)
    assert measured.keys() == {"distance_max", "distance_mean", "radius_max"}
    # geoopt keeps points 1e-5 off the boundary
    assert measured["distance_max"] == pytest.approx(max(flat), rel=1e-6, abs=1e-9)
    assert measured["distance_mean"] == pytest.approx(sum(flat) / len(flat), rel=1e-6, abs=1e-9)
    assert measured["radius_max"] == pytest.approx(math.tanh(c**0.5 * max(flat) / 2), rel=1e-6, abs=1e-9)


def test_distances_on_a_scaled_ball():
    ball = geoopt.PoincareBall()
    x = torch.tensor([[0.3, 0.4], [0.0, 0.0]])
    plain, scaled = (
        measure(module(x=geoopt.ManifoldParameter(x, manifold=m))) for m in (ball, geoopt.Scaled(ball, 3.0))
    )
    assert scaled["distance_max"] == pytest.approx(3 * plain["distance_max"])
    assert scaled["distance_mean"] == pytest.approx(plain["distance_max"] * 3 / 2)
    assert scaled["radius_max"] == plain["radius_max"] == pytest.approx(0.5)


def test_total_norm_and_clipped_share():
    ball = geoopt.PoincareBall(c=1.0)
    model = torch.nn.Sequential(mr.nn.ExpMap0(ball=ball, max_distance=1.0), mr.nn.PoincareMLR(4, 3, ball=ball))
    x = torch.zeros(4, 4)
    x[0, 0] = 5.0
    with mr.nn.monitor_clipping(model) as monitor:
        assert "clipped" not in measure(model, monitor)
        model(x).logsumexp(-1).sum().backward()
    measured = measure(model, monitor)
    assert measured["clipped"] == 0.25
    norms = gradient_norms(model)
    assert norms.keys() == {"1.weight", "1.bias"}
    assert measured["gradient_norm"] == pytest.approx(sum(n**2 for n in norms.values()) ** 0.5)


def test_only_modules():
    for function in (gradient_norms, measure):
        with pytest.raises(TypeError, match=r"torch.nn.Module, got list"):
            function([])


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("images"))


def train(images, output, *callbacks, **options):
    settings = {"dataset": f"folder:{images}", "model": "hyperbolic-2-2-2-resnet-8", "epochs": 2, "batch_size": 12}
    config = training.Config(**settings | options)
    return training.train(config, output, progress=False, callbacks=callbacks)


def counters(module):
    return [m._counts for m in module.modules() if hasattr(m, "_counts")]


class Watch(lightning.Callback):
    """Looks at what the layers count after each step, and at the metrics."""

    def __init__(self, error=None):
        self.error, self.idle, self.metrics, self.steps, self.module = error, [], {}, 0, None

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        self.module, self.steps = module, trainer.global_step
        self.idle.append(all(counts is None for counts in counters(module)))
        self.metrics |= {key: float(value) for key, value in trainer.callback_metrics.items()}

    def on_before_backward(self, trainer, module, loss):
        self.module = module
        if self.error is not None:
            raise self.error


def test_callback_logs_every_few_steps(images, tmp_path):
    from manifold_resnet.optim.callback import RiemannianMonitor

    monitor, watch = RiemannianMonitor(every_n_steps=2, per_parameter=True), Watch()
    watched = train(images, tmp_path / "watched", monitor, watch)
    assert watch.steps >= 4
    assert [row["step"] for row in monitor.history] == list(range(0, watch.steps, 2))
    assert {row["epoch"] for row in monitor.history} == {0, 1}
    assert all(watch.idle)
    for row in monitor.history:
        names = {name.removeprefix("gradient_norm/"): value for name, value in row.items() if "/" in name}
        assert names.keys() == {name for name, p in watch.module.named_parameters() if p.requires_grad}
        assert row["gradient_norm"] == pytest.approx(sum(n**2 for n in names.values()) ** 0.5, rel=1e-5)
        assert 0 <= row["clipped"] <= 1
        assert 0 < row["distance_mean"] <= row["distance_max"]
        assert 0 < row["radius_max"] < 1
    last = monitor.history[-1]
    for name in last.keys() - {"step", "epoch"}:
        assert watch.metrics[f"riemannian/{name}"] == pytest.approx(last[name], rel=1e-5)
    assert training.load_run(watched)[0] is not None


def test_callback_leaves_the_training_alone(images, tmp_path):
    """Bit for bit without the clipping monitor, which keeps layers from fusing; up to rounding with it."""
    from manifold_resnet.optim.callback import RiemannianMonitor

    def weights(name, *callbacks):
        run = train(images, tmp_path / name, *callbacks)
        return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]

    alone = weights("alone")
    exact = weights("exact", RiemannianMonitor(every_n_steps=2, clipping=False))
    close = weights("close", RiemannianMonitor(every_n_steps=2))
    for key, value in alone.items():
        assert torch.equal(exact[key], value)
        torch.testing.assert_close(close[key], value, rtol=1e-3, atol=1e-5)


def test_callback_stops_counting_when_a_training_fails(images, tmp_path):
    from manifold_resnet.optim.callback import RiemannianMonitor

    watch = Watch(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        train(images, tmp_path / "run", RiemannianMonitor(), watch)
    assert counters(watch.module)
    assert all(counts is None for counts in counters(watch.module))


class Plain(lightning.LightningModule):
    """No ball anywhere; steps over two batches."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)

    def training_step(self, batch, index):
        return self.layer(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_callback_with_any_module_and_accumulated_gradients(tmp_path):
    from manifold_resnet.optim.callback import RiemannianMonitor

    monitor = RiemannianMonitor(every_n_steps=1, prefix="")
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=1, accumulate_grad_batches=2, callbacks=[monitor], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(Plain(), torch.utils.data.DataLoader(torch.randn(8, 3), batch_size=2))
    assert [row.keys() for row in monitor.history] == [{"step", "epoch", "gradient_norm"}] * 2
    assert trainer.callback_metrics["gradient_norm"] == pytest.approx(monitor.history[-1]["gradient_norm"])
    copy.deepcopy(monitor)
    torch.save(monitor.history, io.BytesIO())


@pytest.mark.parametrize("every", [0, -1, 1.5, True, "2"])
def test_callback_needs_a_whole_number(every):
    from manifold_resnet.optim.callback import RiemannianMonitor

    with pytest.raises(ValueError, match=f"positive whole number, got {every!r}"):
        RiemannianMonitor(every_n_steps=every)
