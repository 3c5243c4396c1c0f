"""Training tasks of the steps to come, some steps' drawn at once: ten at once take twice the time of one."""

from __future__ import annotations

from torch import Tensor

from metarun.engine.context import RunContext
from metarun.types import Task

STEPS = 10


class TaskPrefetcher:
    """What `Work.tasks` gives for outer step after outer step."""

    def __init__(self, work: RunContext) -> None:
        self.work = work
        self.drawn: dict[int, tuple[Task, Tensor]] = {}  # by step

    def __call__(self, step: int) -> tuple[Task, Tensor]:
        if step not in self.drawn:
            count = self.work.settings.meta_batch
            many, own = self.work.tasks(step * count, STEPS * count)
            lots = zip(*(side.split(count) for side in many), own.split(count), strict=True)
            self.drawn = {step + number: (Task(*lot), noise) for number, (*lot, noise) in enumerate(lots)}
        return self.drawn[step]
