"""Meta-SGD (arXiv 1709.09835): closed forms on quadratics, its reductions and its named options."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from metarun.core.meta_learner import unbind_tasks
from metarun.methods import METHODS
from metarun.methods.msgd import PAPER_RANGE
from tests.helpers.laws import (
    RATE,
    Problem,
    Record,
    check,
    fill,
    largest_relative_error,
    learning,
    method_case,
    problem,
)
from tests.helpers.problems import Quadratic, quadratic_loss, quadratic_tasks

both_ways = pytest.mark.parametrize("vectorised", [False, True], ids=["looped", "vectorised"])


def quadratic_problem(steps: int) -> tuple[Problem, Tensor, Tensor]:
    """With theta and alpha; alpha holds a negative rate, as it may."""
    model, tasks = Quadratic(), quadratic_tasks(3)
    one = learning(model, METHODS["msgd"](model, 0.1), tasks, steps)
    learner = replace(one.learner, inner_objective=quadratic_loss, outer_objective=quadratic_loss)
    alpha = torch.tensor([0.2, -0.05, 0.1, 0.02], dtype=torch.float64)
    fill(one.parameters.phi, "inner_rates", alpha)
    return one._replace(learner=learner), model.theta.detach().clone(), alpha


@both_ways
@pytest.mark.parametrize("steps", [1, 3])
def test_gradient_is_the_reverse_recursion(steps: int, vectorised: bool, record_property: Record) -> None:
    """g_alpha -= grad L_s(theta_j) o lambda;  lambda <- lambda - A_s (alpha o lambda),  from lambda = grad L_q."""
    one, theta, alpha = quadratic_problem(steps)
    by_theta, by_alpha = [], []
    for a_s, c_s, a_q, c_q in unbind_tasks(one.tasks):
        iterates = [theta]
        for _ in range(steps):
            iterates.append(iterates[-1] - alpha * (a_s @ (iterates[-1] - c_s)))
        carried, own = a_q @ (iterates[-1] - c_q), torch.zeros_like(alpha)
        for iterate in reversed(iterates[:-1]):
            own -= (a_s @ (iterate - c_s)) * carried
            carried = carried - a_s @ (alpha * carried)
        by_theta.append(carried)
        by_alpha.append(own)
    expected = [torch.stack(by_theta).mean(0), torch.stack(by_alpha).mean(0)]
    found = one.gradient(vectorised)
    error = largest_relative_error([found.theta["theta"], found.phi["inner_rates.theta"]], expected)
    check(record_property, "closed form", "msgd", error, 1e-12)


@both_ways
def test_order_of_curvature_and_rates_in_one_step(vectorised: bool) -> None:
    """(I - A_s diag(alpha)) grad L_q, which is not (I - diag(alpha) A_s) grad L_q."""
    one, theta, alpha = quadratic_problem(1)
    right, wrong = [], []
    for a_s, c_s, a_q, c_q in unbind_tasks(one.tasks):
        slope = a_q @ (theta - alpha * (a_s @ (theta - c_s)) - c_q)
        right.append(slope - a_s @ (alpha * slope))
        wrong.append(slope - alpha * (a_s @ slope))
    found = one.gradient(vectorised).theta["theta"]
    assert largest_relative_error(found, torch.stack(right).mean(0)) < 1e-12
    assert largest_relative_error(found, torch.stack(wrong).mean(0)) > 1e-3


@both_ways
@pytest.mark.parametrize("alpha", ["element", "tensor", "scalar"])
@pytest.mark.parametrize("steps", [1, 3])
def test_equal_rates_are_maml(steps: int, alpha: str, vectorised: bool, record_property: Record) -> None:
    found = problem(method_case("msgd", alpha=alpha), steps=steps, shaken=False).gradient(vectorised).theta
    expected = problem("maml", steps=steps).gradient(vectorised).theta
    check(record_property, "reduces to MAML", "msgd", largest_relative_error(found, expected), 1e-13)
    other = problem("maml", steps=steps, rate=0.11).gradient(vectorised).theta
    assert largest_relative_error(found, other) > 1e-4


@both_ways
def test_a_shared_rates_gradient_is_the_sum_of_its_entries(vectorised: bool) -> None:
    each = problem("msgd", shaken=False).gradient(vectorised).phi
    by_tensor = problem(method_case("msgd", alpha="tensor"), shaken=False).gradient(vectorised).phi
    scalar = problem(method_case("msgd", alpha="scalar"), shaken=False).gradient(vectorised).phi
    assert {name: tensor.shape for name, tensor in by_tensor.items()} == dict.fromkeys(each, ())
    assert largest_relative_error(by_tensor, {name: tensor.sum() for name, tensor in each.items()}) < 1e-12
    total = torch.stack([tensor.sum() for tensor in each.values()]).sum()
    assert len(scalar) == 1 and largest_relative_error(next(iter(scalar.values())), total) < 1e-12


def test_first_values_of_the_rates() -> None:
    """The inner learning rate, or one draw from the paper's range for all entries."""
    fixed = problem("msgd", shaken=False).parameters
    assert all(torch.all(rate == RATE) for rate in fixed.phi.values())
    assert {name.removeprefix("inner_rates.").replace("/", ".") for name in fixed.phi} == set(fixed.theta)
    tenth = problem("msgd", rate=0.1, shaken=False).parameters.phi.values()
    assert all(torch.all(rate == 0.1) for rate in tenth)  # in double precision too
    drawn = problem(method_case("msgd", start="random"), shaken=False).parameters.phi.values()
    values = torch.cat([rate.detach().flatten() for rate in drawn]).unique()
    assert len(values) == 1 and PAPER_RANGE[0] <= float(values) <= PAPER_RANGE[1] and float(values) != RATE
