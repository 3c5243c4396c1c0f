"""Which classes are confused with which, and how well calibrated the probabilities are (`eval.details=true`).

Only counts are kept, so that memory does not grow with the number of tasks.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from metarun.data.image_sampler import ImageTaskSampler
from metarun.data.task_sampler import TaskShape
from metarun.engine.eval_result import EVALUATION_SEED
from metarun.metrics import ACCURACY
from metarun.utils import files
from metarun.utils.text import csv_table

BINS = 15  # bins of confidence for the expected calibration error, as in Guo et al. 2017, arXiv 1706.04599
TOP_CONFUSED = 10  # pairs of classes that result.json lists
DEGREES_PER_TURN = 90


class ConfusionStats:
    """Counts over the queries of a split's evaluation tasks, after the last inner step.

    A class number is label * source.num_rotations + quarter turns: a turned character is a class of its own.
    """

    def __init__(self, source: ImageTaskSampler, split: str, shape: TaskShape) -> None:
        self.source, self.split, self.shape = source, split, shape
        self.pair_queries: Counter[tuple[int, int]] = Counter()  # (a, b): queries of class a in tasks that also have b
        self.confused: Counter[tuple[int, int]] = Counter()  # (a, b): those of them that were predicted as b
        self.tasks: Counter[int] = Counter()  # tasks that have a class
        self.correct: Counter[int] = Counter()  # correctly predicted queries of a class
        self.bins = np.zeros((3, BINS))  # per bin of confidence: queries, sum of confidence, correct queries

    def add(self, first: int, predictions: Tensor) -> None:
        """Count tasks `first` and following.

        Args:
            predictions: [2, tasks, ways * queries], the predicted class's probability and its label 0..ways-1.

        Raises:
            FloatingPointError: a probability is not finite.
        """
        confidence, predicted = predictions.numpy()
        if not np.isfinite(confidence).all():
            raise FloatingPointError(
                f"eval.details=true: probabilities of {self.split} tasks {first} to {first + len(predicted) - 1} are "
                "not finite after the last inner step; give fewer steps (eval.inner_loop=N), or eval.details=false"
            )
        ways, queries, num_tasks = self.shape.ways, self.shape.queries, len(predicted)
        classes, quarters = self.source.draw_classes(EVALUATION_SEED, self.split, first, num_tasks, self.shape)
        labels = np.arange(ways).repeat(queries)
        correct = predicted == labels
        bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1).ravel()
        for row, weights in enumerate((None, confidence.ravel(), correct.ravel())):
            self.bins[row] += np.bincount(bins, weights, BINS)
        matrices = np.zeros((num_tasks, ways, ways), int)  # [task, true label, predicted label]
        np.add.at(matrices, (np.arange(num_tasks)[:, None], labels[None], predicted.astype(int)), 1)
        class_numbers = (classes * self.source.num_rotations + quarters).tolist()
        for numbers, matrix in zip(class_numbers, matrices.tolist(), strict=True):
            for true, row in zip(numbers, matrix, strict=True):
                self.tasks[true] += 1
                for other, count in zip(numbers, row, strict=True):
                    if other == true:
                        self.correct[true] += count
                    else:
                        self.pair_queries[true, other] += queries
                        if count:
                            self.confused[true, other] += count

    @property
    def calibration_error(self) -> float:
        """Expected calibration error: mean |accuracy - confidence| over bins, weighted by their queries."""
        queries, confidence, correct = self.bins
        return float(np.abs(correct - confidence).sum() / queries.sum())

    def name(self, number: int) -> str:
        """The name of a class number, with its rotation if it has one."""
        label, quarters = divmod(number, self.source.num_rotations)
        turned = f", turned by {DEGREES_PER_TURN * quarters} degrees" if quarters else ""
        return f"{self.source.image_set.names[label]}{turned}"

    def rates(self) -> list[tuple[int, int, float]]:
        """(a, b, fraction of a's queries that were predicted as b in tasks of both); the highest fraction first."""
        rates = [(a, b, self.confused[a, b] / count) for (a, b), count in self.pair_queries.items()]
        return sorted(rates, key=lambda entry: (-entry[2], -self.pair_queries[entry[:2]], entry[:2]))

    def summary(self) -> dict[str, Any]:
        """The entries of result.json: calibration_error and most_confused."""
        most_confused = [
            {"class": self.name(a), "taken_for": self.name(b), "rate": rate, "queries": self.pair_queries[a, b]}
            for a, b, rate in self.rates()[:TOP_CONFUSED]
            if rate
        ]
        return {"calibration_error": self.calibration_error, "most_confused": most_confused}

    def write(self, folder: Path) -> None:
        """Write confusion.csv (a line for each pair of classes) and classes.csv (accuracy of each class)."""
        pairs = (
            (self.name(a), self.name(b), self.confused[a, b], self.pair_queries[a, b], f"{rate:.6g}")
            for a, b, rate in self.rates()
        )
        columns = ("class", "taken_for", "count", "queries", "rate")
        files.atomic_write(folder / "confusion.csv", csv_table(columns, pairs))
        queries = self.shape.queries
        classes = (
            (self.name(number), tasks, tasks * queries, f"{self.correct[number] / tasks / queries:.6g}")
            for number, tasks in sorted(self.tasks.items())
        )
        columns = ("class", "tasks", "queries", ACCURACY.name)
        files.atomic_write(folder / "classes.csv", csv_table(columns, classes))
