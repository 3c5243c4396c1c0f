"""How many processes share a run's tasks, and whether they can."""

from __future__ import annotations

from metarun.config.eval_grid import expand_eval_grid
from metarun.config.groups import Mlp
from metarun.config.schema import Settings
from metarun.engine.context import RunContext, eval_inner_loop
from metarun.engine.execution import MIN_STEPS_FOR_WORKERS, WORTH_STARTING_TO_TEST, choose_device, select_num_workers
from metarun.engine.rank import Rank, rank_from_env
from metarun.errors import UserError


def num_workers(settings: Settings) -> int:
    """Processes of a run, where torchrun has not started them."""
    worth, tasks = 0.0, settings.meta_batch
    if settings.mode == "evaluate":
        every = expand_eval_grid(settings)
        tasks = settings.eval.tasks
        worth = sum(tasks * (eval_inner_loop(one) + 1) for one in every) / WORTH_STARTING_TO_TEST
    elif getattr(settings.method, "objective", "") != "trajectory":
        worth = settings.iterations / MIN_STEPS_FOR_WORKERS
    looped, convolutional = settings.engine.tasks in ("auto", "looped"), not isinstance(settings.backbone, Mlp)
    device = choose_device(settings.device)
    return select_num_workers(settings.engine.workers, convolutional and looped, device, worth, tasks)


def check_shardable(work: RunContext, seat: Rank) -> None:
    """Raises UserError where the processes cannot share the run's tasks."""
    if work.settings.mode != "train":
        return
    given = f"torchrun's {seat.size} processes" if rank_from_env() else f"engine.workers={seat.size}"
    if seat.size > work.settings.meta_batch:
        raise UserError(
            f"{given}: a meta-batch of {work.settings.meta_batch} tasks has work for as many; "
            "raise meta_batch or take fewer"
        )
    if work.compiled is not None:
        raise UserError(
            f"{given}: engine.tasks=compiled holds the optimiser, which one process keeps; take one process, or "
            "engine.tasks=vectorised"
        )
    if work.learner.method.offline is not None:
        raise UserError(
            f"{given}: method.objective=trajectory learns from one stored iterate after another, which cannot be "
            "shared out; take one process"
        )
