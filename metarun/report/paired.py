"""Differences between groups that were tested on the same tasks, task by task."""

import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from metarun.evaluation.paired import TASKS_CSV, PairedDifference, paired_difference, parse_tasks
from metarun.report.compare import Comparison, SeedGroup, canonical, test_settings
from metarun.report.runs import LARGEST, Run, UnreadableRun, explain_unreadable
from metarun.utils.safe_files import read_text

ROUNDING = 1e-4  # relative; more than the rounding of a mean over tasks in single precision


@dataclass(frozen=True)
class GroupDifference:
    """A group less the best one, on the same test tasks; each task's metric is a mean over seeds."""

    best: SeedGroup
    other: SeedGroup
    paired: PairedDifference


def differences(groups: Sequence[SeedGroup]) -> tuple[list[GroupDifference], list[str]]:
    """Difference of each group to the best on the test tasks that all share, and why tasks could not be read.

    Groups with fewer tasks have the first of the others' tasks. If all have as many, and the tasks of the best group
    cannot be read, there is no difference.
    """
    if len(groups) < 2:
        return [], []
    values: list[tuple[SeedGroup, list[float]]] = []
    reasons = []
    for group in groups:
        try:
            columns = [read_run_tasks(run) for run in group.runs]
        except UnreadableRun as error:
            reasons.append(str(error))
        else:
            values.append((group, [statistics.fmean(column) for column in zip(*columns, strict=True)]))
    same_tasks = len({group.runs[0].tasks for group in groups}) == 1
    if not values or (same_tasks and values[0][0] is not groups[0]):
        return [], reasons
    metric = groups[0].runs[0].metric
    count = min(len(tasks) for _, tasks in values)
    values.sort(key=lambda entry: metric.sort_key(statistics.fmean(entry[1][:count])))
    best, best_values = values[0][0], values[0][1][:count]
    return [
        GroupDifference(best, group, paired_difference(metric.name, tasks, best_values)) for group, tasks in values[1:]
    ], reasons


def sharing_tasks(comparisons: Sequence[Comparison]) -> list[list[Comparison]]:
    """Lists of comparisons whose tests differ only in the number of tasks."""
    alike: dict[tuple[str, str, str], list[Comparison]] = {}
    for each in comparisons:
        test = {**test_settings(each.groups[0].identity), "eval.tasks": None}
        alike.setdefault((each.task, each.metric.name, canonical(test)), []).append(each)
    return [entries for entries in alike.values() if len(entries) > 1]


def read_run_tasks(run: Run) -> list[float]:
    """Each task's final metric, from tasks.csv. Raises UnreadableRun if it is missing, damaged or of another test."""
    path = run.folder / TASKS_CSV
    if not os.path.lexists(path):
        raise UnreadableRun(f"{path} is missing")
    with explain_unreadable(str(path)):
        metric, values = parse_tasks(read_text(path, links=False))
    if metric != run.metric.name or not all(abs(value) <= LARGEST for value in values):
        raise UnreadableRun(f"{path}: holds no finite {run.metric.name}")
    if len(values) != run.tasks:
        raise UnreadableRun(f"{path}: has {len(values)} of {run.tasks} tasks")
    mean = statistics.fmean(values)
    if run.mean is not None and abs(mean - run.mean) > ROUNDING * max(1, abs(run.mean)):
        raise UnreadableRun(f"{path}: is of another test: its mean is {mean:.6g}, the result's is {run.mean:.6g}")
    return values
