"""Files of weights: those of others read and converted, and models kept in one file."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from manifold_resnet._errors import UserError, extra
from manifold_resnet.models.reference import Conversion, identify, load_reference_state_dict, plain_state_dict
from manifold_resnet.models.registry import create_model, default_options

#: where training scripts put a network's weights, the authors' among them
_INSIDE = ("state_dict", "model_state_dict", "model_state", "last_model_state", "best_model_state", "model")
_HYPLL = (
    "hypll.tensors.manifold_tensor.ManifoldTensor",
    "hypll.tensors.manifold_parameter.ManifoldParameter",
    "hypll.manifolds.euclidean.manifold.Euclidean",
    "hypll.manifolds.poincare_ball.manifold.PoincareBall",
    "hypll.manifolds.poincare_ball.curvature.Curvature",
)
_FORMAT = "manifold_resnet model"
_PREFIX = "model."  # as in the checkpoints of runs


def convert_checkpoint(
    path: str | Path,
    output: str | Path,
    *,
    source: Literal["auto", "authors", "hypll"] = "auto",
    compat: Literal["authors"] | None = None,
    c: float | None = None,
    options: Mapping[str, Any] | None = None,
    dataset: str | None = None,
    data_dir: str = "data",
) -> tuple[nn.Module, Conversion]:
    """Convert a checkpoint of the authors' code, or of a network of HypLL's modules, to a file for `load_model`.

    The network's name, such as ``hyperbolic-8-16-32-resnet-20``, follows from the names and shapes in the checkpoint.

    Parameters
    ----------
    path : str or Path
        The checkpoint, written by ``torch.save``. Nothing in it is executed, and HypLL need not be installed.
    output : str or Path
        New file to write.
    source, compat, c
        See `load_reference_state_dict`.
    options : mapping, optional
        Options of `create_model`, besides ``variant="paper"``. Networks of HypLL get ``mean="frechet"``, its default.
    dataset, data_dir : str
        The images the network was trained on, as ``manifold-resnet train`` takes them: the running statistics of its
        norms, which the checkpoint lacks, are then taken from them, and `output` is also a checkpoint that the commands
        take, such as ``manifold-resnet evaluate``. Needs the extra "train".

    Returns
    -------
    model : torch.nn.Module
        The network, in evaluation mode.
    conversion : Conversion
        Source, c, and the differences in meaning.

    Raises
    ------
    UserError
        If a file cannot be read, `output` exists, or the checkpoint does not fit any network.

    Examples
    --------
    A checkpoint such as the authors' Euclidean network leaves, of depth 8:

    >>> import tempfile, torch, manifold_resnet as mr
    >>> state = mr.models.create_model("euclidean-4-6-8-resnet-8").state_dict()
    >>> convolutions = {name: kernel for name, kernel in state.items() if kernel.ndim == 4}
    >>> offsets = {name.replace("weight", "bias"): torch.zeros(len(k)) for name, k in convolutions.items()}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save({**state, **offsets}, f"{folder}/theirs.pth")
    ...     _, conversion = mr.models.convert_checkpoint(f"{folder}/theirs.pth", f"{folder}/ours.pt")
    ...     model = mr.models.load_model(f"{folder}/ours.pt")
    >>> conversion
    Conversion(source='authors', c=None, differences=())
    >>> model(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    path, output = Path(path).expanduser(), Path(output).expanduser()
    if output.exists():
        raise UserError(f"{output} exists; choose another name, or remove it first")
    values = read_weights(path)
    try:
        if identify(values) is None and source == "auto":
            raise ValueError(
                f"it is neither of the authors' code nor of HypLL; it begins with {', '.join(values)[:80]}"
            )
        name, classes, channels = network_of(values)
        chosen = {"variant": "paper", **(options or {})}
        if identify(values) == "hypll":
            chosen = {"mean": "frechet", **chosen}
        model = create_model(name, classes, in_channels=channels, **chosen)
        conversion = load_reference_state_dict(model, values, source, compat, c=c)
    except (TypeError, ValueError) as error:
        raise UserError(f"cannot convert {path}: {error}") from error
    if compat is not None and "compat" in default_options(name):
        chosen["compat"] = compat
    if conversion.c is not None:
        chosen["c"] = conversion.c
    run = None
    if dataset is not None:
        with extra("train"):
            from manifold_resnet.training.imported import run_settings
        run = run_settings(model, name, chosen, classes, channels, dataset, data_dir)
        kept = tuple(text for text in conversion.differences if "update_bn" not in text)
        conversion = replace(conversion, differences=kept)
    save_model(model, output, name, classes, channels, chosen, conversion, run)
    return model.eval(), conversion


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict that a file holds, by itself or inside a checkpoint, as plain tensors on the CPU.

    Raises
    ------
    UserError
        If the file cannot be read, or holds no state dict.
    """
    try:
        with _hypll_stand_ins():
            stored = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except Exception as error:  # damaged files fail in zip, pickle, tensor and key errors alike
        raise UserError(
            f"cannot read {path}: it must be a file that torch.save wrote of a state_dict(). If it holds other things, "
            f"save {{k: getattr(v, 'tensor', v) for k, v in model.state_dict().items()}} where it was made"
        ) from error
    for key in _INSIDE:
        if isinstance(stored, Mapping) and isinstance(stored.get(key), Mapping):
            stored = stored[key]
    try:
        return plain_state_dict(stored)
    except TypeError as error:
        raise UserError(f"{path} holds no state dict: {error}") from error


def _hypll_stand_ins() -> AbstractContextManager[Any]:
    """Let torch read HypLL's tensors, which carry their manifold along, as objects that do nothing."""
    safe_globals = getattr(torch.serialization, "safe_globals", None)
    if safe_globals is None:  # torch 2.4
        return nullcontext()
    kinds: list[Any] = []
    for full in _HYPLL:
        module, _, name = full.rpartition(".")
        kinds.append(type(name, (), {"__module__": module, "__qualname__": name}))
    context: AbstractContextManager[Any] = safe_globals([*kinds, set, nn.functional.softplus])
    return context


def network_of(values: Mapping[str, Tensor]) -> tuple[str, int, int]:
    """Name, number of classes and number of channels of images, from names and shapes of a state dict.

    Raises
    ------
    ValueError
        If they are not those of a network of three groups.
    """
    depths: dict[int, int] = {}
    for name in values:
        match = re.match(r"group(\d+)\.(\d+)\.conv1\.(weights?)$", name)
        if match is not None:
            depths[int(match[1])] = max(depths.get(int(match[1]), 0), int(match[2]) + 1)
    head = {"fc.z", "fc.weight"} & set(values)
    stem = {"conv.weights", "conv.weight"} & set(values)
    if sorted(depths) != [1, 2, 3] or len(set(depths.values())) != 1 or not head or not stem:
        raise ValueError(
            "it is no network of three groups of equally many blocks (conv, group1.0.conv1, ..., fc): create a model "
            "with layers named alike, and use manifold_resnet.models.load_reference_state_dict"
        )
    hyperbolic = "conv.weights" in values
    kind = "hyperbolic" if hyperbolic else "euclideanwhypclass" if "fc.z" in values else "euclidean"
    weights = "weights" if hyperbolic else "weight"
    widths = [values[f"group{i}.0.conv1.{weights}"].shape[1 if hyperbolic else 0] for i in (1, 2, 3)]
    channels = values["conv.weights"].shape[0] // 9 if hyperbolic else values["conv.weight"].shape[1]
    fc = values[next(iter(head))]
    classes = fc.shape[1] if "fc.z" in head else fc.shape[0]
    return f"{kind}-{widths[0]}-{widths[1]}-{widths[2]}-resnet-{6 * depths[1] + 2}", classes, channels


def save_model(
    model: nn.Module,
    path: Path,
    name: str,
    num_classes: int,
    in_channels: int,
    options: Mapping[str, Any],
    conversion: Conversion,
    run: Mapping[str, Any] | None = None,
) -> None:
    """Write a converted model to one file, whole or not at all; with `run`, as a checkpoint of a run too."""
    stored = {
        "format": _FORMAT,
        "model": name,
        "num_classes": num_classes,
        "in_channels": in_channels,
        "options": dict(options),
        "source": conversion.source,
        "differences": list(conversion.differences),
        "state_dict": {_PREFIX + key: v.detach().as_subclass(Tensor) for key, v in model.state_dict().items()},
        **(run or {}),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        torch.save(stored, partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load_model(path: str | Path) -> nn.Module:
    """The model of a file that ``manifold-resnet convert`` or `convert_checkpoint` wrote.

    Parameters
    ----------
    path : str or Path
        The file.

    Returns
    -------
    torch.nn.Module
        In evaluation mode, on the CPU. Takes images ``(batch, channels, H, W)``, returns logits ``(batch, classes)``.

    Raises
    ------
    UserError
        If the file is missing, damaged or another kind of file.

    Examples
    --------
    >>> import manifold_resnet as mr
    >>> mr.models.load_model("nowhere.pt")
    Traceback (most recent call last):
        ...
    manifold_resnet._errors.UserError: no such file: nowhere.pt

    See `convert_checkpoint` for a file that is there.
    """
    path = Path(path).expanduser()
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
        if stored["format"] != _FORMAT:
            raise ValueError(f"its format is {stored['format']!r}")
        model = create_model(
            stored["model"], stored["num_classes"], in_channels=stored["in_channels"], **stored["options"]
        )
        model.load_state_dict({key.removeprefix(_PREFIX): value for key, value in stored["state_dict"].items()})
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except Exception as error:  # damaged files fail in zip, pickle, tensor and key errors alike
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{path} is damaged, or was not written by manifold-resnet convert ({reason})") from error
    return model.eval()
