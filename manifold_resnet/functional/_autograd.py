"""Bookkeeping shared by every hand-written backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from manifold_resnet.functional._checks import without_autocast


def differentiable(
    forward: Callable[..., Tensor],
    backward: Callable[..., tuple[Tensor | None, ...]],
    *,
    tensors: int,
    keep_output: bool = False,
) -> Callable[..., Tensor]:
    """Join a plain forward and a plain backward function into one node of the autograd graph.

    Only the inputs (and the output, on request) are kept for the backward pass. Because `backward` is made of
    differentiable torch operations on those inputs, double backward and the reverse-mode transforms of ``torch.func``
    come for free.

    Parameters
    ----------
    forward : callable
        ``forward(*tensors, *static)`` returns one tensor.
    backward : callable
        ``backward(grad, needs, *tensors, *static)`` returns one gradient (or None) per tensor; ``needs[i]`` says
        whether the i-th gradient will be used.
    tensors : int
        How many of the leading positional arguments are tensors (or None); the rest is static.
    keep_output : bool
        Keep the output too, as the last of the tensors that `backward` gets. For results that are costly to recompute.

    Returns
    -------
    callable
        Takes the arguments of `forward`, positionally.
    """

    def compute(*args: Any) -> Tensor:
        with without_autocast(args[0]):
            return forward(*args)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:tensors], *([output] if keep_output else []))
        ctx.static = inputs[tensors:]

    def compute_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        with without_autocast(grad):
            gradients = backward(grad, ctx.needs_input_grad, *ctx.saved_tensors, *ctx.static)
        return *gradients, *(None,) * len(ctx.static)

    # a class of its own, with a name that graphs and profiles show
    op: Any = type(torch.autograd.Function)(
        forward.__name__.strip("_"),
        (torch.autograd.Function,),
        {
            "generate_vmap_rule": True,
            "forward": staticmethod(compute),
            "setup_context": staticmethod(setup_context),
            "backward": staticmethod(compute_gradients),
        },
    )
    return op.apply
