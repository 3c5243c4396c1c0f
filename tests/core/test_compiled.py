"""A compiled function of a meta-batch: equal to the eager one, and without a compiler."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from metarun.backbones import BACKBONES
from metarun.core import compiled as compiling
from metarun.core.compiled import CompiledOuterStep
from metarun.core.meta_learner import MetaLearner, meta_gradient
from metarun.core.objectives import regression
from metarun.engine import execution
from metarun.methods import METHODS
from tests.helpers.laws import largest_relative_error
from tests.helpers.problems import Tanh, regression_tasks

CPU = torch.device("cpu")


def learner_of(method: str) -> MetaLearner:
    model = Tanh()
    return MetaLearner(model, METHODS[method](model, 0.1), regression, regression, inner_loop=1)


def gradient(learner: MetaLearner) -> Callable[..., Any]:
    return lambda tasks, noise, parameters, weights: meta_gradient(learner, parameters, tasks, noise, vectorised=True)


@pytest.mark.parametrize(("method", "order"), [("maml", True), pytest.param("mtnet", True, marks=pytest.mark.slow)])
def test_it_is_the_eager_one(method: str, order: bool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    learner = learner_of(method)
    compiled, tasks = CompiledOuterStep(learner, gradient), regression_tasks(3)
    noise = torch.rand(3, learner.method.noise(1), dtype=torch.float64)
    assert compiled.needs_compilation(order)
    found, losses, measures = compiled(order, tasks, noise, learner.method.parameters)
    assert not compiled.failed and not compiled.needs_compilation(order) and "is compiled, in" in caplog.text
    eager = meta_gradient(replace(learner, use_second_order=order), learner.method.parameters, tasks, noise, True)
    assert largest_relative_error(found, eager[0]) < 1e-12
    torch.testing.assert_close((losses, measures["mse"]), (eager[1], eager[2]["mse"]), rtol=1e-12, atol=0)


@pytest.mark.slow
def test_each_run_of_a_sweep_has_its_own(caplog: pytest.LogCaptureFixture) -> None:
    tasks, noise = regression_tasks(2), torch.rand(2, 0)
    for rate in (0.1, 0.2, 0.3):
        model = Tanh()
        learner = MetaLearner(model, METHODS["maml"](model, rate), regression, regression, inner_loop=1)
        compiled, parameters = CompiledOuterStep(learner, gradient), learner.method.parameters
        compiled(False, tasks, noise, parameters)
        found = compiled(False, tasks, noise, parameters)[0]
        eager = meta_gradient(replace(learner, use_second_order=False), parameters, tasks, noise, True)[0]
        assert not compiled.failed and largest_relative_error(found, eager) < 1e-12


@pytest.mark.slow
def test_other_shapes_and_orders_are_compiled_anew(caplog: pytest.LogCaptureFixture) -> None:
    learner = learner_of("maml")
    compiled, parameters = CompiledOuterStep(learner, gradient), learner.method.parameters
    for count, order in ((3, True), (2, True), (2, False), (3, True)):
        tasks, noise = regression_tasks(count), torch.rand(count, 0)
        found = compiled(order, tasks, noise, parameters)[0]
        eager = meta_gradient(replace(learner, use_second_order=order), parameters, tasks, noise, True)[0]
        assert largest_relative_error(found, eager) < 1e-12


def test_where_compiling_fails_the_log_says_so_and_the_result_is_the_same(monkeypatch, caplog) -> None:
    def compile_once(*arguments: object) -> object:
        raise RuntimeError("C++ compile error: Python.h: No such file\nand more")

    monkeypatch.setattr("metarun.core.compiled.aot_compile", compile_once)
    learner = learner_of("maml")
    compiled, tasks, noise = CompiledOuterStep(learner, gradient), regression_tasks(3), torch.rand(3, 0)
    found = compiled(True, tasks, noise, learner.method.parameters)[0]
    assert largest_relative_error(found, meta_gradient(learner, learner.method.parameters, tasks, noise, True)[0]) == 0
    assert "could not be compiled and is computed without: C++ compile error: Python.h: No such file" in caplog.text
    assert compiled.failed and not compiled.needs_compilation(True)


def test_what_is_chosen_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    mlp, convolution = BACKBONES["mlp"]((1,), 1), nn.Conv2d(1, 1, 3)
    monkeypatch.setattr(execution, "has_compiler", lambda: True)
    assert execution.select_task_execution("looped", mlp, CPU, 10**6) == ("looped", "as asked for")
    assert execution.select_task_execution("auto", mlp, CPU, 10**6)[0] == "compiled"
    assert execution.select_task_execution("auto", mlp, CPU, 100)[0] == "vectorised"
    assert execution.select_task_execution("auto", convolution, CPU, 10**6)[0] == "looped"
    assert execution.select_task_execution("auto", convolution, torch.device("cuda"), 10**6)[0] == "vectorised"
    monkeypatch.setattr(execution, "has_compiler", lambda: False)
    assert execution.select_task_execution("auto", mlp, CPU, 10**6)[0] == "vectorised"
    assert "no C++ compiler is found" in execution.select_task_execution("auto", mlp, CPU, 10**6)[1]


def test_a_compiler_is_looked_for_where_torch_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "there-is-no-such-compiler")
    assert not compiling.has_compiler()
