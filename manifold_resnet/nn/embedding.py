"""Embeddings: a table of points of the ball."""

from __future__ import annotations

import math

import geoopt
import torch
import torch.nn.functional as F
from torch import Tensor

from manifold_resnet.functional import convert, expmap0
from manifold_resnet.functional._checks import Chart, check_chart
from manifold_resnet.nn.base import PoincareModule


class PoincareEmbedding(PoincareModule):
    """A table of points of the ball, looked up by index, along the last dimension.

    Parameters
    ----------
    num_embeddings : int
        Number of points.
    embedding_dim : int
        Dimension of the ball.
    ball : geoopt.PoincareBall
        The manifold.
    padding_idx : int, optional
        This point is the origin and gets no gradient; negative numbers count from the end.
    std : float, optional
        Standard deviation of the coordinates of the initial points' tangent vectors at the origin. None:
        ``0.5/sqrt(embedding_dim)``, a mean squared distance of 1 from the origin. To learn trees from distances,
        start close to it, at 1e-3.
    sparse : bool
        Sparse gradients for ``geoopt.optim.SparseRiemannianAdam`` and ``SparseRiemannianSGD``, which touch only the
        points that were looked up. Other optimizers need dense ones.

    Attributes
    ----------
    weight : geoopt.ManifoldParameter
        ``(num_embeddings, embedding_dim)``: each row is a point of the ball, moved by Riemannian optimizers. Gradients
        for a row come from its own look-ups only.

    Raises
    ------
    TypeError, ValueError
        If an argument is not one of those listed.

    Examples
    --------
    >>> import geoopt, torch
    >>> from manifold_resnet.nn import PoincareEmbedding
    >>> embedding = PoincareEmbedding(10, 3, ball=geoopt.PoincareBall(1.0), padding_idx=0)
    >>> embedding(torch.tensor([[1, 2, 0]])).shape
    torch.Size([1, 3, 3])
    >>> embedding(torch.tensor(0))
    tensor([0., 0., 0.], grad_fn=<radialBackward>)
    """

    weight: Tensor

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        ball: geoopt.PoincareBall,
        padding_idx: int | None = None,
        std: float | None = None,
        sparse: bool = False,
    ) -> None:
        super().__init__(ball, -1)
        for name, value in (("num_embeddings", num_embeddings), ("embedding_dim", embedding_dim)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        if padding_idx is not None and not -num_embeddings <= padding_idx < num_embeddings:
            raise ValueError(f"padding_idx must be the index of one of {num_embeddings} points, got {padding_idx}")
        if std is not None and not (isinstance(std, (int, float)) and 0 <= std < math.inf):
            raise ValueError(f"std must be a number from 0 up, or None for the default, got {std!r}")
        self.num_embeddings, self.embedding_dim, self.std, self.sparse = num_embeddings, embedding_dim, std, sparse
        self.padding_idx = None if padding_idx is None else padding_idx % num_embeddings
        points = torch.zeros(num_embeddings, embedding_dim, dtype=ball.isp_c.dtype, device=ball.isp_c.device)
        self.weight = geoopt.ManifoldParameter(points, manifold=ball)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise again: Gaussian tangent vectors at the origin, mapped onto the ball."""
        std = 0.5 / math.sqrt(self.embedding_dim) if self.std is None else self.std
        tangents = torch.empty_like(self.weight.as_subclass(Tensor)).normal_(0, std)
        if self.padding_idx is not None:
            tangents[self.padding_idx] = 0
        self.weight.copy_(expmap0(tangents, c=self.c))

    def forward(self, indices: Tensor, out_chart: Chart = "ball") -> Tensor:
        """Look up points.

        Parameters
        ----------
        indices : Tensor
            Integers from 0 to ``num_embeddings - 1``, any shape.
        out_chart : {"ball", "tangent", "hyperboloid"}
            Chart of the result.

        Returns
        -------
        Tensor
            Points, ``(*indices.shape, embedding_dim)``.

        Raises
        ------
        TypeError
            If `indices` does not hold integers.
        IndexError
            If an index is out of range (on CPU; a GPU stops with an assertion of its own).
        """
        check_chart(out_chart, "out_chart")
        if not isinstance(indices, Tensor) or indices.dtype not in (torch.int64, torch.int32):
            kind = indices.dtype if isinstance(indices, Tensor) else type(indices).__name__
            raise TypeError(f"indices must be a tensor of int64 or int32, got {kind}: convert it with indices.long()")
        self._check_indices(indices)
        x = F.embedding(indices, self.weight, self.padding_idx, sparse=self.sparse)
        return convert(x, "ball", out_chart, c=self.c)

    def _check_indices(self, indices: Tensor) -> None:
        if indices.device.type != "cpu" or torch.compiler.is_compiling() or indices.numel() == 0:
            return
        try:
            low, high = (int(i) for i in torch.aminmax(indices))
        except RuntimeError:  # inside torch.func.vmap there are no values to look at
            return
        if low < 0 or high >= self.num_embeddings:
            raise IndexError(
                f"indices must be from 0 to {self.num_embeddings - 1}, got {low if low < 0 else high}: make "
                f"num_embeddings larger"
            )

    def extra_repr(self) -> str:
        parts = [f"{self.num_embeddings}, {self.embedding_dim}"]
        if self.padding_idx is not None:
            parts.append(f"padding_idx={self.padding_idx}")
        if self.std is not None:
            parts.append(f"std={self.std}")
        if self.sparse:
            parts.append("sparse=True")
        return ", ".join([*parts, super().extra_repr()])
