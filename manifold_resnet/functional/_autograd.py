"""Bookkeeping shared by every hand-written backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from manifold_resnet.functional._backend import bodies_only
from manifold_resnet.functional._checks import as_pixels, without_autocast


def _wanted(tensors: Sequence[Tensor | None]) -> bool:
    """Whether a gradient for one of the tensors is."""
    return any(t is not None and t.requires_grad for t in tensors)


def reshaped(output: Tensor, shape: Sequence[int]) -> Tensor:
    """View what a forward function has made; not as a view, which users could not change in place."""
    return torch.ops.aten._unsafe_view.default(output, shape)


def differentiable(
    forward: Callable[..., Any],
    backward: Callable[..., tuple[Tensor | None, ...]],
    *,
    tensors: int,
    drop: Sequence[int] = (),
    keep_outputs: bool = False,
    auxiliary: int = 0,
    images: int = 0,
) -> Callable[..., Any]:
    """Join a plain forward and a plain backward function into one node of the autograd graph.

    Only inputs (and outputs, on request) are kept for the backward pass. Because `backward` is made of
    differentiable torch operations on those, double backward and the reverse-mode transforms of ``torch.func``
    come for free, as long as it uses auxiliary outputs only while gradients are not recorded. In forward mode there is
    no node: torch differentiates the operations of `forward`.

    Parameters
    ----------
    forward : callable
        ``forward(*tensors, *static)`` returns a tensor or a tuple of tensors.
    backward : callable
        ``backward(grad, needs, *tensors, *outputs, *static)`` returns one gradient (or None) per tensor; ``needs[i]``
        says whether the i-th gradient will be used. With several outputs, ``grad`` is a tuple, with None for outputs
        that were not used.
    tensors : int
        How many of the leading positional arguments are tensors (or None); the rest is static.
    drop : sequence of int
        Inputs that the backward pass does without; it gets None for them.
    keep_outputs : bool
        Keep the outputs too: for results that are costly to recompute.
    auxiliary : int
        So many of the last outputs are there for the backward pass only, or are statistics: no gradient flows through
        them.
    images : int
        So many of the first tensors, and the first output, may have any shape: `forward` and `backward` see them as
        ``[B, C, N]``, the channels C being those of the dimension that is passed after the tensors. (Views made outside
        would be nodes of the graph themselves.)

    Returns
    -------
    callable
        Takes the arguments of `forward`, positionally.
    """

    def compute(*args: Any) -> Any:
        with without_autocast(args[0]):
            if not images:
                return forward(*args)
            pixels = [as_pixels(t, args[tensors]) for t in args[:images]]
            output = forward(*pixels, *args[images:tensors], *args[tensors + 1 :])
            if isinstance(output, tuple):
                return reshaped(output[0], args[0].shape), *output[1:]
            return reshaped(output, args[0].shape)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        outputs = output if isinstance(output, tuple) else (output,)
        kept = [None if i in drop else t for i, t in enumerate(inputs[:tensors])]
        ctx.save_for_backward(*kept, *(outputs if keep_outputs else ()))
        ctx.static = inputs[tensors:]
        ctx.set_materialize_grads(False)
        if auxiliary:
            ctx.mark_non_differentiable(*outputs[-auxiliary:])

    def compute_gradients(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        used = [g for g in grads if g is not None]
        if not used:
            return (None,) * (tensors + len(ctx.static))
        if not torch.compiler.is_compiling() and torch._C._functorch.is_legacy_batchedtensor(used[0]):
            with bodies_only():  # batches of gradients (is_grads_batched) hold no numbers of their own
                return gradients_of(ctx, grads, used[0])
        return gradients_of(ctx, grads, used[0])

    def gradients_of(ctx: Any, grads: tuple[Tensor | None, ...], like: Tensor) -> tuple[Tensor | None, ...]:
        with without_autocast(like):
            saved, static, shape = ctx.saved_tensors, ctx.static, None
            if images:
                shape, dim, static = saved[0].shape, static[0], static[1:]
                seen = (*range(images), *((tensors,) if keep_outputs else ()))
                saved = [as_pixels(t, dim) if i in seen else t for i, t in enumerate(saved)]
                grads = (None if grads[0] is None else as_pixels(grads[0], dim), *grads[1:])
            grad = grads[0] if len(grads) == 1 else grads
            gradients = backward(grad, ctx.needs_input_grad, *saved, *static)
            if shape is not None:
                gradients = (*[g if g is None else g.view(shape) for g in gradients[:images]], *gradients[images:])
        return *gradients, *(None,) * len(ctx.static)

    def compute_one_by_one(*args: Any) -> Any:
        with bodies_only():
            return compute(*args)

    def compute_with_context(ctx: Any, *args: Any) -> Any:
        output = compute(*args)
        setup_context(ctx, args, output)
        return output

    def node(members: dict[str, Any]) -> Any:
        # a class of its own, with a name that graphs and profiles show
        members = {name: staticmethod(member) for name, member in members.items()}
        members["backward"] = staticmethod(compute_gradients)
        members["generate_vmap_rule"] = "setup_context" in members
        return type(torch.autograd.Function)(forward.__name__.strip("_"), (torch.autograd.Function,), members)

    traceable = node({"forward": compute, "setup_context": setup_context})
    transformable = node({"forward": compute_one_by_one, "setup_context": setup_context})
    # torch binds the arguments of a function with a context of its own to its signature, at each call and slowly
    plain = node({"forward": compute_with_context})

    def apply(*args: Any) -> Any:
        if torch.compiler.is_compiling():
            # nodes cannot be traced inside another node, nor where no gradient is wanted (torch 2.14)
            if not torch.is_grad_enabled() or not _wanted(args[:tensors]):
                return compute(*args)
            return traceable.apply(*args)
        if forward_ad._current_level >= 0:  # forward mode: torch differentiates each operation
            return compute_one_by_one(*args)
        if torch._C._are_functorch_transforms_active():
            return transformable.apply(*args)
        if not torch.is_grad_enabled():
            return compute(*args)
        return plain.apply(*args)

    return apply
