"""Regression of sine curves, MAML's first experiment (Finn et al. 2017, section 5.1)."""

from collections.abc import Sequence

import numpy as np
import torch

from metarun.data.random_numbers import philox_words, uniform
from metarun.data.task_sampler import SPLITS, TaskShape
from metarun.metrics import MSE
from metarun.types import Task

AMPLITUDE = (0.1, 5.0)
PHASE = (0.0, np.pi)
INPUT = (-5.0, 5.0)


class SinusoidTaskSampler:
    """y = amplitude sin(frequency x - phase); a task is one curve, `shots` and `queries` are points on it.

    MAML holds the frequency at 1; Meta-SGD and MT-net draw it from U[0.8, 1.2].
    """

    metric = MSE.name
    is_classification = False
    input_shape: tuple[int, ...] = (1,)
    class_split: str | None = None

    def __init__(self, frequency: Sequence[float], device: torch.device) -> None:
        self.frequency = frequency
        self.device = device

    def check(self, split: str, shape: TaskShape, names: Sequence[str] = TaskShape._fields) -> None:
        """Every shape can be filled."""

    def num_outputs(self, ways: int) -> int:
        return 1

    def draw(self, seed: int, split: str, first: int, count: int, shape: TaskShape) -> Task:
        curve, points = 2 * SPLITS.index(split), 2 * SPLITS.index(split) + 1
        x_words = philox_words(seed, points, first, count, shape.shots + shape.queries)
        return self.tasks(philox_words(seed, curve, first, count, 3), x_words, shape.shots)

    def tasks(self, curve_words: np.ndarray, x_words: np.ndarray, shots: int) -> Task:
        """Tasks from random words for the curves [tasks, 3] and their points [tasks, shots + queries]."""
        chosen = curve_words[:, :, None, None]
        amplitude, phase = uniform(chosen[:, 0], *AMPLITUDE), uniform(chosen[:, 1], *PHASE)
        frequency = uniform(chosen[:, 2], self.frequency[0], self.frequency[1])
        x = uniform(x_words, *INPUT)[:, :, None]
        y = amplitude * np.sin(frequency * x - phase)
        data, target = (torch.from_numpy(array.astype(np.float32)).to(self.device) for array in (x, y))
        return Task(data[:, :shots], target[:, :shots], data[:, shots:], target[:, shots:])
