"""How many processes share a run's tasks, and whether they can."""

from __future__ import annotations

from metarun.engine import choose_device, choose_workers
from metarun.errors import UserError
from metarun.groups import Mlp
from metarun.schema import Settings
from metarun.seat import Seat, given_seat
from metarun.work import Work


def workers(settings: Settings) -> int:
    """Processes of a run, where torchrun has not started them."""
    trajectory = getattr(settings.method, "objective", "") == "trajectory"
    shared = settings.mode == "train" and settings.engine.tasks in ("auto", "looped") and not trajectory
    steps, convolutional = settings.iterations if shared else 0, not isinstance(settings.backbone, Mlp)
    device = choose_device(settings.device)
    return choose_workers(settings.engine.workers, convolutional, device, steps, settings.meta_batch)


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
