"""Batch normalisation on the ball."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import geoopt
import torch
from torch import Tensor, nn

from manifold_resnet.functional._checks import Chart, curvature, full_precision
from manifold_resnet.functional._synchronised import is_spread, joint_statistics
from manifold_resnet.functional.batch_norm import (
    Mean,
    Scale,
    check_norm,
    mean_of_sums,
    normalise,
)
from manifold_resnet.functional.charts import convert
from manifold_resnet.nn.base import BoundedModule

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class _PoincareBatchNorm(BoundedModule):
    _ndims: tuple[int, ...]
    running_sums: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None
    log_scale: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        num_features: int,
        *,
        ball: geoopt.PoincareBall,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        mean: Mean = "midpoint",
        scale: Scale = "channel",
        max_distance: float | None = None,
        sync: bool = False,
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(ball, 1, max_distance)
        check_norm(mean, scale)
        if not isinstance(num_features, int) or num_features < 1:
            raise ValueError(f"num_features must be positive, got {num_features!r}")
        if not (isinstance(eps, (int, float)) and eps > 0):
            raise ValueError(f"eps must be positive, got {eps!r}")
        if momentum is not None and not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be between 0 and 1 or None (cumulative average), got {momentum}")
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        self.mean: Mean = mean
        self.scale: Scale = scale
        self.sync, self.process_group = False, None
        if sync:
            self._synchronise(process_group)
        like = {"dtype": ball.isp_c.dtype, "device": ball.isp_c.device}
        shape = () if scale == "scalar" else (num_features,)
        #: what standardised tangent vectors are multiplied by at first: puts points at distance one, whatever the width
        self.base_gain = 1.0 if scale == "scalar" else 0.5 / math.sqrt(num_features)
        if affine:
            self.log_scale = nn.Parameter(torch.zeros(shape, **like))
            self.bias = geoopt.ManifoldParameter(torch.zeros(num_features, **like), manifold=ball)
        else:
            self.register_parameter("log_scale", None)
            self.register_parameter("bias", None)
        if track_running_stats:
            self.register_buffer("running_sums", torch.zeros(num_features + 1, **like))
            self.register_buffer("running_var", torch.full(shape, self.base_gain**2, **like))
            self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.long, device=ball.isp_c.device))
        else:
            for name in ("running_sums", "running_var", "num_batches_tracked"):
                self.register_buffer(name, None)

    @torch.no_grad()
    def reset_running_stats(self) -> None:
        """Forget the running statistics: the mean is the origin, and the norm does not scale."""
        if self.running_sums is not None and self.running_var is not None and self.num_batches_tracked is not None:
            self.running_sums.zero_()
            gain = self.gain()
            self.running_var.copy_(self.running_var.new_full((), self.base_gain**2) if gain is None else gain.square())
            self.num_batches_tracked.zero_()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Forget the running statistics, and make the centre the origin and the scale the initial one."""
        if self.log_scale is not None and self.bias is not None:
            self.log_scale.zero_()
            self.bias.zero_()
        self.reset_running_stats()

    @property
    def running_mean(self) -> Tensor | None:
        """The running mean as a ball point ``(num_features,)``; None if statistics are not tracked."""
        if self.running_sums is None:
            return None
        return convert(mean_of_sums(self.running_sums), "hyperboloid", "ball", c=self.c)

    def gain(self) -> Tensor | None:
        """What standardised tangent vectors are multiplied by: 0-d or ``(num_features,)``, positive."""
        if self.log_scale is None:
            return None
        return self.log_scale.exp() * self.base_gain

    def _synchronise(self, process_group: ProcessGroup | None) -> None:
        if self.mean != "midpoint":
            raise ValueError(
                "only midpoints can be synchronised, because they are sums over the processes; got a norm with "
                f"mean={self.mean!r}: use mean='midpoint', or do not synchronise it"
            )
        self.sync, self.process_group = True, process_group

    @torch.no_grad()
    def _track(self, sums: Tensor, variance: Tensor, count: Tensor | int) -> None:
        if self.running_sums is None or self.running_var is None or self.num_batches_tracked is None:
            return
        if isinstance(count, Tensor):  # over all processes; where all of their batches are empty, nothing changes
            seen = count > 0
            unbiased = variance * (count / (count - 1).clamp_min(1))
        else:
            seen = 1
            unbiased = torch.add(variance, variance, alpha=1 / (count - 1) if count > 1 else 0)
        self.num_batches_tracked.add_(seen)
        weight: Tensor | float | None = self.momentum
        if weight is None:
            weight = self.num_batches_tracked.to(self.running_var.dtype).reciprocal()
        if isinstance(seen, Tensor):
            weight = weight * seen.to(self.running_var.dtype)
        for running, new in ((self.running_sums, sums), (self.running_var, unbiased)):
            running.lerp_(new.to(running.dtype), weight)

    def forward(self, x: Tensor, in_chart: Chart = "ball", out_chart: Chart = "ball", relu: bool = False) -> Tensor:
        """Normalise points along dimension 1.

        Parameters
        ----------
        x : Tensor
            Points, ``(batch, num_features, ...)``.
        in_chart, out_chart : {"ball", "tangent", "hyperboloid"}
            Charts of `x` and of the result.
        relu : bool
            Apply the tangent ReLU in the same pass; needs ``out_chart="tangent"``.

        Returns
        -------
        Tensor
            Points, same shape. An empty batch stays empty and leaves the running statistics alone.

        Raises
        ------
        ValueError
            If `x` does not have `num_features` channels in dimension 1.
        """
        x = full_precision(x)
        if x.ndim not in self._ndims or x.shape[1] != self.num_features:
            kinds = " or ".join("(batch, {}{})".format(self.num_features, ", *" * (n - 2)) for n in self._ndims)
            raise ValueError(f"x must have shape {kinds}, got {tuple(x.shape)}")
        if relu and out_chart != "tangent":
            raise ValueError(f"relu=True acts on tangent vectors and needs out_chart='tangent', got {out_chart!r}")
        self._check_points(x, in_chart)
        c = curvature(self.c, x)
        h = convert(x, in_chart, "hyperboloid", c=c, dim=1)
        spread = self.sync and self.training and is_spread(self.process_group)
        if h.numel() == 0 and not spread:
            return convert(h, "hyperboloid", out_chart, c=c, dim=1)
        mean = variance = None
        count: Tensor | int = h.numel() // self.num_features
        from_batch = self.training or self.running_sums is None
        if spread:
            mean, variance, joint_sums, count = joint_statistics(
                h, c, scale=self.scale, dim=1, group=self.process_group
            )
        elif not from_batch and self.running_sums is not None:
            mean, variance = mean_of_sums(self.running_sums), self.running_var
        fused = out_chart == "tangent" and self._counts is None
        y, sums, variance = normalise(
            h, mean, variance, self.log_scale, self.bias, c=c, limit=self._limit(c, h), about=self.mean,
            scale=self.scale, eps=self.eps, dim=1, chart="tangent" if fused else "hyperboloid", relu=fused and relu,
            base_gain=self.base_gain,
        )  # fmt: skip
        if from_batch and self.training:
            self._track(joint_sums if spread else sums, variance, count)
        return y if fused else self._emitted(y, out_chart, relu)

    def extra_repr(self) -> str:
        parts = [
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}",
            f"track_running_stats={self.track_running_stats}, mean={self.mean!r}, scale={self.scale!r}",
            super().extra_repr(),
        ]
        return ", ".join(parts + ["sync=True"] * self.sync)


class PoincareBatchNorm2d(_PoincareBatchNorm):
    """Batch normalisation of images of points about their midpoint or Fréchet mean (van Spengler et al., sec. 3.3).

    In training, statistics of the batch are used and running ones kept; in evaluation the running ones are used, so
    that one image's output does not depend on the others in its batch.

    Parameters
    ----------
    num_features : int
        Channels C: the dimension of the ball, along dimension 1 of inputs ``(batch, C, H, W)``.
    ball : geoopt.PoincareBall
        The manifold.
    eps : float
        Added to the variance.
    momentum : float or None
        Weight of the new batch in the running statistics; None: cumulative average.
    affine : bool
        Learn the centre and the scale.
    track_running_stats : bool
        Keep running statistics; without, evaluation uses the batch's.
    mean : {"midpoint", "frechet"}
        Closed-form midpoint, or iterative Fréchet mean with implicit gradient.
    scale : {"channel", "scalar"}
        Standardise each coordinate of the tangent vectors at the mean, or divide by one Fréchet variance (the paper).
    max_distance : float, optional
        Bound on the outputs' geodesic distance from the origin; None: ``DEFAULT_MAX_DISTANCE / sqrt(c)``.
    sync : bool
        In training, take the statistics over the batches of all processes: values, gradients (with the losses added up
        over the processes) and running statistics are those of one process with the joint batch. Processes may have
        different numbers of points, or none. Without ``torch.distributed``, or with one process, as without it.
    process_group : torch.distributed.ProcessGroup, optional
        The processes to synchronise; None: all.

    Attributes
    ----------
    bias : geoopt.ManifoldParameter
        ``(C,)``: the centre the mean is moved to, a ball point; the origin at first.
    log_scale : torch.nn.Parameter
        0-d or ``(C,)``: logarithm of the gain relative to the initial one, so the gain is positive by construction. At
        first the gain is 1 ("scalar") or ``0.5/sqrt(C)`` ("channel"): mean squared distance 1 either way.
    running_sums : Tensor
        ``(C + 1,)``: average over batches of the hyperboloid coordinates' mean and of their time part's excess over
        one; normalised, they are the joint midpoint, see `running_mean`.
    running_var : Tensor
        0-d squared geodesic distance, or ``(C,)`` squared tangent coordinates.

    Raises
    ------
    TypeError, ValueError
        If an argument is not one of those listed, or ``mean="frechet"`` is to be synchronised.

    Examples
    --------
    >>> import geoopt
    >>> import torch
    >>> import manifold_resnet as mr
    >>> ball = geoopt.PoincareBall(c=1.0)
    >>> norm = mr.nn.PoincareBatchNorm2d(3, ball=ball)
    >>> x = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    >>> y = norm(mr.functional.expmap0(x, c=1.0, dim=1))
    >>> rows = y.movedim(1, -1).reshape(-1, 3)
    >>> print(f"{ball.dist0(rows).square().mean():.3f}")  # the mean squared distance from the centre
    1.000
    """

    _ndims = (4,)


class PoincareBatchNorm1d(_PoincareBatchNorm):
    """Batch normalisation of points ``(batch, C)`` or ``(batch, C, L)``. Arguments as `PoincareBatchNorm2d`.

    Examples
    --------
    >>> import geoopt
    >>> import torch
    >>> import manifold_resnet as mr
    >>> ball = geoopt.PoincareBall(c=1.0)
    >>> norm = mr.nn.PoincareBatchNorm1d(3, ball=ball)
    >>> x = ball.expmap0(torch.randn(64, 3, generator=torch.Generator().manual_seed(0)))
    >>> norm(x).shape, int(norm.num_batches_tracked)
    (torch.Size([64, 3]), 1)
    """

    _ndims = (2, 3)


class PoincareBatchNorm3d(_PoincareBatchNorm):
    """Batch normalisation of volumes of points ``(batch, C, D, H, W)``. Arguments as `PoincareBatchNorm2d`.

    Examples
    --------
    >>> import geoopt
    >>> import torch
    >>> import manifold_resnet as mr
    >>> ball = geoopt.PoincareBall(c=1.0)
    >>> mr.nn.PoincareBatchNorm3d(4, ball=ball)(torch.full((2, 4, 3, 3, 3), 0.1)).shape
    torch.Size([2, 4, 3, 3, 3])
    """

    _ndims = (5,)


def convert_sync_batchnorm(module: nn.Module, process_group: ProcessGroup | None = None) -> nn.Module:
    """Make the Poincaré batch norms of a model synchronise their statistics over processes, in place.

    Like ``torch.nn.SyncBatchNorm.convert_sync_batchnorm``, which is for torch's own norms: a model that has both kinds
    needs both. Parameters, statistics and ``state_dict`` stay as they are.

    Parameters
    ----------
    module : nn.Module
        A norm or a model.
    process_group : torch.distributed.ProcessGroup, optional
        The processes to synchronise; None: all.

    Returns
    -------
    nn.Module
        `module`.

    Raises
    ------
    ValueError
        If a norm has ``mean="frechet"``; then none is changed.

    Examples
    --------
    >>> import manifold_resnet as mr
    >>> model = mr.models.create_model("hyperbolic-4-8-8-resnet-8")
    >>> mr.nn.convert_sync_batchnorm(model).bn.sync
    True
    """
    norms = {name: norm for name, norm in module.named_modules() if isinstance(norm, _PoincareBatchNorm)}
    for name, norm in norms.items():
        if norm.mean != "midpoint":
            raise ValueError(f"{name or 'the norm'} has mean={norm.mean!r}; only mean='midpoint' can be synchronised")
    for norm in norms.values():
        norm._synchronise(process_group)
    return module
