r"""Initialisations of hyperplane normals, by name.

A Poincaré layer is, close to the origin, the linear map :math:`2 s Z` with rows :math:`z_k` (``s`` is the
beta-concatenation's factor `beta_ratio`). So normals of length ``0.5/s`` preserve norms, and a network of any depth
starts with activations in range.

gaussian
    Gaussian of standard deviation ``0.5/(s sqrt(fan_in))``: preserves the mean square of coordinates in expectation,
    hence norms where there are as many outputs as inputs.
orthogonal
    Orthogonal rows of length ``0.5/s``: preserves the norm of the part of the patch that they read.
identity
    Dirac kernel of length ``0.5/s``: output k is input channel k.
paper
    ``0.5 eye`` over the flattened patch, as the authors' code has it [1]_: output k reads channel 0 at position k.
normal
    Gaussian of standard deviation ``(2 fan_in out)**-0.5`` of [2]_: norms collapse with depth.

References
----------
.. [1] van Spengler, Berkhout, Mettes: Poincaré ResNet. ICCV 2023, sec. 3.2.
.. [2] Shimizu, Mukuta, Harada: Hyperbolic neural networks++. ICLR 2021.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from manifold_resnet.functional import beta_ratio


def _factor(normals: Tensor, pixels: float | None) -> float:
    return beta_ratio(normals.shape[1], math.prod(normals.shape[2:]) if pixels is None else pixels)


def _gain(normals: Tensor, pixels: float | None) -> float:
    """Length that a normal must have for the part of it that acts on a patch to have ``0.5/s``."""
    share = 1.0 if pixels is None else pixels / math.prod(normals.shape[2:])
    return 0.5 / (_factor(normals, pixels) * math.sqrt(share))


@torch.no_grad()
def identity_(normals: Tensor, pixels: float | None = None) -> Tensor:
    """Fill with a Dirac kernel of length ``0.5/s`` that passes channels on unchanged.

    Parameters
    ----------
    normals : Tensor
        Hyperplane normals ``(out, in, *kernel)``, filled in place. With more outputs than inputs the channels repeat,
        shortened so that the norm is preserved; with fewer, the last ones are left out.
    pixels : float, optional
        How many pixels a patch has on average. None: as many as the kernel. In transposed convolutions with strides
        fewer pixels than the kernel has taps reach an output pixel.

    Returns
    -------
    Tensor
        `normals`.
    """
    outputs, inputs, *kernel = normals.shape
    gain = 0.5 / _factor(normals, pixels) * min(1.0, math.sqrt(inputs / outputs))
    center = tuple(k // 2 for k in kernel)
    normals.zero_()
    for k in range(outputs):
        normals[(k, k % inputs, *center)] = gain
    return normals


@torch.no_grad()
def paper_(normals: Tensor, pixels: float | None = None) -> Tensor:
    """Fill with half the identity matrix over the flattened patch, as the authors do. In place, as `identity_`."""
    return normals.copy_(0.5 * torch.eye(normals.shape[0], normals[0].numel()).view_as(normals))


@torch.no_grad()
def normal_(normals: Tensor, pixels: float | None = None) -> Tensor:
    """Fill with the Gaussian of Hyperbolic Neural Networks++. In place; shape as `identity_`."""
    return normals.normal_(0, (2 * normals[0].numel() * normals.shape[0]) ** -0.5)


@torch.no_grad()
def gaussian_(normals: Tensor, pixels: float | None = None) -> Tensor:
    """Fill with a Gaussian that preserves mean squares in expectation. In place; shape as `identity_`."""
    return normals.normal_(0, _gain(normals, pixels) / math.sqrt(normals[0].numel()))


@torch.no_grad()
def orthogonal_(normals: Tensor, pixels: float | None = None) -> Tensor:
    """Fill with orthogonal rows (columns, if there are more rows) of length ``0.5/s``. In place, as `identity_`."""
    outputs, fan_in = normals.shape[0], normals[0].numel()
    gain = _gain(normals, pixels) * max(1.0, math.sqrt(outputs / fan_in))
    flat = torch.nn.init.orthogonal_(torch.empty(outputs, fan_in, dtype=normals.dtype), gain)
    return normals.copy_(flat.view_as(normals))


INITIALISATIONS: dict[str, Callable[..., Tensor]] = {
    "identity": identity_,
    "paper": paper_,
    "normal": normal_,
    "gaussian": gaussian_,
    "orthogonal": orthogonal_,
}


def initialisation(name: str) -> Callable[..., Tensor]:
    """The function that fills normals, by name.

    Raises
    ------
    ValueError
        If there is none of that name.

    Examples
    --------
    >>> import torch
    >>> from manifold_resnet import nn
    >>> nn.init.initialisation("identity")(torch.empty(2, 2))
    tensor([[0.5000, 0.0000],
            [0.0000, 0.5000]])
    """
    if name not in INITIALISATIONS:
        raise ValueError(f"init must be one of {', '.join(INITIALISATIONS)}; got {name!r}")
    return INITIALISATIONS[name]
