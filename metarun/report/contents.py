"""The content of a report, whatever its file format: tables of text, warnings, and runs that were left out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from metarun.errors import relative_to_cwd
from metarun.report import paired
from metarun.report.compare import ComparisonTable, SeedGroup, blocks, identity_of, label, task_name, value_of, varied
from metarun.report.flags import comparability_warnings
from metarun.report.formatting import duration, format_metric, metric_name, pluralize, plus_minus, signed
from metarun.report.runs import LoadedRuns, Run

COMMAND = "command"  # the head of a column that is code
OF_SEEDS = (
    "± seeds: 95 % interval of the mean over seeds, by Student's t: how far other seeds may come out on the same test "
    "tasks. All runs are tested on the same tasks, so that it holds nothing of their chance."
)
OF_TASKS = (
    "± tasks: 95 % interval of a single run over its test tasks (1.96 standard deviations / √tasks); the rows "
    "share this chance, so that it overstates how unsure the difference between two of them is."
)
OF_PAIRS = (
    "difference: this row minus the best, task by task, each task's value a mean over seeds; ±: its 95 % interval "
    "(1.96 standard deviations of the differences / √tasks). The two intervals of the rows alone stand beside it."
)
NO_PAIRS = "Differences task by task need the tasks.csv of each run; they are left out where it cannot be used: {}."


@dataclass(frozen=True)
class Table:
    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int  # leading columns of text; then come numbers
    best: frozenset[int] = frozenset()  # rows that are marked
    notes: tuple[str, ...] = ()  # one line each, below it

    def without(self, head: str) -> Table:
        kept = [place for place, name in enumerate(self.heads) if name != head]
        rows = tuple(tuple(row[place] for place in kept) for row in self.rows)
        return replace(self, heads=tuple(self.heads[place] for place in kept), rows=rows)


@dataclass(frozen=True)
class Picture:
    name: str  # of its file
    title: str
    shows: str  # in a sentence
    png: bytes


@dataclass(frozen=True)
class Report:
    title: str
    compared: str  # one sentence: what was
    flags: tuple[str, ...]
    tables: tuple[Table, ...]
    lists: tuple[Table, ...]  # single runs, unfinished ones, what could not be read
    blocks: tuple[ComparisonTable, ...]  # for plots


def contents(found: LoadedRuns) -> Report:
    parts, left_out = blocks(found.runs)
    tables = [overview(parts)] if len(parts) > 1 else []
    told = [*comparability_warnings(parts, found.runs), *left_out]
    missing: list[str] = []
    for part in parts:
        tables.append(of_block(part))
        pairs, reasons = paired.differences(part.groups)
        missing += reasons
        if pairs:
            tables.append(of_pairs(part.name, part.varied, part.metric, pairs))
    for groups in paired.sharing(parts):
        pairs, _ = paired.differences(groups)
        if pairs:
            names = tuple(dict.fromkeys(("eval.tasks", *varied([group.identity for group in groups]))))
            task = f"{task_name(groups[0].runs[0])}, the first {pairs[0].tasks} tasks, which all share"
            tables.append(of_pairs(task, names, groups[0].runs[0].metric, pairs))
    if missing and any(len(part.groups) > 1 for part in parts):
        tables[-1] = with_note(tables[-1], NO_PAIRS.format(f"{missing[0]}{'; and others' if missing[1:] else ''}"))
    return Report(
        title=f"{pluralize(len(found.runs), 'run')} compared",
        compared=compared(found, parts),
        flags=tuple(told),
        tables=tuple(deduplicate_notes(tables)),
        lists=tuple(table for table in (runs_table(found.runs), unfinished(found), unreadable(found)) if table.rows),
        blocks=tuple(parts),
    )


def compared(found: LoadedRuns, parts: Sequence[ComparisonTable]) -> str:
    """A sentence that says which methods, tasks and seeds are compared."""
    if not parts:
        return "No run is finished."
    methods = ", ".join(dict.fromkeys(run.method for run in found.runs))
    seeds = len({run.seed for run in found.runs})
    names = list(dict.fromkeys(name for part in parts for name in (*part.protocol, *part.varied)))
    besides = f" They differ in {', '.join(names)} as well." if names else ""
    rest = [
        f" {pluralize(len(entries), 'folder')} {what}, listed below."
        for entries, what in ((found.unfinished, "with an unfinished run"), (found.unreadable, "that cannot be read"))
        if entries
    ]
    return (
        f"{methods} on {'; '.join(part.name for part in parts)}: {pluralize(len(found.runs), 'run')} "
        f"with {pluralize(seeds, 'seed')}.{besides}{''.join(rest)}"
    )


# --- the tables --------------------------------------------------------------------------------------------


def overview(parts: Sequence[ComparisonTable]) -> Table:
    """Table of all methods (rows) by task (columns)."""
    names = tuple(dict.fromkeys(name for part in parts for name in part.varied))
    rows: dict[str, list[str]] = {}
    for place, part in enumerate(parts):
        best = part.best
        for group in part.groups:
            cells = rows.setdefault(label(group.identity, names), ["-"] * len(parts))
            mark = " *" if group in best else ""
            cells[place] = f"{format_metric(part.metric, group.mean)} {half(part, group)}{mark}"
    return Table(
        "All together",
        ("method", *(f"{part.name} ({metric_name(part.metric)})" for part in parts)),
        tuple((name, *cells) for name, cells in rows.items()),
        words=1,
        notes=("*: the best of its column; ±: over seeds where there are several, else over test tasks.",),
    )


def half(part: ComparisonTable, group: SeedGroup) -> str:
    interval = group.seeds_interval
    return plus_minus(part.metric, group.tasks_interval if interval is None else interval)


def of_block(part: ComparisonTable) -> Table:
    metric = part.metric
    rows = [
        (
            str(group.identity["method"]),
            *(value_of(group.identity, name) for name in part.varied),
            format_metric(metric, group.mean),
            plus_minus(metric, group.seeds_interval),
            plus_minus(metric, group.tasks_interval),
            format_metric(metric, group.untrained),
            str(len(group.runs)),
            duration(sum(run.seconds for run in group.runs) / len(group.runs)),
        )
        for group in part.groups
    ]
    best = part.best
    order = "higher is better" if part.larger_is_better else "lower is better"
    return Table(
        f"{part.name}: {metric_name(metric)} on {part.groups[0].runs[0].tasks} test tasks, {order}",
        ("method", *part.varied, "mean", "± seeds", "± tasks", "untrained", "seeds", "time a run"),
        tuple(rows),
        words=1 + len(part.varied),
        best=frozenset(place for place, group in enumerate(part.groups) if group in best),
        notes=(OF_SEEDS, OF_TASKS),
    )


def of_pairs(task: str, names: Sequence[str], metric: str, pairs: Sequence[paired.Difference]) -> Table:
    rows = [
        (
            label(pair.other.identity, names),
            label(pair.best.identity, names),
            signed(metric, pair.mean),
            plus_minus(metric, pair.interval),
            "yes" if pair.clear else "no",
            plus_minus(metric, pair.other_interval),
            plus_minus(metric, pair.best_interval),
            str(pair.tasks),
        )
        for pair in pairs
    ]
    heads = ("method", "the best", "difference", "±", "clear", "± alone", "± of the best", "tasks")
    notes = (OF_PAIRS, "clear: the interval leaves zero out.")
    return Table(f"{task}: differences to the best, task by task", heads, tuple(rows), words=2, notes=notes)


def runs_table(runs: Sequence[Run]) -> Table:
    identities = [identity_of(run) for run in runs]
    names = varied(identities) if len({run.dataset for run in runs}) == 1 else ()
    rows = tuple(
        (
            run.dataset,
            label(identity, names),
            str(relative_to_cwd(run.folder)),
            str(run.seed),
            format_metric(run.metric, run.mean),
            plus_minus(run.metric, run.ci95),
            str(run.step),
            duration(run.seconds),
            run.command,
        )
        for run, identity in zip(runs, identities, strict=True)
    )
    heads = ("data set", "method", "folder", "seed", "test", "± tasks", "best step", "time", COMMAND)
    return Table("Single runs", heads, rows, words=3)


def unfinished(found: LoadedRuns) -> Table:
    rows = tuple((str(relative_to_cwd(run.folder)), run.state, run.command) for run in found.unfinished)
    return Table("Unfinished runs", ("folder", "how far", COMMAND), rows, words=3)


def unreadable(found: LoadedRuns) -> Table:
    rows = tuple((str(relative_to_cwd(entry.folder)), entry.reason) for entry in found.unreadable)
    return Table("Cannot be read", ("folder", "why"), rows, words=2)


def deduplicate_notes(tables: Iterable[Table]) -> Iterator[Table]:
    """The tables, each note kept only below the first table that has it."""
    told: set[str] = set()
    for table in tables:
        yield replace(table, notes=tuple(note for note in table.notes if note not in told))
        told |= set(table.notes)


def with_note(table: Table, note: str) -> Table:
    return replace(table, notes=(*table.notes, note))
