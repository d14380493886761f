"""Trained networks as files that run without this library: ONNX and ``torch.export`` programs.

What is exported takes pixels: the run's normalisation is the first step of the graph. A file counts as written once
what it computes has been compared with the network.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from manifold_resnet._errors import UserError, extra
from manifold_resnet.functional._backend import bodies_only

__all__ = ["Exported", "export_model", "export_run", "load_exported", "read_metadata"]

#: how far logits may be from the network's, relative to the largest one or to 1
TOLERANCE = 1e-5
_SUFFIXES = (".onnx", ".pt2")
_METADATA = "metadata.json"


@dataclass(frozen=True)
class Exported:
    """What has been written, and how it was checked.

    Attributes
    ----------
    path : Path
        The file.
    difference : float or None
        Largest difference of its logits from the network's, relative to the largest logit or to 1; None if it was not
        checked.
    images : int
        Number of images that it was checked on.
    metadata : dict
        What the file says about itself, see `read_metadata`.
    """

    path: Path
    difference: float | None
    images: int
    metadata: dict[str, Any]


class _FromPixels(nn.Module):
    """A network after the normalisation that it was trained with."""

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float], like: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", like.new_tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", like.new_tensor(std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Pixels ``(batch, C, H, W)`` between 0 and 1 to logits."""
        return self.model((images - self.mean) / self.std)


def export_model(
    model: nn.Module,
    path: str | Path,
    images: Tensor,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    metadata: Mapping[str, Any] | None = None,
    check: bool = True,
) -> Exported:
    """Write a network, in evaluation mode, as an ONNX or a ``torch.export`` file with a dynamic batch dimension.

    Parameters
    ----------
    model : nn.Module
        Takes images ``(batch, C, H, W)``, returns logits ``(batch, classes)``. It is left as it is.
    path : str or Path
        Ends in ``.onnx`` (needs the extra ``export``) or ``.pt2``. A file that is there is replaced.
    images : Tensor
        Images to check with, ``(batch, C, H, W)``, in the dtype of the network and as the file is to take them; their
        size and channels become those of the file.
    mean, std : sequence of float, optional
        Of each channel: the file computes ``model((images - mean) / std)``. Default: 0 and 1, the network's own input.
    metadata : mapping, optional
        Kept in the file; names to values that JSON can hold.
    check : bool
        Load the file, with onnxruntime or PyTorch, and compare its logits on `images` and on the first of them with the
        network's.

    Returns
    -------
    Exported
        Where and how well.

    Raises
    ------
    UserError
        If the path has another ending, or the file's logits differ by more than 1e-5 of the largest, or, in a network
        whose own rounding is larger, by four times that; then there is no new file.
    ValueError
        If `images` are not a batch of images.

    Examples
    --------
    >>> import tempfile, torch, manifold_resnet as mr
    >>> from manifold_resnet.export import export_model, load_exported
    >>> model = mr.models.create_model("hyperbolic-2-2-2-resnet-8", num_classes=3)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     exported = export_model(model, f"{folder}/model.pt2", torch.rand(2, 3, 8, 8))
    ...     run = load_exported(exported.path)
    >>> exported.difference < 1e-5
    True
    >>> run(torch.rand(5, 3, 8, 8)).shape
    torch.Size([5, 3])
    """
    path = _checked_path(path)
    if images.ndim != 4 or not len(images):
        raise ValueError(
            f"images must have shape (batch, C, H, W) with a batch of one or more, got {tuple(images.shape)}"
        )
    channels = images.shape[1]
    mean, std = [0.0] * channels if mean is None else mean, [1.0] * channels if std is None else std
    if len(mean) != channels or len(std) != channels:
        raise ValueError(f"mean and std must have {channels} numbers, as images have channels; got {mean} and {std}")
    about = {
        "input": "images: float pixels, batch x channels x height x width, "
        + ("as the network takes them" if not any(mean) and set(std) == {1.0} else "between 0 and 1, not normalised"),
        "output": "logits: batch x classes",
        "image_size": list(images.shape[1:]),
        "normalisation": {"mean": list(mean), "std": list(std)},
        **_versions(),
        **(metadata or {}),
    }
    json.dumps(about)
    training = {module: module.training for module in model.modules()}
    partial = path.with_name(f"{path.stem}.partial{path.suffix}")
    try:
        whole = _FromPixels(model, mean, std, images).eval()
        with torch.no_grad(), _quiet():
            {".onnx": _write_onnx, ".pt2": _write_program}[path.suffix](whole, partial, images, about)
            difference = _difference(whole, load_exported(partial), images) if check else None
            allowed = TOLERANCE
            if difference is not None and difference > allowed:
                allowed = max(allowed, 4 * _rounding(whole, images))
        if difference is not None and not difference <= allowed:
            raise UserError(
                f"what was exported differs from the network by {difference:.1e} of the largest logit, more than "
                f"{allowed:.1g}; {path} was not written. Please report this, with the versions of torch and onnxruntime"
            )
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
        for module, was in training.items():
            module.training = was
    return Exported(path, difference, len(images) if check else 0, about)


def export_run(
    run: str | Path, path: str | Path, *, checkpoint: str = "best", check: bool = True, images: int = 256
) -> Exported:
    """Write the network of a run as an ONNX or a ``torch.export`` file that takes pixels between 0 and 1.

    Parameters
    ----------
    run : str or Path
        A run's folder, or a checkpoint file.
    path : str or Path
        Ends in ``.onnx`` (needs the extra ``export``) or ``.pt2``.
    checkpoint : {"best", "last"}
        Which of a folder's checkpoints.
    check : bool
        Compare with the network, on images of the run's test set.
    images : int
        So many of them at most.

    Returns
    -------
    Exported
        Where and how well; the metadata hold the class names and the settings of the network.

    Raises
    ------
    UserError
        As `export_model`; if the run is missing or damaged; if its test images are missing and to be checked with.
    """
    path = _checked_path(path)
    from manifold_resnet.training import load_run

    model, config = load_run(run, checkpoint)
    facts = config.images
    if check:
        raw = {"mean": [0.0] * facts["channels"], "std": [1.0] * facts["channels"]}
        data = replace(config, images={**facts, **raw}, batch_size=images, workers=0).open_data()
        data.setup("test")
        pixels = next(iter(data.test_dataloader()))[0]
    else:
        pixels = torch.rand(2, facts["channels"], *facts["size"], generator=torch.Generator().manual_seed(0))
    metadata = {"model": config.model, "classes": facts["classes"]}
    if hasattr(model, "ball"):
        metadata["c"] = model.ball.c.item()
    return export_model(
        model.float(), path, pixels, mean=facts["mean"], std=facts["std"], metadata=metadata, check=check
    )


def load_exported(path: str | Path) -> Callable[[Tensor], Tensor]:
    """A function from images ``(batch, C, H, W)`` to logits that runs an exported file, on the CPU.

    Parameters
    ----------
    path : str or Path
        Ends in ``.onnx`` or ``.pt2``.

    Raises
    ------
    UserError
        If there is no such file.
    """
    path = _checked_path(path)
    if not path.exists():
        raise UserError(f"no such file: {path}")
    if path.suffix == ".pt2":
        return torch.export.load(path).module()
    with extra("export"):
        import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])

    return run


def read_metadata(path: str | Path) -> dict[str, Any]:
    """What an exported file says about itself.

    Parameters
    ----------
    path : str or Path
        Ends in ``.onnx`` or ``.pt2``.

    Returns
    -------
    dict
        ``input``, ``output``, ``image_size`` (channels, height, width), ``normalisation``, versions; of a run also
        ``model``, ``classes`` (names in the order of the logits) and, if it is hyperbolic, ``c``. In an ONNX file,
        each is a metadata property whose value is JSON.

    Raises
    ------
    UserError
        If there is no such file.
    """
    path = _checked_path(path)
    if not path.exists():
        raise UserError(f"no such file: {path}")
    if path.suffix == ".pt2":
        files = {_METADATA: ""}
        torch.export.load(path, extra_files=files)
        return json.loads(files[_METADATA])
    with extra("export"):
        import onnx
    properties = onnx.load(path, load_external_data=False).metadata_props
    return {entry.key: json.loads(entry.value) for entry in properties}


def _checked_path(path: str | Path) -> Path:
    path = Path(path).expanduser().absolute()
    if path.suffix not in _SUFFIXES:
        raise UserError(f"{path.name} must end in {' or '.join(_SUFFIXES)}, which says what to write")
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent}; create it first")
    return path


def _versions() -> dict[str, str]:
    from manifold_resnet import __version__

    return {"manifold_resnet": __version__, "torch": torch.__version__}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters say about their own insides."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(torch|onnx|copyreg).*")
        try:
            yield
        finally:
            logger.setLevel(level)


def _program(model: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    # a batch of one would be taken for a fixed size
    example = images if len(images) > 1 else images.repeat(2, 1, 1, 1)
    dynamic = ({0: torch.export.Dim("batch", min=1)},)
    return torch.export.export(model, (example[:2],), dynamic_shapes=dynamic, strict=False)


def _write_program(model: nn.Module, path: Path, images: Tensor, metadata: Mapping[str, Any]) -> None:
    torch.export.save(_program(model, images), path, extra_files={_METADATA: json.dumps(metadata)})


def _write_onnx(model: nn.Module, path: Path, images: Tensor, metadata: Mapping[str, Any]) -> None:
    with extra("export"):
        import onnx  # noqa: F401
        from onnxscript import opset18

    def copysign(x: Any, sign: Any) -> Any:  # which torch does not know how to write
        negative = opset18.Less(sign, opset18.CastLike(0.0, sign))
        return opset18.Where(negative, opset18.Neg(opset18.Abs(x)), opset18.Abs(x))

    program = torch.onnx.export(
        _program(model, images), dynamo=True, input_names=["images"], output_names=["logits"], verbose=False,
        custom_translation_table={torch.ops.aten.copysign.Tensor: copysign},
    )  # fmt: skip
    program.model.metadata_props.update({name: json.dumps(value) for name, value in metadata.items()})
    program.save(str(path))


def _rounding(model: nn.Module, images: Tensor) -> float:
    """How far the operations that a file is made of are from float64: no file can be more exact."""
    exact = copy.deepcopy(model).double()
    with bodies_only():
        return _difference(model, lambda batch: exact(batch.double()).to(batch.dtype), images)


def _difference(model: nn.Module, exported: Callable[[Tensor], Tensor], images: Tensor) -> float:
    """Largest relative difference of logits, for the whole batch and for a batch of one."""
    differences = []
    for batch in (images, images[:1]):
        expected = model(batch)
        scale = expected.abs().max().clamp_min(1)
        differences.append(float((exported(batch) - expected).abs().max() / scale))
    return max(differences)
