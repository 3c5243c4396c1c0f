"""A run that is killed or stopped and started again ends as one that nobody disturbed; the comparison can fail."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from scripts.survival import differences
from scripts.survive_kills import Report, survive_long_enough

KILLS = 3


@pytest.mark.slow
def test_a_run_survives_kills_and_stops() -> None:
    """One of the three falls into the start-up, the others anywhere behind it."""

    def one(number: signal.Signals) -> Report:
        return survive_long_enough("maml", ["method=maml"], KILLS, number, seed=0)

    with ThreadPoolExecutor(2) as pool:
        for report in pool.map(one, (signal.SIGKILL, signal.SIGTERM)):
            assert report.wrong == []
            assert sum(report.phases.values()) == KILLS and report.phases["start-up"] < KILLS and report.resumed


@pytest.mark.parametrize(
    "other",
    [
        {"a": [1.0, torch.tensor([0.0, -0.0])], "b": None},
        {"a": [1.0, torch.tensor([0.0, 1.0], dtype=torch.float64)], "b": None},
        {"a": [1.0, torch.tensor([[0.0, 1.0]])], "b": None},
        {"a": [1, torch.tensor([0.0, 1.0])], "b": None},
        {"a": [1.0 + 2**-52, torch.tensor([0.0, 1.0])], "b": None},
        {"a": [1.0, torch.tensor([0.0, 1.0]), 2], "b": None},
        {"a": [1.0, torch.tensor([0.0, 1.0])], "c": None},
        {"a": [1.0, torch.tensor([0.0, 1.0])], "b": 0},
    ],
)
def test_a_difference_of_one_bit_is_seen(other: dict[str, Any]) -> None:
    one = {"a": [1.0, torch.tensor([0.0, 1.0])], "b": None, "seconds": 1.0}
    same = {"a": [1.0, torch.tensor([0.0, 1.0])], "b": None, "seconds": 2.0}
    assert list(differences(one, same, "x")) == []
    assert list(differences(one, {**other, "seconds": 1.0}, "x")) != []
