"""The benchmark's contenders compute the same: the eager loop's meta-gradient is metarun's, and a wrong one is seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scripts.benchmark import AGREEMENT, BARE, PRODUCT, YARDSTICK, difference, measure, ratio, show
from scripts.benchmark_contender import Ended
from scripts.benchmark_works import Work

SINE = ("dataset=sinusoid", "backbone.hidden=[5,4]", "shots=3", "queries=2", "meta_batch=2", "inner_loop=2")
PICTURES = ("dataset=folder", "backbone=conv4", "backbone.filters=3", "shots=1", "queries=2", "eval.queries=2")
SMALL = (*PICTURES, "meta_batch=2", "inner_loop=2", "inner_learning_rate=0.1", "outer_schedule=constant")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of each contender
    monkeypatch.setattr("scripts.benchmark.ROUND", 0.01)


@pytest.mark.slow
def test_metarun_and_the_eager_loop_agree_in_second_order(tmp_path: Path) -> None:
    work = Work("sine", "sine", SINE)
    wrong = "inner_learning_rate=0.02 engine.tasks=vectorised"
    rows = measure(work, ["", wrong], [], 2, "cpu", tmp_path, False)
    assert [row.label for row in rows] == [YARDSTICK, "metarun", f"metarun {wrong}"]
    _, same, other = [row.difference for row in rows]
    assert same is not None and same < 1e-5
    assert other is not None and other > AGREEMENT
    assert [row.agrees for row in rows] == [True, True, False]
    assert rows[0].rounding is not None and 0 < rows[0].rounding < 1e-5
    assert all(len(row.step) == 2 and min(row.step) > 0 for row in rows)
    assert ratio(rows[0], rows[0]) == 1 and show(work, rows, 2).count("\n| metarun") == 2


@pytest.mark.slow
def test_convolutions_are_counted_in_first_order(tmp_path: Path) -> None:
    work = Work("conv", "conv", (*SMALL, "use_second_order=false"), pictures=16)
    rows = measure(work, [""], [], 1, "cpu", tmp_path, True)
    assert [row.label for row in rows] == [YARDSTICK, "metarun", BARE, PRODUCT]
    assert rows[1].difference is not None and rows[1].difference < AGREEMENT
    assert rows[2].operations == 2 * operations(tasks=2, steps=2, support=5, query=10, filters=3, size=16)
    assert rows[1].peak is None or rows[1].peak > 50
    table = show(work, rows, 2)
    assert "aten::convolution_backward" in table and "GFLOP/s" in table


def operations(tasks: int, steps: int, support: int, query: int, filters: int, size: int) -> int:
    """Multiplications of a first-order step: forward, by the weights, and by the input but in the first layer."""
    layers = [(3 if number == 0 else filters) * filters * 9 * (size >> number) ** 2 for number in range(4)]
    return tasks * (steps * support + query) * (3 * sum(layers) - layers[0])


@pytest.mark.slow
def test_evaluations_agree_and_drawing_has_no_yardstick(tmp_path: Path) -> None:
    rows = measure(Work("judge", "judge", SMALL, "evaluate", 16), [""], [], 1, "cpu", tmp_path, False)
    assert rows[1].difference is not None and rows[1].difference < 1e-4
    with np.load(tmp_path / "yardstick.npz") as file:
        assert file["losses"].shape == (2, 3)  # tasks, inner steps and the start
    rows = measure(Work("draw", "draw", SMALL, "draw", 16), [""], ["higher"], 1, "cpu", tmp_path, False)
    assert [row.label for row in rows] == ["metarun"] and rows[0].difference is None


@pytest.mark.slow
def test_a_contender_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(Ended, match="meta-batch of 2 tasks"):
        measure(Work("sine", "sine", SINE, "draw"), ["engine.workers=3"], [], 1, "cpu", tmp_path, False)


def test_a_difference_is_told_by_tensor_and_rounding_is_no_scale() -> None:
    expected = {"weight": np.array([3.0, 4.0]), "bias": np.array([1e-6])}
    assert difference(expected, expected) == 0
    assert difference({**expected, "weight": np.array([3.0, 4.5])}, expected) == pytest.approx(0.1)
    assert difference({**expected, "bias": np.array([2e-6])}, expected) == pytest.approx(2e-7)
    assert difference({"weight": expected["weight"]}, expected) == float("inf")
