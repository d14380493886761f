"""How distances from the origin travel through deep networks under each initialisation.

``python -m manifold_resnet.plotting.norms norms.png`` draws the figure of the README.
"""

from __future__ import annotations

import argparse

import geoopt
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from manifold_resnet.models import create_model
from manifold_resnet.models.hyperbolic import PoincareBlock
from manifold_resnet.nn import PoincareConv2d
from manifold_resnet.nn.init import INITIALISATIONS


def _mean_distance(u: Tensor) -> float:
    return 2 * torch.linalg.vector_norm(u, dim=1).mean().item()


@torch.no_grad()
def distances_through_convolutions(
    init: str, layers: int, *, width: int = 16, size: int = 32, c: float = 0.025, seed: int = 0
) -> list[float]:
    """Mean distance of the pixels from the origin before and after each of a stack of 3x3 Poincaré convolutions.

    No norm, activation or residual helps: this is what the initialisation alone does. The input is an image of random
    directions at distance one; its border loses a little norm in every layer to the zero padding.

    Parameters
    ----------
    init : str
        Name of an initialisation, see `manifold_resnet.nn.init`.
    layers : int
        Number of convolutions.
    width, size : int
        Channels and pixels per side of the image.
    c : float
        The curvature of the ball is ``-c``.
    seed : int
        Seed of the image and the kernels.

    Returns
    -------
    list of float
        ``layers + 1`` mean geodesic distances.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ball = geoopt.PoincareBall(c)
        u = nn.functional.normalize(torch.randn(2, width, size, size), dim=1) / 2
        distances = [_mean_distance(u)]
        for _ in range(layers):
            conv = PoincareConv2d(width, width, 3, padding=1, ball=ball, init=init)
            u = conv(u, in_chart="tangent", out_chart="tangent")
            distances.append(_mean_distance(u))
    return distances


@torch.no_grad()
def distances_through_blocks(model: nn.Module, images: Tensor) -> list[float]:
    """Mean distance of the pixels from the origin after each residual block of a Poincaré network, in training mode.

    Parameters
    ----------
    model : PoincareResNet
        The network; its running statistics take the images in.
    images : Tensor
        Normalised images ``(batch, channels, H, W)``.

    Returns
    -------
    list of float
        One mean geodesic distance per block.

    Examples
    --------
    >>> import torch, manifold_resnet as mr
    >>> model = mr.models.create_model("hyperbolic-4-8-8-resnet-14")
    >>> len(distances_through_blocks(model, torch.randn(2, 3, 16, 16)))
    6
    """
    distances: list[float] = []
    blocks = [module for module in model.modules() if isinstance(module, PoincareBlock)]
    hooks = [
        block.register_forward_hook(lambda _block, _args, u: distances.append(_mean_distance(u))) for block in blocks
    ]
    try:
        model.train()(images)
    finally:
        for hook in hooks:
            hook.remove()
    return distances


def distances_through_network(init: str, depth: int, *, c: float = 0.025, seed: int = 0) -> list[float]:
    """Mean distance of the pixels from the origin after each residual block of a new Poincaré ResNet, in training mode.

    Parameters
    ----------
    init : str
        Name of an initialisation, see `manifold_resnet.nn.init`.
    depth : int
        Depth of the network, ``6n + 2``; widths are 8, 16 and 32.
    c : float
        The curvature of the ball is ``-c``.
    seed : int
        Seed of the images (Gaussian noise of the mean and variance of normalised images) and the kernels.

    Returns
    -------
    list of float
        One mean geodesic distance per block.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = create_model(f"hyperbolic-8-16-32-resnet-{depth}", c=c, init=init)
        return distances_through_blocks(model, torch.randn(8, 3, 32, 32))


def plot_norms(*, depths: tuple[int, ...] = (20, 56, 110), c: float = 0.025) -> Figure:
    """Draw distances through a stack of convolutions, and through networks of the given depths, per initialisation.

    Parameters
    ----------
    depths : tuple of int
        Depths of the networks; the stack is as deep as the deepest.
    c : float
        The curvature of the ball is ``-c``.

    Returns
    -------
    matplotlib.figure.Figure
        One panel for the stack and one per depth, on a logarithmic scale.
    """
    figure = Figure(figsize=(4 * (1 + len(depths)), 3.6), layout="constrained")
    stack, *networks = axes = figure.subplots(1, 1 + len(depths), sharey=True)
    for k, init in enumerate(INITIALISATIONS):
        style = {"label": init, "color": f"C{k}", "linestyle": ("-", "--", "-.", ":", (0, (5, 1)))[k % 5]}
        stack.plot(distances_through_convolutions(init, max(depths), c=c), **style)
        for axis, depth in zip(networks, depths, strict=True):
            axis.plot(range(1, (depth - 2) // 2 + 1), distances_through_network(init, depth, c=c), **style)
    for depth in depths:
        stack.axvline(depth, color="0.85", linewidth=1, zorder=0)
    stack.set(title="convolutions alone", xlabel="layer", ylabel="mean distance from the origin", yscale="log")
    stack.set_ylim(1e-3, 20)
    for axis, depth in zip(networks, depths, strict=True):
        axis.set(title=f"Poincaré ResNet-{depth}", xlabel="residual block")
    stack.legend(frameon=False, fontsize="small", loc="lower left")
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    """Write the figure to a file named on the command line."""
    parser = argparse.ArgumentParser(description=plot_norms.__doc__.splitlines()[0] if plot_norms.__doc__ else None)
    parser.add_argument("output", help="file to write, .png or .svg")
    parser.add_argument("--c", type=float, default=0.025, help="the curvature of the ball is -c")
    args = parser.parse_args()
    plot_norms(c=args.c).savefig(args.output, dpi=120)


if __name__ == "__main__":
    main()
