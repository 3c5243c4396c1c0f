"""metrics.jsonl and TensorBoard's file: what they hold after a run, a kill, a power cut and a full disk."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from metarun.errors import RunFailure, UserError
from metarun.loggers.run_logger import RunLogger
from tests.helpers.faults import failing


def steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_tensorboard_shows_the_curves_and_hides_what_a_killed_run_wrote_further_on(tmp_path: Path) -> None:
    for first, values in ((0, (1.0, 2.0, 3.0)), (20, (5.0,))):
        with RunLogger(tmp_path, first, False) as records:
            for number, value in enumerate(values):
                records.write(first + 20 * (number + 1), "train", 0.1, loss=value)
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert found.Tags()["scalars"] == ["loss"]
    assert [(event.step, event.value) for event in found.Scalars("loss")] == [(20, 1.0), (40, 5.0)]
    assert steps(tmp_path) == [20, 40]


def test_training_and_validation_are_one_card(tmp_path: Path) -> None:
    """TensorBoard draws curves of one tag and several folders in one card."""
    with RunLogger(tmp_path, 0, False) as records:
        records.write(20, "train", 0.1, loss=1.0, outer_learning_rate=0.1)
        records.write(20, "val", 0.1, loss=2.0)
    for folder, value, tags in (("", 1.0, ["loss", "outer_learning_rate"]), ("validation", 2.0, ["loss"])):
        found = EventAccumulator(str(tmp_path / "tensorboard" / folder))
        found.Reload()
        assert found.Tags()["scalars"] == tags
        assert [(event.step, event.value) for event in found.Scalars("loss")] == [(20, value)]


@pytest.mark.parametrize(
    "end", [b'{"step": 6', b"\0" * 100, b"\xff\n", b'{"step": 60}\n', b"[" * 10**5 + b"\n", b"7\n"]
)
def test_an_end_that_cannot_be_read_is_dropped(tmp_path: Path, end: bytes) -> None:
    with RunLogger(tmp_path, 0, False) as records:
        records.write(20, "train", 0.1, loss=1.0)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(end)
    RunLogger(tmp_path, 20, False).__exit__()
    assert steps(tmp_path) == [20]


def test_a_damaged_line_before_others_is_told(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 20, "split": "train"}\n\0\0\n{"step": 40, "split": "train"}\n')
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 2 is damaged"):
        RunLogger(tmp_path, 40, False)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_lines_reach_the_disk(tmp_path: Path) -> None:
    with RunLogger(tmp_path, 0, False) as records:
        records.write(20, "train", 0.1, loss=1.0)
        with failing("fsync", -1, OSError()) as calls:
            records.sync()
    assert calls["fsync"] == 3  # metrics.jsonl and TensorBoard's files, of training and of validation


@pytest.mark.parametrize("number", range(1, 7))
def test_a_full_disk_is_told_wherever_it_is_met(tmp_path: Path, number: int) -> None:
    """Four writes are the heads of TensorBoard's two files, the fifth is a line, the sixth its curves."""
    with (
        failing("write", number, OSError(28, os.strerror(28))),
        pytest.raises(RunFailure, match=r"could not be written \(No space left on device\)") as raised,
        RunLogger(tmp_path, 0, False) as records,
    ):
        records.write(20, "train", 0.1, loss=1.0, mse=2.0)
    assert ("metrics.jsonl" in str(raised.value)) == (number == 5)
    with RunLogger(tmp_path, 0, False) as records:  # and it goes on where there is room again
        records.write(20, "train", 0.1, loss=1.0)
    assert steps(tmp_path) == [20]
