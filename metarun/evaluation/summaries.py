"""TensorBoard summaries besides loss and metric: at each validation, and after the final test.

They do not affect the run: they draw no random number and change no parameter.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from metarun.checkpointing.state import Validation
from metarun.config.schema import Settings
from metarun.core.forward import MetaLearner, functional_forward, query_weights
from metarun.core.meta_learner import (
    TaskLearner,
    autograd_gradient,
    evaluate_tasks,
    functional_gradient,
    unbind_tasks,
    vmap_or_loop,
)
from metarun.data.image_sampler import ImageTaskSampler
from metarun.engine.context import RunContext
from metarun.engine.eval_result import EvalResult, evaluation_tasks
from metarun.loggers.base import Logger
from metarun.methods import Tensors
from metarun.types import Task
from metarun.visualization.tasks import classification_grid, metric_by_step, regression_plot

IMAGE_TASKS = 3  # validation tasks that are drawn
SUMMARY_TASKS = 8  # validation tasks that the method's summaries are averaged over
TRAIN_TASKS = 8  # at most so many tasks of the last meta-batch are evaluated
MAX_IMAGES = 10  # images per tag and run, as many as TensorBoard shows
MAX_STEPS = 10  # inner steps that are shown, besides step 0
CURVE_POINTS = 200  # query points of a drawn regression task


@dataclass
class Summaries:
    """What is logged of one outer step besides its loss and metric, by tag."""

    scalars: dict[str, float] = field(default_factory=dict)
    histograms: dict[str, np.ndarray] = field(default_factory=dict)
    images: dict[str, bytes] = field(default_factory=dict)  # PNG

    def log(self, loggers: Iterable[Logger], step: int) -> None:
        for logger in loggers:
            logger.log_scalars(step, self.scalars)
            logger.log_histograms(step, self.histograms)
            logger.log_images(step, self.images)


def validation_summaries(work: RunContext, step: int, validation: EvalResult) -> Summaries:
    """Summaries of outer step `step` with its validation: metric by inner step, method, images."""
    results = {"training": evaluate_last_meta_batch(work, step), "validation": validation}
    learner = replace(work.learner, inner_loop=work.eval_inner_loop)
    summaries = method_summaries(work, learner)
    for name, result in results.items():
        for k in evenly_spaced(result.steps):
            summaries.scalars[f"{result.metric}_by_inner_step/{name}_{k}"] = result.by_step[k]
    if should_log_images(work.settings, step):
        curves = metric_by_step(f"at step {step}", results)
        summaries.images = {"by_inner_step/validation": curves, **task_images(work, learner, step)}
    return summaries


def test_summaries(tested: EvalResult, untrained: EvalResult | None, best: Validation | None) -> Summaries:
    """Summaries of the final test; `Result/...` comes first in TensorBoard's table of runs."""
    results = {"trained": tested, **({"untrained": untrained} if untrained else {})}
    scalars = {f"Result/test_{tested.metric}": tested.mean, "Result/test_ci95": tested.ci95}
    if best is not None:
        scalars[f"Result/validation_best_{tested.metric}"] = best.mean
    return Summaries(
        scalars, images={"by_inner_step/test": metric_by_step(f"on {len(tested.values)} test tasks", results)}
    )


def evaluate_last_meta_batch(work: RunContext, step: int) -> EvalResult:
    """Evaluate the present parameters on the training tasks of outer step `step`, at most TRAIN_TASKS of them."""
    count = min(work.settings.meta_batch, TRAIN_TASKS)
    tasks, noise = work.tasks((step - 1) * work.settings.meta_batch, count)
    losses, measures = evaluate_tasks(work.learner, work.parameters, tasks, noise, work.vectorised)
    metric = work.source.metric
    return EvalResult(metric, measures[metric].double().cpu(), losses.double().cpu())


def method_summaries(work: RunContext, learner: MetaLearner) -> Summaries:
    """What the method reports of the first validation tasks.

    A scalar is its mean over the tasks; a larger tensor is the first task's, as a histogram and its mean.
    """
    tasks, noise = evaluation_tasks(learner, work.source, "val", 0, SUMMARY_TASKS, work.eval_shape)
    theta, phi = tree_map(torch.detach, work.parameters)

    def summarise(task: Task, task_noise: Tensor) -> Tensors:
        task_learner = TaskLearner(learner, task, task_noise, autograd_gradient)
        return learner.method.summaries(
            theta, phi, lambda theta: task_learner.support_gradient(theta, phi, graph=False), task_noise
        )

    with torch.no_grad():
        per_task = [summarise(*inputs) for inputs in zip(unbind_tasks(tasks), noise, strict=True)]
    summaries = Summaries()
    for name, first in per_task[0].items():
        if first.dim() == 0:
            summaries.scalars[name] = fmean(float(summary[name]) for summary in per_task)
        else:
            summaries.histograms[name] = first.cpu().numpy()
            summaries.scalars[f"mean_{name}"] = float(first.mean())
    return summaries


def task_images(work: RunContext, learner: MetaLearner, step: int) -> dict[str, bytes]:
    """Images of the first validation tasks: their images with the predicted classes, or the true curve and its fits."""
    shape, source = work.eval_shape, work.source
    steps = [learner.inner_loop]
    if not isinstance(source, ImageTaskSampler):
        shape, steps = shape._replace(queries=CURVE_POINTS), evenly_spaced(learner.inner_loop)
    tasks, noise = evaluation_tasks(learner, source, "val", 0, IMAGE_TASKS, shape)
    outputs = logits_by_inner_step(work, learner, tasks, noise, steps).float().cpu()
    if isinstance(source, ImageTaskSampler):
        support, query = source.to_uint8(tasks.support_data), source.to_uint8(tasks.query_data)
        tasks = tasks._replace(support_data=support, query_data=query)
    images: dict[str, bytes] = {}
    for number, (task, logits) in enumerate(zip(unbind_tasks(Task(*map(Tensor.cpu, tasks))), outputs, strict=True)):
        title = f"validation task {number} at step {step}"
        if isinstance(source, ImageTaskSampler):
            images[f"tasks/{number}"] = classification_grid(title, task, logits[-1].argmax(-1))
        else:
            images[f"tasks/{number}"] = regression_plot(title, task, logits, steps)
    return images


def logits_by_inner_step(
    work: RunContext, learner: MetaLearner, tasks: Task, noise: Tensor, steps: Sequence[int]
) -> Tensor:
    """Logits on each query set after each of the inner `steps`: [tasks, steps, queries, outputs]."""
    learner = replace(learner, use_second_order=False)
    params = tree_map(torch.detach, work.parameters)
    gradient = functional_gradient if work.vectorised else autograd_gradient

    def task_logits(task: Task, task_noise: Tensor) -> Tensor:
        iterates = TaskLearner(learner, task, task_noise, gradient).adapt(params)
        weights = [query_weights(learner, iterates[step], params.phi, task.support_data, step) for step in steps]
        return torch.stack([functional_forward(learner, each, task.query_data) for each in weights])

    return vmap_or_loop(task_logits, tasks, noise, work.vectorised)


def should_log_images(settings: Settings, step: int) -> bool:
    """Whether the validation at `step` logs images: the last one does, and at most MAX_IMAGES in all."""
    previous = step - settings.eval.every
    return step * MAX_IMAGES // settings.iterations > previous * MAX_IMAGES // settings.iterations


def evenly_spaced(last: int) -> list[int]:
    """The inner steps 0 .. last, or if there are more than MAX_STEPS + 1, so many at about equal distances."""
    return sorted({round(number * last / MAX_STEPS) for number in range(MAX_STEPS + 1)})
