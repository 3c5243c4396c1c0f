"""Laws that every method and every composition of switches keeps, looped and vectorised."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from metarun.core.meta_learner import evaluate_tasks
from metarun.core.objectives import State, regression
from metarun.core.second_order import exact_kernels
from metarun.methods import METHODS, Method, Parameters
from metarun.methods.base import split_parameters
from metarun.methods.msgd import learn_inner_rates
from tests.helpers.laws import (
    CASES,
    NETWORKS,
    SEQUENCES,
    Case,
    Record,
    along_directions,
    check,
    fill,
    finite_differences,
    largest_relative_error,
    largest_tensor_error,
    learning,
    method_case,
    problem,
    switches_case,
    without,
)
from tests.helpers.problems import Quadratic, quadratic_loss, quadratic_tasks, regression_tasks

every_case = pytest.mark.parametrize("name", CASES)
both_networks = pytest.mark.parametrize("network", NETWORKS)

VARIANTS = {
    "msgd, a rate a tensor": method_case("msgd", alpha="tensor"),
    "msgd, one rate": method_case("msgd", alpha="scalar"),
    "warpgrad, residual": method_case("warpgrad", objective="trajectory", residual=True),
    "warpgrad, 1x1": method_case("warpgrad", objective="trajectory", kernel=1),
    "learn_lr + unrolled warp": switches_case(learn_lr=True, use_warp={"objective": "unrolled"}),
    "learn_lr + full masks": switches_case(learn_lr={"alpha": "tensor"}, use_t={"full": True}),
    "first-order msgd": method_case("msgd", order=False),
    "first-order mtnet": method_case("mtnet", order=False),
    "first-order l2f": method_case("l2f", order=False),
}
DEEP_WARP = method_case("warpgrad", depth=2, norm=True, activation=True, residual=True)


@both_networks
@every_case
def test_meta_gradient_is_the_derivative_of_the_papers_objective(
    name: str, network: str, record_property: Record
) -> None:
    """By every entry of every learned tensor, with all that the method stops held fixed."""
    one = problem(name, network, steps=3 if network == "layers" else 2)
    expected = finite_differences(one.learner, one.parameters, one.tasks, one.noise, CASES[name].objective)
    for vectorised in (False, True):
        error = largest_tensor_error(one.gradient(vectorised), expected)
        check(record_property, "finite differences", name, error, 2e-9 if network == "layers" else 1e-8)


@pytest.mark.parametrize("network", SEQUENCES)
@pytest.mark.parametrize("name", ["maml", "msgd", "mtnet", "warpgrad", "l2f"])
def test_meta_gradient_is_exact_through_attention_and_recurrent_layers(
    name: str, network: str, record_property: Record
) -> None:
    one, objective = problem(name, network, tasks=1), CASES[name].objective
    if network == "attention":
        with exact_kernels(one.learner.needs):
            expected = finite_differences(one.learner, one.parameters, one.tasks, one.noise, objective)
        errors = [largest_tensor_error(one.gradient(vectorised), expected) for vectorised in (False, True)]
    else:
        errors = [largest_relative_error(*along_directions(one, objective))]
    for error in errors:
        check(record_property, network, name, error, 1e-8)


@pytest.mark.parametrize("name", VARIANTS)
def test_meta_gradient_of_the_named_options_is_exact(name: str) -> None:
    one = problem(VARIANTS[name])
    expected = finite_differences(one.learner, one.parameters, one.tasks, one.noise, VARIANTS[name].objective)
    for vectorised in (False, True):
        assert largest_tensor_error(one.gradient(vectorised), expected) < 2e-9


@every_case
def test_everything_that_is_learned_gets_a_gradient(name: str) -> None:
    """A tensor cut off from the loss would agree with every other law that compares gradients."""
    gradient = problem(name, tasks=4).gradient()
    assert all(tensor.abs().max() > 1e-6 for tensor in tree_leaves(gradient))


@both_networks
@every_case
def test_vectorised_is_looped(name: str, network: str, record_property: Record) -> None:
    one = problem(name, network, tasks=3)
    error = largest_relative_error(one.judged(True), one.judged(False))
    check(record_property, "vectorised = looped", name, error, 1e-11)


def test_a_deep_warp_is_the_same_vectorised_and_looped() -> None:
    one = problem(DEEP_WARP, "convolutions", tasks=3)
    assert largest_relative_error(one.judged(True), one.judged(False)) < 1e-11


@every_case
def test_order_and_repetition_of_tasks_do_not_matter(name: str, record_property: Record) -> None:
    """With the noise, which belongs to a task, moved along."""
    one = problem(name, tasks=3)
    for vectorised in (False, True):
        for tasks in ([2, 0, 1], [0, 1, 2, 0, 1, 2]):
            error = largest_relative_error(one.chosen(tasks).gradient(vectorised), one.gradient(vectorised))
            check(record_property, "permutation", name, error, 1e-12)


@both_networks
@every_case
def test_evaluation_is_what_training_computes(name: str, network: str, record_property: Record) -> None:
    """The query error after k inner steps, from both, for every k; full masks differ in the draws that they take."""
    one = problem(name, network, steps=3, tasks=3)
    for vectorised in (False, True):
        losses, measures = evaluate_tasks(one.learner, one.parameters, one.tasks, one.noise, vectorised)
        assert losses.shape == (3, 4) and not losses.requires_grad
        for steps in range(4):
            shorter = one._replace(learner=replace(one.learner, inner_loop=steps))
            _, _, trained = shorter.judged(vectorised)
            error = largest_relative_error([losses[:, steps], measures["mse"][:, steps]], [trained["mse"]] * 2)
            check(record_property, "evaluation = training", name, error, 1e-12)


@every_case
def test_without_a_rate_nothing_adapts(name: str, record_property: Record) -> None:
    """Plain training on the query sets, from an attenuated start for L2F; Warp-MAML by theta."""
    still, plain = problem(name, rate=0.0), problem(name, steps=0)
    plain = plain._replace(noise=still.noise[:, : plain.noise.shape[1]])
    if name == "msgd" or "learn_lr" in name:
        fill(still.parameters.phi, "inner_rates", 0.0)
    for vectorised in (False, True):
        found, expected = still.gradient(vectorised), plain.gradient(vectorised)
        parts = ["inner_rates"] + (["warp_layers"] if CASES[name].objective != "query" else [])
        found, expected = (Parameters(g.theta, without(g.phi, parts)) for g in (found, expected))
        check(record_property, "no rate, no adaptation", name, largest_relative_error(found, expected), 1e-12)
    assert largest_relative_error(problem(name).gradient().theta, plain.gradient().theta) > 1e-3


@pytest.mark.parametrize("name", [name for name in CASES if name != "l2f" and "forget" not in name])
def test_a_larger_loss_is_a_larger_rate(name: str, record_property: Record) -> None:
    """N times the loss at rate a follows the trajectory of the loss at rate N a. (L2F's embedding sees the loss.)"""
    larger, scaled = problem(name, rate=0.125, shaken=False), problem(name, rate=0.03125, shaken=False)
    scaled = scaled._replace(learner=replace(scaled.learner, inner_objective=lambda state: 4 * regression(state)))
    for vectorised in (False, True):
        found, expected = (
            Parameters(g.theta, without(g.phi, ["inner_rates"]))
            for g in (scaled.gradient(vectorised), larger.gradient(vectorised))
        )
        check(record_property, "loss scaling", name, largest_relative_error(found, expected), 1e-12)


# --- first and second order --------------------------------------------------------------------------------


class Relu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@pytest.mark.parametrize("vectorised", [False, True])
def test_first_order_is_another_gradient(vectorised: bool) -> None:
    """Also where the network is piecewise linear: the error's own curvature remains."""
    torch.manual_seed(1)
    model, tasks = Relu(), regression_tasks(3)
    method = METHODS["maml"](model, 0.1)
    one, two = (learning(model, method, tasks, 2, order).gradient(vectorised) for order in (True, False))
    assert largest_relative_error(one, two) > 1e-3


@pytest.mark.parametrize("vectorised", [False, True])
def test_first_order_is_exact_where_the_support_loss_is_linear(vectorised: bool, record_property: Record) -> None:
    def linear(state: State) -> torch.Tensor:
        return state.model(state.data, state.updated_weights) @ state.target

    model, tasks = Quadratic(), quadratic_tasks(3)
    results = []
    for order in (True, False):
        one = learning(model, METHODS["maml"](model, 0.1), tasks, 2, order)
        learner = replace(one.learner, inner_objective=linear, outer_objective=quadratic_loss)
        results.append(one._replace(learner=learner).gradient(vectorised))
    check(record_property, "reduces to MAML", "fomaml", largest_relative_error(*results), 1e-14)


# --- methods that adapt a part -----------------------------------------------------------------------------


@both_networks
@pytest.mark.parametrize("name", ["anil", "boil"])
def test_a_part_that_does_not_adapt_is_a_rate_of_zero(name: str, network: str, record_property: Record) -> None:
    """ANIL is Meta-SGD with alpha 0 on the body, BOIL with alpha 0 on the head."""

    def rates_for_everything(model: nn.Module, rate: float) -> Method:
        return learn_inner_rates(METHODS["maml"](model, 1.0, split_parameters(model, across=())), model, rate)

    part, every = problem(name, network), problem(Case(rates_for_everything), network, shaken=False)
    adapts = part.parameters.theta
    assert set(adapts) != set(every.parameters.theta)
    with torch.no_grad():
        for key, tensor in every.parameters.theta.items():
            tensor.copy_({**part.parameters.theta, **part.parameters.phi}[key])
            if key not in adapts:
                fill(every.parameters.phi, f"inner_rates.{key.replace('.', '/')}", 0.0)
    for vectorised in (False, True):
        found = part.gradient(vectorised)
        expected = every.gradient(vectorised).theta
        united = {**found.theta, **found.phi}
        error = largest_relative_error({key: united[key] for key in expected}, expected)
        check(record_property, "reduces to MAML", name, error, 1e-12)


def test_body_and_head_together_are_all_that_maml_adapts(record_property: Record) -> None:
    """After one step ANIL's head and BOIL's body are MAML's."""
    anil, boil, maml = (problem(name, steps=1, shaken=False) for name in ("anil", "boil", "maml"))
    assert set(anil.parameters.theta) == {"second.weight", "second.bias"} == set(boil.parameters.phi)
    adapted = {**anil.trajectory()[-1], **boil.trajectory()[-1]}
    expected = maml.trajectory()[-1]
    assert set(adapted) == set(expected)
    error = largest_relative_error({key: adapted[key] for key in expected}, expected)
    for name in ("anil", "boil"):
        check(record_property, "closed form", name, error, 1e-14)


def test_boil_adapts_the_affine_of_norms_and_anil_does_not() -> None:
    anil, boil = (set(problem(name, "convolutions").parameters.theta) for name in ("anil", "boil"))
    assert anil == {"head.weight", "head.bias"}
    assert {"first_norm.weight", "second_norm.bias", "first.bias"} <= boil and not boil & anil


def test_problems_share_their_network_and_tasks() -> None:
    """What the comparisons of this folder rest on."""
    one, two = problem("maml"), problem("mtnet")
    assert all(torch.equal(one.parameters.theta[name], two.parameters.theta[name]) for name in one.parameters.theta)
    assert all(torch.equal(a, b) for a, b in zip(one.tasks, two.tasks, strict=True))
