import csv
import json
from dataclasses import replace

import pytest

from manifold_resnet._errors import UserError
from manifold_resnet.experiments import load_runs
from manifold_resnet.experiments.results import check_folder, group_labels, write_results


@pytest.fixture(scope="module")
def loaded(runs):
    return load_runs(runs)


def with_settings(run, **settings):
    return replace(run, config=replace(run.config, **settings))


def test_groups_are_runs_that_differ_in_their_seed_alone(loaded):
    run = loaded[0]
    model = run.config.model
    seeds = [with_settings(run, seed=seed, data_dir=f"/{seed}") for seed in range(3)]
    assert group_labels([*seeds, loaded[1]]) == [model] * 3 + [loaded[1].config.model]
    flat = with_settings(run, c=0.5)
    assert group_labels([run, flat, loaded[1]]) == [f"{model}, c 0.1", f"{model}, c 0.5", loaded[1].config.model]


def test_files(loaded, tmp_path):
    rows = [{"run": "a", "value": 0.1}, {"run": "b", "value": float("nan")}]
    folder = check_folder(tmp_path / "new" / "folder", "ood", loaded)
    assert not folder.exists()
    write_results(folder, "ood", loaded, {"limit": None}, rows, summary=[1])
    stored = json.loads((folder / "ood.json").read_text())
    assert stored["rows"] == [rows[0], {"run": "b", "value": None}]
    assert (stored["command"], stored["settings"], stored["summary"]) == ("ood", {"limit": None}, [1])
    assert [run["digest"] for run in stored["runs"]] == [run.digest for run in loaded]
    with (folder / "ood.csv").open(newline="") as file:
        assert [row["run"] for row in csv.DictReader(file)] == ["a", "b"]
    assert not list(folder.glob("*.partial"))
    check_folder(folder, "ood", loaded)  # the same again
    check_folder(folder, "fuse", loaded[:1])  # another command
    write_results(tmp_path, "fuse", loaded[:1], {}, rows)
    check_folder(tmp_path, "fuse", loaded)  # one run more


def test_results_of_others_stay(loaded, tmp_path):
    write_results(tmp_path, "ood", loaded, {}, [{"a": 1}])
    with pytest.raises(UserError, match=r"holds the ood results of other runs \(euclidean\); choose"):
        check_folder(tmp_path, "ood", loaded[:1])
    (tmp_path / "ood.json").write_text('{"runs"')
    with pytest.raises(UserError, match="ood.json is damaged"):
        check_folder(tmp_path, "ood", loaded)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to .*file; choose another --output"):
        check_folder(tmp_path / "file" / "new", "ood", loaded)
