"""Paired differences between methods that were tested on the same tasks, task by task."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from metarun.evaluation.paired import TASKS_CSV, mean_ci95, parse_tasks
from metarun.report.compare import ComparisonTable, SeedGroup, key_of, tested_on
from metarun.report.runs import LARGEST, Run, UnreadableRun, faults
from metarun.utils.safe_files import read_text

ROUNDING = 1e-4  # of a mean over tasks in single precision, and to spare


@dataclass(frozen=True)
class Difference:
    """Paired difference of a group to the best group on the same test tasks; metrics are means over seeds."""

    best: SeedGroup
    other: SeedGroup
    mean: float  # other - best
    interval: float  # half of the 95 % interval of the mean
    best_interval: float  # the same of each alone
    other_interval: float
    tasks: int

    @property
    def clear(self) -> bool:
        """Whether the interval leaves zero out."""
        return abs(self.mean) > self.interval


def differences(groups: Sequence[SeedGroup]) -> tuple[list[Difference], list[str]]:
    """Paired differences of each group to the best on their shared test tasks, and reasons for missing ones.

    All draw their tasks from the same, so that those with fewer tasks have the first of the others'. Where the best
    over all of its own tasks cannot be read, there is nothing to compare with.
    """
    if len(groups) < 2:
        return [], []
    values: list[tuple[SeedGroup, list[float]]] = []
    told = []
    for group in groups:
        try:
            values.append((group, of_group(group)))
        except UnreadableRun as fault:
            told.append(str(fault))
    if len({group.runs[0].tasks for group in groups}) == 1 and (not values or values[0][0] is not groups[0]):
        return [], told
    count = min((len(one) for _, one in values), default=0)
    shared = sorted(
        ((group, one[:count]) for group, one in values),
        key=lambda pair: statistics.fmean(pair[1]),
        reverse=groups[0].runs[0].larger_is_better,
    )
    return [difference(*shared[0], *other) for other in shared[1:]], told


def difference(best: SeedGroup, of_best: Sequence[float], other: SeedGroup, of_other: Sequence[float]) -> Difference:
    """Paired difference of two groups' metrics, given task by task in the same order."""
    each = [b - a for a, b in zip(of_best, of_other, strict=True)]
    mean, interval = mean_ci95(each)
    return Difference(best, other, mean, interval, mean_ci95(of_best)[1], mean_ci95(of_other)[1], len(each))


def sharing(blocks: Sequence[ComparisonTable]) -> list[list[SeedGroup]]:
    """Groups of tables that differ only in the number of test tasks."""
    alike: dict[str, list[ComparisonTable]] = {}
    for block in blocks:
        tested = {name: value for name, value in tested_on(block.groups[0].identity).items() if name != "eval.tasks"}
        alike.setdefault(f"{block.task}{block.metric}{key_of(tested)}", []).append(block)
    return [[group for part in parts for group in part.groups] for parts in alike.values() if len(parts) > 1]


def of_group(group: SeedGroup) -> list[float]:
    """Each task's metric, the mean over the group's seeds. Raises UnreadableRun if a run's tasks.csv is not there."""
    columns = [of_run(run) for run in group.runs]
    return [statistics.fmean(values) for values in zip(*columns, strict=True)]


def of_run(run: Run) -> list[float]:
    """Each task's final metric, from tasks.csv. Raises UnreadableRun if it is missing, damaged or of another test."""
    path = run.folder / TASKS_CSV
    if not os.path.lexists(path):
        raise UnreadableRun(f"{path} is missing")
    with faults(str(path)):
        metric, values = parse_tasks(read_text(path, links=False))
    if metric != run.metric or not all(abs(value) <= LARGEST for value in values):
        raise UnreadableRun(f"{path}: is not of finite {run.metric}")
    if len(values) != run.tasks:
        raise UnreadableRun(f"{path}: has {len(values)} tasks of {run.tasks}")
    mean = statistics.fmean(values)
    if run.mean is not None and abs(mean - run.mean) > ROUNDING * max(1, abs(run.mean)):
        raise UnreadableRun(f"{path}: is of another test, its mean is {mean:.6g} and the result's {run.mean:.6g}")
    return values
