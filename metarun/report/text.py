"""A report as terminal text, Markdown and CSV."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence

from metarun.config.schema import format_value
from metarun.report.compare import ComparisonTable
from metarun.report.contents import COMMAND, Picture, Report, Table
from metarun.report.runs import Run
from metarun.utils.text import csv_table, printable

WIDTH = 100  # letters of a note on the terminal


# --- the terminal ------------------------------------------------------------------------------------------


def plain(report: Report) -> str:
    """The report as text for a terminal, without the column of commands."""
    parts = [f"{report.title}: {report.compared}"]
    parts += [f"! {flag}" for flag in report.flags]
    for table in (*report.tables, *(table.without(COMMAND) for table in report.lists)):
        parts += ["", table.title, *aligned(table)]
        for note in table.notes:
            parts += textwrap.wrap(note, WIDTH, initial_indent="  ", subsequent_indent="  ")
    return "\n".join(printable(line) for line in "\n".join(parts).splitlines())


def aligned(table: Table) -> Iterable[str]:
    marked = bool(table.best)
    rows = [
        (*table.heads, ""),
        *((*row, "* best" if place in table.best else "") for place, row in enumerate(table.rows)),
    ]
    widths = [max(len(printable(row[column])) for row in rows) for column in range(len(table.heads) + marked)]
    for row in rows:
        cells = [
            printable(cell).ljust(width) if column < table.words or column == len(table.heads) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=False))
        ]
        yield ("  " + "  ".join(cells)).rstrip()


# --- Markdown ----------------------------------------------------------------------------------------------


def markdown(report: Report, pictures: Sequence[Picture] = ()) -> str:
    """The report as Markdown that refers to `pictures` in the same folder."""
    parts = [f"# {escaped(report.title)}", escaped(report.compared)]
    if report.flags:
        parts.append("\n".join(f"- **!** {escaped(flag)}" for flag in report.flags))
    for table in report.tables:
        parts += of_table(table)
    for one in pictures:
        parts += [f"## {escaped(one.title)}", f"![{escaped(one.title)}]({one.name})", escaped(one.shows)]
    for table in report.lists:
        parts += of_table(table)
    return "\n\n".join(parts) + "\n"


def of_table(table: Table) -> list[str]:
    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |"

    rules = ["---" if column < table.words or head == COMMAND else "---:" for column, head in enumerate(table.heads)]
    lines = [line(map(escaped, table.heads)), line(rules)]
    for place, row in enumerate(table.rows):
        cells = [
            code(cell) if head == COMMAND else f"**{escaped(cell)}**" if place in table.best and cell else escaped(cell)
            for head, cell in zip(table.heads, row, strict=True)
        ]
        lines.append(line(cells))
    bold = ["Bold: the best."] if table.best else []
    return [f"## {escaped(table.title)}", "\n".join(lines), *map(escaped, (*bold, *table.notes))]


def escaped(words: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|#&])", r"\\\1", printable(words))


def code(words: str) -> str:
    """Text as inline code in a table cell: bars are escaped, and backticks become apostrophes."""
    return f"`{printable(words).replace('`', chr(39)).replace('|', chr(92) + '|')}`"


# --- CSV ---------------------------------------------------------------------------------------------------


def groups_csv(blocks: Sequence[ComparisonTable]) -> bytes:
    """CSV with a line for each row of the tables; numbers in full precision, accuracy as a fraction."""
    names = list(dict.fromkeys(name for block in blocks for name in (*block.protocol, *block.varied)))
    heads = ["dataset", "ways", "shots", "method", *names, "metric", "mean", "ci95_seeds", "ci95_tasks", "untrained"]
    rows = []
    for block in blocks:
        best = block.best
        for group in block.groups:
            first = group.runs[0]
            settings = [format_value(group.identity[name]) if name in group.identity else "" for name in names]
            numbers = [group.mean, group.seeds_interval, group.tasks_interval, group.untrained]
            seeds = " ".join(str(run.seed) for run in group.runs)
            task = [first.dataset, first.ways, first.shots, first.method]
            rows.append([*task, *settings, block.metric, *numbers, seeds, first.tasks, int(group in best)])
    return csv_table([*heads, "seeds", "tasks", "best"], rows)


def runs_csv(runs: Sequence[Run]) -> bytes:
    """CSV with a line for each run; numbers in full precision, accuracy as a fraction."""
    heads = ["folder", "dataset", "ways", "shots", "method", "seed", "metric", "mean", "ci95", "tasks", "untrained"]
    rows = [
        [
            *(run.folder, run.dataset, run.ways, run.shots, run.method, run.seed),
            *(run.metric, run.mean, run.ci95, run.tasks, run.untrained),
            *(run.class_split, run.batch_norm, run.step, run.seconds, run.version, run.command),
        ]
        for run in runs
    ]
    return csv_table([*heads, "class_split", "batch_norm", "step", "seconds", "metarun", "command"], rows)
