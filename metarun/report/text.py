"""A report as terminal text, Markdown and CSV."""

import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence

from metarun.config.schema import format_value
from metarun.report.compare import Comparison
from metarun.report.contents import COMMAND, Picture, Report, Table
from metarun.report.runs import Run
from metarun.utils.text import csv_table, printable

NOTE_WIDTH = 100  # characters of a line of a note on the terminal


def plain(report: Report) -> str:
    """Text for a terminal, without the commands, which are long."""
    lines = [f"{report.title}: {report.summary}", *(f"! {flag}" for flag in report.flags)]
    for table in (*report.tables, *report.lists):
        table = table.without_commands()
        lines += ["", table.title, *aligned(table)]
        for note in table.notes:
            lines += textwrap.wrap(note, NOTE_WIDTH, initial_indent="  ", subsequent_indent="  ")
    return "\n".join(printable(line) for line in "\n".join(lines).splitlines())


def aligned(table: Table) -> Iterator[str]:
    marks = ["* best" if index in table.best else "" for index in range(len(table.rows))]
    rows = [[printable(cell) for cell in row] for row in (table.heads, *table.rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row, mark in zip(rows, ("", *marks), strict=True):
        cells = [
            cell.ljust(width) if column < table.words else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield ("  " + "  ".join([*cells, mark])).rstrip()


def markdown(report: Report, pictures: Sequence[Picture] = ()) -> str:
    """Markdown that shows the `pictures`, files in the same folder, between the tables and the lists."""
    parts = [f"# {escaped(report.title)}", escaped(report.summary)]
    if report.flags:
        parts.append("\n".join(f"- **!** {escaped(flag)}" for flag in report.flags))
    for table in report.tables:
        parts += markdown_table(table)
    for picture in pictures:
        title = escaped(picture.title)
        parts += [f"## {title}", f"![{title}]({picture.name})", escaped(picture.caption)]
    for table in report.lists:
        parts += markdown_table(table)
    return "\n\n".join(parts) + "\n"


def markdown_table(table: Table) -> list[str]:
    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |"

    rules = ["---" if column < table.words or head == COMMAND else "---:" for column, head in enumerate(table.heads)]
    lines = [line(map(escaped, table.heads)), line(rules)]
    for index, row in enumerate(table.rows):
        bold = "**" if index in table.best else ""
        cells = [
            code(cell) if head == COMMAND else f"{bold}{escaped(cell)}{bold}" if cell else ""
            for head, cell in zip(table.heads, row, strict=True)
        ]
        lines.append(line(cells))
    best = ["Bold: the best."] if table.best else []
    return [f"## {escaped(table.title)}", "\n".join(lines), *map(escaped, (*best, *table.notes))]


def escaped(text: str) -> str:
    """Text in which no character is Markdown or HTML."""
    return re.sub(r"([\\`*_\[\]<>|#&])", r"\\\1", printable(text))


def code(text: str) -> str:
    """Text in backticks, in a table: `|` takes a backslash there as well, and a backtick cannot be escaped."""
    return f"`{printable(text).replace('`', chr(39)).replace('|', chr(92) + '|')}`"


def groups_csv(comparisons: Sequence[Comparison]) -> bytes:
    """A line for each group of seeds; numbers in full, accuracy as a fraction."""
    names = list(dict.fromkeys(name for each in comparisons for name in (*each.protocol, *each.varied)))
    heads = ["dataset", "ways", "shots", "method", *names, "metric", "mean", "ci95_seeds", "ci95_tasks", "untrained"]
    rows = []
    for comparison in comparisons:
        for group in comparison.groups:
            run = group.runs[0]
            settings = [format_value(group.identity[name]) if name in group.identity else "" for name in names]
            numbers = [group.mean, group.seeds_ci95, group.tasks_ci95, group.untrained]
            seeds = " ".join(str(run.seed) for run in group.runs)
            task = [run.dataset, run.ways, run.shots, run.method]
            best = int(group in comparison.best)
            rows.append([*task, *settings, comparison.metric.name, *numbers, seeds, run.tasks, best])
    return csv_table([*heads, "seeds", "tasks", "best"], rows)


def runs_csv(runs: Sequence[Run]) -> bytes:
    """A line for each run; numbers in full, accuracy as a fraction."""
    heads = ["folder", "dataset", "ways", "shots", "method", "seed", "metric", "mean", "ci95", "tasks", "untrained"]
    rows = [
        [
            *(run.folder, run.dataset, run.ways, run.shots, run.method, run.seed),
            *(run.metric.name, run.mean, run.ci95, run.tasks, run.untrained),
            *(run.class_split, run.batch_norm, run.iterations, run.seconds, run.metarun, run.command),
        ]
        for run in runs
    ]
    return csv_table([*heads, "class_split", "batch_norm", "step", "seconds", "metarun", "command"], rows)
