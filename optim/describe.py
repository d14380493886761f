"""A table of what a model learns: shapes, manifolds, curvatures, and how close points are to the boundary."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass

import geoopt
import torch
from geoopt.manifolds.base import Manifold
from manifold_resnet.optim._optimizer import manifold_of
from torch import Tensor, nn

__all__ = ["ParameterRow", "ParameterTable", "describe_parameters"]


@dataclass(frozen=True)
class ParameterRow:
    """One parameter of a model.

    Attributes
    ----------
    name : str
        As in ``model.named_parameters()``.
    shape : tuple of int
        Of the tensor; how many trailing dimensions make one point is up to the manifold.
    manifold : str
        Where it lives, "Euclidean" for plain parameters.
    c : float or None
        The manifold's sectional curvature is ``-c`` (1 / length^2); ``None`` if it has no single one. For a
        parameter that a manifold owns (``PoincareBall.isp_c``), the c that it stands for.
    trainable : bool
        Whether it requires gradients.
    near_boundary : float or None
        Share (0 to 1) of its points on a ball that are beyond ``near`` of the radius; ``None`` elsewhere.
    """

    name: str
    shape: tuple[int, ...]
    manifold: str
    c: float | None
    trainable: bool
    near_boundary: float | None


@dataclass(frozen=True)
class ParameterTable:
    """Rows of `describe_parameters`: iterate over them, print the table, or show it in a notebook.

    Attributes
    ----------
    rows : tuple of ParameterRow
        In the order of ``model.named_parameters()``.
    near : float
        The share of the ball's radius beyond which a point counts as near the boundary.
    """

    rows: tuple[ParameterRow, ...]
    near: float

    def __iter__(self) -> Iterator[ParameterRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> ParameterRow:
        return self.rows[index]

    def _cells(self) -> list[tuple[str, ...]]:
        header = ("name", "shape", "manifold", "c", "trainable", f"beyond {self.near:g} of radius")
        return [
            header,
            *(
                (
                    row.name,
                    " x ".join(map(str, row.shape)) or "scalar",
                    row.manifold,
                    "" if row.c is None else f"{row.c:.4g}",
                    "yes" if row.trainable else "no",
                    "" if row.near_boundary is None else f"{row.near_boundary:.1%}",
                )
                for row in self.rows
            ),
        ]

    def __str__(self) -> str:
        cells = self._cells()
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = []
        for line in cells:
            left = [cell.ljust(width) for cell, width in zip(line[:3], widths, strict=False)]
            middle = [line[3].rjust(widths[3]), line[4].ljust(widths[4]), line[5].rjust(widths[5])]
            lines.append("  ".join([*left, *middle]).rstrip())
        lines.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        header, *body = ([html.escape(cell) for cell in line] for line in self._cells())
        head = "".join(f"<th>{cell}</th>" for cell in header)
        rows = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in line)}</tr>" for line in body)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def describe_parameters(model: nn.Module, *, near: float = 0.95) -> ParameterTable:
    """List a model's parameters with their manifolds.

    Parameters
    ----------
    model : torch.nn.Module
        Any model, with parameters on any of geoopt's manifolds.
    near : float
        Points x of a ball with ``sqrt(c) |x| > near`` count as near the boundary, towards which float32 loses
        its digits. 0.95 is a distance of ``3.7 / sqrt(c)`` from the origin.

    Returns
    -------
    ParameterTable
        One row per parameter.

    Raises
    ------
    TypeError
        If ``model`` is not a module.
    ValueError
        If ``near`` is not between 0 and 1.

    Examples
    --------
    >>> import geoopt, torch
    >>> from manifold_resnet.optim import describe_parameters
    >>> model = torch.nn.Linear(2, 3)
    >>> model.points = geoopt.ManifoldParameter(torch.tensor([[0.1, 0.0], [0.0, 0.97]]), geoopt.PoincareBall())
    >>> print(describe_parameters(model))
    name    shape  manifold      c  trainable  beyond 0.95 of radius
    ------  -----  ------------  -  ---------  ---------------------
    weight  3 x 2  Euclidean        yes
    bias    3      Euclidean        yes
    points  2 x 2  PoincareBall  1  yes                        50.0%
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not 0 < near < 1:
        raise ValueError(f"near is a share of the ball's radius, between 0 and 1; got {near}")
    owner = {id(p): m for m in model.modules() if isinstance(m, Manifold) for p in m.parameters(recurse=False)}
    rows = []
    for name, p in model.named_parameters():
        manifold = manifold_of(p)
        radii = relative_radii(p)
        rows.append(
            ParameterRow(
                name=name,
                shape=tuple(p.shape),
                manifold=manifold_name(manifold),
                c=_curvature(owner.get(id(p), manifold)),
                trainable=p.requires_grad,
                near_boundary=None if radii is None or radii.numel() == 0 else (radii > near).double().mean().item(),
            )
        )
    return ParameterTable(tuple(rows), near)


@torch.no_grad()
def relative_radii(p: Tensor) -> Tensor | None:
    """``sqrt(c) |x|`` (0 to 1) of each point x of a ball, ``None`` for tensors that are not on one."""
    ball = manifold_of(p)
    while isinstance(ball, geoopt.Scaled):  # its points are those of what it scales
        ball = ball.base
    if not isinstance(ball, geoopt.Stereographic) or (ball.k >= 0).any():
        return None
    return torch.linalg.vector_norm(p.detach().as_subclass(Tensor), dim=-1) * (-ball.k).sqrt().squeeze(-1)


def manifold_name(manifold: Manifold) -> str:
    """The manifold's class, with the names of what it is made of."""
    if isinstance(manifold, geoopt.Scaled):
        return f"Scaled({manifold_name(manifold.base)})"
    if isinstance(manifold, geoopt.ProductManifold):
        return " x ".join(map(manifold_name, manifold.manifolds))
    return type(manifold).__name__


@torch.no_grad()
def _curvature(manifold: Manifold) -> float | None:
    if isinstance(manifold, geoopt.Scaled):  # distances times s, so curvatures over s^2
        c = _curvature(manifold.base)
        return None if c is None else c / manifold.scale.item() ** 2
    if isinstance(manifold, geoopt.Stereographic):
        c = -manifold.k
    elif isinstance(manifold, geoopt.Lorentz):
        c = 1 / manifold.k
    else:
        return None
    return c.item() if c.numel() == 1 else None
