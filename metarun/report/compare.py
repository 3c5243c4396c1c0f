"""Groups runs that differ only in their seed, and compares the groups that were tested alike."""

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from metarun.config.groups import CONFIG_GROUPS
from metarun.config.schema import MACHINE_KEYS, format_value
from metarun.errors import relative_to_cwd
from metarun.metrics import Metric
from metarun.report.runs import Run

IGNORED_SETTINGS = ("seed", "eval.details", *MACHINE_KEYS)  # may differ within a group, as may `save.*` and `engine.*`
TASK_KEYS = ("dataset", "eval.ways", "eval.shots", "metric")  # each combination has tables of its own
EVAL_DEFAULTS = ("ways", "shots", "queries", "inner_loop")  # eval.* of these is that of training if it is null
TEST_KEYS = (
    "eval.split",
    "class_split",
    "batch_norm",
    "eval.tasks",
    "eval.queries",
)  # must be equal
TRAINING_ONLY = ("dataset.normalise", "dataset.augment")  # all other `dataset.*` keys change the test tasks
SPLIT_KEYS = ("dataset.split", "dataset.seed", "dataset.root")  # they explain a difference in class_split
Identity = Mapping[str, Any]  # the settings that identify a group, by dotted name


@dataclass(frozen=True)
class SeedGroup:
    """Runs with equal settings, one for each seed, whose metrics are finite."""

    identity: Identity
    runs: tuple[Run, ...]

    @property
    def means(self) -> list[float]:
        return [run.mean for run in self.runs if run.mean is not None]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.means)

    @property
    def seeds_ci95(self) -> float | None:
        """Half the width of the 95 % interval of the mean over seeds; None for a single seed."""
        return seed_ci95(self.means)

    @property
    def tasks_ci95(self) -> float:
        """Half the width of the 95 % interval of one run over its test tasks, averaged over the seeds."""
        return statistics.fmean(run.ci95 or 0.0 for run in self.runs)

    @property
    def untrained(self) -> float | None:
        values = [run.untrained for run in self.runs if run.untrained is not None]
        return statistics.fmean(values) if values else None


@dataclass(frozen=True)
class Comparison:
    """Groups with the same data set, ways, shots and metric that were tested alike; the best group comes first."""

    task: str  # data set, ways and shots
    name: str  # the task, and the values of `protocol`
    metric: Metric
    groups: tuple[SeedGroup, ...]
    varied: tuple[str, ...]  # settings that differ among its groups, besides the method
    protocol: tuple[str, ...] = ()  # settings of the test that differ from other comparisons on this task

    def label(self, group: SeedGroup) -> str:
        """The method, and the settings in which the groups differ."""
        return label(group.identity, self.varied)

    @property
    def best(self) -> list[SeedGroup]:
        """The groups with the best mean; none if there is only one group."""
        return [group for group in self.groups if group.mean == self.groups[0].mean] if len(self.groups) > 1 else []

    @property
    def order(self) -> str:
        return "higher is better" if self.metric.higher_is_better else "lower is better"


def compare(runs: Iterable[Run]) -> tuple[list[Comparison], list[str]]:
    """Comparisons of all runs with a finite result, and a warning for each run that is left out."""
    warnings = []
    grouped: dict[str, tuple[Identity, dict[int, Run]]] = {}
    for run in runs:
        name, identity = relative_to_cwd(run.folder), identity_of(run)
        if run.mean is None:
            warnings.append(f"{name}: its test {run.metric.name} is not finite; it is in no mean")
            continue
        seeds = grouped.setdefault(canonical(identity), (identity, {}))[1]
        if run.seed in seeds:
            first = relative_to_cwd(seeds[run.seed].folder)
            warnings.append(f"{name}: the same settings and seed {run.seed} as {first}; it is in no mean")
        seeds.setdefault(run.seed, run)
    tasks: dict[tuple[Any, ...], dict[str, list[SeedGroup]]] = {}  # by task, then by how it was tested
    for identity, seeds in grouped.values():
        group = SeedGroup(identity, tuple(seeds[seed] for seed in sorted(seeds)))
        by_test = tasks.setdefault(tuple(identity[name] for name in TASK_KEYS), {})
        by_test.setdefault(canonical(test_settings(identity)), []).append(group)
    comparisons = []
    for by_test in tasks.values():
        tests = [test_settings(groups[0].identity) for groups in by_test.values()]
        names = dict.fromkeys(name for test in tests for name in test)
        differing = tuple(name for name in names if len({canonical({name: test.get(name)}) for test in tests}) > 1)
        protocol = varied(tests) or differing  # `differing`: keys that only some of the runs have
        comparisons += [build_comparison(groups, protocol) for groups in by_test.values()]
    return comparisons, warnings


def build_comparison(groups: Sequence[SeedGroup], protocol: tuple[str, ...]) -> Comparison:
    first = groups[0].runs[0]
    task = f"{first.dataset}, {'' if first.ways is None else f'{first.ways}-way '}{first.shots}-shot"
    name = ", ".join([task, *(f"{key}={setting_text(groups[0].identity, key)}" for key in protocol)])
    ordered = tuple(sorted(groups, key=lambda group: first.metric.sort_key(group.mean)))
    return Comparison(task, name, first.metric, ordered, varied([group.identity for group in groups]), protocol)


def label(identity: Identity, varied: Sequence[str]) -> str:
    settings = [f"{name}={setting_text(identity, name)}" for name in varied if name in identity]
    return ", ".join([str(identity["method"]), *settings])


def setting_text(identity: Identity, name: str) -> str:
    """A setting as it is typed, a float with four digits; empty if the group's method or backbone has no such key."""
    value = identity.get(name)
    return "" if name not in identity else f"{value:.4g}" if isinstance(value, float) else format_value(value)


def identity_of(run: Run) -> Identity:
    """All settings and conditions of a run's result, but for the seed, paths and how it is computed."""
    identity = {
        name: value
        for name, value in run.settings.items()
        if name not in IGNORED_SETTINGS and not name.startswith(("save.", "engine."))
    }
    for name in EVAL_DEFAULTS:
        if identity.get(f"eval.{name}") is None:
            identity[f"eval.{name}"] = identity.get(name)
    for name in ("dataset", "trained_on", "method", "class_split", "batch_norm"):
        identity[name] = getattr(run, name)
    for name in ("ways", "shots", "queries", "tasks", "split"):
        identity[f"eval.{name}"] = getattr(run, name)
    identity["metric"] = run.metric.name
    if run.method == "fomaml":
        identity.pop("use_second_order", None)  # the method's name says it
    if run.settings.get("mode") == "evaluate" and Path(run.checkpoint).name.startswith("step-"):
        identity["checkpoint's step"] = run.iterations  # not for the best one, whose step differs between seeds
    return identity


def test_settings(identity: Identity) -> Identity:
    """The settings that decide which test tasks there are, and how they are evaluated."""
    dataset_keys = [name for name in identity if name.startswith("dataset.") and name not in TRAINING_ONLY]
    return {name: identity.get(name) for name in (*TEST_KEYS, *dataset_keys)}


def canonical(identity: Identity) -> str:
    """A text that is equal for equal identities."""
    return json.dumps(identity, sort_keys=True, default=str)


def varied(identities: Sequence[Identity]) -> tuple[str, ...]:
    """The settings that differ; a choice's own keys (`method.alpha`) only where they differ for the same choice."""
    names = []
    for name in dict.fromkeys(name for identity in identities for name in identity):
        group, dot, _ = name.partition(".")
        values: dict[Any, set[str]] = {}
        for identity in identities:
            if name in identity:
                choice = identity.get(group) if dot and group in CONFIG_GROUPS else None
                values.setdefault(choice, set()).add(format_value(identity[name]))
        if name not in (*TASK_KEYS, "method") and any(len(texts) > 1 for texts in values.values()):
            names.append(name)
    for name in EVAL_DEFAULTS:
        if f"eval.{name}" in names and all(each.get(f"eval.{name}") == each.get(name) for each in identities):
            names.remove(f"eval.{name}")
    if "class_split" in names and set(names) & set(SPLIT_KEYS):
        names.remove("class_split")
    return tuple(names)


def seed_ci95(values: Sequence[float]) -> float | None:
    """Half the width of the 95 % interval of the mean, by Student's t; None for a single value."""
    if len(values) < 2:
        return None
    return student_t(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))


@cache
def student_t(freedom: int) -> float:
    """Two-sided 95 % quantile of Student's t with `freedom` degrees of freedom, by bisection."""
    low, high = 0.0, 13.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf_two_sided(middle, freedom) < 0.95 else (low, middle)
    return (low + high) / 2


def t_cdf_two_sided(t: float, freedom: int) -> float:
    """The probability that a Student variable lies between -t and t (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, square = math.sin(angle), math.cos(angle) ** 2
    odd = freedom % 2
    term, total = math.cos(angle) if odd else 1.0, 0.0
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= square * k / (k + 1)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
