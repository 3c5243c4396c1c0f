"""Run folders that anybody may have made: the bad one is named and left out, the others are reported."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metarun.report import runs, text
from metarun.report.contents import contents
from metarun.report.write import html, report
from tests.helpers.report_runs import run, tasks, unfinished


def result(**changes: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        content = json.loads((folder / "result.json").read_text())
        (folder / "result.json").write_text(json.dumps(content | changes))

    return change


def raw_mean(value: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        own = (folder / "result.json").read_text()
        (folder / "result.json").write_text(own.replace('"mean": 0.5,', f'"mean": {value},', 1))

    return change


def file(name: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(content)


def linked(name: str) -> Callable[[Path], object]:
    """A file's content lies outside, where the file is a link to."""

    def change(folder: Path) -> None:
        outside = folder.parent / f"{folder.name} {Path(name).name} outside"
        (folder / name).rename(outside)
        (folder / name).symlink_to(outside)

    return change


def pipe(name: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return change


def large(name: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        with (folder / name).open("r+b") as opened:
            opened.truncate(2**33)  # which takes no room on the disk

    return change


BOMB = "".join(f"- &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 'seed=1'}]\n" for i in range(12))
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "aliases in what was typed": (file(".hydra/overrides.yaml", BOMB), "alias"),
    "aliases in the config": (file(".hydra/config.yaml", f"a:\n{BOMB}"), "alias"),
    "an object in the config": (file(".hydra/config.yaml", "!!python/object/apply:os.system [id]"), "constructor"),
    "a deep config": (file(".hydra/config.yaml", "[" * 3000), "nested"),
    "a list as a config": (file(".hydra/config.yaml", "[a]"), "no dict"),
    "a large config": (large(".hydra/config.yaml"), "more than"),
    "a pipe as a config": (pipe(".hydra/config.yaml"), "pipe"),
    "a pipe as what was typed": (pipe(".hydra/overrides.yaml"), "pipe"),
    "a folder elsewhere as .hydra": (linked(".hydra"), "link"),
    "a mean of NaN": (raw_mean("NaN"), "nan"),
    "a mean of Infinity": (raw_mean("-Infinity"), "inf"),
    "a mean of 10**400": (raw_mean(str(10**400)), "64 bits"),
    "a mean of 1e400": (raw_mean("1e400"), "not finite"),
    "a mean whose square is none": (raw_mean("1e200"), "mean"),
    "a mean of text": (result(mean="0.5"), "mean"),
    "a mean of true": (result(mean=True), "mean"),
    "a deep result": (file("result.json", "[" * 100_000), "nested"),
    "a result of no object": (file("result.json", "[1]"), "no object"),
    "a result of bytes": (lambda folder: (folder / "result.json").write_bytes(b"\xff\xff"), "UTF-8"),
    "a large result": (large("result.json"), "more than"),
    "a pipe as a result": (pipe("result.json"), "pipe"),
    "a result that lies elsewhere": (linked("result.json"), "link"),
    "a choice that is a list": (result(settings={"backbone": ["conv4"]}), "no name"),
    "settings of a list": (result(settings=[1]), "settings"),
    "a name that is a dict": (result(method={"a": 1}), "method"),
    "data sets that are lists": (result(trained_on=[1]), "trained_on"),
    "steps of text": (result(by_step=[0.1, "0.2"]), "by_step"),
    "an unknown metric": (result(metric="=1+1"), "metric"),
    "results of numbers": (result(results=[1]), "results"),
    "large metrics": (large("metrics.jsonl"), "more than"),
    "a pipe as metrics": (pipe("metrics.jsonl"), "pipe"),
    "a device as metrics": (
        lambda folder: [(folder / "metrics.jsonl").unlink(), (folder / "metrics.jsonl").symlink_to("/dev/zero")],
        "link",
    ),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_run_is_named_and_left_out_and_the_others_are_reported(tmp_path: Path, bad: str) -> None:
    change, reason = BAD[bad]
    change(run(tmp_path / "bad", seed=1))
    run(tmp_path / "good", seed=2)
    read = runs.read(runs.folders(str(tmp_path)))
    assert [one.folder.name for one in read.runs] == ["good"] and not read.unfinished
    (entry,) = read.unreadable
    assert entry.folder.name == "bad" and reason in entry.reason and "\n" not in entry.reason
    assert "50.00" in text.plain(contents(read)) and "Cannot be read" in text.plain(contents(read))


BAD_TASKS: dict[str, Callable[[Path], object]] = {
    "a pipe": lambda folder: os.mkfifo(folder / "tasks.csv"),
    "elsewhere": lambda folder: [tasks(folder, [0.5] * 4), linked("tasks.csv")(folder)],
    "large": lambda folder: [tasks(folder, [0.5] * 4), large("tasks.csv")(folder)],
    "a line without end": lambda folder: file("tasks.csv", f"task,accuracy\n0,{'1' * 10**6}\n")(folder),
    "not finite": lambda folder: tasks(folder, [0.5, float("nan"), 0.5, 0.5]),
    "too large": lambda folder: tasks(folder, [1e308] * 4),
    "no numbers": lambda folder: file("tasks.csv", "task,accuracy\n0,=1+1\n")(folder),
}


@pytest.mark.parametrize("bad", BAD_TASKS)
def test_a_bad_table_of_tasks_leaves_out_the_differences_alone(tmp_path: Path, bad: str) -> None:
    BAD_TASKS[bad](run(tmp_path / "bad"))
    tasks(run(tmp_path / "good", method="l2f"), [0.5] * 4)
    shown = " ".join(text.plain(contents(runs.read(runs.folders(str(tmp_path))))).split())
    assert "left out where it cannot be used" in shown and "bad/tasks.csv" in shown


def test_lines_of_metrics_that_are_no_numbers_are_passed_over(tmp_path: Path) -> None:
    folder = run(tmp_path / "a")
    before = runs.read([folder]).runs[0].metrics
    bad = ['{"step": 1, "split": "val", "accuracy": NaN}', '{"step": 1, "split": "val", "accuracy": "high"}']
    bad += ['{"step": 1, "split": "val", "accuracy": [[1]]}', '{"step": 1, "split": "val"' + " " * 2**23 + "}"]
    bad += ["[" * 10**5, f'{{"step": {10**400}, "split": "val"}}', '{"step": true, "split": "val"}']
    with (folder / "metrics.jsonl").open("a") as opened:
        opened.write("".join(f"{line}\n" for line in bad))
    assert runs.read([folder]).runs[0].metrics == before


def test_a_run_of_the_far_future_is_told(tmp_path: Path) -> None:
    folder = unfinished(tmp_path / "stopped")
    os.utime(folder / "metrics.jsonl", (2**37, 2**37))
    assert "at step 40" in runs.read([folder]).unfinished[0].reason


def test_folders_of_odd_numbers_and_great_depth_are_searched(tmp_path: Path) -> None:
    for name in ("²", "٣", "9" * 200):
        run(tmp_path / name)
    here = Path.cwd()
    try:
        os.chdir(tmp_path)
        for _ in range(1200):
            Path("d").mkdir()
            os.chdir("d")
        os.chdir(tmp_path)
        assert len(runs.folders(".")) == 3
    finally:
        os.chdir(here)
        subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)  # deeper than pytest can take away


VALUES: list[Any] = [
    *(None, True, -1, 0, 2**64 - 1, 1e39, -1e39, 0.0, "", "=1+1", "\n\x1b[2J<script>|`$x$", "\ud800", [], {}),
    *([[1]], {"a": [1]}, [None], "x" * 300, "a\u202eb", "${oc.env:HOME}", "../../etc"),
]


def test_whatever_stands_in_a_result_a_report_is_made_of_what_can_be_read(tmp_path: Path) -> None:
    """Each entry of result.json and each of its settings has some of the values, each value stands in several."""
    good = run(tmp_path / "good", method="l2f")
    content = json.loads((good / "result.json").read_text())
    bad = run(tmp_path / "bad")
    changes = [{name: value} for i, name in enumerate(content) for value in VALUES[i % 4 :: 4]]
    changes += [
        {"settings": content["settings"] | {name: value}}
        for i, name in enumerate(content["settings"])
        for value in VALUES[i % 19 :: 19]
    ]
    for change in changes:
        (bad / "result.json").write_text(json.dumps(content | change))
        read = runs.read([good, bad])
        assert good in [one.folder for one in read.runs]
        whole = contents(read)
        made = (text.plain(whole), text.markdown(whole), html(whole, []))
        made += (text.groups_csv(whole.comparisons).decode(), text.runs_csv(read.runs).decode())
        for written in made:
            assert written.encode() and "\x1b" not in written and "\u202e" not in written
        assert "<script" not in made[2]
        assert not any(cell.startswith(("=", "@")) for line in made[4].splitlines() for cell in line.split(","))


@pytest.mark.slow
def test_the_whole_report_is_written_beside_a_strangers_names(tmp_path: Path) -> None:
    """Plots as well, of names that are formulas, mathematics and pages."""
    names = ["$\\frac{1}{0}$", "\n\x1b[2J<script>", "=1+1", "a\u202eb\ud800", "&lt;b&gt;|`"]
    for number, name in enumerate(names):
        result(method=name, class_split=name, dataset=names[0])(run(tmp_path / f"runs/{number}"))
    (tmp_path / "made").mkdir()
    report(str(tmp_path / "runs"), tmp_path / "made", lambda: None)
    page = (tmp_path / "made/report.html").read_text(encoding="utf-8")
    assert "<script" not in page and r"\x1b[2J&lt;script&gt;" in page
    assert "\x1b" not in (tmp_path / "made/report.md").read_text(encoding="utf-8")
    assert not list(tmp_path.glob("*.png"))
