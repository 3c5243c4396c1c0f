"""Differences task by task: two methods tested on the same tasks share their luck with them."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from metarun.report.compare import Block, Group
from metarun.report.found import Fault, Run, text
from metarun.report.intervals import over_tasks

ROUNDING = 1e-4  # of a mean over tasks in single precision, and to spare


@dataclass(frozen=True)
class Difference:
    """A group against the best of its block, over the same test tasks; each task's metric is a mean over seeds."""

    best: Group
    other: Group
    mean: float  # other - best
    interval: float  # half of the 95 % interval of the mean
    best_interval: float  # the same of each alone
    other_interval: float
    tasks: int

    @property
    def clear(self) -> bool:
        """Whether the interval leaves zero out."""
        return abs(self.mean) > self.interval


def differences(block: Block) -> tuple[list[Difference], list[str]]:
    """Of each group to the best that it can be compared with, and why one is missing."""
    found, told = [], []
    for part in block.alike:
        if len(part) < 2:
            continue
        best = next(group for group in block.best if group in part)
        values = {}
        for group in part:
            try:
                values[id(group)] = of_group(group)
            except Fault as fault:
                told.append(str(fault))
        if id(best) not in values:
            continue
        for group in part:
            if group is not best and id(group) in values:
                found.append(difference(best, group, values[id(best)], values[id(group)]))
    return found, told


def difference(best: Group, other: Group, of_best: Sequence[float], of_other: Sequence[float]) -> Difference:
    """Of the metrics of the same tasks, in order."""
    each = [b - a for a, b in zip(of_best, of_other, strict=True)]
    intervals = over_tasks(each), over_tasks(of_best), over_tasks(of_other)
    return Difference(best, other, statistics.fmean(each), *intervals, len(each))


def of_group(group: Group) -> list[float]:
    """Each task's metric, the mean over the group's seeds. Raises Fault where a run's tasks.csv is not there."""
    columns = [of_run(run) for run in group.runs]
    return [statistics.fmean(values) for values in zip(*columns, strict=True)]


def of_run(run: Run) -> list[float]:
    """Its tasks.csv: each task's final metric. Raises Fault where it is missing, damaged or not of this run's test."""
    path = run.folder / run.tasks_file
    if not path.is_file():
        raise Fault(f"{path} is missing")
    rows = list(csv.reader(text(path).splitlines()))
    if not rows or rows[0] != ["task", run.metric]:
        raise Fault(f"{path}: does not begin with task,{run.metric}")
    values = []
    for number, row in enumerate(rows[1:]):
        try:
            task, value = row
            if int(task) != number or not math.isfinite(float(value)):
                raise ValueError
        except ValueError:
            raise Fault(f"{path}: line {number + 2} is not task {number} with a finite {run.metric}") from None
        values.append(float(value))
    if len(values) != run.tasks:
        raise Fault(f"{path}: has {len(values)} tasks of {run.tasks}")
    mean = statistics.fmean(values)
    if run.mean is not None and abs(mean - run.mean) > ROUNDING * max(1, abs(run.mean)):
        raise Fault(f"{path}: is of another test, its mean is {mean:.6g} and the result's {run.mean:.6g}")
    return values
