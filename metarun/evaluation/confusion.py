"""What an evaluation's mean hides: which classes are taken for which, and how far the probabilities can be believed.

Counts alone are kept, so that memory does not grow with the tasks.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from metarun.data.image_sampler import ImageTaskSampler
from metarun.data.task_sampler import TaskShape
from metarun.engine.eval_result import EVALUATION_SEED
from metarun.utils import files
from metarun.utils.text import csv_table

BINS = 15  # of confidence, for the calibration error, as in Guo et al. 2017, arXiv 1706.04599
TOP_CONFUSED = 10  # pairs of classes that result.json lists
QUARTER = 90  # degrees


class ConfusionStats:
    """Counts over the queries of a split's tasks, after the last inner step.

    A pair is a class and another that stood in the same task: `met` counts the first one's queries in tasks of both,
    `taken` those of them that were taken for the other.
    """

    def __init__(self, source: ImageTaskSampler, split: str, shape: TaskShape) -> None:
        self.source, self.split, self.shape = source, split, shape
        self.met: Counter[tuple[int, int]] = Counter()
        self.taken: Counter[tuple[int, int]] = Counter()
        self.tasks: Counter[int] = Counter()  # by class
        self.right: Counter[int] = Counter()
        self.bins = np.zeros((3, BINS))  # queries, sum of confidence, right ones

    def add(self, first: int, answers: Tensor) -> None:
        """Tasks number `first` and following, [2, tasks, queries]: confidence and number of the class found."""
        confidence, found = answers.numpy()
        if not np.isfinite(confidence).all():
            raise FloatingPointError(
                f"eval.details=true: probabilities of {self.split} tasks {first} to {first + len(found) - 1} are not "
                "finite after the last inner step; give fewer steps (eval.inner_loop=N), or eval.details=false"
            )
        ways, queries, tasks = self.shape.ways, self.shape.queries, len(found)
        chosen, quarters = self.source.choose(EVALUATION_SEED, self.split, first, tasks, self.shape)
        label = np.arange(ways).repeat(queries)
        right = found == label
        place = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1).ravel()
        for row, weights in enumerate((None, confidence.ravel(), right.ravel())):
            self.bins[row] += np.bincount(place, weights, BINS)
        table = np.zeros((tasks, ways, ways), int)  # true class, class found
        np.add.at(table, (np.arange(tasks)[:, None], label[None], found.astype(int)), 1)
        for numbers, counts in zip((chosen * self.source.turns + quarters).tolist(), table.tolist(), strict=True):
            for true, row in zip(numbers, counts, strict=True):
                self.tasks[true] += 1
                for other, count in zip(numbers, row, strict=True):
                    if other == true:
                        self.right[true] += count
                    else:
                        self.met[true, other] += queries
                        if count:
                            self.taken[true, other] += count

    @property
    def calibration_error(self) -> float:
        """Mean distance of confidence and accuracy over bins of equal width, weighed by the queries in them."""
        queries, confidence, right = self.bins
        return float(np.abs(right - confidence).sum() / queries.sum())

    def name(self, number: int) -> str:
        label, quarter = divmod(number, self.source.turns)
        turned = f", turned by {QUARTER * quarter} degrees" if quarter else ""
        return f"{self.source.set.names[label]}{turned}"

    def rates(self) -> list[tuple[int, int, float]]:
        """Class, another, and the part of its queries in tasks of both that were taken for it; the highest first."""
        found = [(true, other, self.taken[true, other] / queries) for (true, other), queries in self.met.items()]
        return sorted(found, key=lambda entry: (-entry[2], -self.met[entry[:2]], entry[:2]))

    def summary(self) -> dict[str, Any]:
        return {
            "calibration_error": self.calibration_error,
            "most_confused": [
                {
                    "class": self.name(true),
                    "taken_for": self.name(other),
                    "rate": rate,
                    "queries": self.met[true, other],
                }
                for true, other, rate in self.rates()[:TOP_CONFUSED]
                if rate
            ],
        }

    def write(self, folder: Path) -> None:
        """confusion.csv and classes.csv."""
        pairs = (
            (self.name(true), self.name(other), self.taken[true, other], self.met[true, other], f"{rate:.6g}")
            for true, other, rate in self.rates()
        )
        columns = ("class", "taken_for", "count", "queries", "rate")
        files.atomic_write(folder / "confusion.csv", csv_table(columns, pairs))
        classes = (
            (self.name(true), tasks, tasks * self.shape.queries, f"{self.right[true] / tasks / self.shape.queries:.6g}")
            for true, tasks in sorted(self.tasks.items())
        )
        columns = ("class", "tasks", "queries", "accuracy")
        files.atomic_write(folder / "classes.csv", csv_table(columns, classes))
