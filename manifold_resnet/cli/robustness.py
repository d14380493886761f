"""Measuring trained runs beyond accuracy: ``ood``, ``attack``, ``gradcam``, ``fuse``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manifold_resnet._errors import UserError
from manifold_resnet.cli._command import Command

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from manifold_resnet.experiments import Run

_SHARED = ("checkpoint", "dataset", "data_dir", "batch_size", "workers", "device")


def _options(parser: argparse.ArgumentParser, output: str) -> None:
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folders of runs, or checkpoint files")
    parser.add_argument("--output", metavar="FOLDER", default=output, help=f"where to write (default: {output})")
    parser.add_argument(
        "--limit", metavar="N", help="a quick look: at most N images, spread over the test set (default: all)"
    )
    parser.add_argument(
        "--checkpoint", choices=("best", "last"), default="best", help="which checkpoint (default: best)"
    )
    parser.add_argument(
        "--dataset", metavar="NAME", help="other test images with the same classes (default: each run's own)"
    )
    parser.add_argument("--data-dir", metavar="PATH", help="where downloaded data sets are kept (default: the runs')")
    parser.add_argument("--batch-size", metavar="N", help="images at a time (default: 128)")
    parser.add_argument("--workers", metavar="N", help="processes that load images (default: 0)")
    parser.add_argument("--device", metavar="NAME", help="auto, cpu or cuda (default: the runs')")


def _count(text: str | None, flag: str, default: int | None = None) -> int | None:
    if text is None:
        return default
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"{flag} must be a whole number, 1 or more, got {text!r}")
    return int(text)


def _open(options: argparse.Namespace, name: str) -> tuple[list[Run], dict[str, str], Path]:
    """The runs, the names of their groups, and the folder to write to."""
    from manifold_resnet.experiments import load_runs
    from manifold_resnet.experiments.results import check_folder, group_labels

    runs = load_runs(options.runs, **{name: getattr(options, name) for name in _SHARED})
    groups = {run.name: label for run, label in zip(runs, group_labels(runs), strict=True)}
    return runs, groups, check_folder(options.output, name, runs)


def _save(figure: Figure, folder: Path, name: str) -> None:
    figure.savefig(folder / f"{name}.png", dpi=150)
    print(f"written to {folder}: {name}.json, {name}.csv and {name}.png")


def _titles(runs: list[Run], groups: dict[str, str]) -> dict[str, str]:
    """What figures call each run."""
    labels = list(groups.values())
    return {
        run.name: groups[run.name] if labels.count(groups[run.name]) == 1 else f"{groups[run.name]}, seed {run.seed}"
        for run in runs
    }


def _ood_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ood",
        metavar="NAME",
        action="append",
        help="outliers, once for each set: patches (of photographs that come with scikit-learn), inverted or "
        "upside-down (the test images changed), noise; textures, places365, svhn or another data set that train knows "
        "(downloaded on first use); or folder:PATH, all images below PATH (default: patches, inverted and noise)",
    )
    parser.add_argument(
        "--score",
        metavar="NAME",
        action="append",
        help="what tells outliers, once for each: energy, softmax (the largest probability), distance (of the features "
        "from the origin; their norm where they are Euclidean), maxlogit (default: the first three)",
    )
    _options(parser, "experiments/ood")


def _ood(options: argparse.Namespace) -> None:
    from manifold_resnet.experiments.figures import plot_scores
    from manifold_resnet.experiments.ood import DEFAULT_SCORES, DEFAULT_SETS, METRICS, ood, ood_summary
    from manifold_resnet.experiments.results import percent, table, write_results

    limit = _count(options.limit, "--limit")
    runs, groups, folder = _open(options, "ood")
    sets, scores = options.ood or DEFAULT_SETS, options.score or DEFAULT_SCORES
    found = ood(runs, sets, scores=scores, data_dir=options.data_dir, limit=limit, progress=True)
    summary = ood_summary(found.rows, groups)
    settings = {"scores": list(scores), "limit": limit, "checkpoint": options.checkpoint}
    write_results(folder, "ood", runs, settings, found.rows, summary=summary)
    heads = ["model", "score", "outliers", "FPR95 (low)", "AUROC", "AUPR", "AUPR, outliers positive"]
    lines = [
        [row["group"], row["score"], row["ood"], *(percent(row[name], row[f"{name}_std"]) for name in METRICS)]
        for row in summary
    ]
    print(table(heads, lines))
    print(
        "percent; mean ± standard deviation over seeds; test images are the positive class unless said otherwise, "
        "areas under precision-recall curves are for five test images per outlier"
    )
    titles = _titles(runs, groups)
    first = {groups[run.name]: run.name for run in reversed(runs)}  # one of each group: figures stay readable
    shown = {run.name: titles[run.name] for run in runs if first[groups[run.name]] == run.name}
    euclidean = [run.name for run in runs if run.kind == "euclidean"]
    _save(plot_scores(found.scores, found.rows, shown, euclidean), folder, "ood")


def _attack_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--attack", metavar="NAME", default="fgsm", help="fgsm or pgd (default: fgsm)")
    parser.add_argument(
        "--epsilon",
        metavar="E,...",
        default="0.8/255,1.6/255,2.4/255,3.2/255",
        help="the most a pixel changes by, pixels being between 0 and 1; images are normalised afterwards "
        "(default: 0.8/255,1.6/255,2.4/255,3.2/255)",
    )
    parser.add_argument("--steps", metavar="N", help="of pgd (default: 10)")
    _options(parser, "experiments/attack")


def _attack(options: argparse.Namespace) -> None:
    from manifold_resnet.experiments.attack import ATTACKS, attack, attack_summary, parse_epsilons
    from manifold_resnet.experiments.figures import plot_attack
    from manifold_resnet.experiments.results import percent, table, write_results

    method, limit, steps = options.attack, _count(options.limit, "--limit"), _count(options.steps, "--steps", 10)
    if method not in ATTACKS:
        raise UserError(f"--attack must be one of {', '.join(ATTACKS)}, got {method!r}")
    if options.steps is not None and method != "pgd":
        raise UserError("--steps is a setting of --attack pgd; leave it out")
    epsilons = parse_epsilons(options.epsilon)
    runs, groups, folder = _open(options, method)
    settings = {"attack": method, "epsilons": epsilons, "limit": limit, "checkpoint": options.checkpoint}
    if method == "pgd":
        settings["steps"] = steps

    def keep(rows: list[dict[str, Any]]) -> None:
        write_results(folder, method, runs, settings, rows, summary=attack_summary(rows, groups))

    earlier = folder / f"{method}.json"
    rows = attack(
        runs, method, epsilons, steps=steps, limit=limit, earlier=earlier, keep=keep, progress=True
    )  # fmt: skip
    keep(rows)
    summary = attack_summary(rows, groups)
    cells: dict[str, list[str]] = {}
    for row in summary:
        cells.setdefault(row["group"], [row["group"]]).append(percent(row["accuracy"], row["accuracy_std"]))
    print(table(["model", "clean", *(f"{255 * epsilon:g}/255" for epsilon in epsilons)], list(cells.values())))
    print(f"accuracy in percent on {rows[0]['images']} test images under {method}, by epsilon; "
          "mean ± standard deviation over seeds")  # fmt: skip
    _save(plot_attack(summary, f"{method.upper()}, {rows[0]['images']} test images"), folder, method)


def _gradcam_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--count", metavar="N", help="how many images (default: 12)")
    parser.add_argument(
        "--errors-only", action="store_true", help="only images that at least one of the networks gets wrong"
    )
    parser.add_argument(
        "--layer", metavar="NAME", help="group1, group2, ...: whose last block is asked (default: the last one)"
    )
    _options(parser, "experiments/gradcam")


def _gradcam(options: argparse.Namespace) -> None:
    from manifold_resnet.experiments.figures import plot_cams
    from manifold_resnet.experiments.gradcam import gradcam
    from manifold_resnet.experiments.results import table, write_results

    limit, count = _count(options.limit, "--limit"), _count(options.count, "--count", 12)
    runs, groups, folder = _open(options, "gradcam")
    grid = gradcam(
        runs, count, errors_only=options.errors_only, layer=options.layer, limit=limit, progress=True
    )  # fmt: skip
    settings = {"count": count, "errors_only": options.errors_only, "layer": options.layer, "limit": limit,
                "checkpoint": options.checkpoint}  # fmt: skip
    similarity = [{"first": a, "second": b, "correlation": value} for (a, b), value in grid.similarity.items()]
    write_results(folder, "gradcam", runs, settings, grid.rows, similarity=similarity, found=grid.found)
    what = f"{grid.found} that a network gets wrong" if options.errors_only else "all"
    print(f"{len(grid.indices)} images of {what}, of {grid.searched} test images")
    if similarity:
        lines = [[line["first"], line["second"], f"{line['correlation']:.2f}"] for line in similarity]
        print(table(["", "", "mean correlation of the maps"], lines))
    _save(plot_cams(grid, {run.name: _short(run, runs) for run in runs}, runs[0].classes), folder, "gradcam")


def _short(run: Run, runs: list[Run]) -> str:
    """The kind of network, numbered by its seed where there are several."""
    same = [other for other in runs if other.kind == run.kind]
    if len(same) == 1:
        return run.kind
    return f"{run.kind} {run.seed if len({other.seed for other in same}) == len(same) else 1 + same.index(run)}"


def _fuse_options(parser: argparse.ArgumentParser) -> None:
    _options(parser, "experiments/fuse")


def _fuse(options: argparse.Namespace) -> None:
    from manifold_resnet.experiments.figures import plot_fusion
    from manifold_resnet.experiments.fusion import fuse
    from manifold_resnet.experiments.results import percent, table, write_results

    limit = _count(options.limit, "--limit")
    runs, _, folder = _open(options, "fuse")
    result = fuse(runs, limit=limit, progress=True)
    write_results(folder, "fuse", runs, {"limit": limit, "checkpoint": options.checkpoint}, [result])
    first, second = result["run_first"], result["run_second"]
    shares = {
        f"accuracy of {first}": "first",
        f"accuracy of {second}": "second",
        "accuracy of the mean softmax": "mean_softmax",
        "accuracy of the mean logits": "mean_logits",
        "either is right": "either",
        "both say the same": "agreement",
        f"errors of {first} that {second} has right": "second_corrects_first",
        f"errors of {second} that {first} has right": "first_corrects_second",
        f"errors of {first} that the mean softmax has right": "fixed_of_first",
        f"errors of {second} that the mean softmax has right": "fixed_of_second",
        f"right answers of {first} that the mean softmax has wrong": "broken_of_first",
        f"right answers of {second} that the mean softmax has wrong": "broken_of_second",
    }
    print(table([f"{result['images']} test images", "percent"],
                [[text, percent(result[key])] for text, key in shares.items()]))  # fmt: skip
    _save(plot_fusion(result), folder, "fuse")


COMMANDS = {
    "ood": Command(
        "tell images of other kinds from those a run knows",
        "examples:\n"
        "  manifold-resnet ood RUN                                no download\n"
        "  manifold-resnet ood RUN RUN --ood svhn --ood textures --ood places365\n"
        "  manifold-resnet ood RUN --ood folder:photos --score distance --limit 500",
        _ood_options,
        _ood,
        positional="RUN...",
    ),
    "attack": Command(
        "measure accuracy on images changed to deceive",
        "examples:\n"
        "  manifold-resnet attack RUN RUN\n"
        "  manifold-resnet attack RUN --attack pgd --steps 20 --epsilon 1/255,2/255,4/255,8/255 --limit 1000",
        _attack_options,
        _attack,
        positional="RUN...",
        interrupted="what was measured is kept, carry on with the same command",
    ),
    "gradcam": Command(
        "show where in images networks look",
        "examples:\n"
        "  manifold-resnet gradcam HYPERBOLIC EUCLIDEAN --count 8\n"
        "  manifold-resnet gradcam RUN RUN --errors-only --layer group2",
        _gradcam_options,
        _gradcam,
        positional="RUN...",
    ),
    "fuse": Command(
        "combine the predictions of two runs",
        "examples:\n  manifold-resnet fuse HYPERBOLIC EUCLIDEAN",
        _fuse_options,
        _fuse,
        positional="RUN RUN",
    ),
}
