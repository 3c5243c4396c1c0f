"""The forms of a report: terminal, Markdown, CSV, PNG, HTML; whatever names the files hold."""

from __future__ import annotations

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from metarun.metrics import MSE
from metarun.report import plots, runs, text
from metarun.report.contents import Picture, Report, contents
from metarun.report.runs import LoadedRuns
from metarun.report.write import html
from tests.helpers.report_runs import run, tasks, unfinished

EVIL = "<script>alert(1)</script> | `$x_1$` [a](http://b) \x1b[31m\n=1+1"


@pytest.fixture
def read(tmp_path: Path) -> LoadedRuns:
    """Two methods of two seeds with tasks.csv, one named by a stranger; an unfinished run and a damaged one."""
    for seed in (0, 1):
        folder = run(tmp_path / f"maml{seed}", seed, 0.5 + seed / 10)
        tasks(folder, [value + seed / 10 for value in (0.5, 0.6, 0.4, 0.5)])
        folder = run(tmp_path / f"<b>x|y{seed}", seed, 0.7)
        own = (folder / "result.json").read_text()
        (folder / "result.json").write_text(own.replace('"method": "maml"', f'"method": {json.dumps(EVIL)}'))
        tasks(folder, [0.7, 0.8, 0.6, 0.7])
    unfinished(tmp_path / "stopped", 40, [EVIL])
    (run(tmp_path / "damaged") / "result.json").write_text("{")
    return runs.read(runs.folders(str(tmp_path)))


def test_the_terminal_has_the_table_the_single_runs_and_what_is_missing(read: LoadedRuns) -> None:
    shown = text.plain(contents(read))
    lines = shown.splitlines()
    assert all(line.isprintable() for line in lines) and "\x1b" not in shown
    (best,) = [line for line in lines if line.endswith("* best")]
    assert "70.00" in best and "± 0.00" in best and "script" in best
    (maml,) = [line for line in lines if line.startswith("  maml ") and "1.1 min" not in line and "30.00" in line]
    assert re.search(r"maml +55\.00 +± 63\.53 +± 2\.00 +30\.00 +2 ", maml)
    (pair,) = [line for line in lines if line.startswith("  maml ") and "-15.00" in line]
    assert "± 0.00" in pair and " yes " in pair
    assert "Student's t" in shown and "at step 40 of 60" in shown and "result.json is damaged" in shown
    assert "command" not in shown


def test_without_tables_of_tasks_a_line_says_so(tmp_path: Path) -> None:
    run(tmp_path / "0")
    run(tmp_path / "1", method="l2f")
    shown = " ".join(text.plain(whole(tmp_path)).split())
    assert "Differences task by task need the tasks.csv" in shown and "0/tasks.csv is missing; and others" in shown


def test_markdown_keeps_its_tables_whole(read: LoadedRuns) -> None:
    shown = text.markdown(contents(read), [Picture("a.png", "Curves", "What it shows.", b"")])
    for table in re.split(r"\n\n", shown):
        rows = [line for line in table.splitlines() if line.startswith("|")]
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) <= 1
    assert "<script>" not in re.sub("`[^`]*`", "", shown) and r"\<script\>" in shown and "**70.00**" in shown
    assert "![Curves](a.png)" in shown


def test_csv_has_numbers_in_full_and_no_formulas(read: LoadedRuns) -> None:
    report = contents(read)
    rows = list(csv.DictReader(io.StringIO(text.groups_csv(report.comparisons).decode())))
    assert [(row["method"][:4], row["best"], row["seeds"]) for row in rows] == [
        ("<scr", "1", "0 1"),
        ("maml", "0", "0 1"),
    ]
    assert float(rows[1]["mean"]) == pytest.approx(0.55)
    single = list(csv.DictReader(io.StringIO(text.runs_csv(read.runs).decode())))
    assert len(single) == 4 and single[0]["command"].startswith("metarun method=maml")


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_page_runs_and_loads_nothing(read: LoadedRuns) -> None:
    report = contents(read)
    shown = html(report, plots.draw(report.comparisons))
    parser = Tags()
    parser.feed(shown)
    assert not {"script", "link", "iframe", "b>x"} & {tag for tag, _ in parser.found}
    sources = [attrs["src"] for tag, attrs in parser.found if tag == "img"]
    assert len(sources) == 3 and all(str(source).startswith("data:image/png;base64,") for source in sources)
    assert not [attrs for _, attrs in parser.found if "href" in attrs or any(name.startswith("on") for name in attrs)]
    assert "default-src 'none'" in shown and "prefers-color-scheme: dark" in shown and "width=device-width" in shown
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in shown and "\x1b" not in shown
    assert 'class="best"' in shown and "metarun method=maml seed=1" in shown


def test_plots_are_pictures_with_a_row_for_each_table(read: LoadedRuns, tmp_path: Path) -> None:
    one = {picture.name: Image.open(io.BytesIO(picture.png)).size for picture in plots.draw(contents(read).comparisons)}
    assert set(one) == {"comparison.png", "curves.png", "steps.png"}
    run(tmp_path / "sine", dataset="sinusoid", ways=None, metric="mse", mean=2.0)
    two = {
        picture.name: Image.open(io.BytesIO(picture.png)).size for picture in plots.draw(whole(tmp_path).comparisons)
    }
    assert two["curves.png"][1] == 2 * one["curves.png"][1] and two["curves.png"][0] == one["curves.png"][0]


def whole(top: Path) -> Report:
    return contents(runs.read(runs.folders(str(top))))


def test_many_lines_are_those_of_their_methods(tmp_path: Path) -> None:
    for number in range(9):
        run(tmp_path / f"{number}", settings={"inner_loop": number}, mean=0.5 + number / 100)
    (block,) = whole(tmp_path).comparisons
    assert len({tuple(plots.style(block, group).items()) for group in block.groups}) == 1
    assert plots.legend_names(block) == ["maml"]
    (block,) = whole(tmp_path / "0").comparisons
    assert plots.legend_names(block) == ["maml"]


def test_curves_are_over_steps_that_every_seed_has(tmp_path: Path) -> None:
    run(tmp_path / "0", 0)
    lost = run(tmp_path / "1", 1) / "metrics.jsonl"
    lost.write_text(
        lost.read_text().replace('"val", "loss": 1.0, "accuracy": 0.4', '"val", "loss": 1.0, "accuracy": null')
    )
    (block,) = whole(tmp_path).comparisons
    assert plots.points_by_outer_step(block.groups[0], "train") == [(20, 0.2, 0.2, 0.2), (40, 0.4, 0.4, 0.4)]
    assert plots.points_by_outer_step(block.groups[0], "val") == [(20, 0.2, 0.2, 0.2)]
    assert "1 of its 2 validations were not finite" in "".join(whole(tmp_path).flags)


def test_names_in_pictures_are_whole_and_rates_short(tmp_path: Path) -> None:
    """A rate of 0.1 + 0.2 has 17 digits; a folder's name may be long, and of letters that no font has."""
    name = "/data/" + "long name " * 20 + "图片"
    run(tmp_path / "0", settings={"inner_learning_rate": 0.1 + 0.2, "dataset.root": name})
    run(tmp_path / "1", settings={"inner_learning_rate": 0.01, "dataset.root": name}, mean=0.4)
    run(tmp_path / "2", settings={"inner_learning_rate": 0.01, "dataset.root": "/data"}, mean=0.4)
    report = whole(tmp_path)
    words = text.plain(report)
    assert "0.30000000000000004" not in words and "inner_learning_rate=0.3" in words
    assert "0.30000000000000004" in text.groups_csv(report.comparisons).decode()
    label = next(block.name for block in report.comparisons if "long name" in block.name)
    assert "".join(plots.wrapped(label).split()) == "".join(plots.drawable(label).split())
    assert max(map(len, plots.wrapped("long name " * 20).splitlines())) <= plots.LABEL_WIDTH
    assert len(plots.draw(report.comparisons)) == 3  # warnings, of letters that are drawn as boxes, are errors


@pytest.mark.parametrize(
    ("value", "expected"), [(0.0, "0.0000"), (1.23456, "1.2346"), (2.5e-5, "2.5e-05"), (1234567.8, "1.23e+06")]
)
def test_errors_are_short(value: float, expected: str) -> None:
    assert MSE.format(value) == expected
