"""Networks trained elsewhere, made into checkpoints like those of runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from itertools import islice
from typing import Any

from torch import nn

from manifold_resnet._errors import UserError
from manifold_resnet.data import ImageData
from manifold_resnet.models import update_bn
from manifold_resnet.training.config import Config

__all__ = ["run_settings"]

_BATCHES, _BATCH_SIZE = 40, 128


def run_settings(
    model: nn.Module, name: str, options: Mapping[str, Any], classes: int, channels: int, dataset: str, data_dir: str
) -> dict[str, Any]:
    """The settings of a run that would have trained a model of the authors' code or of HypLL's tutorial.

    Both take pixels as (pixel - 0.5) / 0.5. Running statistics of the model's norms, which neither keeps, are estimated
    from up to 40 batches of 128 training images.

    Parameters
    ----------
    model : torch.nn.Module
        The network; its running statistics change.
    name : str
        Its name for `create_model`.
    options : mapping
        Its options for `create_model`.
    classes, channels : int
        Its number of logits, and of the images' channels.
    dataset, data_dir : str
        The images it was trained on, as ``manifold-resnet train`` takes them.

    Returns
    -------
    dict
        What a run's checkpoints hold besides weights: ``hyper_parameters`` and ``epoch``.

    Raises
    ------
    UserError
        If the data set is unknown or missing, or has other classes or channels.
    """
    known = {setting.name for setting in fields(Config)}
    given = {key: value for key, value in options.items() if key in known}
    config = Config(dataset=dataset, data_dir=data_dir, model=name, augment="none", val_fraction=0, **given).resolved()
    config = replace(config, batch_size=_BATCH_SIZE)
    data = config.open_data()
    data.setup("fit")
    facts = data.facts
    if (len(facts.classes), facts.channels) != (classes, channels):
        raise UserError(
            f"{dataset} has {len(facts.classes)} classes and {facts.channels} channels, the network {classes} and "
            f"{channels}: name the data set that it was trained on"
        )
    half = [0.5] * channels
    config = replace(config, images=asdict(replace(facts, mean=half, std=half)))
    data = config.open_data()
    data.setup("fit")
    if isinstance(data, ImageData) and options.get("compat") is None:
        update_bn(islice(data.train_dataloader(), _BATCHES), model)
    return {"hyper_parameters": {"config": config.to_dict()}, "epoch": 0}
