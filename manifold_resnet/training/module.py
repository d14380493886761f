"""A network in training: loss, accuracy, optimizer and schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from manifold_resnet._errors import UserError
from manifold_resnet.training.config import Config

__all__ = ["Classifier", "DivergedError"]


class DivergedError(UserError):
    """A training whose loss is no longer a finite number."""


class MeanLoss(Metric):
    """Mean over all images of an epoch, in all processes; Lightning's own rounds numbers of images when it averages."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, loss: Tensor, images: int) -> None:
        """Count the mean loss of so many images."""
        self.total += loss.detach() * images
        self.images += images

    def compute(self) -> Tensor:
        """Mean loss so far."""
        return self.total / self.images


class Classifier(lightning.LightningModule):
    """An image classifier trained with cross-entropy; its checkpoints hold the settings of the run.

    Parameters
    ----------
    config : mapping
        ``Config.to_dict()``, with ``images`` filled in.
    """

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.config = Config.from_dict(config)
        self.model = self.config.create_model()
        classes = len(self.config.images["classes"])
        for stage in ("train", "val", "test"):
            metric = MulticlassAccuracy(classes, average="micro", validate_args=False)
            setattr(self, f"{stage}_accuracy", metric)
            setattr(self, f"{stage}_loss", MeanLoss())

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] to logits [B, classes]."""
        return self.model(images)

    def _step(self, batch: tuple[Tensor, Tensor], stage: str) -> Tensor:
        images, labels = batch
        logits = self(images).float()  # cross-entropy of bf16 logits loses the small losses
        loss = functional.cross_entropy(logits, labels)
        accuracy = getattr(self, f"{stage}_accuracy")
        accuracy(logits, labels)
        size = len(labels)
        shown = stage != "test"
        mean = getattr(self, f"{stage}_loss")
        mean.update(loss, size)
        about = {"on_step": False, "on_epoch": True, "batch_size": size, "prog_bar": shown}
        self.log(f"{stage}_loss", mean, **about)
        self.log(f"{stage}_accuracy", accuracy, **about)
        return loss

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """Return the loss of a batch; of several processes' shares, so that their average is the whole batch's."""
        loss = self._step(batch, "train")
        processes = self.trainer.world_size
        if processes > 1:
            size = len(batch[1])
            together = self.trainer.strategy.reduce(torch.tensor(float(size), device=loss.device), reduce_op="sum")
            loss = loss * (size * processes / together)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        """Count a validation batch."""
        self._step(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        """Count a test batch."""
        self._step(batch, "test")

    def on_train_epoch_start(self) -> None:
        """Make whatever random numbers a network draws depend on seed, epoch and process alone."""
        key = (self.config.seed, self.current_epoch, *[self.global_rank] * (self.global_rank > 0))
        words = np.random.SeedSequence(key).generate_state(1, np.uint64)
        torch.manual_seed(int(words[0]))

    def on_train_epoch_end(self) -> None:
        """Stop a training that has nothing left to learn from, before it is saved."""
        loss = float(self.trainer.callback_metrics["train_loss"])
        if not np.isfinite(loss):
            raise DivergedError(
                f"the training loss became {loss} in epoch {self.current_epoch + 1}; lower --lr or --max-distance"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep nothing but plain tensors, so that ``torch.load(weights_only=True)`` reads the file."""
        checkpoint["state_dict"] = _plain(checkpoint["state_dict"])
        checkpoint["optimizer_states"] = _plain(checkpoint["optimizer_states"])

    def configure_optimizers(self) -> dict[str, Any]:
        """Riemannian Adam or SGD, and its schedule per step."""
        from manifold_resnet.optim import RiemannianAdam, RiemannianSGD, parameter_groups

        config = self.config
        groups = parameter_groups(self.model, config.weight_decay)
        options: dict[str, Any] = {"lr": config.lr}
        if config.decoupled_weight_decay:
            options["decoupled_weight_decay"] = True
        if config.max_grad_norm is not None:
            options["max_grad_norm"] = config.max_grad_norm
        if config.optimizer == "adam":
            second_moment = config.second_moment or "point"  # as in runs from before there was a choice
            optimizer = RiemannianAdam(groups, amsgrad=config.amsgrad, second_moment=second_moment, **options)
        else:
            momentum = 0.9 if config.momentum is None else config.momentum
            optimizer = RiemannianSGD(groups, momentum=momentum, nesterov=config.nesterov, **options)
        if config.schedule == "constant":
            return {"optimizer": optimizer}
        steps = int(self.trainer.estimated_stepping_batches)
        if config.schedule == "onecycle":
            given = config.optimizer == "sgd" and config.momentum is not None
            schedule = OneCycleLR(optimizer, max_lr=config.lr, total_steps=steps, cycle_momentum=not given)
        else:
            schedule = CosineAnnealingLR(optimizer, T_max=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _plain(value: Any) -> Any:
    """Replace tensor subclasses, such as points of a manifold, by the tensors they are."""
    if isinstance(value, Tensor):
        return value.detach().as_subclass(Tensor)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value
