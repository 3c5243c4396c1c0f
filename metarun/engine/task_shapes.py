"""Ways, shots, queries and inner steps of a run's training and evaluation tasks."""

from __future__ import annotations

from metarun.config.schema import Settings
from metarun.data import TaskSampler, TaskShape
from metarun.engine import heads


def train_shape(settings: Settings) -> TaskShape:
    return TaskShape(settings.ways, settings.shots, settings.queries)


def eval_shape(settings: Settings) -> TaskShape:
    return TaskShape(
        heads.ways(settings), settings.eval.shots or settings.shots, settings.eval.queries or settings.queries
    )


def eval_inner_loop(settings: Settings) -> int:
    """Inner steps in an evaluation; 0 for pretraining, which is evaluated by nearest centroids."""
    if not settings.method.episodic:
        return 0
    return settings.inner_loop if settings.eval.inner_loop is None else settings.eval.inner_loop


def check_task_shapes(settings: Settings, source: TaskSampler) -> None:
    """Raises UserError if a split that the run draws tasks from has too few classes, or too few examples in one."""
    shape = eval_shape(settings)
    keys = [f"eval.{name}" if getattr(settings.eval, name) else name for name in ("ways", "shots", "queries")]
    if settings.mode == "evaluate":
        source.check(settings.eval.split, shape, keys)
        return
    source.check("train", train_shape(settings))
    for split in ("val", "test"):
        source.check(split, shape, keys)
