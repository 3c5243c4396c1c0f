"""What a run shows in TensorBoard beside its loss and metric: at each validation, and after the test.

Nothing of it reaches the run: no random number is drawn, no parameter changes.
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

PICTURED = 3  # tasks of the validation
TASKS = 8  # of the validation, whose mean is shown
TRAIN_TASKS = 8  # of the last meta-batch, at most
PICTURES = 10  # of a kind and run: TensorBoard shows as many
STEPS = 10  # inner steps that are shown beside the start
POINTS = 200  # of a curve


def validation_summaries(work: RunContext, step: int, found: EvalResult) -> dict[str, SummaryValue]:
    """What there is to see at outer step `step`, whose validation found this; by its name in TensorBoard."""
    judged = {"training": last_meta_batch(work, step), "validation": found}
    shown: dict[str, SummaryValue] = {}
    for name, one in judged.items():
        for k in evenly_spaced(one.steps):
            shown[f"{one.metric}_by_inner_step/{name}_{k}"] = one.by_step[k]
    learner = replace(work.learner, inner_loop=work.eval_inner_loop)
    shown.update(method_summaries(work, learner))
    if should_log_images(work.settings, step):
        shown["by_inner_step/validation"] = EncodedImage(metric_by_step(f"at step {step}", judged))
        shown.update(task_images(work, learner, step))
    return shown


def test_summaries(
    tested: EvalResult, untrained: EvalResult | None, best: Validation | None
) -> dict[str, SummaryValue]:
    """What there is to see of a run's end; `Result` stands first in TensorBoard's table of runs."""
    known = {"trained": tested, **({"untrained": untrained} if untrained else {})}
    curves = metric_by_step(f"on {len(tested.values)} test tasks", known)
    shown: dict[str, SummaryValue] = {
        f"Result/test_{tested.metric}": tested.mean,
        "Result/test_ci95": tested.ci95,
        "by_inner_step/test": EncodedImage(curves),
    }
    if best is not None:
        shown[f"Result/validation_best_{tested.metric}"] = best.mean
    return shown


def last_meta_batch(work: RunContext, step: int) -> EvalResult:
    """The tasks that outer step `step` learned from, judged after it."""
    count = min(work.settings.meta_batch, TRAIN_TASKS)
    tasks, own = work.tasks((step - 1) * work.settings.meta_batch, count)
    losses, measures = evaluate_tasks(work.learner, work.parameters, tasks, own, work.vectorised)
    metric = work.source.metric
    return EvalResult(metric, measures[metric].double().cpu(), losses.double().cpu())


def method_summaries(work: RunContext, learner: MetaLearner) -> dict[str, SummaryValue]:
    """Scalars by their mean over tasks; larger tensors as the first task's distribution, and its mean as a curve."""
    tasks, own = evaluation_tasks(learner, work.source, "val", 0, TASKS, work.eval_shape)
    seen = closeup.method_summaries(learner, work.parameters, tasks, own)
    shown: dict[str, SummaryValue] = {}
    for name, first in seen[0].items():
        if first.dim() == 0:
            shown[name] = fmean(float(one[name]) for one in seen)
        else:
            shown[name] = first.cpu().numpy()
            shown[f"mean_{name}"] = float(first.mean())
    return shown


def task_images(work: RunContext, learner: MetaLearner, step: int) -> dict[str, SummaryValue]:
    """Pictures of the first validation tasks: images with the classes found, or a curve and its fits."""
    shape, source = work.eval_shape, work.source
    steps = [learner.inner_loop]
    if not isinstance(source, ImageTaskSampler):
        shape, steps = shape._replace(queries=POINTS), evenly_spaced(learner.inner_loop)
    tasks, own = evaluation_tasks(learner, source, "val", 0, PICTURED, shape)
    outputs = closeup.logits_by_inner_step(learner, work.parameters, tasks, own, steps, work.vectorised).float().cpu()
    if isinstance(source, ImageTaskSampler):
        support, query = source.pictures(tasks.support_data), source.pictures(tasks.query_data)
        tasks = tasks._replace(support_data=support, query_data=query)
    shown: dict[str, SummaryValue] = {}
    for number, (task, said) in enumerate(zip(unbind_tasks(Task(*map(Tensor.cpu, tasks))), outputs, strict=True)):
        title = f"validation task {number} at step {step}"
        if isinstance(source, ImageTaskSampler):
            shown[f"tasks/{number}"] = EncodedImage(classification_grid(title, task, said[-1].argmax(-1)))
        else:
            shown[f"tasks/{number}"] = EncodedImage(regression_plot(title, task, said, steps))
    return shown


def should_log_images(settings: Settings, step: int) -> bool:
    """Whether the validation at `step` has pictures: the last one, and others so that PICTURES are drawn at most."""
    before = step - settings.eval.every
    return step * PICTURES // settings.iterations > before * PICTURES // settings.iterations


def evenly_spaced(last: int) -> list[int]:
    """0 .. last, or where that is more than STEPS, some of them at equal distances."""
    return sorted({round(number * last / STEPS) for number in range(STEPS + 1)})
