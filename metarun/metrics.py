"""Accuracy (or error) over many fixed tasks, with its confidence interval."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metarun.core.meta_learner import MetaLearner
from metarun.data import TaskSampler, TaskShape, method_noise
from metarun.types import Task

CHUNK_SIZE = {True: 100, False: 4}  # vectorised, looped: bounds the memory of one call
EVALUATION_SEED = 0  # validation and test tasks are the same for every run, whatever its seed


@dataclass(frozen=True)
class EvalResult:
    """The metric over tasks; a fraction for accuracy."""

    metric: str
    values: Tensor  # [tasks, inner steps + 1]
    losses: Tensor  # the same
    trained: int | None = None  # inner steps in training

    @property
    def by_step(self) -> list[float]:
        """Mean over tasks after each inner step, from 0, the task's starting weights; NaN where it is not finite.

        An accuracy of outputs that are not finite would be that of the first class: it counts as NaN as well, where no
        task's loss is finite.
        """
        means = self.values.mean(0).where(self.losses.isfinite().any(0), math.nan)
        return means.where(means.isfinite(), math.nan).tolist()

    @property
    def finite_steps(self) -> int:
        """How many entries of `by_step` are finite before the first that is not."""
        return next((k for k, mean in enumerate(self.by_step) if not math.isfinite(mean)), self.steps + 1)

    @property
    def told(self) -> int:
        """The inner step whose mean is the result: the last; where that is not finite, the last one of training.

        Where the mean is not finite there either, it is the last step before which all are.
        """
        if math.isfinite(self.by_step[-1]):
            return self.steps
        finite = max(0, self.finite_steps - 1)
        return finite if self.trained is None else min(finite, self.trained)

    @property
    def fault(self) -> str | None:
        """What to say where the last inner step has no finite mean."""
        if self.told == self.steps or not self.finite_steps:
            return None
        last = self.finite_steps - 1
        which = "the last one of training" if self.told == self.trained else "the last finite one"
        more = "" if last == self.told else f"; step {last} is the last finite one, with {self.at(last)}"
        return (
            f"the {self.metric} is not finite after {self.steps} inner steps: the result is that of step {self.told}, "
            f"{which}{more}"
        )

    @property
    def steps(self) -> int:
        """Inner steps."""
        return self.values.shape[1] - 1

    @property
    def mean(self) -> float:
        return self.by_step[self.told]

    @property
    def loss(self) -> float:
        return float(self.losses[:, self.told].mean())

    @property
    def ci95(self) -> float:
        """Half of the 95 % interval: 1.96 standard deviations over tasks / sqrt(tasks)."""
        return float(ci95_halfwidth(self.values[:, self.told]))

    def better_than(self, mean: float) -> bool:
        return self.mean > mean if self.metric == "accuracy" else self.mean < mean

    def __str__(self) -> str:
        """Accuracy in per cent, as papers give it."""
        return f"{self.metric} {self.at(self.told)}"

    def at(self, step: int) -> str:
        return format_metric(self.metric, self.by_step[step], float(ci95_halfwidth(self.values[:, step])))

    def summary(self) -> dict[str, Any]:
        told = {"mean": self.mean, "ci95": self.ci95, "inner_step": self.told}
        return {**told, "tasks": len(self.values), "by_step": self.by_step}


def format_metric(metric: str, mean: float, ci95: float) -> str:
    if metric == "accuracy":
        return f"{100 * mean:.2f} ± {100 * ci95:.2f} %"
    return f"{mean:.4f} ± {ci95:.4f}" if abs(mean) < 1e6 else f"{mean:.3g} ± {ci95:.3g}"


def ci95_halfwidth(values: Tensor) -> Tensor:
    """Half of the 95 % interval of the mean over the first axis, of tasks."""
    return 1.96 * values.std(0, correction=0) / len(values) ** 0.5


def evaluation_tasks(
    learner: MetaLearner, source: TaskSampler, split: str, first: int, count: int, shape: TaskShape
) -> tuple[Task, Tensor]:
    """Tasks first .. first + count - 1 of a split, the same for every run, and what the method draws for each."""
    tasks = source.draw(EVALUATION_SEED, split, first, count, shape)
    own = method_noise(EVALUATION_SEED, split, first, count, learner.method.noise(learner.inner_loop))
    return tasks, own.to(tasks.query_data.device)


def evaluate_in_chunks(
    judge: Callable[[int, int], Tensor],
    metric: str,
    tasks: int,
    at_once: int,
    trained: int,
    progress: Callable[[int], object] = lambda done: None,
) -> EvalResult:
    """The first `tasks` tasks, as `judge(first, count)` finds them, `at_once` a call; `progress` is told of each.

    trained: inner steps in training.
    """
    judged = []
    for first in range(0, tasks, at_once):
        count = min(at_once, tasks - first)
        judged.append(judge(first, count))
        progress(count)
    losses, values = torch.cat(judged, dim=1)
    return EvalResult(metric, values, losses, trained)
