"""Evaluation over many fixed tasks: which tasks, in chunks, and the result with its confidence interval."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metarun.core.meta_learner import MetaLearner
from metarun.data import TaskSampler, TaskShape, method_noise
from metarun.metrics import METRIC_BY_NAME
from metarun.types import Task

CHUNK_SIZE = {True: 100, False: 4}  # tasks in one call, if vectorised or looped; bounds its memory
EVALUATION_SEED = 0  # validation and test tasks are the same for every run, whatever its seed


@dataclass(frozen=True)
class EvalResult:
    """Metric and loss of each task after each inner step, and the mean that stands for them.

    Step 0 is the task's starting weights, before any inner step. An accuracy is a fraction. `mean`, `loss` and `ci95`
    are those after `result_step` inner steps.
    """

    metric: str  # a key of METRIC_BY_NAME
    values: Tensor  # float64 [tasks, inner steps + 1]: the metric
    losses: Tensor  # float64 [tasks, inner steps + 1]: the query loss
    train_steps: int | None = None  # inner steps in training; None: not known

    @property
    def by_step(self) -> list[float]:
        """Mean metric over tasks after each inner step, [inner steps + 1]; NaN if it is not finite.

        It is also NaN where no task's loss is finite: the argmax of NaN logits is class 0, so that the accuracy of a
        diverged network would otherwise be that of guessing class 0.
        """
        means = self.values.mean(0).where(self.losses.isfinite().any(0), math.nan)
        return means.where(means.isfinite(), math.nan).tolist()

    @property
    def finite_steps(self) -> int:
        """Number of entries of `by_step` before the first that is not finite."""
        return next((k for k, mean in enumerate(self.by_step) if not math.isfinite(mean)), self.steps + 1)

    @property
    def result_step(self) -> int:
        """The number of inner steps whose mean is the result: the last, if its mean is finite.

        If it is not, the result is that of `train_steps`; if that is not finite either, of the last step before which
        every mean is finite.
        """
        if math.isfinite(self.by_step[-1]):
            return self.steps
        last_finite = max(0, self.finite_steps - 1)
        return last_finite if self.train_steps is None else min(last_finite, self.train_steps)

    @property
    def nonfinite_message(self) -> str | None:
        """A warning for people if the last inner step has no finite mean but an earlier one has; else None."""
        if self.result_step == self.steps or not self.finite_steps:
            return None
        last = self.finite_steps - 1
        which = "the last one of training" if self.result_step == self.train_steps else "the last finite one"
        also = f"; step {last} is the last finite one, with {self.format_step(last)}"
        return (
            f"the {self.metric} is not finite after {self.steps} inner steps: the result is that of step "
            f"{self.result_step}, {which}{'' if last == self.result_step else also}"
        )

    @property
    def steps(self) -> int:
        """Number of inner steps."""
        return self.values.shape[1] - 1

    @property
    def mean(self) -> float:
        """Mean metric over tasks after `result_step` inner steps."""
        return self.by_step[self.result_step]

    @property
    def loss(self) -> float:
        """Mean query loss over tasks after `result_step` inner steps."""
        return float(self.losses[:, self.result_step].mean())

    @property
    def ci95(self) -> float:
        """Half the width of the 95 % confidence interval of `mean`, see `ci95_halfwidth`."""
        return float(ci95_halfwidth(self.values[:, self.result_step]))

    def better_than(self, mean: float) -> bool:
        return METRIC_BY_NAME[self.metric].is_better(self.mean, mean)

    def __str__(self) -> str:
        return f"{self.metric} {self.format_step(self.result_step)}"

    def format_step(self, step: int) -> str:
        """Mean and interval after `step` inner steps; an accuracy in per cent."""
        ci95 = float(ci95_halfwidth(self.values[:, step]))
        return METRIC_BY_NAME[self.metric].format_interval(self.by_step[step], ci95)

    def summary(self) -> dict[str, Any]:
        """The entries of result.json: mean, ci95, inner_step, tasks, by_step."""
        result = {"mean": self.mean, "ci95": self.ci95, "inner_step": self.result_step}
        return {**result, "tasks": len(self.values), "by_step": self.by_step}


def ci95_halfwidth(values: Tensor) -> Tensor:
    """Half the width of the 95 % interval of the mean over tasks, 1.96 std / sqrt(tasks); [tasks, ...] to [...]."""
    return 1.96 * values.std(0, correction=0) / len(values) ** 0.5


def evaluation_tasks(
    learner: MetaLearner, source: TaskSampler, split: str, first: int, count: int, shape: TaskShape
) -> tuple[Task, Tensor]:
    """Tasks first .. first + count - 1 of a split, the same for every run, and the method's noise for each of them."""
    tasks = source.draw(EVALUATION_SEED, split, first, count, shape)
    noise = method_noise(EVALUATION_SEED, split, first, count, learner.method.noise(learner.inner_loop))
    return tasks, noise.to(tasks.query_data.device)


def evaluate_in_chunks(
    evaluate_chunk: Callable[[int, int], Tensor],
    metric: str,
    tasks: int,
    chunk_size: int,
    train_steps: int,
    progress: Callable[[int], object] = lambda done: None,
) -> EvalResult:
    """Evaluate the first `tasks` tasks of a split, `chunk_size` at a time.

    Args:
        evaluate_chunk: (first, count) -> losses and metric of those tasks, [2, count, inner steps + 1].
        progress: called with the number of tasks done after each chunk.
    """
    chunks = []
    for first in range(0, tasks, chunk_size):
        count = min(chunk_size, tasks - first)
        chunks.append(evaluate_chunk(first, count))
        progress(count)
    losses, values = torch.cat(chunks, dim=1)
    return EvalResult(metric, values, losses, train_steps)
