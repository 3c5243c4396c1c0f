"""Differences task by task: two methods tested on the same tasks share their luck with them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from metarun.paired import TASKS, paired, parsed
from metarun.report.compare import Block, Group
from metarun.report.found import Fault, Run, text

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
    mean, interval = paired(each)
    return Difference(best, other, mean, interval, paired(of_best)[1], paired(of_other)[1], len(each))


def of_group(group: Group) -> list[float]:
    """Each task's metric, the mean over the group's seeds. Raises Fault where a run's tasks.csv is not there."""
    columns = [of_run(run) for run in group.runs]
    return [statistics.fmean(values) for values in zip(*columns, strict=True)]


def of_run(run: Run) -> list[float]:
    """Its tasks.csv: each task's final metric. Raises Fault where it is missing, damaged or not of this run's test."""
    path = run.folder / TASKS
    if not path.is_file():
        raise Fault(f"{path} is missing")
    try:
        metric, values = parsed(text(path))
    except ValueError as error:
        raise Fault(f"{path}: {error}") from error
    if metric != run.metric or not all(map(math.isfinite, values)):
        raise Fault(f"{path}: is not of finite {run.metric}")
    if len(values) != run.tasks:
        raise Fault(f"{path}: has {len(values)} tasks of {run.tasks}")
    mean = statistics.fmean(values)
    if run.mean is not None and abs(mean - run.mean) > ROUNDING * max(1, abs(run.mean)):
        raise Fault(f"{path}: is of another test, its mean is {mean:.6g} and the result's {run.mean:.6g}")
    return values
