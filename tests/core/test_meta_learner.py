"""Laws of the meta-learner: what must hold whatever the data."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_map

from metarun.core import meta_learner
from metarun.core.meta_learner import MetaLearner, unbind_tasks
from metarun.core.objectives import regression
from metarun.methods import METHODS, Method, Parameters
from metarun.methods.base import split_parameters
from metarun.types import Task
from tests.helpers.laws import finite_differences, largest_relative_error, no_noise
from tests.helpers.problems import (
    NORMS,
    Normed,
    Quadratic,
    Tanh,
    Twice,
    quadratic_loss,
    quadratic_tasks,
    regression_tasks,
)

both_ways = pytest.mark.parametrize("vectorised", [False, True], ids=["looped", "vectorised"])
any_steps = pytest.mark.parametrize("steps", [0, 1, 3])


def meta_gradient(learner: MetaLearner, parameters: Parameters, tasks: Task, vectorised: bool) -> tuple:
    return meta_learner.meta_gradient(learner, parameters, tasks, no_noise(tasks), vectorised)


def evaluate_tasks(learner: MetaLearner, parameters: Parameters, tasks: Task, vectorised: bool) -> tuple:
    return meta_learner.evaluate_tasks(learner, parameters, tasks, no_noise(tasks), vectorised)


def learner_for(model: nn.Module, steps: int = 3, rate: float = 0.1, order: bool = True) -> MetaLearner:
    objective = quadratic_loss if isinstance(model, Quadratic) else regression
    return MetaLearner(model, METHODS["maml"](model, rate), objective, objective, steps, order)


# --- closed forms on quadratics (f64) ----------------------------------------------------------------------


@both_ways
@any_steps
def test_maml_gradient_has_its_closed_form(steps: int, vectorised: bool) -> None:
    """(I - a A_s)^k A_q (theta_k - c_q), with theta_k - c_s = (I - a A_s)^k (theta - c_s)."""
    model, tasks, rate = Quadratic(), quadratic_tasks(5), 0.1
    found, losses, _ = meta_gradient(learner_for(model, steps, rate), split_parameters(model), tasks, vectorised)
    gradients, values = [], []
    for a_s, c_s, a_q, c_q in unbind_tasks(tasks):
        contraction = torch.linalg.matrix_power(torch.eye(4, dtype=torch.float64) - rate * a_s, steps)
        adapted = c_s + contraction @ (model.theta.detach() - c_s)
        gradients.append(contraction @ a_q @ (adapted - c_q))
        values.append(0.5 * (adapted - c_q) @ a_q @ (adapted - c_q))
    torch.testing.assert_close(found.theta["theta"], torch.stack(gradients).mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(losses, torch.stack(values), rtol=1e-12, atol=1e-12)


@both_ways
@any_steps
def test_first_order_gradient_has_its_closed_form(steps: int, vectorised: bool) -> None:
    """A_q (theta_k - c_q)."""
    model, tasks, rate = Quadratic(), quadratic_tasks(5), 0.1
    learner = learner_for(model, steps, rate, order=False)
    found, _, _ = meta_gradient(learner, split_parameters(model), tasks, vectorised)
    gradients = []
    for a_s, c_s, a_q, c_q in unbind_tasks(tasks):
        contraction = torch.linalg.matrix_power(torch.eye(4, dtype=torch.float64) - rate * a_s, steps)
        gradients.append(a_q @ (c_s + contraction @ (model.theta.detach() - c_s) - c_q))
    torch.testing.assert_close(found.theta["theta"], torch.stack(gradients).mean(0), rtol=1e-12, atol=1e-12)


# --- finite differences ------------------------------------------------------------------------------------


@both_ways
@any_steps
def test_meta_gradient_is_the_derivative_of_the_mean_task_loss(steps: int, vectorised: bool) -> None:
    model, tasks = Tanh(), regression_tasks(3)
    learner, parameters = learner_for(model, steps), split_parameters(model)
    found, _, _ = meta_gradient(learner, parameters, tasks, vectorised)
    assert largest_relative_error(found, finite_differences(learner, parameters, tasks)) < 1e-9


@both_ways
@pytest.mark.parametrize("across", [None, ()], ids=["affine in phi", "affine adapts"])
@pytest.mark.parametrize("norm", NORMS)
def test_meta_gradient_is_exact_through_every_norm(norm: str, across: tuple | None, vectorised: bool) -> None:
    model, tasks = Normed(NORMS[norm]()), regression_tasks(2, (2, 5, 5), outputs=3, each=4)
    parameters = split_parameters(model, across)
    learner = replace(learner_for(model, 2), method=METHODS["maml"](model, 0.5, parameters))
    found, _, _ = meta_gradient(learner, parameters, tasks, vectorised)
    assert largest_relative_error(found, finite_differences(learner, parameters, tasks)) < 1e-8


# --- equalities and differences ----------------------------------------------------------------------------


@pytest.mark.parametrize("order", [True, False], ids=["second order", "first order"])
@any_steps
def test_vectorised_is_looped(steps: int, order: bool) -> None:
    model, tasks = Normed(NORMS["metarun batch"]()), regression_tasks(4, (2, 5, 5), outputs=3)
    learner, parameters = learner_for(model, steps, order=order), split_parameters(model)
    one, two = (meta_gradient(learner, parameters, tasks, vectorised) for vectorised in (True, False))
    assert largest_relative_error(one, two) < 1e-12
    one, two = (evaluate_tasks(learner, parameters, tasks, vectorised) for vectorised in (True, False))
    assert largest_relative_error(one, two) < 1e-12


@both_ways
def test_a_tensor_with_two_names_is_one(vectorised: bool) -> None:
    tasks, model, plain = regression_tasks(3, outputs=3), Twice(tied=True), Twice(tied=False)
    plain.first.load_state_dict(model.first.state_dict())
    learners = [learner_for(each) for each in (model, plain)]
    assert [learner.tied for learner in learners] == [True, False]
    one, two = (meta_gradient(learner, learner.method.parameters, tasks, vectorised) for learner in learners)
    assert one[0].theta.keys() == {"first.weight"} and largest_relative_error(one, two) < 1e-12


@both_ways
def test_first_and_second_order_differ(vectorised: bool) -> None:
    """A double backward that is silently zero would make them equal."""
    model, tasks = Normed(NORMS["metarun batch"]()), regression_tasks(3, (2, 5, 5), outputs=3)
    gradients = [
        meta_gradient(learner_for(model, 2, order=order), split_parameters(model), tasks, vectorised)[0]
        for order in (True, False)
    ]
    assert largest_relative_error(*gradients) > 1e-3


@both_ways
def test_without_a_rate_both_orders_are_plain_joint_training(vectorised: bool) -> None:
    model, tasks = Tanh(), regression_tasks(3)
    parameters = split_parameters(model)
    plain, _, _ = meta_gradient(learner_for(model, steps=0), parameters, tasks, vectorised)
    for order in (True, False):
        found, _, _ = meta_gradient(learner_for(model, 3, rate=0.0, order=order), parameters, tasks, vectorised)
        assert largest_relative_error(found, plain) < 1e-12


@both_ways
def test_order_and_repetition_of_tasks_do_not_matter(vectorised: bool) -> None:
    model, tasks = Tanh(), regression_tasks(4)
    gradient = partial(meta_gradient, learner_for(model), split_parameters(model), vectorised=vectorised)
    found, _, _ = gradient(tasks=tasks)
    for chosen in ([2, 0, 3, 1], [0, 1, 2, 3, 0, 1, 2, 3]):
        again, _, _ = gradient(tasks=tree_map(lambda side, chosen=chosen: side[chosen], tasks))
        assert largest_relative_error(again, found) < 1e-12


def test_a_larger_loss_is_a_larger_rate() -> None:
    """N times the loss at rate a follows the same trajectory as the loss at rate N a."""
    model, tasks = Tanh(), regression_tasks(2)
    learner, parameters = learner_for(model, 3, rate=0.05), split_parameters(model)
    scaled = replace(learner_for(model, 3, rate=0.01), inner_objective=lambda state: 5 * regression(state))
    one, two = (meta_gradient(each, parameters, tasks, vectorised=True) for each in (learner, scaled))
    assert largest_relative_error(one, two) < 1e-12


def test_batch_norm_is_transductive() -> None:
    """What a query image is taken for depends on the other query images, as the stated choice says."""
    model = Normed(NORMS["metarun batch"]())
    images = torch.randn(6, 2, 5, 5, dtype=torch.float64)
    together, alone = model(images), torch.cat([model(image[None]) for image in images])
    assert (together - alone).abs().max() > 1e-3
    grouped = Normed(NORMS["metarun group"]())
    torch.testing.assert_close(grouped(images), torch.cat([grouped(image[None]) for image in images]))


# --- evaluation --------------------------------------------------------------------------------------------


@both_ways
def test_evaluation_judges_after_each_inner_step_and_keeps_no_graph(vectorised: bool) -> None:
    model, tasks = Tanh(), regression_tasks(3)
    parameters = split_parameters(model)
    losses, measures = evaluate_tasks(learner_for(model, steps=3), parameters, tasks, vectorised)
    assert losses.shape == (3, 4)
    assert not losses.requires_grad and not measures["mse"].requires_grad
    for steps in range(4):
        _, expected, _ = meta_gradient(learner_for(model, steps), parameters, tasks, vectorised)
        torch.testing.assert_close(losses[:, steps], expected, rtol=1e-12, atol=1e-12)


# --- slots -------------------------------------------------------------------------------------------------


@both_ways
def test_each_slot_is_used(vectorised: bool) -> None:
    """Halves theta at the start, fixes a factor, steps by a learned rate, runs on doubled weights, sums two losses."""
    model, tasks = Quadratic(), quadratic_tasks(3)
    rate = torch.full((4,), 0.05, dtype=torch.float64)
    method = Method(
        parameters=Parameters(dict(model.named_parameters()), {"rate": rate}),
        begin=lambda theta, phi, gradient, noise: ({"theta": 0.5 * theta["theta"]}, 3.0),
        weights=lambda theta, phi: {"theta": 2 * theta["theta"]},
        update=lambda theta, gradient, phi, fixed, step: {
            "theta": theta["theta"] - (fixed + step - 2) * phi["rate"] * gradient["theta"]
        },
        meta_objective=lambda parameters, task: torch.stack(
            [task.query_loss(theta, parameters.phi) for theta in task.adapt(parameters)]
        ).sum(),
    )
    learner = MetaLearner(model, method, quadratic_loss, quadratic_loss, inner_loop=1)
    found, losses, _ = meta_gradient(learner, method.parameters, tasks, vectorised)

    theta = model.theta.detach().clone().requires_grad_()
    alpha = rate.clone().requires_grad_()
    expected = []
    for a_s, c_s, a_q, c_q in unbind_tasks(tasks):
        adapted = 0.5 * theta - alpha * (2 * a_s @ (theta - c_s))
        expected.append(sum(0.5 * (2 * t - c_q) @ a_q @ (2 * t - c_q) for t in (0.5 * theta, adapted)))
    total = torch.stack([torch.as_tensor(value) for value in expected])
    total.mean().backward()
    torch.testing.assert_close(losses, total.detach())
    torch.testing.assert_close(found.theta["theta"], theta.grad)
    torch.testing.assert_close(found.phi["rate"], alpha.grad)


def test_frozen_parameters_are_not_learned() -> None:
    model = Tanh()
    model.first.requires_grad_(False)
    assert set(split_parameters(model).theta) == {"second.weight", "second.bias"}
