"""Riemannian gradients and clipping in the metrics of a Lightning training."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from manifold_resnet.optim.monitor import gradient_norms, measure

from manifold_resnet._errors import extra
from manifold_resnet.nn import ClippingMonitor, monitor_clipping

with extra("train"):
    import lightning

__all__ = ["RiemannianMonitor"]


class RiemannianMonitor(lightning.Callback):
    """Logs `manifold_resnet.optim.measure` every few steps, before the optimizer uses the gradient.

    The share of clipped points is counted over the training batches of the measured step; other steps cost
    nothing. Layers that count take a path that is not fused, so that the training's results differ by rounding
    from those without the callback; ``clipping=False`` leaves them the same bit for bit.

    Parameters
    ----------
    every_n_steps : int
        Optimizer steps from one measurement to the next, the first one included.
    clipping : bool
        Log the share of clipped points, too.
    per_parameter : bool
        Also log the Riemannian norm of each parameter's gradient.
    prefix : str
        Before the metrics' names, for example ``"riemannian/gradient_norm"``.

    Attributes
    ----------
    history : list of dict
        One per measurement: ``step`` (steps taken before it), ``epoch`` (from 0), and the metrics, without the
        prefix; norms of single parameters as ``gradient_norm/<name>``.

    Raises
    ------
    ValueError
        If ``every_n_steps`` is not a positive whole number.

    Examples
    --------
    >>> from manifold_resnet.optim import RiemannianMonitor
    >>> from manifold_resnet.training import Config, train
    >>> monitor = RiemannianMonitor(every_n_steps=10)
    >>> _ = train(Config(epochs=1), "runs/watched", callbacks=[monitor])  # doctest: +SKIP
    >>> [row["gradient_norm"] for row in monitor.history]  # doctest: +SKIP
    """

    def __init__(
        self,
        every_n_steps: int = 50,
        *,
        clipping: bool = True,
        per_parameter: bool = False,
        prefix: str = "riemannian/",
    ):
        if isinstance(every_n_steps, bool) or not isinstance(every_n_steps, int) or every_n_steps < 1:
            raise ValueError(f"every_n_steps must be a positive whole number, got {every_n_steps!r}")
        self.every_n_steps = every_n_steps
        self.clipping = clipping
        self.per_parameter = per_parameter
        self.prefix = prefix
        self.history: list[dict[str, float]] = []
        self._context: AbstractContextManager[ClippingMonitor] | None = None
        self._clipping: ClippingMonitor | None = None

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any) -> None:
        """Begin to count clipped points if the coming step is to be measured."""
        # a step may take several batches, of which the first opened the monitor
        if self.clipping and self._context is None and self._due(trainer):
            self._context = monitor_clipping(pl_module)
            self._clipping = self._context.__enter__()

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any
    ) -> None:
        """Measure and log."""
        if not self._due(trainer):
            return
        metrics = measure(pl_module, self._clipping)
        self._close()
        if self.per_parameter:
            metrics |= {f"gradient_norm/{name}": norm for name, norm in gradient_norms(pl_module).items()}
        self.history.append({"step": trainer.global_step, "epoch": trainer.current_epoch, **metrics})
        pl_module.log_dict({self.prefix + name: value for name, value in metrics.items()}, on_step=True, on_epoch=False)

    def on_exception(self, *_: Any) -> None:
        """Stop counting when a training fails."""
        self._close()

    def teardown(self, *_: Any, **__: Any) -> None:
        """Stop counting."""
        self._close()

    def _due(self, trainer: lightning.Trainer) -> bool:
        return trainer.global_step % self.every_n_steps == 0

    def _close(self) -> None:
        if self._context is not None:
            self._context.__exit__(None, None, None)
        self._context = self._clipping = None
