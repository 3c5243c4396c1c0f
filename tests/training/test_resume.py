"""Runs that go on where they were stopped, as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metarun.checkpointing import store
from metarun.checkpointing.state import CheckpointState
from metarun.config.schema import Engine, EvalConfig
from metarun.errors import UserError
from metarun.runner import run
from metarun.training import trainer
from metarun.utils.signals import RunInterrupted
from tests.helpers.small_runs import killed_behind_validation, lines, small, tensors


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("at", [20, 33, 59])
def test_a_stopped_run_resumes_as_if_nothing_had_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, schedule: str
) -> None:
    settings = small(tmp_path, outer_schedule=schedule)
    run(settings, tmp_path / "whole")
    stopped = tmp_path / "stopped"
    outer_step = trainer.Trainer.outer_step

    def interrupted(self: trainer.Trainer) -> dict[str, float]:
        if self.step + 1 == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return outer_step(self)

    with (
        monkeypatch.context() as patch,
        pytest.raises(RunInterrupted, match=f"SIGTERM: stopped after step {at}, .*resume=") as raised,
    ):
        patch.setattr(trainer.Trainer, "outer_step", interrupted)
        run(settings, stopped)
    assert raised.value.number == signal.SIGTERM
    assert not (stopped / "result.json").exists()
    run(replace(settings, resume=str(stopped)), stopped)
    assert lines(stopped) == lines(tmp_path / "whole")
    torch.testing.assert_close(tensors(stopped), tensors(tmp_path / "whole"), rtol=0, atol=0)
    whole, again = (json.loads((f / "result.json").read_text()) for f in (tmp_path / "whole", stopped))
    assert {**whole, "seconds": 0, "checkpoint": ""} == {**again, "seconds": 0, "checkpoint": ""}


def test_resuming_drops_what_a_killed_run_wrote_after_its_checkpoint(tmp_path: Path) -> None:
    settings = small(tmp_path)
    run(settings, tmp_path / "whole")
    run(settings, tmp_path / "killed")
    store.step_checkpoint_path(tmp_path / "killed", 60).unlink()
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6')
    run(replace(settings, resume="x"), tmp_path / "killed")
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")


def test_a_run_stopped_in_a_validation_goes_on_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = small(tmp_path)
    run(settings, tmp_path / "whole")
    validate = trainer.Trainer.validate

    def interrupted(self: trainer.Trainer, *arguments: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        validate(self, *arguments)  # type: ignore[arg-type]

    with (
        monkeypatch.context() as patch,
        pytest.raises(RunInterrupted, match=r"in the validation of step 30, .* resume="),
    ):
        patch.setattr(trainer.Trainer, "validate", interrupted)
        run(settings, tmp_path / "stopped")
    assert [line["split"] for line in lines(tmp_path / "stopped")] == ["train"]
    run(replace(settings, resume="x"), tmp_path / "stopped")
    assert lines(tmp_path / "stopped") == lines(tmp_path / "whole")


def test_a_run_killed_behind_a_validation_does_not_write_it_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = small(tmp_path)
    run(settings, tmp_path / "whole")
    killed_behind_validation(settings, tmp_path / "killed", monkeypatch)
    assert [line["step"] for line in lines(tmp_path / "killed") if line["split"] == "val"] == [30, 60]
    run(replace(settings, resume="x"), tmp_path / "killed")
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")


def test_a_damaged_checkpoint_is_told_and_the_one_before_it_goes_on(tmp_path: Path, caplog) -> None:
    settings = small(tmp_path)
    run(settings, tmp_path / "whole")
    run(settings, tmp_path / "damaged")
    path = store.step_checkpoint_path(tmp_path / "damaged", 60)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    run(replace(settings, resume="x"), tmp_path / "damaged")
    assert "step-00000060.safetensors.damaged, and the one before it is used" in caplog.text
    assert lines(tmp_path / "damaged") == lines(tmp_path / "whole")
    torch.testing.assert_close(tensors(tmp_path / "damaged"), tensors(tmp_path / "whole"), rtol=0, atol=0)


def test_a_run_cannot_be_made_shorter_than_it_is(tmp_path: Path) -> None:
    run(small(tmp_path), tmp_path / "run")
    with pytest.raises(UserError, match="iterations=10: the run is at step 60 already"):
        run(small(tmp_path, iterations=10, resume="x"), tmp_path / "run")


def test_other_validation_tasks_begin_a_new_best(tmp_path: Path) -> None:
    run(small(tmp_path), tmp_path / "run")
    other = EvalConfig(tasks=10, validation_tasks=10, every=30, inner_loop=0, shots=4, queries=7)
    found = run(small(tmp_path, resume="x", eval=other), tmp_path / "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["validation"] == {"step": 60, "mean": found, "ci95": result["validation"]["ci95"]}


def test_a_run_that_goes_on_otherwise_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(small(tmp_path, iterations=20), tmp_path / "run")
    run(small(tmp_path, iterations=40, resume="x"), tmp_path / "run")
    assert "other execution settings" not in caplog.text
    run(small(tmp_path, resume="x", engine=Engine(tasks="looped")), tmp_path / "run")
    assert "other execution settings" in caplog.text
    assert "(they differ within rounding): tasks was vectorised, is looped" in caplog.text


def test_a_checkpoint_holds_every_generator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that draws from them goes on drawing where it was stopped."""
    outer_step = trainer.Trainer.outer_step
    drawn: list[tuple[float, ...]] = []

    def drawing(self: trainer.Trainer) -> dict[str, float]:
        drawn.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
        return outer_step(self)

    monkeypatch.setattr(trainer.Trainer, "outer_step", drawing)
    run(small(tmp_path), tmp_path / "whole")
    whole, drawn[:] = drawn[:], []
    run(small(tmp_path, iterations=33), tmp_path / "parts")
    run(small(tmp_path, resume="x"), tmp_path / "parts")
    assert drawn == whole and len(set(whole)) == 60
    one, other = (store.load(store.latest_intact_checkpoint(tmp_path / name)) for name in ("whole", "parts"))
    torch.testing.assert_close(one.generators, other.generators, rtol=0, atol=0)


def test_weights_alone_are_no_run_to_go_on_with(tmp_path: Path) -> None:
    run(small(tmp_path), tmp_path / "run")
    path = store.latest_intact_checkpoint(tmp_path / "run")
    state = store.load(path)
    store.save(path, CheckpointState(state.settings, state.theta, state.phi))
    with pytest.raises(UserError, match=r"step-00000060.safetensors: holds weights alone, a run cannot go on from it"):
        run(small(tmp_path, resume="x"), tmp_path / "run")


@pytest.mark.parametrize("gone", [False, True])
def test_a_best_checkpoint_that_is_lost_is_told_and_chosen_anew(tmp_path: Path, caplog, gone: bool) -> None:
    run(small(tmp_path, iterations=30), tmp_path / "run")
    best = store.best_checkpoint_path(tmp_path / "run")
    best.write_bytes(best.read_bytes()[:100])
    if gone:
        best.unlink()
    run(small(tmp_path, resume="x"), tmp_path / "run")
    told = "is missing" if gone else "kept as best.safetensors.damaged"
    assert re.search(rf"best.safetensors .*{told}; the best|best.safetensors {told}; the best", caplog.text)
    assert store.load(best).step in (30, 60)


def test_metrics_that_were_cut_short_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(small(tmp_path), tmp_path / "run")
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(
        UserError, match=r"metrics.jsonl: has 4 lines up to step 60 of 5 that were written; it was cut short"
    ):
        run(small(tmp_path, resume="x"), tmp_path / "run")
    path.unlink()
    run(small(tmp_path, resume="x"), tmp_path / "run")
    assert "metrics.jsonl: was taken away; new lines begin another" in caplog.text


def test_a_validation_that_is_made_up_for_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest checkpoint of a run stopped in its last validation becomes that of one that was not."""
    settings = small(tmp_path)
    run(settings, tmp_path / "whole")
    validate = trainer.Trainer.validate

    def interrupted(self: trainer.Trainer, *arguments: Any) -> None:
        if self.step == 60:
            os.kill(os.getpid(), signal.SIGTERM)
        validate(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(RunInterrupted):
        patch.setattr(trainer.Trainer, "validate", interrupted)
        run(settings, tmp_path / "parts")
    run(replace(settings, resume="x"), tmp_path / "parts")
    whole, parts = (store.load(store.latest_intact_checkpoint(tmp_path / name)) for name in ("whole", "parts"))
    assert not parts.validation_due and parts.best == whole.best
