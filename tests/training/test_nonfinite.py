"""Steps that are not finite: what is told, what is kept, what is skipped."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from metarun.checkpointing import store
from metarun.config.methods import Warpgrad
from metarun.engine.context import RunContext
from metarun.methods import Parameters
from metarun.runner import run
from metarun.training import nonfinite, trainer
from tests.helpers.small_runs import lines, small, tensors


def gradient(**entries: float) -> Parameters:
    return Parameters({name: torch.tensor([0.0, value]) for name, value in entries.items()}, {})


def test_a_finite_step_has_no_fault() -> None:
    assert nonfinite.nonfinite_message(torch.ones(3), gradient(a=1e30), 0) is None


def test_the_tasks_and_the_largest_layers_are_named() -> None:
    losses = torch.tensor([1.0, math.nan, 2.0, math.inf])
    entries = {"one.weight": 3.0, "one.bias": -70.0, "two.weight": math.nan, "three.weight": 5.0, "four.weight": 1.0}
    told = nonfinite.nonfinite_message(losses, gradient(**entries), 40)
    assert told is not None
    assert told.startswith("training tasks 40 to 43: the loss is nan for 2 of them (41, 43)")
    assert told.endswith("largest gradients: two nan, one 70, three 5")


def test_a_gradient_alone_is_a_fault() -> None:
    told = nonfinite.nonfinite_message(torch.ones(2), gradient(**{"one.weight": -math.inf}), 6)
    assert told == "training tasks 6 to 7: the gradient is not finite; largest gradients: one inf"


def failing(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """The gradient of these outer steps, counted from 0, is not a number."""
    found = RunContext.meta_gradient

    def meta_gradient(self: RunContext, first: int, count: int, second_order: bool):
        made, losses, measures = found(self, first, count, second_order)
        if first // count in steps:
            made.theta["layers.0.weight"][0] = math.nan
        return made, losses, measures

    monkeypatch.setattr(RunContext, "meta_gradient", meta_gradient)


def test_it_ends_the_run_which_keeps_the_step_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(small(tmp_path, iterations=32), tmp_path / "whole")
    failing(monkeypatch, 32)
    with pytest.raises(
        FloatingPointError, match=r"outer step 33, training tasks 128 to 131: .* layers.0 nan, .* step 32"
    ):
        run(small(tmp_path), tmp_path / "run")
    torch.testing.assert_close(tensors(tmp_path / "run"), tensors(tmp_path / "whole"), rtol=0, atol=0)


def test_a_skipped_step_changes_nothing_and_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    failing(monkeypatch, 20, 45, *range(3, 20))
    seen: list[dict[str, torch.Tensor]] = []
    step = trainer.Trainer.outer_step_or_save

    def spy(self: trainer.Trainer) -> dict[str, float]:
        before, scalars = self.work.state_dict().theta, step(self)
        same = all(torch.equal(tensor, before[name]) for name, tensor in self.work.state_dict().theta.items())
        assert same == (not scalars)
        seen.append(before)
        return scalars

    monkeypatch.setattr(trainer.Trainer, "outer_step_or_save", spy)
    run(small(tmp_path, skip_not_finite=True), tmp_path / "run")
    assert len(seen) == 60 and "outer step 21, training tasks 80 to 83" in caplog.text
    train = [line for line in lines(tmp_path / "run") if line["split"] == "train"]
    assert [line["skipped"] for line in train] == [17, 18, 19] and all(math.isfinite(line["loss"]) for line in train)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["skipped_steps"] == 19


def test_skipping_goes_on_where_a_run_was_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, *range(15, 45))
    run(small(tmp_path, skip_not_finite=True), tmp_path / "whole")
    assert lines(tmp_path / "whole")[2]["loss"] is None  # every step of this line was skipped: null, not zero
    run(small(tmp_path, skip_not_finite=True, iterations=33), tmp_path / "parts")
    run(small(tmp_path, skip_not_finite=True, resume="x"), tmp_path / "parts")
    torch.testing.assert_close(tensors(tmp_path / "parts"), tensors(tmp_path / "whole"), rtol=0, atol=0)
    train = [[line for line in lines(tmp_path / name) if line["split"] == "train"] for name in ("whole", "parts")]
    assert train[0] == train[1]


def test_a_run_that_only_skips_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "SKIPPED_IN_A_ROW", 10)
    failing(monkeypatch, *range(15, 60))
    with pytest.raises(FloatingPointError, match="outer step 25"):
        run(small(tmp_path, skip_not_finite=True), tmp_path / "run")


def test_an_offline_step_is_taken_back_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = small(tmp_path, iterations=30, method=Warpgrad(objective="trajectory"))
    run(settings, tmp_path / "whole")
    apply, calls = trainer.Trainer.optimizer_step, [0]

    def failing(self: trainer.Trainer, grads: Parameters, losses: torch.Tensor) -> None:
        calls[0] += 1
        if self.step == 30 and calls[0] % 3 == 0:
            losses = losses * math.nan
        apply(self, grads, losses)

    monkeypatch.setattr(trainer.Trainer, "optimizer_step", failing)
    with pytest.raises(FloatingPointError, match="outer step 31"):
        run(small(tmp_path, method=Warpgrad(objective="trajectory")), tmp_path / "run")
    torch.testing.assert_close(tensors(tmp_path / "run"), tensors(tmp_path / "whole"), rtol=0, atol=0)
    kept, whole = (store.load(store.latest_intact_checkpoint(tmp_path / name)) for name in ("run", "whole"))
    for part in ("exp_avg", "exp_avg_sq", "adam_steps"):
        torch.testing.assert_close(getattr(kept, part), getattr(whole, part), rtol=0, atol=0)
