"""The multi-step loss: its weights, and the laws of its gradient with every method."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from metarun.config.schema import Engine
from metarun.core import meta_learner
from metarun.core.checkpointed import CheckpointedTaskLearner
from metarun.core.compiled import CompiledOuterStep
from metarun.core.forward import MetaLearner
from metarun.core.meta_learner import TaskLearner, TaskLearnerFactory
from metarun.core.multi_step_loss import msl_weights
from metarun.methods import Parameters
from metarun.runner import run
from tests.helpers.laws import CASES, Problem, finite_differences, largest_relative_error, largest_tensor_error, problem
from tests.helpers.small_runs import lines, small, tensors

WEIGHTS = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
every_case = pytest.mark.parametrize("name", CASES)


def judged(
    one: Problem, vectorised: bool, weights: Tensor | None = WEIGHTS, kind: TaskLearnerFactory = TaskLearner
) -> tuple:
    return meta_learner.meta_gradient(one.learner, one.parameters, one.tasks, one.noise, vectorised, kind, weights)


# --- the weights -------------------------------------------------------------------------------------------


def test_weights_begin_equal_anneal_to_the_last_step_and_end() -> None:
    assert msl_weights(5, 100, 0) == pytest.approx([0.2] * 5)
    assert msl_weights(5, 100, 50) == pytest.approx([0.1] * 4 + [0.6])
    assert msl_weights(5, 100, 99) == pytest.approx([0.006] * 4 + [0.976])  # not below 0.03 / 5
    assert msl_weights(5, 100, 100) is None and msl_weights(5, 0, 0) is None
    for step in range(100):
        weights = msl_weights(3, 100, step)
        assert weights is not None and sum(weights) == pytest.approx(1)


# --- the gradient ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vectorised", [False, True])
@every_case
def test_the_last_step_alone_is_the_method_itself(name: str, vectorised: bool) -> None:
    one = problem(name, steps=3)
    found = judged(one, vectorised, torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))
    assert largest_relative_error(found, one.judged(vectorised)) < 1e-13
    assert largest_relative_error(judged(one, vectorised)[0].theta, found[0].theta) > 1e-3


@every_case
def test_its_gradient_is_the_derivative_of_the_weighted_losses(name: str) -> None:
    """By values alone, of the query loss after 1, 2 and 3 steps; Warp-MAML weighs its second term, that by theta."""
    one = problem(name, steps=3)

    def after(steps: int) -> Parameters:
        learner = replace(one.learner, inner_loop=steps)
        return finite_differences(learner, one.parameters, one.tasks, one.noise, CASES[name].objective)

    each = [after(steps) for steps in (1, 2, 3)]
    expected = tree_map(lambda *parts: WEIGHTS @ torch.stack([part.flatten() for part in parts]), *each)
    expected = tree_map(lambda flat, like: flat.view_as(like), expected, each[0])
    if CASES[name].objective != "query":
        expected = Parameters(expected.theta, each[-1].phi)
    for vectorised in (False, True):
        assert largest_tensor_error(judged(one, vectorised)[0], expected) < 2e-9


@every_case
def test_vectorised_is_looped_is_mixed(name: str) -> None:
    """Gradients, losses and what is measured, which is that of theta_K."""
    one = problem(name, "convolutions", steps=3)
    found = judged(one, vectorised=False)
    assert largest_relative_error(found[2], one.judged()[2]) < 1e-12
    for vectorised, kind in ((True, TaskLearner), (False, CheckpointedTaskLearner), (True, CheckpointedTaskLearner)):
        assert largest_tensor_error(judged(one, vectorised, kind=kind), found) < 1e-10


def test_compiled_is_eager_and_each_loss_is_compiled_by_itself(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    one = problem("maml", steps=1)

    def make(learner: MetaLearner) -> Callable[..., Any]:
        return lambda tasks, noise, parameters, weights: meta_learner.meta_gradient(
            learner, parameters, tasks, noise, vectorised=True, loss_weights=weights
        )

    gradient = CompiledOuterStep(one.learner, make)
    call = partial(gradient, False, one.tasks, one.noise, one.parameters)
    first_order = one._replace(learner=replace(one.learner, use_second_order=False))
    assert gradient.needs_compilation(False, True)
    for weights in (WEIGHTS[:1], WEIGHTS[2:]):  # they are an input, not compiled in
        assert largest_relative_error(call(loss_weights=weights), judged(first_order, True, weights)) < 1e-12
    assert (
        not gradient.needs_compilation(False, True) and gradient.needs_compilation(False, False) and not gradient.failed
    )
    assert caplog.text.count("is compiled, in") == 1


# --- runs --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_anneals_whoever_computes_it(tmp_path: Path) -> None:
    settings = small(tmp_path, inner_loop=3, iterations=20, multi_step_loss=10)
    run(settings, tmp_path / "looped")
    run(replace(settings, multi_step_loss=0), tmp_path / "without")
    assert lines(tmp_path / "looped") != lines(tmp_path / "without")
    run(replace(settings, engine=Engine("looped", "mixed", workers=2)), tmp_path / "two")
    torch.testing.assert_close(tensors(tmp_path / "two"), tensors(tmp_path / "looped"), rtol=1e-4, atol=1e-5)
