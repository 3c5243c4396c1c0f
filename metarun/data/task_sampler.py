"""Interface between data sets and the runner: drawing tasks by number, and the network's input and output sizes."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from metarun.types import Task

SPLITS = ("train", "val", "test")


class TaskShape(NamedTuple):
    """The size of a task; `ways` has no meaning for regression."""

    ways: int
    shots: int
    queries: int


class TaskSampler(Protocol):
    """A task is a function of (seed, split, index) alone."""

    metric: str  # a key of metarun.metrics.METRIC_BY_NAME
    is_classification: bool  # a task has `ways` classes; else it has real-valued targets
    input_shape: tuple[int, ...]  # of one input, without the batch
    class_split: str | None  # the name of the division into classes

    def check(self, split: str, shape: TaskShape, names: Sequence[str] = TaskShape._fields) -> None:
        """Raises UserError if the split cannot fill a task of this shape; `names` are the keys that set its sizes."""
        ...

    def num_outputs(self, ways: int) -> int:
        """Width of the network's output."""
        ...

    def draw(self, seed: int, split: str, first: int, count: int, shape: TaskShape) -> Task:
        """Tasks number first .. first + count - 1 of the split, stacked along a leading task axis."""
        ...
