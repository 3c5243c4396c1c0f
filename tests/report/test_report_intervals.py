"""Intervals against published tables and against their own definition."""

from __future__ import annotations

import random
import statistics

import pytest

from metarun.evaluation.paired import mean_ci95 as over
from metarun.report import paired, runs
from metarun.report.compare import compare, seed_ci95, student_t
from tests.helpers.report_runs import run, tasks


@pytest.mark.parametrize(
    ("freedom", "expected"), [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (30, 2.042), (1000, 1.962)]
)
def test_student_s_t_is_that_of_the_tables(freedom: int, expected: float) -> None:
    assert student_t(freedom) == pytest.approx(expected, abs=5e-4)


def test_the_interval_over_seeds_holds_the_mean_in_95_of_100_cases() -> None:
    draw = random.Random(0)
    held = 0
    for _ in range(4000):
        seeds = [draw.gauss(7, 2) for _ in range(3)]
        interval = seed_ci95(seeds)
        assert interval is not None
        held += abs(statistics.fmean(seeds) - 7) <= interval
    assert held / 4000 == pytest.approx(0.95, abs=0.012)
    assert seed_ci95([1.0]) is None


def test_differences_are_task_by_task_over_the_mean_of_the_seeds(tmp_path) -> None:
    draw = random.Random(1)
    hard = [draw.gauss(0.5, 0.2) for _ in range(50)]
    values = {}
    for method, gain in (("maml", 0.0), ("l2f", 0.05)):
        for seed in (0, 1):
            own = [task + gain + draw.gauss(0, 0.02) for task in hard]
            folder = run(tmp_path / f"{method}{seed}", seed, statistics.fmean(own), method, tasks=50)
            tasks(folder, own)
            values[method, seed] = own
    (block,), _ = compare(runs.read(runs.folders(str(tmp_path))).runs)
    (pair,), told = paired.differences(block.groups)
    each = [
        (values["maml", 0][i] + values["maml", 1][i] - values["l2f", 0][i] - values["l2f", 1][i]) / 2 for i in range(50)
    ]
    assert (block.label(pair.best), block.label(pair.other), pair.paired.tasks, told) == ("l2f", "maml", 50, [])
    assert pair.paired.mean == pytest.approx(statistics.fmean(each))
    assert pair.paired.ci95 == pytest.approx(over(each)[1])
    assert pair.paired.is_significant and pair.paired.ci95 < 0.3 * min(pair.paired.separate)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "is missing"),
        ("task,mse\n0,1\n", "holds no finite accuracy"),
        ("", "must be a first line task,METRIC"),
        ("task,accuracy\n0,1\n2,1\n", "line 3 is not task 1"),
        ("task,accuracy\n0,nan\n", "holds no finite accuracy"),
        ("task,accuracy\n0,1,2\n", "line 2 is not task 0"),
        ("task,accuracy\n0,0.5\n", "has 1 of 4 tasks"),
        ("task,accuracy\n0,0.5\n1,0.5\n2,0.5\n3,0.6\n", "is of another test: its mean is 0.525, the result's is 0.5"),
    ],
)
def test_a_table_of_tasks_that_cannot_be_used_is_told(tmp_path, content: str | None, reason: str) -> None:
    for method in ("maml", "l2f"):
        mean = 0.5 if method == "maml" else 0.6
        tasks(run(tmp_path / method, method=method, mean=mean), [mean] * 4)
    if content is None:
        (tmp_path / "maml/tasks.csv").unlink()
    else:
        (tmp_path / "maml/tasks.csv").write_text(content)
    (block,), _ = compare(runs.read(runs.folders(str(tmp_path))).runs)
    pairs, told = paired.differences(block.groups)
    assert not pairs and len(told) == 1 and "maml/tasks.csv" in told[0] and reason in told[0]
