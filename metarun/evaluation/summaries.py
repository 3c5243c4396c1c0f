"""TensorBoard summaries besides loss and metric: at each validation, and after the final test.

They do not affect the run: they draw no random number and change no parameter.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

from torch import Tensor

from metarun.checkpointing.state import Validation
from metarun.config.schema import Settings
from metarun.core.meta_learner import MetaLearner, evaluate_tasks, unbind_tasks
from metarun.data.image_sampler import ImageTaskSampler
from metarun.engine.context import RunContext
from metarun.engine.eval_result import EvalResult, evaluation_tasks
from metarun.loggers.event_file import EncodedImage, SummaryValue
from metarun.types import Task
from metarun.visualization import closeup
from metarun.visualization.tasks import classification_grid, metric_by_step, regression_plot

IMAGE_TASKS = 3  # validation tasks that are drawn
SUMMARY_TASKS = 8  # validation tasks that the method's summaries are averaged over
TRAIN_TASKS = 8  # at most so many tasks of the last meta-batch are evaluated
MAX_IMAGES = 10  # images per tag and run, as many as TensorBoard shows
MAX_STEPS = 10  # inner steps that are shown, besides step 0
CURVE_POINTS = 200  # query points of a drawn regression task


def validation_summaries(work: RunContext, step: int, validation: EvalResult) -> dict[str, SummaryValue]:
    """Summaries of outer step `step` with its validation, by their tag: metric by inner step, method, images."""
    results = {"training": evaluate_last_meta_batch(work, step), "validation": validation}
    shown: dict[str, SummaryValue] = {}
    for name, result in results.items():
        for k in evenly_spaced(result.steps):
            shown[f"{result.metric}_by_inner_step/{name}_{k}"] = result.by_step[k]
    learner = replace(work.learner, inner_loop=work.eval_inner_loop)
    shown.update(method_summaries(work, learner))
    if should_log_images(work.settings, step):
        shown["by_inner_step/validation"] = EncodedImage(metric_by_step(f"at step {step}", results))
        shown.update(task_images(work, learner, step))
    return shown


def test_summaries(
    tested: EvalResult, untrained: EvalResult | None, best: Validation | None
) -> dict[str, SummaryValue]:
    """Summaries of the final test, by their tag; `Result/...` comes first in TensorBoard's table of runs."""
    results = {"trained": tested, **({"untrained": untrained} if untrained else {})}
    curves = metric_by_step(f"on {len(tested.values)} test tasks", results)
    shown: dict[str, SummaryValue] = {
        f"Result/test_{tested.metric}": tested.mean,
        "Result/test_ci95": tested.ci95,
        "by_inner_step/test": EncodedImage(curves),
    }
    if best is not None:
        shown[f"Result/validation_best_{tested.metric}"] = best.mean
    return shown


def evaluate_last_meta_batch(work: RunContext, step: int) -> EvalResult:
    """Evaluate the present parameters on the training tasks of outer step `step`, at most TRAIN_TASKS of them."""
    count = min(work.settings.meta_batch, TRAIN_TASKS)
    tasks, noise = work.tasks((step - 1) * work.settings.meta_batch, count)
    losses, measures = evaluate_tasks(work.learner, work.parameters, tasks, noise, work.vectorised)
    metric = work.source.metric
    return EvalResult(metric, measures[metric].double().cpu(), losses.double().cpu())


def method_summaries(work: RunContext, learner: MetaLearner) -> dict[str, SummaryValue]:
    """What the method reports of the first validation tasks, by tag.

    A scalar is its mean over the tasks; a larger tensor is the first task's, as a histogram and its mean.
    """
    tasks, noise = evaluation_tasks(learner, work.source, "val", 0, SUMMARY_TASKS, work.eval_shape)
    per_task = closeup.method_summaries(learner, work.parameters, tasks, noise)
    shown: dict[str, SummaryValue] = {}
    for name, first in per_task[0].items():
        if first.dim() == 0:
            shown[name] = fmean(float(summary[name]) for summary in per_task)
        else:
            shown[name] = first.cpu().numpy()
            shown[f"mean_{name}"] = float(first.mean())
    return shown


def task_images(work: RunContext, learner: MetaLearner, step: int) -> dict[str, SummaryValue]:
    """Images of the first validation tasks: their images with the predicted classes, or the true curve and its fits."""
    shape, source = work.eval_shape, work.source
    steps = [learner.inner_loop]
    if not isinstance(source, ImageTaskSampler):
        shape, steps = shape._replace(queries=CURVE_POINTS), evenly_spaced(learner.inner_loop)
    tasks, noise = evaluation_tasks(learner, source, "val", 0, IMAGE_TASKS, shape)
    outputs = closeup.logits_by_inner_step(learner, work.parameters, tasks, noise, steps, work.vectorised).float().cpu()
    if isinstance(source, ImageTaskSampler):
        support, query = source.to_uint8(tasks.support_data), source.to_uint8(tasks.query_data)
        tasks = tasks._replace(support_data=support, query_data=query)
    shown: dict[str, SummaryValue] = {}
    for number, (task, logits) in enumerate(zip(unbind_tasks(Task(*map(Tensor.cpu, tasks))), outputs, strict=True)):
        title = f"validation task {number} at step {step}"
        if isinstance(source, ImageTaskSampler):
            shown[f"tasks/{number}"] = EncodedImage(classification_grid(title, task, logits[-1].argmax(-1)))
        else:
            shown[f"tasks/{number}"] = EncodedImage(regression_plot(title, task, logits, steps))
    return shown


def should_log_images(settings: Settings, step: int) -> bool:
    """Whether the validation at `step` logs images: the last one does, and at most MAX_IMAGES in all."""
    previous = step - settings.eval.every
    return step * MAX_IMAGES // settings.iterations > previous * MAX_IMAGES // settings.iterations


def evenly_spaced(last: int) -> list[int]:
    """The inner steps 0 .. last, or if there are more than MAX_STEPS + 1, so many at about equal distances."""
    return sorted({round(number * last / MAX_STEPS) for number in range(MAX_STEPS + 1)})
