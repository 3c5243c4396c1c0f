"""Groups runs that differ only in their seed, and groups that can be compared with one another into tables."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metarun.config.groups import CONFIG_GROUPS
from metarun.config.schema import MACHINE_KEYS, format_value
from metarun.errors import relative_to_cwd
from metarun.report.intervals import seed_ci95
from metarun.report.runs import Run

IGNORED_SETTINGS = ("seed", "eval.details", *MACHINE_KEYS)  # what may differ within a group, and `save.`, `engine.`
TASK = ("dataset", "eval.ways", "eval.shots", "metric")  # one of each to a table
FOLLOWING = ("ways", "shots", "queries", "inner_loop")  # eval.* of these is as in training where it is null
TESTED_ON = ("eval.split", "class_split", "batch_norm", "eval.tasks", "eval.queries")  # comparable if all are equal
TRAINING_ONLY = ("dataset.normalise", "dataset.augment")  # all other `dataset.` keys change the test tasks
NAMING_CLASSES = ("dataset.split", "dataset.seed", "dataset.root")  # a difference in class_split shows in these
Identity = Mapping[str, Any]


@dataclass(frozen=True)
class SeedGroup:
    """Runs with equal settings, one per seed, with finite test metrics."""

    identity: Identity
    runs: tuple[Run, ...]

    @property
    def means(self) -> list[float]:
        return [run.mean for run in self.runs if run.mean is not None]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.means)

    @property
    def seeds_interval(self) -> float | None:
        """Half of the 95 % interval of the mean over seeds; None where there is one seed."""
        return seed_ci95(self.means)

    @property
    def tasks_interval(self) -> float:
        """Half of the 95 % interval of a single run over its test tasks: the mean of its seeds'."""
        return statistics.fmean(run.ci95 or 0.0 for run in self.runs)

    @property
    def untrained(self) -> float | None:
        values = [run.untrained for run in self.runs if run.untrained is not None]
        return statistics.fmean(values) if values else None

    @property
    def by_step(self) -> list[float | None]:
        """Mean over seeds after each inner step, from 0; None where one of them is not finite."""
        columns = zip(*(run.by_step for run in self.runs), strict=False)
        return [None if None in column else statistics.fmean(v for v in column if v is not None) for column in columns]


@dataclass(frozen=True)
class ComparisonTable:
    """Groups that can be compared: the same data set, ways, shots and metric, tested alike; the best first."""

    name: str
    metric: str
    larger_is_better: bool
    groups: tuple[SeedGroup, ...]
    varied: tuple[str, ...]  # settings that differ among its groups, besides the method
    protocol: tuple[str, ...] = ()  # settings in which it was tested otherwise than other blocks of its task

    def label(self, group: SeedGroup) -> str:
        """The method, and the settings in which the groups of this table differ."""
        return label(group.identity, self.varied)

    @property
    def task(self) -> str:
        """The table's name without the protocol."""
        return task_name(self.groups[0].runs[0])

    @property
    def best(self) -> list[SeedGroup]:
        """The best group, or all groups that share the best mean; empty if there is a single group."""
        first = (max if self.larger_is_better else min)(group.mean for group in self.groups)
        return [group for group in self.groups if group.mean == first] if len(self.groups) > 1 else []


def label(identity: Identity, varied: Sequence[str]) -> str:
    chosen = [f"{name}={value_of(identity, name)}" for name in varied if name in identity]
    return ", ".join([str(identity["method"]), *chosen])


def value_of(identity: Identity, name: str) -> str:
    """A setting as it is typed, floats with four digits; empty if the chosen method or backbone has no such key."""
    value = identity.get(name)
    return "" if name not in identity else f"{value:.4g}" if isinstance(value, float) else format_value(value)


def identity_of(run: Run) -> Identity:
    """All settings of a run except the seed, paths and the engine."""
    own = {name: value for name, value in run.settings.items() if name not in IGNORED_SETTINGS}
    own = {name: value for name, value in own.items() if not name.startswith(("save.", "engine."))}
    for name in FOLLOWING:
        if own.get(f"eval.{name}") is None:
            own[f"eval.{name}"] = own.get(name)
    own |= {"dataset": run.dataset, "trained_on": run.trained_on, "method": run.method, "metric": run.metric}
    own |= {"eval.ways": run.ways, "eval.shots": run.shots, "eval.queries": run.queries, "eval.tasks": run.tasks}
    own |= {"eval.split": run.split, "class_split": run.class_split, "batch_norm": run.batch_norm}
    if run.method == "fomaml":
        own.pop("use_second_order", None)  # which its name says
    if run.settings.get("mode") == "evaluate" and Path(run.checkpoint).name.startswith("step-"):
        own["checkpoint's step"] = run.step  # else its best, which is of another step for each seed
    return own


def tested_on(identity: Identity) -> Identity:
    """The settings that determine the test tasks and how they are evaluated."""
    of_data = [name for name in identity if name.startswith("dataset.") and name not in TRAINING_ONLY]
    return {name: identity.get(name) for name in (*TESTED_ON, *of_data)}


def key_of(identity: Identity) -> str:
    return json.dumps(identity, sort_keys=True, default=str)


def blocks(runs: Iterable[Run]) -> tuple[list[ComparisonTable], list[str]]:
    """Comparison tables of the runs, and a warning for each run that is in none of them."""
    told = []
    grouped: dict[str, tuple[Identity, dict[int, Run]]] = {}
    for run in runs:
        identity = identity_of(run)
        if run.mean is None:
            told.append(f"{relative_to_cwd(run.folder)}: its test {run.metric} is not finite; it is in no mean")
            continue
        seeds = grouped.setdefault(key_of(identity), (identity, {}))[1]
        if run.seed in seeds:
            told.append(
                f"{relative_to_cwd(run.folder)}: the same settings and seed {run.seed} as "
                f"{relative_to_cwd(seeds[run.seed].folder)}; "
                "it is in no mean"
            )
            continue
        seeds[run.seed] = run
    tasks: dict[tuple[Any, ...], dict[str, list[SeedGroup]]] = {}  # of each task, the groups that were tested alike
    for identity, seeds in grouped.values():
        group = SeedGroup(identity, tuple(seeds[seed] for seed in sorted(seeds)))
        alike = tasks.setdefault(tuple(identity[name] for name in TASK), {})
        alike.setdefault(key_of(tested_on(identity)), []).append(group)
    found = []
    for alike in tasks.values():
        tested = [tested_on(groups[0].identity) for groups in alike.values()]
        names = dict.fromkeys(name for one in tested for name in one)
        differing = (name for name in names if len({key_of({name: one.get(name)}) for one in tested}) > 1)
        protocol = varied(tested) or tuple(differing)  # else of keys that only some of the runs have
        found += [block(groups, protocol) for groups in alike.values()]
    return found, told


def block(groups: Sequence[SeedGroup], protocol: tuple[str, ...]) -> ComparisonTable:
    first = groups[0].runs[0]
    ordered = sorted(groups, key=lambda group: group.mean, reverse=first.larger_is_better)
    tested = [f"{name}={value_of(groups[0].identity, name)}" for name in protocol]
    name = ", ".join([task_name(first), *tested])
    names = varied([group.identity for group in groups])
    return ComparisonTable(name, first.metric, first.larger_is_better, tuple(ordered), names, protocol)


def task_name(run: Run) -> str:
    return f"{run.dataset}, {'' if run.ways is None else f'{run.ways}-way '}{run.shots}-shot"


def by_task(blocks: Iterable[ComparisonTable]) -> dict[str, list[ComparisonTable]]:
    """Tables by data set, ways, shots and metric."""
    found: dict[str, list[ComparisonTable]] = {}
    for one in blocks:
        found.setdefault(f"{one.task}: {one.metric}", []).append(one)
    return found


def varied(identities: Sequence[Identity]) -> tuple[str, ...]:
    """Names of the settings that differ. Keys of a choice (`method.alpha`) count only if they differ for one choice."""
    found = []
    for name in dict.fromkeys(name for identity in identities for name in identity):
        values: dict[Any, set[str]] = {}
        for identity in identities:
            if name in identity:
                choice = identity.get(name.partition(".")[0]) if name.partition(".")[0] in CONFIG_GROUPS else None
                values.setdefault(choice if "." in name else None, set()).add(format_value(identity[name]))
        if name not in (*TASK, "method") and any(len(different) > 1 for different in values.values()):
            found.append(name)
    for name in FOLLOWING:
        if f"eval.{name}" in found and all(one.get(f"eval.{name}") == one.get(name) for one in identities):
            found.remove(f"eval.{name}")
    if "class_split" in found and set(found) & set(NAMING_CLASSES):
        found.remove("class_split")
    return tuple(found)
