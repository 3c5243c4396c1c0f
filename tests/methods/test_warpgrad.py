"""WarpGrad (arXiv 1909.00025): its trajectory objective in closed form, preconditioning, places of warp layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.utils._pytree import tree_map

from metarun.core.meta_learner import TaskLearner, autograd_gradient, evaluate_tasks, unbind_tasks
from metarun.errors import UserError
from metarun.methods import METHODS, Parameters, Tensors
from metarun.methods.base import split_parameters
from tests.helpers.laws import (
    Case,
    Problem,
    Record,
    check,
    fill,
    largest_relative_error,
    learning,
    method_case,
    problem,
    shake,
    switches_case,
)
from tests.helpers.problems import quadratic_loss, quadratic_tasks, regression_tasks

both_ways = pytest.mark.parametrize("vectorised", [False, True], ids=["looped", "vectorised"])
SIZE = 3


class Vector(nn.Module):
    """A linear layer without a bias whose input is 1: its output is theta, and warped Omega theta + beta."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, SIZE, bias=False, dtype=torch.float64)

    def forward(self, data: Tensor) -> Tensor:
        return self.layer(torch.ones(1, dtype=torch.float64))


class Filters(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 2, 3, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def quadratic_problem(steps: int, rate: float = 0.2, **options: Any) -> tuple[Problem, Tensor, Tensor, Tensor]:
    """With Omega, beta and theta."""
    torch.manual_seed(2)
    model, tasks = Vector(), quadratic_tasks(3, SIZE)
    one = learning(model, METHODS["warpgrad"](model, rate, after=["layer"], **options), tasks, steps)
    shake(one.parameters.phi)
    learner = replace(one.learner, inner_objective=quadratic_loss, outer_objective=quadratic_loss)
    omega, beta = (tensor.detach() for tensor in one.parameters.phi.values())
    return one._replace(learner=learner), omega, beta, model.layer.weight.detach().flatten()


# --- closed forms ------------------------------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize("approximate", [False, True])
@pytest.mark.parametrize("steps", [1, 3])
def test_gradient_has_its_closed_form(steps: int, approximate: bool, vectorised: bool, record_property: Record) -> None:
    """dL/dOmega = sum over iterates of q t' - alpha r v' - alpha A_s (Omega v) theta', of which equation 12 keeps q t'.

    r = A_s (Omega theta + beta - c_s), t = theta - alpha Omega' r, q = A_q (Omega t + beta - c_q), v = Omega' q.
    By theta it is MAML's: (I - alpha Omega' A_s Omega)^K Omega' q_K.
    """
    rate = 0.2
    one, omega, beta, start = quadratic_problem(steps, rate, approximate=approximate)
    expected = []
    for a_s, c_s, a_q, c_q in unbind_tasks(one.tasks):
        theta, by_omega, by_beta = start, torch.zeros_like(omega), torch.zeros_like(beta)
        q = torch.zeros_like(beta)
        for _ in range(steps):
            r = a_s @ (omega @ theta + beta - c_s)
            t = theta - rate * omega.T @ r
            q = a_q @ (omega @ t + beta - c_q)
            v = omega.T @ q
            by_omega, by_beta = by_omega + q.outer(t), by_beta + q
            if not approximate:
                by_omega = by_omega - rate * r.outer(v) - rate * (a_s @ omega @ v).outer(theta)
                by_beta = by_beta - rate * a_s @ omega @ v
            theta = t
        contraction = torch.eye(SIZE, dtype=torch.float64) - rate * omega.T @ a_s @ omega
        by_theta = torch.linalg.matrix_power(contraction, steps) @ omega.T @ q
        expected.append([by_theta[:, None], by_omega, by_beta])
    found = one.gradient(vectorised)
    error = largest_relative_error(
        [*found.theta.values(), *found.phi.values()],
        [torch.stack(each).mean(0) for each in zip(*expected, strict=True)],
    )
    check(record_property, "closed form", "warpgrad approximate" if approximate else "warpgrad", error, 1e-12)


def test_a_linear_warp_preconditions_by_its_square(record_property: Record) -> None:
    """One step moves Omega theta by -alpha Omega Omega' grad."""
    one, omega, beta, start = quadratic_problem(steps=1, objective="unrolled")
    a_s, c_s, _, _ = next(unbind_tasks(one.tasks))
    before, after = (t["layer.weight"].flatten() for t in one.trajectory())
    expected = -0.2 * omega @ omega.T @ a_s @ (omega @ start + beta - c_s)
    error = largest_relative_error(omega @ (after - before), expected)
    check(record_property, "closed form", "warpgrad unrolled", error, 1e-12)


def test_a_nonlinear_warp_preconditions_up_to_the_square_of_the_rate() -> None:
    """y moves by -alpha D D' grad + O(alpha^2), D = dy/dtheta: half the rate leaves a quarter of the rest."""
    torch.manual_seed(0)
    model = Filters()
    x, target = torch.randn(2, 1, 4, 4).double(), torch.randn(2, 2, 2, 2).double()
    method = METHODS["warpgrad"](model, 1.0, after=["layer"], norm=True)
    shake(method.parameters.phi)
    theta, phi = tree_map(torch.detach, method.parameters)

    def output(theta: Tensors) -> Tensor:
        return functional_call(model, {**theta, **phi}, (x,))

    y, jacobian = output(theta), jacrev(output)(theta)
    by_y = 2 * (y - target) / y.numel()
    slopes = {name: torch.tensordot(by_y, d, dims=4) for name, d in jacobian.items()}
    rests = []
    for rate in (1e-2, 5e-3, 2.5e-3):
        moved = output({name: tensor - rate * slopes[name] for name, tensor in theta.items()}) - y
        linear = sum(torch.tensordot(d, slopes[name], dims=d.dim() - 4) for name, d in jacobian.items())
        rests.append(float((moved + rate * linear).norm()))
    assert rests[0] > 1e-8
    assert rests[0] / rests[1] == pytest.approx(4, rel=0.05) and rests[1] / rests[2] == pytest.approx(4, rel=0.05)


@both_ways
def test_the_approximation_leaves_out_a_part_in_proportion_to_the_rate(vectorised: bool) -> None:
    """Exact and approximate gradients are equal at rate 0; elsewhere half the rate leaves half the gap."""

    def gap(rate: float) -> float:
        exact, approximate = (
            problem(name, steps=1, rate=rate).gradient(vectorised).phi for name in ("warpgrad", "warpgrad approximate")
        )
        return largest_relative_error(approximate, exact)

    assert gap(0.0) < 1e-14
    assert gap(0.1) > 1e-2
    assert gap(1e-3) / gap(5e-4) == pytest.approx(2, rel=0.05)


# --- reductions --------------------------------------------------------------------------------------------

IDENTITY = {
    "warpgrad": {"start": "identity"},
    "warpgrad approximate": {"start": "identity", "approximate": True},
    "warpgrad unrolled": {"start": "identity", "objective": "unrolled"},
}


@both_ways
@pytest.mark.parametrize("learn_lr", [False, True])
@pytest.mark.parametrize("network", ["layers", "convolutions"])
@pytest.mark.parametrize("name", IDENTITY)
def test_an_identity_warp_is_maml(
    name: str, network: str, learn_lr: bool, vectorised: bool, record_property: Record
) -> None:
    """Same forward pass, inner loop and gradient by theta, where the affine of norms adapts in both."""
    if learn_lr and "approximate" in IDENTITY[name]:
        with pytest.raises(UserError, match="no gradient would reach the rates"):
            problem(switches_case(learn_lr=learn_lr, use_warp=IDENTITY[name]), network, steps=3, shaken=False)
        return
    everything = Case(lambda model, rate: METHODS["maml"](model, rate, split_parameters(model, across=())))
    warped = problem(switches_case(learn_lr=learn_lr, use_warp=IDENTITY[name]), network, steps=3, shaken=False)
    maml = problem(everything, network, steps=3)
    found, expected = warped.gradient(vectorised).theta, maml.gradient(vectorised).theta
    label = "learn_lr + use_warp" if learn_lr else name
    check(record_property, "reduces to MAML", label, largest_relative_error(found, expected), 1e-12)
    assert largest_relative_error(warped.trajectory(), maml.trajectory()) < 1e-12
    shake(warped.parameters.phi)
    assert largest_relative_error(warped.gradient(vectorised).theta, expected) > 1e-3


# --- what is detached --------------------------------------------------------------------------------------


class Spy:
    """A task that notes what the meta-objective asks of it; its trajectory can be given without its graph."""

    def __init__(self, one: TaskLearner, cut: bool) -> None:
        self.one, self.cut = one, cut
        self.inner_loop, self.loss_weights = one.inner_loop, one.loss_weights
        self.stepped_from: list[Tensors] = []

    def adapt(self, parameters: Parameters, steps: int | None = None) -> list[Tensors]:
        iterates = self.one.adapt(parameters, steps)
        return tree_map(torch.detach, iterates) if self.cut else iterates

    def adapt_final(self, parameters: Parameters) -> Tensors:
        return self.adapt(parameters)[-1]

    def inner_step(self, theta: Tensors, phi: Tensors, number: int) -> Tensors:
        self.stepped_from.append(theta)
        return self.one.inner_step(theta, phi, number)

    def query_loss(self, theta: Tensors, phi: Tensors, taken: int | None = None) -> Tensor:
        return self.one.query_loss(theta, phi, taken)

    def adapted_loss(self, parameters: Parameters) -> Tensor:
        return self.one.adapted_loss(parameters)

    def multi_step_loss(self, trajectory: list[Tensors], phi: Tensors) -> Tensor:
        return self.one.multi_step_loss(trajectory, phi)


def test_iterates_are_detached() -> None:
    """The gradient by phi does not see the trajectory's graph; the one by theta is MAML's own, from nothing else."""
    one = problem("learn_lr + use_warp", steps=3, tasks=1)
    task = next(unbind_tasks(one.tasks))

    def gradients(cut: bool) -> tuple[Tensors, Spy]:
        spy = Spy(TaskLearner(one.learner, task, one.noise[0], autograd_gradient), cut)
        loss = one.learner.method.meta_objective(one.parameters, spy)
        return dict(
            zip(one.parameters.phi, torch.autograd.grad(loss, list(one.parameters.phi.values())), strict=True)
        ), spy

    whole, spy = gradients(cut=False)
    assert len(spy.stepped_from) == 3
    *earlier, last = spy.stepped_from  # the last step is MAML's as well, and leads back to theta, but not to phi
    assert not any(tensor.requires_grad for theta in earlier for tensor in theta.values())
    ways = torch.autograd.grad(
        [tensor.sum() for tensor in last.values()], list(one.parameters.phi.values()), allow_unused=True
    )
    assert all(gradient is None for gradient in ways)
    assert largest_relative_error(gradients(cut=True)[0], whole) < 1e-14
    unrolled = problem(switches_case(learn_lr=True, use_warp={"objective": "unrolled"}), steps=3, tasks=1).gradient()
    assert largest_relative_error(one.gradient().theta, unrolled.theta) < 1e-13
    assert largest_relative_error(one.gradient().phi, unrolled.phi) > 1e-2


def test_warps_receive_no_inner_update() -> None:
    one = problem("warpgrad", steps=3)
    before = {name: tensor.detach().clone() for name, tensor in one.parameters.phi.items()}
    iterates = one.trajectory()
    one.gradient()
    assert not any(name.startswith("warp_layers") for iterate in iterates for name in iterate)
    assert all(name.startswith("warp_layers") for name in one.parameters.phi)
    torch.testing.assert_close(dict(one.parameters.phi), before, rtol=0, atol=0)
    assert (iterates[-1]["first.weight"] != iterates[0]["first.weight"]).all()


@both_ways
def test_the_loss_is_the_sum_over_look_aheads_and_mamls_own(vectorised: bool) -> None:
    one = problem("warpgrad", steps=3, tasks=2)
    _, losses, measures = one.judged(vectorised)
    by_step, _ = evaluate_tasks(one.learner, one.parameters, one.tasks, one.noise, vectorised)
    torch.testing.assert_close(losses, by_step[:, 1:].sum(1) + by_step[:, -1])
    torch.testing.assert_close(measures["mse"], by_step[:, -1])


# --- warp layers in any model ------------------------------------------------------------------------------


def sequence() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(2, 3, 3, padding=1),
        nn.BatchNorm1d(3),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(12, 5),
        nn.Tanh(),
        nn.Linear(5, 2),
    ).double()


def images() -> nn.Sequential:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.AvgPool2d(2)),
        nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), nn.Tanh()),
        nn.Flatten(),
        nn.Linear(4, 2),
    ).double()


FOREIGN = {
    "sequence": (sequence, (2, 4), None, ["0", "4"], [(3, 3, 3), (5, 5)]),
    "sequence behind the norm": (sequence, (2, 4), ["0", "6"], ["0", "6"], [(3, 3, 3), (2, 2)]),
    "images": (images, (1, 6, 6), None, ["0.0", "1.0"], [(3, 3, 3, 3), (4, 4, 3, 3)]),
    "images behind blocks": (images, (1, 6, 6), ["0", "1"], ["0", "1"], [(3, 3, 3, 3), (4, 4, 3, 3)]),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_warp_layers_stand_where_they_should_in_any_model(name: str) -> None:
    """Behind each layer but the last, or behind the modules that are named, each of its layer's kind and width."""
    make, shape, after, places, shapes = FOREIGN[name]
    model, tasks = make(), regression_tasks(2, shape)
    twin, x = make(), tasks.support_data[0]
    twin.load_state_dict(model.state_dict())
    one = learning(model, METHODS["warpgrad"](model, 0.1, after=after), tasks, steps=2)
    keys = [place.replace(".", "/") for place in places]
    assert list(one.parameters.phi) == [
        f"warp_layers.{key}.maps.0.{kind}" for key in keys for kind in ("weight", "bias")
    ]
    assert [tuple(one.parameters.phi[f"warp_layers.{key}.maps.0.weight"].shape) for key in keys] == shapes
    warps = dict(model.get_submodule("warp_layers").named_children())
    for place, key in zip(places, keys, strict=True):
        twin.get_submodule(place).register_forward_hook(lambda m, i, output, warp=warps[key].maps[0]: warp(output))  # type: ignore[index]
    torch.testing.assert_close(model(x), twin(x))
    assert all(gradient.abs().max() > 0 for gradient in one.gradient().phi.values())
    assert largest_relative_error(one.gradient(vectorised=True), one.gradient()) < 1e-11
    assert [n for n in one.parameters.theta if "weight" in n] == [
        n for n, _ in twin.named_parameters() if "weight" in n
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"after": ["9"]}, r"no module '9'"),
        ({"after": ["1"]}, r"warpgrad behind '1': the model has no convolution"),
        ({"after": ["0"], "norm": True}, r"norm=true needs 2-d convolutions, '0' ends in Conv1d"),
    ],
)
def test_a_place_where_no_warp_can_stand_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        METHODS["warpgrad"](sequence(), 0.1, **options)


def test_a_single_layer_has_no_place_for_a_warp() -> None:
    with pytest.raises(UserError, match="single layer or none"):
        METHODS["warpgrad"](nn.Sequential(nn.Linear(2, 2)), 0.1)


def reference_warp(x: Tensor, convolutions: list[nn.Conv2d], norm: bool, activation: bool, residual: bool) -> Tensor:
    """The forward pass of the authors' WarpLayer, one after the other; a norm's affine is as it begins."""

    def normalised(x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
        return (x - mean) / (variance + 1e-5).sqrt()

    for convolution in convolutions:
        h = normalised(x) if norm else x
        h = F.conv2d(h, convolution.weight, convolution.bias, padding=convolution.padding)  # type: ignore[arg-type]
        if activation:
            h = F.relu(h)
        if residual:
            h = x + h
            if norm:
                h = normalised(h)
        x = h
    return x


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("activation", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_a_warp_layer_is_the_reference_s_with_any_options(
    depth: int, norm: bool, activation: bool, residual: bool
) -> None:
    model, chosen = images(), {"norm": norm, "activation": activation, "residual": residual}
    METHODS["warpgrad"](model, 0.1, after=["0.0"], depth=depth, **chosen)
    layer = model.get_submodule("warp_layers.0/0")
    maps = list(layer.get_submodule("maps").children())
    x = torch.randn(5, 3, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(layer(x), reference_warp(x, maps, **chosen))  # type: ignore[arg-type]
    norms = [name for name, _ in layer.named_parameters() if name.startswith("norms_")]
    assert len(maps) == depth and len(norms) == 2 * depth * norm * (1 + residual)


@pytest.mark.parametrize("network", ["layers", "convolutions"])
def test_the_identity_leaves_the_models_function_as_it_was(network: str) -> None:
    start, plain = (
        problem(case, network, shaken=False) for case in (method_case("warpgrad", start="identity"), "maml")
    )
    x = start.tasks.query_data[0]
    torch.testing.assert_close(start.learner.model(x), plain.learner.model(x), rtol=1e-14, atol=1e-14)
    fill(start.parameters.phi, "warp_layers", 0.1)
    assert (start.learner.model(x) - plain.learner.model(x)).abs().max() > 1e-3
