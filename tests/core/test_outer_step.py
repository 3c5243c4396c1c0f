"""An outer step as one function: the meta-gradient and torch's own Adam, or nothing where it is not finite."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from metarun import runner
from metarun.config.schema import Engine
from metarun.core.meta_learner import MetaLearner, meta_gradient
from metarun.core.objectives import regression
from metarun.core.outer_step import adam_state, make_outer_step
from metarun.methods import METHODS
from tests.helpers.laws import largest_relative_error
from tests.helpers.problems import Tanh, regression_tasks
from tests.helpers.small_runs import lines, small, tensors


def learner_of(method: str) -> MetaLearner:
    torch.manual_seed(0)
    model = Tanh()
    return MetaLearner(model, METHODS[method](model, 0.1), regression, regression, inner_loop=2)


def optimizer_of(learner: MetaLearner) -> torch.optim.Adam:
    tensors = [tensor for part in learner.method.parameters for tensor in part.values()]
    return torch.optim.Adam(tensors, lr=0.01)


@pytest.mark.parametrize(("method", "clip"), [("maml", None), ("msgd", 0.01)])
def test_it_is_the_gradient_and_torchs_adam(method: str, clip: float | None) -> None:
    one, other = learner_of(method), learner_of(method)
    state, optimizer = optimizer_of(one), optimizer_of(other)
    step, rate = make_outer_step(one, "mse", clip), torch.tensor(0.01, dtype=torch.float64)
    for _ in range(5):
        tasks, noise = regression_tasks(3), torch.rand(3, 0)
        with torch.no_grad():
            told = step(tasks, noise, one.method.parameters, adam_state(state), rate)
        gradient, losses, measures = meta_gradient(other, other.method.parameters, tasks, noise, vectorised=True)
        for held, part in zip(other.method.parameters, gradient, strict=True):
            for name, entry in part.items():
                held[name].grad = entry if clip is None else entry.clamp(-clip, clip)
        optimizer.step()
        torch.testing.assert_close(
            told, torch.stack([torch.ones(()), losses.mean(), measures["mse"].mean()]).double(), rtol=1e-5, atol=0
        )
        with torch.no_grad():
            assert largest_relative_error(one.method.parameters, other.method.parameters) < 1e-6
    for ours, theirs in zip(
        state.state_dict()["state"].values(), optimizer.state_dict()["state"].values(), strict=True
    ):
        assert ours.keys() == theirs.keys() and all(
            torch.allclose(ours[name], theirs[name].to(ours[name].dtype)) for name in ours
        )


def test_what_is_not_finite_changes_nothing() -> None:
    learner = learner_of("maml")
    optimizer = optimizer_of(learner)
    step, rate = make_outer_step(learner, "mse", None), torch.tensor(0.01, dtype=torch.float64)
    tasks, noise = regression_tasks(3), torch.rand(3, 0)
    with torch.no_grad():
        step(tasks, noise, learner.method.parameters, adam_state(optimizer), rate)
        before = copy.deepcopy((learner.method.parameters, optimizer.state_dict()))
        for broken in (float("nan"), float("inf")):
            bad = tasks._replace(query_target=tasks.query_target.clone())
            bad.query_target[1, 0] = broken
            assert step(bad, noise, learner.method.parameters, adam_state(optimizer), rate)[0] == 0
    assert equal(before, (learner.method.parameters, optimizer.state_dict()))


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


COMPILED = Engine(tasks="compiled")


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same steps, without the seconds that compiling takes."""
    monkeypatch.setattr("metarun.core.compiled.aot_compile", lambda function, arguments: function)


@pytest.mark.slow
def test_a_compiled_run_is_the_eager_one_within_rounding(tmp_path: Path) -> None:
    runs = {}
    for tasks in ("compiled", "vectorised"):
        runner.run(small(tmp_path, engine=Engine(tasks=tasks), outer_clip=1.0), tmp_path / tasks)
        runs[tasks] = tensors(tmp_path / tasks)
    assert largest_relative_error(runs["compiled"], runs["vectorised"]) < 1e-4
    for ours, theirs in zip(lines(tmp_path / "compiled"), lines(tmp_path / "vectorised"), strict=True):
        assert ours.pop("split") == theirs.pop("split") and ours == pytest.approx(theirs, rel=1e-3)


def test_resumed_in_the_middle_of_what_was_drawn_ahead_it_ends_the_same(tmp_path: Path, uncompiled: None) -> None:
    whole = small(tmp_path, engine=COMPILED, eval=replace(small(tmp_path).eval, every=13))
    runner.run(whole, tmp_path / "whole")
    runner.run(replace(whole, iterations=13), tmp_path / "parts")
    runner.run(replace(whole, resume=str(tmp_path / "parts")), tmp_path / "parts")
    assert equal(tensors(tmp_path / "whole"), tensors(tmp_path / "parts"))


def test_a_step_that_is_not_finite_is_told_and_skipped_as_an_eager_one(tmp_path: Path, uncompiled: None) -> None:
    diverging = small(tmp_path, engine=COMPILED, inner_learning_rate=1e9)
    with pytest.raises(FloatingPointError, match=r"outer step 1, training tasks 0 to 3: the loss is (nan|inf) for"):
        runner.run(diverging, tmp_path / "told")
    runner.run(replace(diverging, skip_not_finite=True, iterations=20), tmp_path / "skipped")  # tested before any step
    assert lines(tmp_path / "skipped")[0]["skipped"] == 20
