"""tasks.csv, and the difference of two runs on the same tasks."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from metarun.errors import UserError
from metarun.evaluation.paired import TEST_TASKS_KEY, compare_runs, mean_ci95, read_tasks, write_tasks


def made(folder: Path, values: list[float], drawn: str = "glyphs, 5-way") -> Path:
    folder.mkdir()
    write_tasks(folder / "tasks.csv", "accuracy", values)
    (folder / "result.json").write_text(json.dumps({TEST_TASKS_KEY: drawn}))
    return folder


def test_a_mean_and_its_interval() -> None:
    assert mean_ci95([0.1, 0.3]) == (pytest.approx(0.2), pytest.approx(1.96 * 0.1 / math.sqrt(2)))


def test_the_metric_of_each_task_is_kept_to_the_bit(tmp_path: Path) -> None:
    values = [0.1 + 0.2, 1 / 3, math.inf, 1e-300]
    write_tasks(tmp_path / "tasks.csv", "mse", values)
    assert (tmp_path / "tasks.csv").read_text().startswith("task,mse\n0,0.30000000000000004\n1,")
    assert read_tasks(tmp_path / "tasks.csv") == ("mse", values)


def test_two_runs_on_the_same_tasks(tmp_path: Path) -> None:
    one, other = made(tmp_path / "one", [0.2, 0.6, 0.9]), made(tmp_path / "other", [0.1, 0.4, 0.8, 0.5])
    found = compare_runs(one, other)
    assert (found.tasks, found.metric) == (3, "accuracy")
    assert (found.mean, found.ci95) == pytest.approx(mean_ci95([0.1, 0.2, 0.1]))
    assert found.separate == pytest.approx((mean_ci95([0.2, 0.6, 0.9])[1], mean_ci95([0.1, 0.4, 0.8])[1]))
    assert found.narrower == pytest.approx(math.hypot(*found.separate) / found.ci95) and found.narrower > 5
    assert str(found).startswith("accuracy differs by +13.33 ± 5.334 % on the same 3 tasks")
    assert compare_runs(one, one).narrower == math.inf


def test_runs_on_different_tasks_are_refused(tmp_path: Path) -> None:
    one, other = made(tmp_path / "one", [0.2, 0.6]), made(tmp_path / "other", [0.1, 0.4], "glyphs, 10-way")
    with pytest.raises(UserError, match=r"different tasks, glyphs, 5-way and glyphs, 10-way; evaluate both alike"):
        compare_runs(one, other)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "tasks.csv: is damaged"),
        ("task,accuracy\n", "tasks.csv: is damaged"),
        ("task,accuracy\n0,0.5\n2,0.5\n", "tasks.csv: is damaged"),
        ("task,accuracy\n0,high\n", "tasks.csv: is damaged"),
        ("a,b\n0,0.5\n", "tasks.csv: is damaged"),
        ("task,b\n0,0.5\n", "where METRIC is accuracy or mse"),
        ("task,accuracy\n0\n", "tasks.csv: is damaged"),
        (None, "tasks.csv: cannot be read"),
    ],
)
def test_a_table_that_is_none(tmp_path: Path, content: str | None, told: str) -> None:
    one = made(tmp_path / "one", [0.2])
    (one / "tasks.csv").unlink()
    if content is not None:
        (one / "tasks.csv").write_text(content)
    with pytest.raises(UserError, match=told):
        compare_runs(one, one)


@pytest.mark.parametrize(
    ("content", "told"),
    [("{", "is damaged"), ("[]", "several"), ('{"results": []}', "several"), ("{}", "older"), (None, "cannot be read")],
)
def test_a_result_that_is_none(tmp_path: Path, content: str | None, told: str) -> None:
    one = made(tmp_path / "one", [0.2])
    (one / "result.json").unlink()
    if content is not None:
        (one / "result.json").write_text(content)
    with pytest.raises(UserError, match=rf"result\.json: .*{told}"):
        compare_runs(one, one)
