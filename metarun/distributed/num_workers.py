"""Number of processes that share a run's tasks, and whether its tasks can be shared."""

from __future__ import annotations

from metarun.config.eval_grid import expand_eval_grid
from metarun.config.groups import Mlp
from metarun.config.schema import Settings
from metarun.engine.context import RunContext
from metarun.engine.execution import (
    MIN_STEPS_FOR_WORKERS,
    MIN_TEST_TASKS_FOR_WORKERS,
    choose_device,
    select_num_workers,
)
from metarun.engine.rank import Rank, rank_from_env
from metarun.engine.task_shapes import eval_inner_loop
from metarun.errors import UserError


def num_workers(settings: Settings) -> int:
    """Number of processes that share a run's tasks, where torchrun has not started them."""
    amount, num_tasks = 0.0, settings.meta_batch  # of work, as a multiple of the least that is worth another process
    if settings.mode == "evaluate":
        num_tasks = settings.eval.tasks
        inner_loops = [eval_inner_loop(evaluation) for evaluation in expand_eval_grid(settings)]
        amount = sum(num_tasks * (steps + 1) for steps in inner_loops) / MIN_TEST_TASKS_FOR_WORKERS
    elif getattr(settings.method, "objective", "") != "trajectory":
        amount = settings.iterations / MIN_STEPS_FOR_WORKERS
    looped, convolutional = settings.engine.tasks in ("auto", "looped"), not isinstance(settings.backbone, Mlp)
    device = choose_device(settings.device)
    return select_num_workers(settings.engine.workers, convolutional and looped, device, amount, num_tasks)


def check_shardable(work: RunContext, process: Rank) -> None:
    """Raises UserError if the processes cannot share the run's training tasks."""
    if work.settings.mode != "train":
        return
    size = process.world_size
    given = f"torchrun's {size} processes" if rank_from_env() else f"engine.workers={size}"
    if size > work.settings.meta_batch:
        raise UserError(
            f"{given}: a meta-batch of {work.settings.meta_batch} tasks has work for at most "
            f"{work.settings.meta_batch} processes; raise meta_batch or take fewer"
        )
    if work.compiled is not None:
        raise UserError(
            f"{given}: engine.tasks=compiled holds the optimiser, which one process keeps; take one process, or "
            "engine.tasks=vectorised"
        )
    if work.learner.method.offline is not None:
        raise UserError(
            f"{given}: method.objective=trajectory learns from one stored iterate after another, which processes "
            "cannot share; take one process"
        )
