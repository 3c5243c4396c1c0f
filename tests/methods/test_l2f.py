"""L2F (arXiv 1906.05895): the attenuated start in closed form, its reductions, and what is detached."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metarun.core.meta_learner import TaskLearner, functional_gradient, unbind_tasks
from metarun.methods import METHODS, Tensors
from tests.helpers.laws import Problem, Record, check, fill, largest_relative_error, learning, problem, shake
from tests.helpers.problems import quadratic_loss, quadratic_tasks

both_ways = pytest.mark.parametrize("vectorised", [False, True], ids=["looped", "vectorised"])
ATTENUATED = ["l2f", "learn_lr + use_forget"]
SIZES = (3, 1, 2)
Gradient = Callable[[Tensors], Tensors]


class Split(nn.Module):
    """The parameter is the model, in three tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ParameterList([torch.randn(size, dtype=torch.float64) for size in SIZES])

    def forward(self, data: Tensor) -> Tensor:
        return torch.cat(list(self.parts))


def scale(one: Problem, gamma: float) -> Problem:
    """The attenuator's answer, whatever it sees."""
    fill(one.parameters.phi, "attenuator.2.weight", 0.0)
    fill(one.parameters.phi, "attenuator.2.bias", 60.0 if gamma == 1 else torch.tensor(gamma).double().logit())
    return one


@both_ways
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_gradient_has_its_closed_form(steps: int, vectorised: bool, record_property: Record) -> None:
    """dL/dgamma_l = <theta_l, G_l> and dL/dtheta_l = gamma_l G_l, G the MAML gradient from gamma theta.

    gamma is written out from the signed means of grad L_support at theta; psi's last bias gets
    dL/dgamma gamma (1 - gamma).
    """
    model, tasks, rate = Split(), quadratic_tasks(3, sum(SIZES)), 0.1
    one = learning(model, METHODS["l2f"](model, rate), tasks, steps)
    shake(one.parameters.phi)
    one = one._replace(learner=replace(one.learner, inner_objective=quadratic_loss, outer_objective=quadratic_loss))
    w1, b1, w2, b2 = (tensor.detach() for tensor in one.parameters.phi.values())
    theta = torch.cat([part.detach() for part in model.parts])
    expected = []
    for a_s, c_s, a_q, c_q in unbind_tasks(tasks):
        seen = torch.stack([part.mean() for part in (a_s @ (theta - c_s)).split(SIZES)])
        hidden = (w1 @ seen + b1).clamp_min(0)
        gamma = 1 / (1 + torch.exp(-(w2 @ hidden + b2)))
        start = theta * torch.cat([g.expand(size) for g, size in zip(gamma, SIZES, strict=True)])
        power = torch.linalg.matrix_power(torch.eye(len(theta), dtype=torch.float64) - rate * a_s, steps)
        slope = (power @ a_q @ (c_s + power @ (start - c_s) - c_q)).split(SIZES)
        by_gamma = torch.stack([t @ g for t, g in zip(theta.split(SIZES), slope, strict=True)])
        by_bias = by_gamma * gamma * (1 - gamma)
        expected.append([*(g * s for g, s in zip(gamma, slope, strict=True)), by_bias, by_bias.outer(hidden)])
    found = one.gradient(vectorised)
    own = [*found.theta.values(), found.phi["attenuator.2.bias"], found.phi["attenuator.2.weight"]]
    error = largest_relative_error(own, [torch.stack(each).mean(0) for each in zip(*expected, strict=True)])
    check(record_property, "closed form", "l2f", error, 1e-12)


@pytest.mark.slow
@both_ways
@pytest.mark.parametrize("network", ["layers", "convolutions"])
@pytest.mark.parametrize("name", ATTENUATED)
def test_a_gamma_of_one_is_maml(name: str, network: str, vectorised: bool, record_property: Record) -> None:
    found = scale(problem(name, network, shaken=False), 1).gradient(vectorised)
    expected = problem("maml", network, shaken=False).gradient(vectorised)
    check(record_property, "reduces to MAML", name, largest_relative_error(found.theta, expected.theta), 1e-12)


@both_ways
@pytest.mark.parametrize("name", ATTENUATED)
def test_a_gamma_of_a_half_is_maml_from_half_of_theta(name: str, vectorised: bool) -> None:
    """With half of its gradient."""
    found, half = scale(problem(name, shaken=False), 0.5).gradient(vectorised).theta, problem("maml", shaken=False)
    with torch.no_grad():
        for tensor in half.parameters.theta.values():
            tensor *= 0.5
    expected = {key: 0.5 * tensor for key, tensor in half.gradient(vectorised).theta.items()}
    assert largest_relative_error(found, expected) < 1e-13


def starts(one: Problem) -> list[Tensor]:
    return [torch.stack([tensor.flatten()[0] for tensor in one.trajectory(task)[0].values()]) for task in range(3)]


def test_gamma_is_the_tasks_own_unless_the_attenuator_is_blind() -> None:
    """One number for each tensor; it depends on the task through the first layer's weights alone."""
    one = problem("l2f", tasks=3)
    theta, start = one.parameters.theta, one.trajectory()[0]
    ratios = {name: (start[name] / theta[name]).detach() for name in theta}
    assert all((ratio - ratio.flatten()[0]).abs().max() < 1e-12 for ratio in ratios.values())
    assert len({round(float(ratio.flatten()[0]), 9) for ratio in ratios.values()}) == len(theta)
    first, second, _ = starts(one)
    assert (first - second).abs().max() > 1e-6
    fill(one.parameters.phi, "attenuator.0.weight", 0.0)
    first, second, third = starts(one)
    assert torch.equal(first, second) and torch.equal(second, third)


def test_the_embedding_leaves_norms_out() -> None:
    one = problem("l2f", "convolutions")
    assert one.parameters.phi["attenuator.0.weight"].shape == (5, 5)
    assert set(one.parameters.theta) == {"first.weight", "first.bias", "second.weight", "head.weight", "head.bias"}
    assert {"first_norm.weight", "second_norm.bias"} <= set(one.parameters.phi)


def test_gamma_starts_near_a_half() -> None:
    """The attenuator has torch's random initialisation."""
    one = problem("l2f", shaken=False)
    ratios = [float((one.trajectory()[0][n] / t).detach().flatten()[0]) for n, t in one.parameters.theta.items()]
    assert all(0.3 < ratio < 0.7 for ratio in ratios)


@pytest.mark.parametrize("name", ATTENUATED)
def test_the_embedding_creates_no_second_order_terms(name: str) -> None:
    """The gradient is that of an embedding which is a constant; one with a graph would give another."""
    one = problem(name, tasks=1)
    task = next(unbind_tasks(one.tasks))
    support = TaskLearner(one.learner, task, one.noise[0], functional_gradient).support_gradient
    constant = support(*one.parameters, graph=False)

    def with_embedding(of: Callable[[Tensors, Tensors], Tensors]) -> Problem:
        def begin(theta: Tensors, phi: Tensors, gradient: Gradient, noise: Tensor) -> tuple[Tensors, Any]:
            return one.learner.method.begin(theta, phi, lambda t: of(t, phi), noise)

        return one._replace(learner=replace(one.learner, method=replace(one.learner.method, begin=begin)))

    held = with_embedding(lambda theta, phi: constant)
    assert largest_relative_error(one.gradient(), held.gradient()) < 1e-14

    graphs = []
    theta = {key: tensor.detach().requires_grad_() for key, tensor in one.parameters.theta.items()}

    def watched(t: Tensors) -> Tensors:
        gradient = support(t, one.parameters.phi, graph=True)
        graphs.append(all(tensor.requires_grad for tensor in gradient.values()))
        return gradient

    start, _ = one.learner.method.begin(theta, one.parameters.phi, watched, one.noise[0])
    (found,) = torch.autograd.grad(start["first.weight"].sum(), theta["first.weight"])
    gamma = start["first.weight"] / theta["first.weight"]
    assert graphs == [True]  # a gradient with a graph was offered, and cut
    torch.testing.assert_close(found, gamma.detach())
