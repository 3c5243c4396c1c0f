"""Counts of an evaluation's answers, beside the same counted one by one."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metarun.data.image_sampler import ImageTaskSampler
from metarun.data.image_set import ImageSet
from metarun.data.image_spec import ImageSpec
from metarun.data.task_sampler import TaskShape
from metarun.engine.eval_result import EVALUATION_SEED
from metarun.evaluation.confusion import BINS, ConfusionStats

SHAPE = TaskShape(ways=3, shots=1, queries=2)
TASKS = 40


def source(rotations: bool = False) -> ImageTaskSampler:
    """7 classes of 4 images, whose pixels are the class's number."""
    images = np.arange(7, dtype=np.uint8).repeat(4)[:, None, None, None] * np.ones((1, 1, 2, 2), np.uint8)
    first, count = np.arange(7) * 4, np.full(7, 4)
    names = tuple(f"class {c}" for c in range(7))
    splits = {"train": np.arange(2), "val": np.arange(2, 3), "test": np.arange(3, 7)}
    plain = ImageSet(images, first, count, names, splits, "made", ImageSpec(2, 1), (0.5,), (0.5,))
    return ImageTaskSampler(replace(plain, rotations=rotations), torch.device("cpu"))


def answers() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    queries = SHAPE.ways * SHAPE.queries
    confidence = torch.rand(TASKS, queries, generator=generator, dtype=torch.float64) * 0.6 + 0.4
    return torch.stack([confidence, torch.randint(0, 3, (TASKS, queries), generator=generator).double()])


def counted(made: ImageTaskSampler, found: torch.Tensor, lot: int) -> ConfusionStats:
    details = ConfusionStats(made, "test", SHAPE)
    for first in range(0, TASKS, lot):
        details.add(first, found[:, first : first + lot])
    return details


def rows(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("lot", [TASKS, 7])
def test_pairs_and_classes_are_those_of_the_tasks(lot: int, tmp_path: Path) -> None:
    """The true class is read from the pixels of the tasks that are drawn."""
    made, found = source(), answers()
    counted(made, found, lot).write(tmp_path)
    tasks = made.draw(EVALUATION_SEED, "test", 0, TASKS, SHAPE)
    met, taken, right, total = Counter(), Counter(), Counter(), Counter()
    for number in range(TASKS):
        true = (tasks.query_data[number, :, 0, 0, 0] * 255).round().long().tolist()
        classes = true[:: SHAPE.queries]
        for cls, label in zip(true, found[1, number].long().tolist(), strict=True):
            total[cls] += 1
            right[cls] += classes[label] == cls
            taken[cls, classes[label]] += 1
            met.update((cls, other) for other in classes if other != cls)
    pairs = rows(tmp_path / "confusion.csv")
    assert len(pairs) == len(met) == 12
    for row in pairs:
        pair = int(row["class"][-1]), int(row["taken_for"][-1])
        assert (int(row["count"]), int(row["queries"])) == (taken[pair], met[pair])
        assert float(row["rate"]) == pytest.approx(taken[pair] / met[pair], rel=1e-5)
    rates = [float(row["rate"]) for row in pairs]
    assert rates == sorted(rates, reverse=True)
    for row in rows(tmp_path / "classes.csv"):
        cls = int(row["class"][-1])
        assert int(row["queries"]) == total[cls] == SHAPE.queries * int(row["tasks"])
        assert float(row["accuracy"]) == pytest.approx(right[cls] / total[cls], rel=1e-5)


def test_the_calibration_error_is_that_of_fifteen_bins() -> None:
    found = answers()
    confidence, right = found[0].flatten(), (found[1] == torch.arange(3).repeat_interleave(2)).flatten().double()
    expected = 0.0
    for number in range(BINS):
        inside = (confidence > number / BINS) & (confidence <= (number + 1) / BINS)
        if inside.any():
            gap = right[inside].mean() - confidence[inside].mean()
            expected += float(gap.abs() * inside.double().mean())
    for lot in (TASKS, 9):
        assert counted(source(), found, lot).calibration_error == pytest.approx(expected)


def test_a_network_that_is_sure_and_right_has_no_error() -> None:
    labels = torch.arange(3).repeat_interleave(2).expand(TASKS, -1).double()
    details = counted(source(), torch.stack([torch.ones_like(labels), labels]), TASKS)
    assert details.summary() == {"calibration_error": 0.0, "most_confused": []}


def test_the_most_confused_come_first_and_turned_classes_are_told_apart() -> None:
    made, found = source(rotations=True), answers()
    summary = counted(made, found, TASKS).summary()
    rates = [pair["rate"] for pair in summary["most_confused"]]
    assert len(rates) == 10 and rates == sorted(rates, reverse=True) and rates[-1] > 0
    names = {pair["class"] for pair in summary["most_confused"]}
    assert any("turned by" in name for name in names) and all(name.startswith("class ") for name in names)
