"""Draws the training tasks of several outer steps together: ten steps' tasks take twice the time of one step's."""

from torch import Tensor

from metarun.engine.context import RunContext
from metarun.types import Task

STEPS = 10  # outer steps whose tasks are drawn together


class TaskPrefetcher:
    """`RunContext.tasks` of one outer step, by step; drawn ahead."""

    def __init__(self, work: RunContext) -> None:
        self.work = work
        self.drawn: dict[int, tuple[Task, Tensor]] = {}  # by step

    def __call__(self, step: int) -> tuple[Task, Tensor]:
        """The tasks of outer step `step` and the method's noise for each."""
        if step not in self.drawn:
            meta_batch = self.work.settings.meta_batch
            tasks, noise = self.work.tasks(step * meta_batch, STEPS * meta_batch)
            batches = zip(*(field.split(meta_batch) for field in (*tasks, noise)), strict=True)
            self.drawn = {step + i: (Task(*fields), noise) for i, (*fields, noise) in enumerate(batches)}
        return self.drawn[step]
