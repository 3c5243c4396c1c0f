"""The compiled meta-gradient: equal to the eager one, and without a compiler."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from laws import largest_relative_error
from problems import Tanh, regression_tasks
from torch import nn

from metarun import compiled, engine
from metarun.backbones import BACKBONES
from metarun.compiled import CompiledGradient
from metarun.meta import MetaLearner, meta_gradient
from metarun.methods import METHODS
from metarun.objective import regression

CPU = torch.device("cpu")


def learner_of(method: str) -> MetaLearner:
    model = Tanh()
    return MetaLearner(model, METHODS[method](model, 0.1), regression, regression, inner_loop=1)


@pytest.mark.parametrize(("method", "order"), [("maml", True), ("mtnet", True)])
def test_it_is_the_eager_one(method: str, order: bool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    learner = learner_of(method)
    gradient, tasks = CompiledGradient(learner), regression_tasks(3)
    noise = torch.rand(3, learner.method.noise(1), dtype=torch.float64)
    assert gradient.compiles(order)
    found, losses, measures = gradient(order, learner.method.parameters, tasks, noise)
    assert not gradient.failed and not gradient.compiles(order) and "is compiled, in" in caplog.text
    eager = meta_gradient(replace(learner, use_second_order=order), learner.method.parameters, tasks, noise, True)
    assert largest_relative_error(found, eager[0]) < 1e-12
    torch.testing.assert_close((losses, measures["mse"]), (eager[1], eager[2]["mse"]), rtol=1e-12, atol=0)


def test_a_sweep_of_many_runs_compiles_each(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(9):
        learner = learner_of("maml")
        gradient, tasks, noise = CompiledGradient(learner), regression_tasks(2), torch.rand(2, 0)
        gradient(False, learner.method.parameters, tasks, noise)
        assert not gradient.failed


def test_where_compiling_fails_the_log_says_so_and_the_result_is_the_same(monkeypatch, caplog) -> None:
    def compile(*arguments: object, **options: object):
        def function(*arguments: object):
            raise RuntimeError("C++ compile error: Python.h: No such file\nand more")

        return function

    monkeypatch.setattr(torch, "compile", compile)
    learner = learner_of("maml")
    gradient, tasks, noise = CompiledGradient(learner), regression_tasks(3), torch.rand(3, 0)
    found = gradient(True, learner.method.parameters, tasks, noise)[0]
    assert largest_relative_error(found, meta_gradient(learner, learner.method.parameters, tasks, noise, True)[0]) == 0
    assert "could not be compiled and is computed without: C++ compile error: Python.h: No such file" in caplog.text
    assert gradient.failed and not gradient.compiles(True)


def test_what_is_chosen_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    mlp, convolution = BACKBONES["mlp"]((1,), 1), nn.Conv2d(1, 1, 3)
    monkeypatch.setattr(engine, "has_compiler", lambda: True)
    assert engine.choose_tasks("looped", mlp, CPU, 10**6) == ("looped", "as asked for")
    assert engine.choose_tasks("auto", mlp, CPU, 10**6)[0] == "compiled"
    assert engine.choose_tasks("auto", mlp, CPU, 100)[0] == "vectorised"
    assert engine.choose_tasks("auto", convolution, CPU, 10**6)[0] == "looped"
    assert engine.choose_tasks("auto", convolution, torch.device("cuda"), 10**6)[0] == "vectorised"
    monkeypatch.setattr(engine, "has_compiler", lambda: False)
    assert engine.choose_tasks("auto", mlp, CPU, 10**6)[0] == "vectorised"
    assert "no C++ compiler is found" in engine.choose_tasks("auto", mlp, CPU, 10**6)[1]


def test_a_compiler_is_looked_for_where_torch_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "there-is-no-such-compiler")
    assert not compiled.has_compiler()
