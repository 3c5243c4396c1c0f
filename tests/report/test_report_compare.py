"""What is a group, what differs, what is the best, and what is flagged."""

from __future__ import annotations

from pathlib import Path

import pytest

from metarun.report import runs
from metarun.report.compare import Comparison, compare
from metarun.report.contents import contents
from tests.helpers.report_runs import run, tasks


def compared(top: Path) -> list[Comparison]:
    return compare(runs.read(runs.folders(str(top))).runs)[0]


def flagged(top: Path) -> list[str]:
    return list(contents(runs.read(runs.folders(str(top)))).flags)


def test_runs_that_differ_in_seed_paths_and_engine_are_one_group(tmp_path: Path) -> None:
    run(tmp_path / "0", 0, 0.6)
    run(tmp_path / "1", 1, 0.8, settings={"data_dir": "/elsewhere", "engine.tasks": "looped", "save.keep": 9})
    ((group,),) = [block.groups for block in compared(tmp_path)]
    assert [one.seed for one in group.runs] == [0, 1]
    assert group.mean == pytest.approx(0.7) and group.tasks_ci95 == pytest.approx(0.02)
    assert group.seeds_ci95 == pytest.approx(12.7062 * 0.1414214 / 2**0.5, rel=1e-4)
    assert not flagged(tmp_path)


def test_what_varies_besides_the_method_has_a_column(tmp_path: Path) -> None:
    run(tmp_path / "0", mean=0.6, settings={"inner_loop": 1})
    run(tmp_path / "1", mean=0.8, settings={"inner_loop": 5})
    run(tmp_path / "2", mean=0.7, method="msgd", settings={"inner_loop": 5})
    run(tmp_path / "3", mean=0.5, method="fomaml", settings={"inner_loop": 5, "use_second_order": False})
    (block,) = compared(tmp_path)
    assert block.varied == ("inner_loop",)  # neither eval.inner_loop, nor msgd's own keys, nor what fomaml is
    assert [block.label(group) for group in block.groups] == [
        *("maml, inner_loop=5", "msgd, inner_loop=5", "maml, inner_loop=1", "fomaml, inner_loop=5")
    ]
    assert [group.mean for group in block.best] == [0.8]


def test_the_keys_of_a_choice_vary_within_it(tmp_path: Path) -> None:
    run(tmp_path / "0", method="msgd", settings={"method.alpha": "tensor"})
    run(tmp_path / "1", method="msgd")
    run(tmp_path / "2")
    (block,) = compared(tmp_path)
    assert block.varied == ("method.alpha",)
    assert {block.label(group) for group in block.groups} == {
        *("maml", "msgd, method.alpha=tensor", "msgd, method.alpha=element")
    }


def test_data_sets_ways_shots_and_metrics_have_tables_of_their_own(tmp_path: Path) -> None:
    run(tmp_path / "0")
    run(tmp_path / "1", shots=5)
    run(tmp_path / "2", ways=20)
    run(tmp_path / "3", dataset="sinusoid", ways=None, metric="mse", mean=2.0)
    run(tmp_path / "4", dataset="sinusoid", ways=None, metric="mse", mean=1.0, method="l2f")
    found_blocks = compared(tmp_path)
    assert [block.name for block in found_blocks] == [
        *("glyphs, 5-way 1-shot", "glyphs, 5-way 5-shot", "glyphs, 20-way 1-shot", "sinusoid, 1-shot")
    ]
    assert [block.label(group) for block in found_blocks for group in block.best] == ["l2f"]  # smaller is better


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("class_split", {"class_split": "vinyals"}),
        ("batch_norm", {"batch_norm": "none"}),
        ("eval.tasks", {"tasks": 7}),
        ("eval.queries", {"queries": 5}),
        ("eval.split", {"split": "val"}),
        ("dataset.seed", {"settings": {"dataset.seed": 4}, "class_split": "glyphs-seed4"}),
    ],
)
def test_what_cannot_be_compared_is_flagged_and_has_its_own_best(tmp_path: Path, name: str, changes: dict) -> None:
    for number, (method, mean) in enumerate((("maml", 0.5), ("l2f", 0.6))):
        run(tmp_path / f"{number}", mean=mean, method=method)
        run(tmp_path / f"other{number}", mean=mean + 0.2, method=method, **changes)
    (flag,) = flagged(tmp_path)
    assert flag.startswith(f"glyphs, 5-way 1-shot: {name} differs (") and "not comparable" in flag
    found_blocks = compared(tmp_path)
    assert [[group.mean for group in block.groups] for block in found_blocks] == [[0.6, 0.5], [0.8, 0.7]]
    assert [[group.mean for group in block.best] for block in found_blocks] == [[0.6], [0.8]]
    for block in found_blocks:
        assert block.protocol == (name,) and f", {name}=" in block.name and block.varied == ()


def test_a_worse_run_with_other_test_tasks_is_not_the_best(tmp_path: Path) -> None:
    """The only mark is that of the two rows with the same number of tasks, in a table of their own."""
    for name, method, mean, count in (("a", "maml", 0.5, 4), ("b", "l2f", 0.6, 4), ("c", "msgd", 0.9, 2)):
        tasks(run(tmp_path / name, mean=mean, method=method, tasks=count), [mean + 0.1, mean - 0.1] * (count // 2))
    report = contents(runs.read(runs.folders(str(tmp_path))))
    marked = {table.title: [table.rows[row][0] for row in table.best] for table in report.tables}
    assert [rows for rows in marked.values() if rows] == [["l2f"]]
    assert marked["glyphs, 5-way 1-shot, eval.tasks=2: accuracy in % on 2 test tasks, higher is better"] == []
    (shared,) = [table for table in report.tables if "the first 2 tasks, which all share" in table.title]
    assert [row[:3] for row in shared.rows] == [
        ("l2f, eval.tasks=4", "msgd, eval.tasks=2", "-30.00"),
        ("maml, eval.tasks=4", "msgd, eval.tasks=2", "-40.00"),
    ]
    assert {row[-1] for row in shared.rows} == {"2"}


def test_the_best_on_shared_tasks_is_found_on_them_alone(tmp_path: Path) -> None:
    """0.5 of four tasks is more than 0.4 of two, and on the two that both have it is less."""
    tasks(run(tmp_path / "long", mean=0.5, tasks=4), [0.1, 0.1, 0.9, 0.9])
    tasks(run(tmp_path / "short", mean=0.4, tasks=2, method="l2f"), [0.3, 0.5])
    tables = contents(runs.read(runs.folders(str(tmp_path)))).tables
    (row,) = next(table for table in tables if "which all share" in table.title).rows
    assert row[:4] == ("maml, eval.tasks=4", "l2f, eval.tasks=2", "-30.00", "± 13.86")
    assert not any(table.best for table in tables)


def test_what_is_unequal_is_flagged(tmp_path: Path) -> None:
    run(tmp_path / "0")
    run(tmp_path / "1", seed=1)
    run(tmp_path / "2", method="l2f", settings={"iterations": 70}, skipped_steps=2, metarun="0.2")
    run(tmp_path / "again")
    run(tmp_path / "lost", method="l2f", mean=None)
    flags = "\n".join(flagged(tmp_path))
    for words in (
        "iterations differ (1000: 2 runs; 70: 1 run): trained unequally long",
        "seeds 0, 1, but l2f, iterations=70: 0",
        "several versions of metarun: 0.1.0: 4; 0.2: 1",
        "2: 2 of its steps were not finite",
        "again: the same settings and seed 0 as",
        "lost: its test accuracy is not finite",
    ):
        assert words in flags
    assert [len(group.runs) for group in compared(tmp_path)[0].groups] == [2, 1]


def test_a_numbered_checkpoint_that_was_evaluated_is_a_row_of_its_own(tmp_path: Path) -> None:
    run(tmp_path / "0")
    for step in (20, 40):
        place = f"checkpoints/step-{step:08d}.safetensors"
        run(tmp_path / f"{step}", settings={"mode": "evaluate"}, checkpoint=place, iterations=step)
    (block,) = compared(tmp_path)
    assert [block.label(group) for group in block.groups] == [
        *("maml", "maml, checkpoint's step=20", "maml, checkpoint's step=40")
    ]
