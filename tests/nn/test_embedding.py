"""Embeddings are points of the ball that only their own look-ups move."""

import geoopt
import pytest
import torch
from helpers import assert_close
from manifold_resnet.optim import RiemannianAdam, RiemannianSGD

import manifold_resnet.functional as F
from manifold_resnet import nn

INDICES = torch.tensor([[1, 4, 1], [0, 2, 4]])


def make(c=0.7, dtype=torch.float64, learnable=False, **options):
    torch.manual_seed(0)
    ball = geoopt.PoincareBall(torch.tensor(c, dtype=dtype), learnable=learnable)
    return nn.PoincareEmbedding(6, 3, ball=ball, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_looks_up_points(dtype):
    layer = make(dtype=dtype)
    assert isinstance(layer.weight, geoopt.ManifoldParameter)
    assert layer.weight.manifold is layer.ball
    assert layer.weight.shape == (6, 3)
    table = layer.weight.detach().as_subclass(torch.Tensor)
    for indices in (INDICES, INDICES.int(), INDICES[:0], INDICES[0, 0]):
        out = layer(indices)
        assert out.dtype == dtype
        assert_close(out.detach(), table[indices.long()], 1e-6)
        for chart in ("tangent", "hyperboloid"):
            assert_close(layer(indices, out_chart=chart), F.convert(out, "ball", chart, c=layer.c), 1e-6)
    assert layer.ball.check_point_on_manifold(layer(INDICES))


def test_initial_points():
    """A mean squared distance of one, or the standard deviation asked for."""
    torch.manual_seed(0)
    ball = geoopt.PoincareBall(0.3)
    for dim in (2, 50):
        weight = nn.PoincareEmbedding(5000, dim, ball=ball).weight
        assert ball.dist0(weight).square().mean().item() == pytest.approx(1, rel=0.05)
    weight = nn.PoincareEmbedding(5000, 4, ball=ball, std=1e-3).weight
    assert ball.logmap0(weight).std().item() == pytest.approx(1e-3, rel=0.03)
    layer = make()
    before = layer.weight.detach().clone()
    torch.manual_seed(0)
    layer.reset_parameters()
    assert torch.equal(layer.weight, before)


def test_gradients_are_those_of_the_rows_looked_up():
    layer = make(learnable=True)
    cotangent = torch.randn(2, 3, 3, dtype=torch.float64)
    (layer(INDICES, out_chart="tangent") * cotangent).sum().backward()
    expected = torch.zeros(6, 3, dtype=torch.float64)
    for index, row in zip(INDICES.flatten(), cotangent.flatten(0, 1), strict=True):
        point = layer.weight[index].detach().as_subclass(torch.Tensor).requires_grad_()
        expected[index] += torch.autograd.grad(F.logmap0(point, c=layer.c.detach()), point, row)[0]
    assert_close(layer.weight.grad, expected, 1e-12)
    assert layer.ball.isp_c.grad != 0


@pytest.mark.parametrize("optimizer", [RiemannianAdam, RiemannianSGD])
def test_optimizers_move_what_was_looked_up(optimizer):
    """Also with the padding, which stays at the origin, and keep to the ball at a rate that is too large."""
    layer = make(padding_idx=-2)
    assert layer.padding_idx == 4
    before = layer.weight.detach().clone()
    assert (before[4] == 0).all()
    opt = optimizer(layer.parameters(), lr=0.5)
    target = torch.tensor([0.9, 0.0, 0.0], dtype=torch.float64)
    losses = []
    for _ in range(30):
        opt.zero_grad()
        loss = F.dist(layer(INDICES), target, c=layer.c).mean()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    moved = (layer.weight != before).any(1)
    assert moved.tolist() == [True, True, True, False, False, False]
    assert losses[-1] < losses[0]
    assert layer.ball.check_point_on_manifold(layer.weight)


def test_sparse_gradients_are_for_sparse_optimizers():
    layer, dense = make(sparse=True, padding_idx=4), make(padding_idx=4)
    for m, opt in (
        (layer, geoopt.optim.SparseRiemannianSGD([layer.weight], lr=0.1)),
        (dense, geoopt.optim.RiemannianSGD([dense.weight], lr=0.1)),
    ):
        m(INDICES, out_chart="tangent").square().sum().backward()
        assert m.weight.grad.is_sparse == m.sparse
        if m.sparse:
            with pytest.raises(RuntimeError, match="SparseRiemannianAdam"):
                RiemannianAdam(m.parameters(), lr=0.1).step()
        opt.step()
    assert_close(
        layer.weight.detach().as_subclass(torch.Tensor), dense.weight.detach().as_subclass(torch.Tensor), 1e-12
    )


def test_points_beyond_a_ball_that_shrank():
    """As after c grew: what is looked up is on the ball."""
    layer = make()
    with torch.no_grad():
        layer.ball.isp_c.fill_(60.0)
    out = layer(INDICES)
    assert layer.ball.check_point_on_manifold(out)
    assert torch.autograd.grad(out.sum(), layer.weight)[0].isfinite().all()


@pytest.mark.parametrize(
    ("indices", "error", "message"),
    [
        (torch.tensor([0.5]), TypeError, r"int64 or int32, got torch.float32: convert it with indices.long\(\)"),
        ([1, 2], TypeError, "got list"),
        (torch.tensor([1, 6]), IndexError, "from 0 to 5, got 6"),
        (torch.tensor([-1]), IndexError, "from 0 to 5, got -1"),
    ],
)
def test_wrong_indices(indices, error, message):
    with pytest.raises(error, match=message):
        make()(indices)
    with pytest.raises(ValueError, match="klein"):
        make()(INDICES, out_chart="klein")


def test_repr():
    text = repr(make(padding_idx=0, std=0.1, sparse=True))
    assert all(part in text for part in ("6, 3", "padding_idx=0", "std=0.1", "sparse=True", "c=0.7"))


def test_per_sample_gradients():
    """Under vmap, where indices have no values to check."""
    layer = make()
    weight = layer.weight.detach().as_subclass(torch.Tensor)

    def loss(weight, indices):
        out = torch.func.functional_call(layer, {"weight": weight}, (indices,), {"out_chart": "tangent"})
        return out.square().sum()

    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weight, INDICES)
    for gradient, indices in zip(gradients, INDICES, strict=True):
        assert_close(gradient, torch.func.grad(loss)(weight, indices), 1e-12)
