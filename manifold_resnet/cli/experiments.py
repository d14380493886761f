"""What parts of a network are for, where it puts images, and reports: ``ablate``, ``disk``, ``report``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from manifold_resnet._errors import UserError
from manifold_resnet.cli._command import Command
from manifold_resnet.cli._runs import open_runs, run_options, save, titles_of, whole_number
from manifold_resnet.cli.training import add_settings

# what an ablation trains unless told otherwise: seconds per training
_BUDGET = {"dataset": "digits", "model": "hyperbolic-8-16-32-resnet-8", "epochs": 3}
_OWN = ("subject", "output", "limit", "config", "seeds", "depth", "norm_depths")


def _ablate_options(parser: argparse.ArgumentParser) -> None:
    from manifold_resnet.experiments.ablate import BACKWARD, SUBJECTS

    texts = {name: subject.text for name, subject in SUBJECTS.items()}
    texts[BACKWARD] = "hand-written backward passes or automatic ones: memory and time against depth"
    parser.add_argument("subject", metavar="SUBJECT", choices=list(texts), help="what to vary, see below")
    budget = ", ".join(f"--{name} {value}" for name, value in _BUDGET.items())
    lines = [f"  {name:11} {text}" for name, text in texts.items()]
    parser.epilog = (
        "subjects:\n" + "\n".join(lines) + "\n\nSettings that a subject varies take several values, and the word "
        f"default.\nUnless given: {budget}.\n\n{parser.epilog}"
    )
    run = parser.add_argument_group("ablation")
    run.add_argument(
        "--output", metavar="FOLDER", help="where to write and carry on (default: experiments/ablate/SUBJECT)"
    )
    run.add_argument("--limit", metavar="N", type=int, help="stop after N trainings (default: all)")
    run.add_argument("--seeds", metavar="N", nargs="+", help="train each variant with these (default: 0 1, init 0)")
    run.add_argument("--depth", metavar="N", nargs="+", help="depths of the network (default: the model's; init 8 14, "
        "backward 8 14 20)")  # fmt: skip
    run.add_argument("--norm-depths", metavar="N", nargs="+", help="init and gain: new networks to measure distances "
        "through (default: 20 56 110)")  # fmt: skip
    run.add_argument("--config", metavar="FILE", help="YAML file of settings that all variants share; options given "
        "here override it")  # fmt: skip
    add_settings(parser, several={name for subject in SUBJECTS.values() for name in subject.varied},
                 left_out=("seed",))  # fmt: skip


def _ablate(options: argparse.Namespace) -> None:
    from manifold_resnet.experiments.ablate import BACKWARD, SUBJECTS, Ablation, ablate, ablate_backward
    from manifold_resnet.experiments.ablate.grid import MACHINE
    from manifold_resnet.experiments.ablate.report import read_measured, rows_of, shown_rows
    from manifold_resnet.experiments.results import table
    from manifold_resnet.training import Config

    given = {name: value for name, value in vars(options).items() if name not in _OWN}
    name = options.subject
    folder = Path("experiments", "ablate", name) if options.output is None else Path(options.output)
    settings: dict[str, Any] = _BUDGET | ({} if options.config is None else Config.read_dict(options.config))
    settings = {key: value for key, value in settings.items() if key not in ("seed", "images")}
    varied = dict(SUBJECTS[name].varied) if name in SUBJECTS else {}
    for key, value in given.items():
        values = _values(key, value) if isinstance(value, list) else [value]
        if key in varied:
            varied[key] = tuple(values)
        elif len(values) > 1:
            raise UserError(f"--{key.replace('_', '-')} takes one value: the ablation of {name} does not vary it")
        else:
            settings[key] = values[0]
    checked = Config.from_dict(settings, options.config or "the command line").resolved()
    settings = {key: getattr(checked, key) for key in settings}  # text and numbers, relative paths: all one
    depths = _whole(options.depth, "depth")
    seeds = _whole(options.seeds, "seeds") or (SUBJECTS[name].seeds if name in SUBJECTS else ())
    if name == BACKWARD:
        if options.limit is not None:
            raise UserError("--limit is for ablations that train; give fewer --depth")
        count = Config.from_dict(settings).batch_size or 8
        settings = {key: value for key, value in settings.items() if key not in ("epochs", "batch_size")}
        settings.setdefault("image_size", 16)  # smaller ones measure little but fixed costs
        rows = ablate_backward(settings, folder, depths or (8, 14, 20), count=count)
        missing = 0
    else:
        if depths:
            varied["depth"] = tuple(depths)
        for key in varied:
            settings.pop(key, None)
        machine = {key: settings.pop(key) for key in MACHINE if key in settings}
        ablation = Ablation(name, settings, varied, seeds, machine)
        norm_depths = _whole(options.norm_depths, "norm-depths") or (20, 56, 110)
        outcome = ablate(ablation, folder, limit=options.limit, norm_depths=norm_depths, progress=True)
        rows, missing = rows_of(outcome, read_measured(folder)), outcome.missing
    print(table(*shown_rows(rows)))
    print(f"written to {folder / 'ablate.csv'}, {folder / 'ablate.json'} and {folder / 'ablate.png'}")
    if missing:
        print(f"{missing} of {len(ablation.cells)} trainings are left; carry on with the same command")


def _values(name: str, texts: list[str]) -> list[Any]:
    """Values of a setting; the word default stands for what is chosen where none is given."""
    from manifold_resnet.training import Config

    return [None if text == "default" else getattr(Config(**{name: text}), name) for text in texts]


def _whole(texts: list[str] | None, flag: str) -> list[int]:
    try:
        numbers = [int(text) for text in texts or ()]
        if any(number < 0 for number in numbers):
            raise ValueError
    except ValueError:
        raise UserError(f"--{flag} must be whole numbers, 0 or more, got {' '.join(texts or ())}") from None
    return numbers


def _disk_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--thumbnails", action="store_true", help="show some of the images")
    parser.add_argument(
        "--method",
        choices=("pca", "umap"),
        default="pca",
        help="how features of more than two dimensions come onto the disk: pca (of tangent vectors at their mean) or "
        "umap (hyperbolic; needs the extra umap) (default: pca)",
    )
    run_options(parser, "experiments/disk")


def _disk(options: argparse.Namespace) -> None:
    from manifold_resnet.experiments.disk import disk_rows, disk_summary, embed, plot_embeddings
    from manifold_resnet.experiments.results import percent, table, write_results

    limit = whole_number(options.limit, "--limit")
    runs, groups, folder = open_runs(options, "disk")
    embeddings = [embed(run, limit=limit, method=options.method, progress=True) for run in runs]
    summary = disk_summary(embeddings)
    settings = {"method": options.method, "limit": limit, "checkpoint": options.checkpoint}
    write_results(folder, "disk", runs, settings, disk_rows(embeddings), summary=summary)

    def distance(row: dict[str, Any], name: str) -> str:
        mean, deviation = row[name], row[f"{name}_std"]
        return "-" if mean is None else f"{mean:.2f}" + ("" if deviation is None else f" ± {deviation:.2f}")

    lines = [
        [row["run"], row["dimension"], f"{row['c']:.3g}", row["images"], percent(row["accuracy"]),
         distance(row, "distance_right"), distance(row, "distance_wrong")]
        for row in summary
    ]  # fmt: skip
    heads = ["run", "dimension", "c", "images", "accuracy %", "distance from origin: right", "wrong"]
    print(table(heads, lines))
    figure = plot_embeddings(embeddings, titles_of(runs, groups), thumbnails=options.thumbnails, method=options.method)
    save(figure, folder, "disk")


def _report_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folders of runs; their data sets need not be there")
    parser.add_argument("-o", "--output", metavar="DIR", default="report", help="where to write (default: report)")
    parser.add_argument(
        "--include",
        metavar="FOLDER",
        action="append",
        help="search here for what the other commands wrote about these runs, and for ablations; once for each folder "
        "(default: experiments, where they write)",
    )


def _report(options: argparse.Namespace) -> None:
    from manifold_resnet.experiments.report import report

    include = options.include
    if include is None:
        include = ["experiments"] if Path("experiments").is_dir() else []
    for line in report(options.runs, options.output, include=include):
        print(f"left out: {line}")
    folder = Path(options.output)
    print(f"written to {folder / 'report.html'}, which needs no other file, and {folder / 'report.md'}")


COMMANDS = {
    "disk": Command(
        "show where on the Poincaré disk runs put test images",
        "examples:\n  manifold-resnet disk RUN --thumbnails\n  manifold-resnet disk RUN RUN --limit 500 --method umap",
        _disk_options,
        _disk,
        positional="RUN...",
    ),
    "report": Command(
        "write all tables and figures of runs into one document",
        "examples:\n"
        "  manifold-resnet report runs/* -o report\n"
        "  manifold-resnet report RUN RUN --include experiments --include elsewhere/ood",
        _report_options,
        _report,
        positional="RUN...",
    ),
    "ablate": Command(
        "train variants of a network under one budget, to see what its parts are for",
        "examples:\n"
        "  manifold-resnet ablate norm                            a minute or two on handwritten digits\n"
        "  manifold-resnet ablate init --depth 20 56 --epochs 20 --dataset cifar10 --seeds 0 1 2\n"
        "  manifold-resnet ablate curvature --c 0.01 0.1 1 10 --no-learnable-c\n"
        "  manifold-resnet ablate clip --max-distance 1 4 default --limit 2    two trainings now; the same command\n"
        "                                                         carries on\n"
        "  manifold-resnet ablate backward --depth 8 20 32 --batch-size 4",
        _ablate_options,
        _ablate,
        positional="SUBJECT",
        interrupted="finished trainings are kept, carry on with the same command",
    ),
}
