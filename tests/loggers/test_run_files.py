"""metrics.jsonl and TensorBoard's file: what they hold after a run, a kill, a power cut and a full disk."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from metarun.errors import RunFailure, UserError
from metarun.loggers import LOGGERS, open_loggers
from metarun.loggers.base import Logger, ResumePoint
from metarun.runner import run
from tests.helpers.faults import failing
from tests.helpers.small_runs import lines, small


def record(folder: Path, start: int, *scalars: dict[str, float], val: dict[str, float] | None = None) -> None:
    """A session that resumes from step `start` and logs training scalars each 20 steps, at last those of validation."""
    with open_loggers(folder, ResumePoint(start, False)) as loggers:
        for logger in loggers:
            for number, each in enumerate(scalars, 1):
                logger.log_scalars(start + 20 * number, each, "train", 0.1)
            if val is not None:
                logger.log_scalars(start + 20 * len(scalars), val, "val", 0.1)


def steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_tensorboard_shows_the_curves_and_hides_what_a_killed_run_wrote_further_on(tmp_path: Path) -> None:
    for start, values in ((0, (1.0, 2.0, 3.0)), (20, (5.0,))):
        record(tmp_path, start, *({"loss": value} for value in values))
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert found.Tags()["scalars"] == ["loss"]
    assert [(event.step, event.value) for event in found.Scalars("loss")] == [(20, 1.0), (40, 5.0)]
    assert steps(tmp_path) == [20, 40]


def test_training_and_validation_are_one_card(tmp_path: Path) -> None:
    """TensorBoard draws curves of one tag and several folders in one card."""
    record(tmp_path, 0, {"loss": 1.0, "outer_learning_rate": 0.1}, val={"loss": 2.0})
    for folder, value, tags in (("", 1.0, ["loss", "outer_learning_rate"]), ("validation", 2.0, ["loss"])):
        found = EventAccumulator(str(tmp_path / "tensorboard" / folder))
        found.Reload()
        assert found.Tags()["scalars"] == tags
        assert [(event.step, event.value) for event in found.Scalars("loss")] == [(20, value)]


@pytest.mark.parametrize(
    "end", [b'{"step": 6', b"\0" * 100, b"\xff\n", b'{"step": 60}\n', b"[" * 10**5 + b"\n", b"7\n"]
)
def test_an_end_that_cannot_be_read_is_dropped(tmp_path: Path, end: bytes) -> None:
    record(tmp_path, 0, {"loss": 1.0})
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(end)
    record(tmp_path, 20)
    assert steps(tmp_path) == [20]


def test_a_damaged_line_before_others_is_told(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 20, "split": "train"}\n\0\0\n{"step": 40, "split": "train"}\n')
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 2 is damaged"):
        record(tmp_path, 40)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_lines_reach_the_disk(tmp_path: Path) -> None:
    with open_loggers(tmp_path, ResumePoint(0, False)) as loggers, failing("fsync", -1, OSError()) as calls:
        for logger in loggers:
            logger.flush()
    assert calls["fsync"] == 3  # metrics.jsonl and TensorBoard's files, of training and of validation


@pytest.mark.parametrize("number", range(1, 7))
def test_a_full_disk_is_told_wherever_it_is_met(tmp_path: Path, number: int) -> None:
    """Four writes are the heads of TensorBoard's two files, the fifth is a line, the sixth its curves."""
    with (
        failing("write", number, OSError(28, os.strerror(28))),
        pytest.raises(RunFailure, match=r"could not be written \(No space left on device\)") as raised,
    ):
        record(tmp_path, 0, {"loss": 1.0, "mse": 2.0})
    assert ("metrics.jsonl" in str(raised.value)) == (number == 5)
    record(tmp_path, 0, {"loss": 1.0})  # and it goes on where there is room again
    assert steps(tmp_path) == [20]


def test_a_registered_logger_sees_the_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, list[str]]] = []
    events: list[str] = []

    class Listener(Logger):
        def log_scalars(self, step, scalars, split=None, seconds=0.0) -> None:
            calls.append((step, [split or "", *scalars]))

        def log_images(self, step, images) -> None:
            events.extend(images)

        def log_hparams(self, hparams, finished) -> None:
            events.append(f"{hparams['method']} finished={finished}")

        def close(self) -> None:
            events.append("closed")

    monkeypatch.setattr("metarun.loggers.LOGGERS", [*LOGGERS, Listener])
    run(small(tmp_path), tmp_path / "run")
    assert [step for step, tags in calls if tags[0] == "train"] == [20, 40, 60]
    assert [(step, tags[1:]) for step, tags in calls if tags[0] == "val"] == [
        (30, ["loss", "mse", "ci95"]),
        (60, ["loss", "mse", "ci95"]),
    ]
    assert "Result/test_mse" in calls[-1][1]
    assert events[0] == "maml finished=False" and events[-2:] == ["maml finished=True", "closed"]
    assert {"tasks/0", "by_inner_step/validation", "by_inner_step/test"} <= set(events)
    assert events.count("closed") == 2  # after training, and after the final test
    assert [line["step"] for line in lines(tmp_path / "run") if line["split"] == "train"] == [20, 40, 60]


def test_a_pending_validation_is_hidden_and_its_training_line_kept(tmp_path: Path) -> None:
    record(tmp_path, 0, {"loss": 1.0}, val={"loss": 2.0})
    with open_loggers(tmp_path, ResumePoint(20, True, 1)) as loggers:
        assert sum(logger.num_lines for logger in loggers) == 1
    for folder, expected in (("", [(20, 1.0)]), ("validation", [])):
        found = EventAccumulator(str(tmp_path / "tensorboard" / folder)).Reload()
        curves = [(event.step, event.value) for tag in found.Tags()["scalars"] for event in found.Scalars(tag)]
        assert curves == expected
