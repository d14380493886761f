"""Taking trained networks elsewhere: ``export``."""

from __future__ import annotations

import argparse

from manifold_resnet.cli._command import Command


def _export_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="folder of a run, or a checkpoint file")
    parser.add_argument(
        "-o", "--output", metavar="FILE", required=True, help="what to write: a name that ends in .onnx or .pt2"
    )
    parser.add_argument(
        "--checkpoint", choices=("best", "last"), default="best", help="which checkpoint (default: best)"
    )
    parser.add_argument(
        "--check",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compare the file with the network on the run's test images before it counts as written (default: yes)",
    )


def _export(options: argparse.Namespace) -> None:
    from manifold_resnet.export import export_run

    exported = export_run(options.run, options.output, checkpoint=options.checkpoint, check=options.check)
    channels, height, width = exported.metadata["image_size"]
    print(f"written to {exported.path}")
    print(f"input: batch x {channels} x {height} x {width}, pixels between 0 and 1")
    print(f"output: logits, batch x {len(exported.metadata['classes'])}")
    if exported.difference is None:
        print("not compared with the network")
    else:
        print(f"differs from the network by {exported.difference:.1e} at most, on {exported.images} test images")


COMMANDS = {
    "export": Command(
        "write a trained network as an ONNX or torch.export file",
        "examples:\n"
        "  manifold-resnet export runs/digits-hyperbolic-8-16-32-resnet-20-1 -o digits.onnx\n"
        "  manifold-resnet export RUN -o digits.pt2 --checkpoint last",
        _export_options,
        _export,
        positional="RUN",
    ),
}
