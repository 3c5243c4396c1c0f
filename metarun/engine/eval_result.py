"""The tasks of an evaluation, which are the same for all runs, and its result with a confidence interval."""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from metarun.core.meta_learner import MetaLearner
from metarun.data import TaskSampler, TaskShape, method_noise
from metarun.metrics import METRIC_BY_NAME
from metarun.types import Task

CHUNK_SIZE = {True: 100, False: 4}  # vectorised or not -> tasks in one call, which bounds its memory
EVALUATION_SEED = 0  # validation and test tasks are the same for every run, whatever its seed


@dataclass(frozen=True)
class EvalResult:
    """Metric and loss of each task after each inner step; `mean`, `loss` and `ci95` are taken at `result_step`.

    Step 0 is the task's starting weights. An accuracy is a fraction.
    """

    metric: str  # a key of METRIC_BY_NAME
    values: Tensor  # float64 [tasks, inner steps + 1]: the metric
    losses: Tensor  # float64 [tasks, inner steps + 1]: the query loss
    train_steps: int | None = None  # inner steps in training; None: unknown

    @property
    def steps(self) -> int:
        """Number of inner steps."""
        return self.values.shape[1] - 1

    @property
    def by_step(self) -> list[float]:
        """Mean metric over tasks after each inner step, [inner steps + 1]; NaN if it is not finite.

        It is also NaN if no task's loss is finite: the argmax of a diverged network's NaN logits is class 0, whose
        accuracy would be finite.
        """
        means = self.values.mean(0).where(self.losses.isfinite().any(0), math.nan)
        return means.where(means.isfinite(), math.nan).tolist()

    @property
    def finite_steps(self) -> int:
        """Number of entries of `by_step` before the first non-finite one."""
        return next((k for k, mean in enumerate(self.by_step) if not math.isfinite(mean)), self.steps + 1)

    @property
    def result_step(self) -> int:
        """The number of inner steps after which the mean is the result: all of them, if that mean is finite.

        Otherwise `train_steps`, or fewer if a mean up to there is not finite.
        """
        if math.isfinite(self.by_step[-1]):
            return self.steps
        last_finite = max(0, self.finite_steps - 1)
        return min(last_finite, self.steps if self.train_steps is None else self.train_steps)

    @property
    def nonfinite_message(self) -> str | None:
        """A warning if the mean after the last inner step is not finite but an earlier one is; else None."""
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
    def mean(self) -> float:
        return self.by_step[self.result_step]

    @property
    def loss(self) -> float:
        return float(self.losses[:, self.result_step].mean())

    @property
    def ci95(self) -> float:
        return float(ci95_halfwidth(self.values[:, self.result_step]))

    def better_than(self, mean: float) -> bool:
        return METRIC_BY_NAME[self.metric].is_better(self.mean, mean)

    def __str__(self) -> str:
        return f"{self.metric} {self.format_step(self.result_step)}"

    def format_step(self, step: int) -> str:
        """Mean and interval after `step` inner steps as text; an accuracy in per cent."""
        ci95 = float(ci95_halfwidth(self.values[:, step]))
        return METRIC_BY_NAME[self.metric].format_interval(self.by_step[step], ci95)

    def summary(self) -> dict[str, Any]:
        """The entries of result.json: mean, ci95, inner_step, tasks, by_step."""
        step, tasks = self.result_step, len(self.values)
        return {"mean": self.mean, "ci95": self.ci95, "inner_step": step, "tasks": tasks, "by_step": self.by_step}


def ci95_halfwidth(values: Tensor) -> Tensor:
    """Half the width of the 95 % confidence interval of the mean over tasks, 1.96 std / sqrt(tasks).

    values: [tasks, ...]; returns [...].
    """
    return 1.96 * values.std(0, correction=0) / len(values) ** 0.5


def evaluation_tasks(
    learner: MetaLearner, source: TaskSampler, split: str, first: int, count: int, shape: TaskShape
) -> tuple[Task, Tensor]:
    """Tasks first .. first + count - 1 of a split, fixed for all runs, and the method's noise for each of them."""
    tasks = source.draw(EVALUATION_SEED, split, first, count, shape)
    noise = method_noise(EVALUATION_SEED, split, first, count, learner.method.noise(learner.inner_loop))
    return tasks, noise.to(tasks.query_data.device)
