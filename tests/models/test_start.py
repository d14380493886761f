"""How networks start: gains of residual branches, distances at any depth, and pooling."""

import math

import geoopt
import pytest
import torch
from helpers import assert_close

from manifold_resnet.models import create_model
from manifold_resnet.models.hyperbolic import PoincareBlock
from manifold_resnet.plotting.norms import distances_through_blocks


@pytest.fixture(scope="module")
def digits():
    data = pytest.importorskip("sklearn.datasets").load_digits()
    x = torch.tensor(data.images[:16], dtype=torch.float32).unsqueeze(1)
    return (x - x.mean()) / x.std()


@pytest.mark.parametrize("depth", [20, 56, 110])
def test_identity_networks_keep_distances_within_a_factor_of_two(digits, depth):
    torch.manual_seed(0)
    through = distances_through_blocks(
        create_model(f"hyperbolic-8-16-32-resnet-{depth}", in_channels=1, init="identity"), digits
    )
    assert len(through) == (depth - 2) // 2
    assert max(through) < 2 * min(through)


@pytest.mark.parametrize("scale", ["channel", "scalar"])
def test_branches_start_with_their_gain(digits, scale):
    def branches(gain=2.0, c=0.1, **options):
        torch.manual_seed(0)
        model = create_model("hyperbolic-4-6-8-resnet-14", in_channels=1, scale=scale, c=c, **options)
        found = []
        for block in (block for block in model.modules() if isinstance(block, PoincareBlock)):
            assert torch.equal(block.bn1.log_scale, torch.full_like(block.bn1.log_scale, math.log(gain)))
            block.bn2.register_forward_hook(
                lambda bn, args, h: found.append(torch.asinh(h.norm(dim=1)).square().mean())
            )
        model(digits)
        return torch.stack(found).sqrt().double() / math.sqrt(c)

    def all_at(distance):
        return torch.full((6,), distance, dtype=torch.float64)

    # every norm's points are at a mean squared distance of one, times the square of the gain
    assert_close(branches(), all_at(2.0), 0.04)
    assert_close(branches(branch_gain=0.25), all_at(0.5), 0.01)
    assert_close(branches(init="identity"), all_at(1 / 6), 0.01)
    assert_close(branches(gain=0.7, norm_gain=0.7), all_at(0.7), 0.02)
    assert_close(branches(gain=0.5, c=4.0), all_at(0.5), 0.02)


def test_a_checkpoint_carries_its_gains(digits):
    model = create_model("hyperbolic-4-6-8-resnet-8", in_channels=1, branch_gain=0.3)
    other = create_model("hyperbolic-4-6-8-resnet-8", in_channels=1)
    other.load_state_dict(model.state_dict())
    assert_close(other.eval()(digits), model.eval()(digits), 0.0)


def test_pooling_of_tangent_vectors(digits):
    model = create_model("hyperbolic-4-6-8-resnet-8", in_channels=1, pooling="tangent").double().eval()
    pixels = []
    model.group3.register_forward_hook(lambda module, args, u: pixels.append(u))
    found = model.features(digits.double())
    ball = geoopt.PoincareBall(0.025).double()
    assert_close(found, ball.expmap0(pixels[0].mean((2, 3))), 1e-10)
    assert_close(model.features(digits.double(), out_chart="tangent"), pixels[1].mean((2, 3)), 1e-12)
    midpoint = create_model("hyperbolic-4-6-8-resnet-8", in_channels=1).double().eval()
    midpoint.load_state_dict(model.state_dict())
    assert (midpoint.features(digits.double()) - found).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"pooling": "mean"}, "pooling must be 'midpoint' or 'tangent', got 'mean'"),
        ({"branch_gain": 0.0}, "branch_gain must be a number above 0, got 0.0"),
        ({"norm_gain": -1.0}, "norm_gain must be a number above 0, got -1.0"),
        ({"branch_gain": math.inf}, "branch_gain must be a number above 0"),
    ],
)
def test_mistakes(options, expected):
    with pytest.raises(ValueError, match=expected):
        create_model("hyperbolic-4-6-8-resnet-8", **options)
