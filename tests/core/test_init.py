"""The class interface: the same gradient as the command line's, on any module and with any objectives."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metarun
from metarun import Init, State
from metarun.core.meta_learner import MetaLearner, evaluate_tasks, meta_gradient, unbind_tasks
from metarun.core.objectives import regression
from metarun.data.datasets.sinusoid import SinusoidTaskSampler
from metarun.data.task_sampler import TaskShape
from metarun.errors import UserError
from metarun.methods import METHODS
from tests.helpers.problems import Tanh, regression_tasks


def user_objective(state: State) -> Tensor:
    output = state.model(state.data, state.updated_weights)
    return F.mse_loss(output, state["target"])


def gradients(meta: nn.Module) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in meta.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("order", [True, False], ids=["second order", "first order"])
@pytest.mark.parametrize("vectorise", [False, True], ids=["task by task", "vectorised"])
def test_same_gradient_as_the_command_lines_functions(order: bool, vectorise: bool) -> None:
    model, tasks = Tanh(), regression_tasks(3)
    meta = Init(model, user_objective, user_objective, 0.1, 3, use_second_order=order)
    loss = meta.optimize(*tasks, batched=True, vectorise=vectorise)
    method = METHODS["maml"](model, 0.1)
    learner = MetaLearner(model, method, regression, regression, 3, order)
    expected, losses, _ = meta_gradient(learner, method.parameters, tasks, torch.empty(3, 0), vectorised=False)
    torch.testing.assert_close(gradients(meta), list(expected.theta.values()), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(loss, losses.mean())
    assert not loss.requires_grad


def test_a_batch_is_the_mean_of_its_tasks_and_gradients_add_up() -> None:
    tasks = regression_tasks(3)
    meta = Init(Tanh(), user_objective, user_objective, 0.1, 2)
    one_at_a_time = copy.deepcopy(meta)
    meta.optimize(*tasks, batched=True)
    for task in unbind_tasks(tasks):
        one_at_a_time.optimize(*task)
    for batch, single in zip(gradients(meta), gradients(one_at_a_time), strict=True):
        torch.testing.assert_close(3 * batch, single, rtol=1e-12, atol=1e-14)


def test_adapt_gives_the_weights_after_the_inner_loop() -> None:
    task = next(unbind_tasks(regression_tasks(1)))
    meta = Init(Tanh(), user_objective, user_objective, 0.1, 4)
    weights = meta.adapt(task.support_data, task.support_target)
    assert meta.weight_names == ("first.weight", "first.bias", "second.weight", "second.bias")
    model = copy.deepcopy(meta.model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(4):
        optimizer.zero_grad()
        F.mse_loss(model(task.support_data), task.support_target).backward()
        optimizer.step()
    torch.testing.assert_close(weights, [parameter.detach() for parameter in model.parameters()])


def test_objectives_may_branch_and_differentiate_by_themselves() -> None:
    def gradient_penalty(state: State) -> Tensor:
        loss = user_objective(state)
        penalty = torch.autograd.grad(loss, state.updated_weights, create_graph=True)
        return loss + 0.1 * sum(p.pow(2).sum() for p in penalty) if loss.item() > 0 else loss

    meta = Init(Tanh(), gradient_penalty, user_objective, 0.01, 2)
    meta.optimize(*regression_tasks(2), batched=True)
    penalised = gradients(meta)
    plain = Init(meta.model, user_objective, user_objective, 0.01, 2)
    plain.zero_grad()
    plain.optimize(*regression_tasks(2), batched=True)
    assert all(torch.isfinite(g).all() for g in penalised)
    assert any((a - b).abs().max() > 1e-6 for a, b in zip(penalised, gradients(plain), strict=True))


def buffered_model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 2)).double()


@pytest.mark.parametrize("vectorise", [False, True], ids=["task by task", "vectorised"])
def test_running_buffers_are_left_alone_in_train_mode_and_used_in_eval_mode(vectorise: bool) -> None:
    tasks = regression_tasks(3)
    meta = Init(buffered_model(), user_objective, user_objective, 0.1, 2)
    assert meta.weight_names == ("0.weight", "0.bias", "3.weight", "3.bias")
    before = copy.deepcopy(dict(meta.model.named_buffers()))
    trained = meta.optimize(*tasks, batched=True, vectorise=vectorise)
    torch.testing.assert_close(dict(meta.model.named_buffers()), before, rtol=0, atol=0)

    meta.model.eval()
    in_eval = meta.optimize(*tasks, batched=True, vectorise=vectorise)
    with torch.no_grad():
        meta.model[1].running_mean += 1  # type: ignore[index]
    moved = meta.optimize(*tasks, batched=True, vectorise=vectorise)
    assert len({round(float(loss), 9) for loss in (trained, in_eval, moved)}) == 3


@pytest.mark.parametrize("side", ["inner", "outer"])
def test_an_objective_that_gives_no_scalar_or_ignores_the_weights_is_named(side: str) -> None:
    def per_example(state: State) -> Tensor:
        return (state.model(state.data, state.updated_weights) - state.target).square().mean(1)

    def constant(state: State) -> Tensor:
        return (state.data.mean() - state.target.mean()).square()

    def number(state: State) -> Tensor:
        return user_objective(state).item()  # type: ignore[return-value]

    for objective, message in [
        (per_example, r"per_example: an objective must return a scalar tensor, .* shape \[6\]"),
        (number, "number: an objective must return a scalar tensor, this one returned a float"),
        (constant, r"constant: does not depend on the weights; run the network as state\.model"),
    ]:
        pair = (objective, user_objective) if side == "inner" else (user_objective, objective)
        with pytest.raises(UserError, match=message):
            Init(Tanh(), *pair).optimize(*regression_tasks(2), batched=True)


@pytest.mark.parametrize("vectorise", [False, True], ids=["task by task", "vectorised"])
def test_a_loss_that_is_not_finite_is_told_with_its_task_and_cause(vectorise: bool) -> None:
    tasks = regression_tasks(3)
    meta = Init(Tanh(), user_objective, user_objective, inner_learning_rate=1e200, inner_loop=4)
    with pytest.raises(FloatingPointError, match=r"outer loss of task 0 is (nan|inf): the inner loop diverged"):
        meta.optimize(*tasks, batched=True, vectorise=vectorise)
    tasks.support_target[1, 0] = float("nan")
    meta = Init(Tanh(), user_objective, user_objective)
    with pytest.raises(
        FloatingPointError, match=r"of task 1 is nan: the inner objective is nan before the first inner"
    ):
        meta.optimize(*tasks, batched=True, vectorise=vectorise)
    assert all(parameter.grad is None for parameter in meta.parameters())


@pytest.mark.parametrize(
    ("switch", "message"),
    [
        ({"learn_lr": {"alfa": "tensor"}}, "learn_lr=.*'alfa'.*alpha, start, steps; did you mean 'alpha'"),
        ({"use_forget": {"x": 1}}, "use_forget=.*it has no options"),
        ({"use_warp": {"start": "identidy"}}, "start='identidy': choose one of reference, identity"),
    ],
)
def test_a_misspelt_option_is_named(switch: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Init(Tanh(), user_objective, user_objective, **switch)


@pytest.mark.parametrize("inner_loop", [-1, 1.5, "3", None])
def test_inner_steps_are_a_whole_number(inner_loop: Any) -> None:
    with pytest.raises(UserError, match=f"inner_loop={inner_loop}: must be a whole number, 0 or more"):
        Init(Tanh(), user_objective, user_objective, inner_loop=inner_loop)


def test_it_is_a_module() -> None:
    meta = Init(Tanh(), user_objective, user_objective)
    other = Init(Tanh(), user_objective, user_objective)
    other.load_state_dict(meta.state_dict())
    task = next(unbind_tasks(regression_tasks(1)))
    torch.testing.assert_close(meta.optimize(*task), other.optimize(*task))
    assert meta.to(torch.float32).meta_parameters.theta["first.weight"].dtype == torch.float32


def test_it_learns_sinusoids() -> None:
    """400 outer steps halve a new curve's error after adapting."""
    source = SinusoidTaskSampler([1.0, 1.0], torch.device("cpu"))
    model = nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))
    meta = Init(model, user_objective, user_objective, 0.01, 3)
    optimizer = torch.optim.Adam(meta.parameters(), 3e-3)
    unseen = source.draw(0, "test", 0, 100, TaskShape(0, 10, 50))

    def error() -> float:
        losses, _ = evaluate_tasks(meta.learner, meta.meta_parameters, unseen, torch.empty(100, 0), vectorised=True)
        return float(losses[:, -1].mean())

    untrained = error()
    for step in range(400):
        optimizer.zero_grad()
        meta.optimize(*source.draw(0, "train", 10 * step, 10, TaskShape(0, 10, 10)), batched=True, vectorise=True)
        optimizer.step()
    assert error() < untrained / 2


def test_the_package_imports_without_torch() -> None:
    code = "import sys, metarun; assert 'torch' not in sys.modules; metarun.Init; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_package_shows_its_names_and_ships_its_types() -> None:
    code = "import sys, metarun; assert {'Init', 'State'} <= set(dir(metarun)); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    root = Path(metarun.__file__).parent
    assert (root / "py.typed").is_file()
    assert '"metarun" = ["py.typed"]' in (root.parent / "pyproject.toml").read_text(encoding="utf-8")
