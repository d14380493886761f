"""Measuring trained runs beyond accuracy: ``ood``, ``attack``, ``gradcam``, ``fuse``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from manifold_resnet._errors import UserError
from manifold_resnet.cli._command import Command
from manifold_resnet.cli._runs import open_runs, run_options, save, titles_of, whole_number

if TYPE_CHECKING:
    from manifold_resnet.experiments import Run


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
    run_options(parser, "experiments/ood")


def _ood(options: argparse.Namespace) -> None:
    from manifold_resnet.experiments.figures import plot_scores
    from manifold_resnet.experiments.ood import DEFAULT_SCORES, DEFAULT_SETS, METRICS, ood, ood_summary
    from manifold_resnet.experiments.results import percent, table, write_results

    limit = whole_number(options.limit, "--limit")
    runs, groups, folder = open_runs(options, "ood")
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
    titles = titles_of(runs, groups)
    first = {groups[run.name]: run.name for run in reversed(runs)}  # one of each group: figures stay readable
    shown = {run.name: titles[run.name] for run in runs if first[groups[run.name]] == run.name}
    euclidean = [run.name for run in runs if run.kind == "euclidean"]
    save(plot_scores(found.scores, found.rows, shown, euclidean), folder, "ood")


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
    run_options(parser, "experiments/attack")


def _attack(options: argparse.Namespace) -> None:
    from manifold_resnet.experiments.attack import ATTACKS, attack, attack_summary, parse_epsilons
    from manifold_resnet.experiments.figures import plot_attack
    from manifold_resnet.experiments.results import percent, table, write_results

    method, limit, steps = (
        options.attack,
        whole_number(options.limit, "--limit"),
        whole_number(options.steps, "--steps", 10),
    )
    if method not in ATTACKS:
        raise UserError(f"--attack must be one of {', '.join(ATTACKS)}, got {method!r}")
    if options.steps is not None and method != "pgd":
        raise UserError("--steps is a setting of --attack pgd; leave it out")
    epsilons = parse_epsilons(options.epsilon)
    runs, groups, folder = open_runs(options, method)
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
    save(plot_attack(summary, f"{method.upper()}, {rows[0]['images']} test images"), folder, method)


def _gradcam_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--count", metavar="N", help="how many images (default: 12)")
    parser.add_argument(
        "--errors-only", action="store_true", help="only images that at least one of the networks gets wrong"
    )
    parser.add_argument(
        "--layer", metavar="NAME", help="group1, group2, ...: whose last block is asked (default: the last one)"
    )
    run_options(parser, "experiments/gradcam")


def _gradcam(options: argparse.Namespace) -> None:
    from manifold_resnet.experiments.figures import plot_cams
    from manifold_resnet.experiments.gradcam import gradcam
    from manifold_resnet.experiments.results import table, write_results

    limit, count = whole_number(options.limit, "--limit"), whole_number(options.count, "--count", 12)
    runs, groups, folder = open_runs(options, "gradcam")
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
    save(plot_cams(grid, {run.name: _short(run, runs) for run in runs}, runs[0].classes), folder, "gradcam")


def _short(run: Run, runs: list[Run]) -> str:
    """The kind of network, numbered by its seed where there are several."""
    same = [other for other in runs if other.kind == run.kind]
    if len(same) == 1:
        return run.kind
    return f"{run.kind} {run.seed if len({other.seed for other in same}) == len(same) else 1 + same.index(run)}"


def _fuse_options(parser: argparse.ArgumentParser) -> None:
    run_options(parser, "experiments/fuse")


def _fuse(options: argparse.Namespace) -> None:
    from manifold_resnet.experiments.figures import plot_fusion
    from manifold_resnet.experiments.fusion import fuse
    from manifold_resnet.experiments.results import percent, table, write_results

    limit = whole_number(options.limit, "--limit")
    runs, _, folder = open_runs(options, "fuse")
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
    save(plot_fusion(result), folder, "fuse")


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
