"""Warnings above the tables: settings that make runs incomparable or unequal, and runs with non-finite steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from metarun.errors import relative_to_cwd
from metarun.report.compare import ComparisonTable, SeedGroup, by_task, value_of
from metarun.report.runs import Run

NAMED = 5  # rows, in one line


def comparability_warnings(blocks: Sequence[ComparisonTable], runs: Sequence[Run]) -> list[str]:
    """Warnings of one line each, the most serious first."""
    told = [line for alike in by_task(blocks).values() for line in incomparable(alike)]
    told += [line for block in blocks for line in unequal(block)]
    versions = counted(run.version for run in runs)
    if len(versions) > 1:
        told.append(f"written by several versions of metarun: {listed(versions)}")
    return told + [line for run in runs for line in not_finite(run)]


def not_finite(run: Run) -> Iterator[str]:
    validations = [entry.get(run.metric) for entry in run.metrics if entry["split"] == "val"]
    if None in validations:
        count = f"{validations.count(None)} of its {len(validations)} validations"
        yield f"{relative_to_cwd(run.folder)}: {count} were not finite; curves leave such steps out"
    if run.skipped:
        yield f"{relative_to_cwd(run.folder)}: {run.skipped} of its steps were not finite and were skipped"


def incomparable(blocks: Sequence[ComparisonTable]) -> list[str]:
    """Warnings about the test settings in which the tables of one task differ."""
    first, groups = blocks[0], [group for block in blocks for group in block.groups]
    return [
        f"{first.task}: {name} differs ({divided(groups, name)}): not comparable with one another; "
        "each has a table and a best of its own"
        for name in first.protocol
    ]


def unequal(block: ComparisonTable) -> list[str]:
    told = []
    if "iterations" in block.varied:
        told.append(f"{block.name}: iterations differ ({divided(block.groups, 'iterations')}): trained unequally long")
    seeds = {block.label(group): ", ".join(str(run.seed) for run in group.runs) for group in block.groups}
    counts = counted(seeds.values())
    usual = max(counts, key=lambda chosen: counts[chosen])
    others = [f"{name}: {chosen}" for name, chosen in seeds.items() if chosen != usual]
    if others:
        more = "; ..." if len(others) > NAMED else ""
        told.append(f"{block.name}: seeds {usual}, but {'; '.join(others[:NAMED])}{more}")
    return told


def divided(groups: Sequence[SeedGroup], name: str) -> str:
    """Each value of a setting with the number of runs that have it."""
    return listed(counted(value_of(group.identity, name) or "none" for group in groups for _ in group.runs), " runs")


def counted(values: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    return counts


def listed(counts: dict[str, int], unit: str = "") -> str:
    return "; ".join(f"{value}: {count}{unit.rstrip('s') if count == 1 else unit}" for value, count in counts.items())
