"""The content of a report, whatever its file format: tables of text, warnings, and folders that were left out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from metarun.errors import relative_to_cwd
from metarun.report.compare import Comparison, compare, identity_of, label, setting_text, varied
from metarun.report.flags import comparability_warnings
from metarun.report.paired import GroupDifference, differences, sharing_tasks
from metarun.report.runs import LoadedRuns, Run, SkippedFolder
from metarun.utils.text import duration, pluralize

COMMAND = "command"  # the heading of a column of shell commands
SEEDS_NOTE = (
    "± seeds: 95 % interval of the mean over seeds, by Student's t: how far other seeds may differ on the same test "
    "tasks. All runs are tested on the same tasks, so the chance of drawing them is not in it."
)
TASKS_NOTE = (
    "± tasks: 95 % interval of a single run over its test tasks (1.96 standard deviations / √tasks); the rows "
    "share this chance, so it overstates the uncertainty of the difference between two of them."
)
PAIRED_NOTE = (
    "difference: this row minus the best, task by task, each task's value a mean over seeds; ±: its 95 % interval "
    "(1.96 standard deviations of the differences / √tasks). The two intervals of the rows alone stand beside it."
)
UNPAIRED_NOTE = "Differences task by task need the tasks.csv of each run; they are left out where it cannot be used: "


@dataclass(frozen=True)
class Table:
    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int  # number of leading columns of text; numbers follow
    best: frozenset[int] = frozenset()  # indices of the marked rows
    notes: tuple[str, ...] = ()  # one line each, below the table

    def without_commands(self) -> Table:
        if COMMAND not in self.heads:
            return self
        return replace(self, heads=self.heads[:-1], rows=tuple(row[:-1] for row in self.rows))


@dataclass(frozen=True)
class Picture:
    name: str  # of its file
    title: str
    caption: str
    png: bytes


@dataclass(frozen=True)
class Report:
    title: str
    summary: str  # what is compared, in a sentence
    flags: tuple[str, ...]
    tables: tuple[Table, ...]
    lists: tuple[Table, ...]  # single runs, unfinished runs, unreadable folders
    comparisons: tuple[Comparison, ...]  # for plots


def contents(loaded: LoadedRuns) -> Report:
    comparisons, left_out = compare(loaded.runs)
    tables = [overview(comparisons)] if len(comparisons) > 1 else []
    unreadable_tasks: list[str] = []
    for each in comparisons:
        tables.append(comparison_table(each))
        pairs, reasons = differences(each.groups)
        unreadable_tasks += reasons
        if pairs:
            tables.append(paired_table(each.name, each.varied, pairs))
    for alike in sharing_tasks(comparisons):
        groups = [group for each in alike for group in each.groups]
        pairs, _ = differences(groups)
        if pairs:
            names = tuple(dict.fromkeys(("eval.tasks", *varied([group.identity for group in groups]))))
            title = f"{alike[0].task}, the first {pluralize(pairs[0].paired.tasks, 'task')}, which all share"
            tables.append(paired_table(title, names, pairs))
    if unreadable_tasks and any(len(each.groups) > 1 for each in comparisons):
        note = f"{UNPAIRED_NOTE}{unreadable_tasks[0]}{'; and others' if unreadable_tasks[1:] else ''}."
        tables[-1] = replace(tables[-1], notes=(*tables[-1].notes, note))
    lists = (
        runs_table(loaded.runs),
        skipped_table("Unfinished runs", "how far", loaded.unfinished),
        skipped_table("Cannot be read", "why", loaded.unreadable).without_commands(),
    )
    return Report(
        title=f"{pluralize(len(loaded.runs), 'run')} compared",
        summary=summary(loaded, comparisons),
        flags=(*comparability_warnings(comparisons, loaded.runs), *left_out),
        tables=tuple(without_repeated_notes(tables)),
        lists=tuple(table for table in lists if table.rows),
        comparisons=tuple(comparisons),
    )


def without_repeated_notes(tables: Iterable[Table]) -> Iterator[Table]:
    seen: set[str] = set()
    for table in tables:
        yield replace(table, notes=tuple(note for note in table.notes if note not in seen))
        seen.update(table.notes)


def summary(loaded: LoadedRuns, comparisons: Sequence[Comparison]) -> str:
    if not comparisons:
        return "No run is finished."
    methods = ", ".join(dict.fromkeys(run.method for run in loaded.runs))
    runs, seeds = pluralize(len(loaded.runs), "run"), pluralize(len({run.seed for run in loaded.runs}), "seed")
    sentences = [f"{methods} on {'; '.join(each.name for each in comparisons)}: {runs} with {seeds}."]
    if names := dict.fromkeys(name for each in comparisons for name in (*each.protocol, *each.varied)):
        sentences.append(f"They differ in {', '.join(names)} as well.")
    for folders, state in ((loaded.unfinished, "with an unfinished run"), (loaded.unreadable, "that cannot be read")):
        if folders:
            sentences.append(f"{pluralize(len(folders), 'folder')} {state}, listed below.")
    return " ".join(sentences)


def overview(comparisons: Sequence[Comparison]) -> Table:
    """A row for each method, a column for each comparison."""
    names = tuple(dict.fromkeys(name for each in comparisons for name in each.varied))
    rows: dict[str, list[str]] = {}
    for column, each in enumerate(comparisons):
        for group in each.groups:
            cells = rows.setdefault(label(group.identity, names), ["-"] * len(comparisons))
            ci95 = group.tasks_ci95 if group.seeds_ci95 is None else group.seeds_ci95
            mark = " *" if group in each.best else ""
            cells[column] = f"{each.metric.format(group.mean)} {each.metric.format_ci95(ci95)}{mark}"
    return Table(
        "All together",
        ("method", *(f"{each.name} ({each.metric.title})" for each in comparisons)),
        tuple((name, *cells) for name, cells in rows.items()),
        words=1,
        notes=("*: the best of its column; ±: over seeds where there are several, else over test tasks.",),
    )


def comparison_table(comparison: Comparison) -> Table:
    metric = comparison.metric
    rows = tuple(
        (
            str(group.identity["method"]),
            *(setting_text(group.identity, name) for name in comparison.varied),
            metric.format(group.mean),
            metric.format_ci95(group.seeds_ci95),
            metric.format_ci95(group.tasks_ci95),
            metric.format(group.untrained),
            str(len(group.runs)),
            duration(sum(run.seconds for run in group.runs) / len(group.runs)),
        )
        for group in comparison.groups
    )
    tasks = pluralize(comparison.groups[0].runs[0].tasks, "test task")
    return Table(
        f"{comparison.name}: {metric.title} on {tasks}, {comparison.order}",
        ("method", *comparison.varied, "mean", "± seeds", "± tasks", "untrained", "seeds", "time a run"),
        rows,
        words=1 + len(comparison.varied),
        best=frozenset(range(len(comparison.best))),
        notes=(SEEDS_NOTE, TASKS_NOTE),
    )


def paired_table(title: str, names: Sequence[str], pairs: Sequence[GroupDifference]) -> Table:
    metric = pairs[0].best.runs[0].metric
    rows = tuple(
        (
            label(pair.other.identity, names),
            label(pair.best.identity, names),
            f"{'+' if pair.paired.mean >= 0 else '-'}{metric.format(abs(pair.paired.mean))}",
            metric.format_ci95(pair.paired.ci95),
            "yes" if pair.paired.is_significant else "no",
            *map(metric.format_ci95, pair.paired.separate),
            str(pair.paired.tasks),
        )
        for pair in pairs
    )
    heads = ("method", "the best", "difference", "±", "clear", "± alone", "± of the best", "tasks")
    notes = (PAIRED_NOTE, "clear: the interval excludes zero.")
    return Table(f"{title}: differences to the best, task by task", heads, rows, words=2, notes=notes)


def runs_table(runs: Sequence[Run]) -> Table:
    identities = [identity_of(run) for run in runs]
    names = varied(identities) if len({run.dataset for run in runs}) == 1 else ()
    rows = tuple(
        (
            run.dataset,
            label(identity, names),
            str(relative_to_cwd(run.folder)),
            str(run.seed),
            run.metric.format(run.mean),
            run.metric.format_ci95(run.ci95),
            str(run.iterations),
            duration(run.seconds),
            run.command,
        )
        for run, identity in zip(runs, identities, strict=True)
    )
    heads = ("data set", "method", "folder", "seed", "test", "± tasks", "best step", "time", COMMAND)
    return Table("Single runs", heads, rows, words=3)


def skipped_table(title: str, reason: str, folders: Sequence[SkippedFolder]) -> Table:
    rows = tuple((str(relative_to_cwd(each.folder)), each.reason, each.command) for each in folders)
    return Table(title, ("folder", reason, COMMAND), rows, words=3)
