"""Warnings above the tables: settings that make runs incomparable or unequal, and runs with non-finite steps."""

from collections import Counter
from collections.abc import Iterator, Sequence

from metarun.errors import relative_to_cwd
from metarun.report.compare import Comparison, SeedGroup, setting_text
from metarun.report.runs import Run
from metarun.utils.text import pluralize

MAX_ROWS = 5  # that one warning names


def comparability_warnings(comparisons: Sequence[Comparison], runs: Sequence[Run]) -> list[str]:
    """One line for each reason for caution, the gravest first."""
    by_task: dict[tuple[str, str], list[Comparison]] = {}
    for comparison in comparisons:
        by_task.setdefault((comparison.task, comparison.metric.name), []).append(comparison)
    warnings = [
        f"{task}: {name} differs ({value_counts([group for each in alike for group in each.groups], name)}): "
        "not comparable with one another; each has a table and a best of its own"
        for (task, _), alike in by_task.items()
        for name in alike[0].protocol
    ]
    warnings += [warning for comparison in comparisons for warning in unequal_training(comparison)]
    versions = Counter(run.metarun for run in runs)
    if len(versions) > 1:
        counts = "; ".join(f"{version}: {count}" for version, count in versions.items())
        warnings.append(f"written by several versions of metarun: {counts}")
    return warnings + [warning for run in runs for warning in nonfinite_steps(run)]


def unequal_training(comparison: Comparison) -> Iterator[str]:
    if "iterations" in comparison.varied:
        counts = value_counts(comparison.groups, "iterations")
        yield f"{comparison.name}: iterations differ ({counts}): trained unequally long"
    seeds = {comparison.label(group): ", ".join(str(run.seed) for run in group.runs) for group in comparison.groups}
    ((usual, _),) = Counter(seeds.values()).most_common(1)
    others = [f"{name}: {numbers}" for name, numbers in seeds.items() if numbers != usual]
    if others:
        more = "; ..." if len(others) > MAX_ROWS else ""
        yield f"{comparison.name}: seeds {usual}, but {'; '.join(others[:MAX_ROWS])}{more}"


def nonfinite_steps(run: Run) -> Iterator[str]:
    folder = relative_to_cwd(run.folder)
    validations = [entry.get(run.metric.name) for entry in run.metrics if entry["split"] == "val"]
    if lost := validations.count(None):
        total = pluralize(len(validations), "validation")
        yield f"{folder}: {lost} of its {total} were not finite; curves leave such steps out"
    if run.skipped_steps:
        yield f"{folder}: {run.skipped_steps} of its steps were not finite and were skipped"


def value_counts(groups: Sequence[SeedGroup], name: str) -> str:
    """Each value of a setting, and how many runs have it."""
    counts = Counter(setting_text(group.identity, name) or "none" for group in groups for _ in group.runs)
    return "; ".join(f"{value}: {pluralize(count, 'run')}" for value, count in counts.items())
