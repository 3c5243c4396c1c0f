"""Which folders are runs, what is in them, and what is said of those that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from metarun.errors import UserError
from metarun.report import runs
from tests.helpers.report_runs import run, unfinished


def test_runs_are_found_below_each_place_once_and_in_order(tmp_path: Path) -> None:
    for job in (10, 2, 1):
        run(tmp_path / f"sweep/{job}")
    alone = run(tmp_path / "alone")
    (alone / "within").mkdir()
    run(alone / "within/run")
    places = [str(tmp_path / "sweep"), str(alone), str(tmp_path / "sweep/2")]
    assert [str(path.relative_to(tmp_path)) for path in runs.folders(places)] == [
        *("sweep/1", "sweep/2", "sweep/10", "alone")
    ]


def test_a_folder_that_is_no_run_is_told_with_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "empty/deep").mkdir(parents=True)
    with pytest.raises(UserError, match=r"runs=.*empty: no run is there: .*result\.json, metrics\.jsonl, checkpoints"):
        runs.folders(str(tmp_path / "empty"))
    with pytest.raises(UserError, match=r"runs=gone: no such folder"):
        runs.folders(["gone"])


def test_a_finished_run_is_read(tmp_path: Path) -> None:
    read = runs.read([run(tmp_path / "a", seed=3, method="l2f")])
    (one,) = read.runs
    assert (one.method, one.seed, one.mean, one.ways, one.untrained) == ("l2f", 3, 0.5, 5, 0.3)
    assert one.command == "metarun method=l2f seed=3"
    assert one.settings["method"] == "l2f" and one.settings["eval.tasks"] == 600
    assert len(one.metrics) == 4 and not read.unfinished and not read.unreadable


def test_an_unfinished_run_is_listed_with_its_step(tmp_path: Path) -> None:
    stopped = unfinished(tmp_path / "stopped", 40)
    with (stopped / "metrics.jsonl").open("a") as file:
        file.write('{"step": 60, "split": "train"}\n{"step": 8')  # killed while it wrote
    begun = unfinished(tmp_path / "begun", 20)
    (begun / "metrics.jsonl").unlink()
    (begun / "checkpoints/step-00000020.safetensors").unlink()
    evaluating = unfinished(tmp_path / "evaluating", mode="evaluate")
    read = runs.read([stopped, begun, evaluating])
    first, second, third = (one.reason for one in read.unfinished)
    assert first.startswith("at step 60 of 60, saved at step 40, last written 20")
    assert second.startswith("has not begun to train")
    assert third == "the evaluation is not finished"


def test_predictions_and_reports_are_no_results(tmp_path: Path) -> None:
    folders = [unfinished(tmp_path / mode, mode=mode) for mode in ("predict", "report")]
    assert runs.read(folders) == runs.LoadedRuns((), (), ())


def test_an_evaluation_may_have_several_results(tmp_path: Path) -> None:
    folder = run(tmp_path / "a")
    result = json.loads((folder / "result.json").read_text())
    several = [{**result, "shots": shots} for shots in (1, 5)]
    (folder / "result.json").write_text(json.dumps({"results": several}))
    read = runs.read([folder]).runs
    assert [one.shots for one in read] == [1, 5]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("result.json", '{"mean"', "result.json is damaged"),
        ("result.json", "[" * 10**5, "result.json is damaged"),
        ("result.json", "[1]", "result.json is damaged"),
        ("result.json", b"\xff\xff", "result.json cannot be read (no UTF-8 text)"),
        ("result.json", {"results": 3}, "result.json is damaged"),
        ("result.json", {"metarun": "0.0.1"}, "of another version of metarun (0.0.1): it has no 'settings'"),
        ("result.json", {"settings": {}}, "of another version of metarun (unknown): it has no 'dataset'"),
        (".hydra/config.yaml", "a: [", ".hydra/config.yaml is damaged"),
        (".hydra/config.yaml", "- a", ".hydra/config.yaml is damaged"),
        (".hydra/overrides.yaml", "a: 1", ".hydra/overrides.yaml is damaged"),
    ],
)
def test_what_cannot_be_read_is_told(tmp_path: Path, name: str, content: Any, reason: str) -> None:
    path = run(tmp_path / "a") / name
    data = json.dumps(content) if isinstance(content, dict) else content
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    read = runs.read([tmp_path / "a"])
    assert reason in read.unreadable[0].reason and not read.runs


@pytest.mark.parametrize("name", ["mean", "seed", "tasks", "by_step", "class_split"])
def test_a_value_of_another_type_is_told(tmp_path: Path, name: str) -> None:
    read = runs.read([run(tmp_path / "a", **{"by_step": [], name: {"a": 1}})])
    assert f"its '{name}' is" in read.unreadable[0].reason
