"""engine.meta_gradient=mixed: the unrolled gradient, for every method, in memory that does not grow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from metarun.core import meta_learner
from metarun.core.checkpointed import CheckpointedTaskLearner
from metarun.core.meta_learner import MetaLearner, TaskLearner, autograd_gradient, task_loss, unbind_tasks
from metarun.core.objectives import State, regression
from metarun.errors import UserError
from metarun.methods import METHODS, Method, Parameters
from metarun.methods.base import split_parameters
from tests.helpers.laws import (
    CASES,
    Case,
    Problem,
    finite_differences,
    largest_tensor_error,
    method_case,
    problem,
    switches_case,
)
from tests.helpers.problems import NORMS, Normed, Quadratic, quadratic_loss, quadratic_tasks, regression_tasks

both_ways = pytest.mark.parametrize("vectorised", [False, True], ids=["looped", "vectorised"])
both_orders = pytest.mark.parametrize("order", [True, False], ids=["second order", "first order"])
OPTIONS = {
    "msgd, one rate": method_case("msgd", alpha="scalar"),
    "learn_lr + unrolled warp": switches_case(learn_lr=True, use_warp={"objective": "unrolled"}),
    "learn_lr + full masks": switches_case(learn_lr=True, use_t={"full": True}),
}


def judged(one: Problem, vectorised: bool, segment: int | None = None) -> tuple:
    kind = partial(CheckpointedTaskLearner, segment=segment)
    return meta_learner.meta_gradient(one.learner, one.parameters, one.tasks, one.noise, vectorised, kind)


def ordered(case: str | Case, steps: int, order: bool = True, network: str = "layers") -> Problem:
    one = problem(case, network, steps)
    return one._replace(learner=replace(one.learner, use_second_order=order))


@both_ways
@pytest.mark.parametrize("steps", [0, 1, 5])
@both_orders
@pytest.mark.parametrize("name", [*CASES, *OPTIONS])
def test_mixed_is_unrolled(name: str, order: bool, steps: int, vectorised: bool) -> None:
    """Gradients, losses and measures."""
    one = ordered({**CASES, **OPTIONS}[name], steps, order)
    assert largest_tensor_error(judged(one, vectorised), one.judged(vectorised)) < 1e-10


@both_ways
@pytest.mark.parametrize("name", CASES)
def test_mixed_is_unrolled_on_convolutions(name: str, vectorised: bool) -> None:
    one = ordered(name, 2, network="convolutions")
    assert largest_tensor_error(judged(one, vectorised), one.judged(vectorised)) < 1e-10


@both_ways
@both_orders
@pytest.mark.parametrize("segment", [1, 2, 5, 9])
@pytest.mark.parametrize("name", ["maml", "mtnet full", "warpgrad unrolled", "learn_lr + use_forget"])
def test_segments_are_unrolled(name: str, segment: int, order: bool, vectorised: bool) -> None:
    one = ordered(name, 5, order)
    assert largest_tensor_error(judged(one, vectorised, segment), one.judged(vectorised)) < 1e-10


@both_ways
@pytest.mark.parametrize("name", ["maml", "mtnet", "warpgrad", "l2f"])
def test_mixed_is_the_derivative_of_the_papers_objective(name: str, vectorised: bool) -> None:
    one = problem(name, steps=3)
    expected = finite_differences(one.learner, one.parameters, one.tasks, one.noise, CASES[name].objective)
    assert largest_tensor_error(judged(one, vectorised)[0], expected) < 2e-9


@both_ways
@pytest.mark.parametrize("across", [None, ()], ids=["affine in phi", "affine adapts"])
@pytest.mark.parametrize("norm", NORMS)
def test_mixed_is_unrolled_through_every_norm(norm: str, across: tuple | None, vectorised: bool) -> None:
    model, tasks = Normed(NORMS[norm]()), regression_tasks(2, (2, 5, 5), outputs=3, each=4)
    method = METHODS["maml"](model, 0.5, split_parameters(model, across))
    one = Problem(MetaLearner(model, method, regression, regression, 2), tasks, torch.empty(2, 0))
    assert largest_tensor_error(judged(one, vectorised), one.judged(vectorised)) < 1e-10


@both_ways
def test_any_use_of_the_trajectory_is_differentiated(vectorised: bool) -> None:
    """A meta-objective of its own: weighted losses on the way, and a penalty on what lies between two thetas."""

    def objective(parameters: Parameters, task: meta_learner.TaskLearner) -> Tensor:
        trajectory = task.adapt(parameters)
        losses = [(2.0 + k) * task.query_loss(theta, parameters.phi) for k, theta in enumerate(trajectory)]
        return torch.stack(losses).sum() + (trajectory[2]["theta"] - trajectory[0]["theta"]).square().sum()

    model, tasks = Quadratic(), quadratic_tasks(3)
    method: Method = replace(METHODS["maml"](model, 0.1), meta_objective=objective)
    one = Problem(MetaLearner(model, method, quadratic_loss, quadratic_loss, 3), tasks, torch.empty(3, 0))
    assert largest_tensor_error(judged(one, vectorised), one.judged(vectorised)) < 1e-12


@both_ways
def test_a_gradient_that_an_objective_stops_stays_stopped(vectorised: bool) -> None:
    """The Hessian is then not symmetric: a product with it forwards would not be the one backwards."""

    def stopped(state: State) -> Tensor:
        output = state.model(state.data, state.updated_weights)
        return ((output - state.target).square() * output.detach().square()).mean()

    one = problem("msgd", steps=3)
    one = one._replace(learner=replace(one.learner, inner_objective=stopped))
    assert largest_tensor_error(judged(one, vectorised), one.judged(vectorised)) < 1e-10


def test_an_objective_that_does_not_depend_on_the_weights_is_refused() -> None:
    def constant(state: State) -> Tensor:
        return state.data.sum()

    one = problem("maml")
    for side in ("inner_objective", "outer_objective"):
        wrong = one._replace(learner=replace(one.learner, **{side: constant}))
        with pytest.raises(UserError, match="constant: does not depend on the weights"):
            judged(wrong, vectorised=False)


# --- memory ------------------------------------------------------------------------------------------------


def most_kept(one: Problem, kind: Callable[..., TaskLearner]) -> int:
    """Bytes that graphs hold at the most while a task's gradient is taken."""
    holds: Counter[int] = Counter()
    sizes: dict[int, int] = {}
    most = 0

    class Kept:
        def __init__(self, tensor: Tensor) -> None:
            nonlocal most
            self.tensor, self.place = tensor.detach(), tensor.untyped_storage().data_ptr()
            holds[self.place] += 1
            sizes[self.place] = tensor.untyped_storage().nbytes()
            most = max(most, sum(sizes[place] for place, count in holds.items() if count))

        def __del__(self) -> None:
            holds[self.place] -= 1

    leaves = Parameters(*({n: t.detach().requires_grad_() for n, t in part.items()} for part in one.parameters))
    task = next(unbind_tasks(one.tasks))
    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        loss, _ = task_loss(kind, one.learner, autograd_gradient, leaves, task, one.noise[0])
        torch.autograd.grad(loss, [*leaves.theta.values(), *leaves.phi.values()], allow_unused=True)
    return most


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * ("warp" in name)) for name in CASES if name != "mtnet full"],
)
def test_memory_grows_by_a_theta_a_step(name: str) -> None:
    """Warp-MAML keeps each look-ahead's gradient besides. (Full masks are as large as theta, one for each step.)"""

    def growth(kind: Callable[..., TaskLearner]) -> float:
        few, many = (most_kept(problem(name, "convolutions", steps), kind) for steps in (5, 45))
        return (many - few) / 40

    theta, phi = (sum(8 * t.numel() for t in part.values()) for part in problem(name, "convolutions").parameters)
    allowed = 2 * theta + phi if CASES[name].objective != "query" else theta
    assert growth(CheckpointedTaskLearner) <= allowed + 64
    if name not in ("fomaml", "anil"):
        assert growth(TaskLearner) > 5 * (allowed + 64)


def test_segments_keep_fewer_thetas() -> None:
    every, some = (most_kept(problem("maml", steps=64), partial(CheckpointedTaskLearner, segment=n)) for n in (None, 8))
    theta = sum(8 * t.numel() for t in problem("maml").parameters.theta.values())
    assert every - some > 40 * theta
