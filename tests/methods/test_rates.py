"""Learned inner rates beside any method (`learn_lr`), above all those for each tensor and step (LSLR of MAML++)."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from metarun.config.methods import Warpgrad
from metarun.core import meta_learner
from metarun.core.checkpointed import CheckpointedTaskLearner
from metarun.errors import UserError
from metarun.methods import METHODS, Parameters, prepare
from metarun.methods.msgd import ALPHAS
from metarun.runner import run
from tests.helpers.command_line import command
from tests.helpers.laws import (
    RATE,
    Case,
    Problem,
    fill,
    finite_differences,
    largest_relative_error,
    largest_tensor_error,
    method_case,
    problem,
    rates_case,
    without,
)
from tests.helpers.small_runs import lines, small

STEPS = 3
OTHERS = [name for name in METHODS if name not in ("msgd", "fomaml", "pretrain")]  # which has no inner loop
OBJECTIVES = {"warpgrad": "trajectory"}
both_ways = pytest.mark.parametrize("vectorised", [False, True], ids=["looped", "vectorised"])


def case(method: str, learn_lr: str = "tensor_step", steps: int = STEPS) -> Case:
    return rates_case(method, learn_lr, steps, OBJECTIVES.get(method, "query"))


@both_ways
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("method", OTHERS)
def test_constant_rates_are_the_method_itself(method: str, alpha: str, vectorised: bool) -> None:
    found = problem(case(method, alpha), steps=STEPS, shaken=False).gradient(vectorised)
    expected = problem(method_case(method), steps=STEPS, shaken=False).gradient(vectorised)
    found = Parameters(found.theta, without(found.phi, ["inner_rates"]))
    assert largest_relative_error(found, expected) < 1e-13
    other = problem(method_case(method), steps=STEPS, rate=0.11, shaken=False).gradient(vectorised)
    assert largest_relative_error(other, expected) > 1e-4


@pytest.mark.parametrize("method", OTHERS)
def test_the_gradient_of_a_rate_a_step_is_exact(method: str) -> None:
    one = problem(case(method), steps=STEPS)
    expected = finite_differences(one.learner, one.parameters, one.tasks, one.noise, OBJECTIVES.get(method, "query"))
    kind = partial(meta_learner.meta_gradient, one.learner, one.parameters, one.tasks, one.noise)
    for vectorised in (False, True):
        assert largest_tensor_error(one.gradient(vectorised), expected) < 2e-9
        assert largest_tensor_error(kind(vectorised, CheckpointedTaskLearner), one.judged(vectorised)) < 1e-10
    assert largest_relative_error(one.judged(True), one.judged(False)) < 1e-12


@both_ways
def test_a_tensors_gradient_is_the_sum_of_its_steps(vectorised: bool) -> None:
    by_step = problem(case("maml"), steps=STEPS, shaken=False).gradient(vectorised).phi
    by_tensor = problem(case("maml", "tensor"), steps=STEPS, shaken=False).gradient(vectorised).phi
    assert {name: tensor.shape for name, tensor in by_step.items()} == dict.fromkeys(by_tensor, (STEPS,))
    assert largest_relative_error({name: tensor.sum() for name, tensor in by_step.items()}, by_tensor) < 1e-12


def test_steps_after_those_of_training_take_the_last_ones_rate() -> None:
    def adapted(steps: int, rates: list[float]) -> Problem:
        one = problem(case("maml", steps=steps), steps=5)
        fill(one.parameters.phi, "inner_rates", torch.tensor(rates))
        return one

    longer, same, other = adapted(2, [0.1, 0.3]), adapted(5, [0.1, 0.3, 0.3, 0.3, 0.3]), adapted(5, [0.1] + [0.2] * 4)
    assert largest_relative_error(longer.trajectory(), same.trajectory()) == 0
    assert largest_relative_error(longer.trajectory(), other.trajectory()) > 1e-3


def test_rates_begin_at_the_inner_learning_rate_and_need_their_number_of_steps() -> None:
    phi = problem(case("maml"), shaken=False).parameters.phi
    assert phi and all(torch.equal(rate, torch.full((STEPS,), RATE, dtype=rate.dtype)) for rate in phi.values())
    with pytest.raises(UserError, match=r"alpha='tensor_step': needs steps=N"):
        prepare("maml", torch.nn.Linear(2, 2), 0.1, "tensor_step", 0)


def test_offline_warps_learn_rates_too(tmp_path: Path) -> None:
    offline = Warpgrad(objective="trajectory")
    run(small(tmp_path, iterations=4, method=offline, learn_lr="tensor_step"), tmp_path / "run")
    assert lines(tmp_path / "run")


def test_another_number_of_steps_is_evaluated_with_the_rates_of_training(alone: None) -> None:
    words = ["dataset=sinusoid", "backbone.hidden=[8]", "iterations=20", "eval.every=20", "eval.tasks=4"]
    assert command(*words, "inner_loop=2", "learn_lr=tensor_step", "eval.validation_tasks=4", "hydra.run.dir=run") == 0
    for typed in ("inner_loop=4", "eval.inner_loop=4"):
        assert command("mode=evaluate", "checkpoint=run", typed, f"hydra.run.dir={typed[:4]}") == 0
        more, trained = (json.loads(Path(name, "result.json").read_text()) for name in (typed[:4], "run"))
        assert more["inner_loop"] == 4 and len(more["by_step"]) == 5
        assert more["by_step"][:3] == pytest.approx(trained["by_step"][:3])
