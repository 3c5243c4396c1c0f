"""How many processes share a run's tasks, and whether they can."""

from __future__ import annotations

from metarun.engine import WORTH_STARTING, WORTH_STARTING_TO_TEST, choose_device, choose_workers
from metarun.errors import UserError
from metarun.groups import Mlp
from metarun.schema import Settings
from metarun.seat import Seat, given_seat
from metarun.several import expanded
from metarun.work import Work, eval_inner_loop


def workers(settings: Settings) -> int:
    """Processes of a run, where torchrun has not started them."""
    worth, tasks = 0.0, settings.meta_batch
    if settings.mode == "evaluate":
        every = expanded(settings)
        tasks = settings.eval.tasks
        worth = sum(tasks * (eval_inner_loop(one) + 1) for one in every) / WORTH_STARTING_TO_TEST
    elif getattr(settings.method, "objective", "") != "trajectory":
        worth = settings.iterations / WORTH_STARTING
    looped, convolutional = settings.engine.tasks in ("auto", "looped"), not isinstance(settings.backbone, Mlp)
    device = choose_device(settings.device)
    return choose_workers(settings.engine.workers, convolutional and looped, device, worth, tasks)


def require_shares(work: Work, seat: Seat) -> None:
    """Raises UserError where the processes cannot share the run's tasks."""
    if work.settings.mode != "train":
        return
    given = f"torchrun's {seat.size} processes" if given_seat() else f"engine.workers={seat.size}"
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
