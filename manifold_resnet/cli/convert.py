"""Weights of the authors' code and of HypLL: ``convert``."""

from __future__ import annotations

import argparse

from manifold_resnet.cli._command import Command


def _convert_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="file that torch.save wrote of a state_dict()")
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="new file to write")
    parser.add_argument(
        "--source",
        choices=("auto", "authors", "hypll"),
        default="auto",
        help="whose checkpoint it is (default: as its names say)",
    )
    parser.add_argument(
        "--compat",
        choices=("authors",),
        help="make the model compute what the authors' code computes, to check old results with",
    )
    parser.add_argument("--c", metavar="C", type=float, help="the curvature was -C (default: as the checkpoint says)")
    parser.add_argument(
        "--mean",
        choices=("midpoint", "frechet"),
        help="what norms centre at (default: midpoint for the authors', frechet for HypLL)",
    )
    parser.add_argument(
        "--weight-on",
        choices=("ball", "tangent"),
        help="where weights are to live, of importance for further training (default: tangent, as there)",
    )
    parser.add_argument(
        "--dataset",
        metavar="NAME",
        help="the images it was trained on: the statistics of norms, which checkpoints lack, are taken from them, and "
        "FILE becomes one that evaluate and the like take",
    )
    parser.add_argument("--data-dir", metavar="PATH", default="data", help="where downloaded data sets are kept")


def _convert(options: argparse.Namespace) -> None:
    from manifold_resnet.models.files import convert_checkpoint

    given = {"mean": options.mean, "weight_on": options.weight_on}
    model, conversion = convert_checkpoint(
        options.checkpoint,
        options.output,
        source=options.source,
        compat=options.compat,
        c=options.c,
        options={name: value for name, value in given.items() if value is not None},
        dataset=options.dataset,
        data_dir=options.data_dir,
    )
    whose = {"authors": "the authors' code", "hypll": "HypLL"}[conversion.source]
    size = sum(p.numel() for p in model.parameters())
    curvature = "" if conversion.c is None else f", c = {conversion.c:.6g}"
    print(f"{options.checkpoint}: a network of {whose}, {size:,} parameters{curvature}")
    if conversion.differences:
        print("what differs in meaning:")
        for difference in conversion.differences:
            print(f"- {difference}")
    else:
        print("it computes the same as there")
    print(f"written to {options.output}; in Python: manifold_resnet.models.load_model({str(options.output)!r})")
    if options.dataset is not None:
        print(f"measure it with: manifold-resnet evaluate {options.output}")


COMMANDS = {
    "convert": Command(
        "convert a checkpoint of the authors' code or of HypLL",
        "examples:\n"
        "  manifold-resnet convert hyperbolic-8-16-32-resnet-32_weights.pth -o converted.pt\n"
        "  manifold-resnet convert hyperbolic-8-16-32-resnet-32_weights.pth -o converted.ckpt --dataset cifar10\n"
        "  manifold-resnet convert WEIGHTS -o old.pt --compat authors   computes what their code computes\n"
        "  manifold-resnet convert hypll.pth -o converted.pt --mean midpoint",
        _convert_options,
        _convert,
        positional="CHECKPOINT -o FILE",
    ),
}
