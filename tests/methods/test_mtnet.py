"""T-net and MT-net (arXiv 1801.05558): what T and the masks do to an inner step, and how masks are drawn."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.data import method_noise
from metarun.errors import UserError
from metarun.methods import METHODS, Tensors
from metarun.methods.mtnet import straight_through
from tests.helpers.laws import (
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
    without,
)
from tests.helpers.problems import regression_tasks

both_ways = pytest.mark.parametrize("vectorised", [False, True], ids=["looped", "vectorised"])
CERTAIN = 60.0  # sigmoid(60) is 1 to double precision's last places
MASKED = {"mtnet": method_case("mtnet"), "mtnet full": method_case("mtnet", full=True)}
MASKED["learn_lr + use_t"] = switches_case(learn_lr=True, use_t=True)


def masks_of(one: Problem, task: int = 0) -> list[Tensors]:
    def no_gradient(theta: Tensors) -> Tensors:
        raise AssertionError("a mask does not depend on the support set")

    _, (_, masks) = one.learner.method.begin(*one.parameters, no_gradient, one.noise[task])
    return masks


def as_t_net(one: Problem) -> Problem:
    fill(one.parameters.phi, "mask_logits", CERTAIN)
    return one


# --- T -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["T-net", "mtnet"])
def test_one_step_moves_the_product_along_the_span_of_t(name: str, record_property: Record) -> None:
    """Q = T W moves by -alpha T diag(m) T' dL/dy x', and T b by -alpha T diag(m) T' dL/dy."""
    model, tasks = nn.Linear(3, 4).double(), regression_tasks(1, (3,), outputs=4)
    method = METHODS["mtnet"](model, 0.1, mask=name == "mtnet")
    shake(method.parameters.phi)
    one = learning(model, method, tasks, steps=1)
    if name == "mtnet":
        fill(method.parameters.phi, "mask_logits", 0.0)
        one = one._replace(noise=torch.tensor([[0.7, 0.2, 0.4, 0.9]]).double())
    (theta, phi), x, target = method.parameters, tasks.support_data[0], tasks.support_target[0]
    before, after = (method.weights(t, phi) for t in one.trajectory())
    t = phi["t_layers.weight"].detach()
    mask = torch.tensor([1.0, 0.0, 0.0, 1.0] if name == "mtnet" else [1.0] * 4).double()
    y = (x @ theta["weight"].T + theta["bias"]) @ t.T  # T after weight and bias, on the outputs
    by_y = 2 * (y - target).detach() / y.numel()
    move = -0.1 * t @ torch.diag(mask) @ t.T @ by_y.T
    found = [(after[key] - before[key]).detach() for key in ("weight", "bias")]
    error = largest_relative_error(found, [move @ x, move.sum(1)])
    check(record_property, "closed form", name, error, 1e-12)


def test_t_on_the_weights_is_t_on_the_outputs() -> None:
    """T is a 1x1 convolution behind the convolution and its bias, before the norm."""
    one = problem("T-net", "convolutions")
    (theta, phi), images = one.parameters, one.tasks.support_data[0]
    run = one.learner.method.weights(theta, phi)
    for name, bias in (("first", theta["first.bias"]), ("second", None)):
        x = images.expand(-1, theta[f"{name}.weight"].shape[1], -1, -1)
        behind = F.conv2d(F.conv2d(x, theta[f"{name}.weight"], bias), phi[f"t_layers.{name}/weight"][:, :, None, None])
        torch.testing.assert_close(F.conv2d(x, run[f"{name}.weight"], run.get(f"{name}.bias")), behind)


def test_first_values() -> None:
    one = problem("mtnet", shaken=False).parameters
    for name, size in (("first", 8), ("second", 2)):
        torch.testing.assert_close(one.phi[f"t_layers.{name}/weight"].detach(), torch.eye(size).double())
        assert torch.equal(one.phi[f"mask_logits.{name}/weight"].detach(), torch.zeros(size).double())
    for network, std in (("layers", 0.1), ("convolutions", 0.01)):
        full = problem("mtnet full", network, shaken=False).parameters
        logits = {name: t for name, t in full.phi.items() if name.startswith("mask_logits")}
        assert [t.shape for t in logits.values()] == [t.shape for n, t in full.theta.items() if "norm" not in n]
        assert 0.3 * std < torch.cat([t.flatten() for t in logits.values()]).std() < 2 * std


# --- reductions --------------------------------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize("network", ["layers", "convolutions"])
@pytest.mark.parametrize("name", ["T-net", *MASKED])
def test_identity_and_full_masks_are_maml(name: str, network: str, vectorised: bool, record_property: Record) -> None:
    """By theta: the gradient of T is not zero, so that they part after an outer step."""
    one, maml = (problem(each, network, shaken=False) for each in (name, "maml"))
    found = (one if name == "T-net" else as_t_net(one)).gradient(vectorised)
    expected = maml.gradient(vectorised)
    check(record_property, "reduces to MAML", name, largest_relative_error(found.theta, expected.theta), 1e-12)
    assert found.phi["t_layers.first/weight" if network == "layers" else "t_layers.head/weight"].abs().max() > 1e-3


@both_ways
@pytest.mark.parametrize("name", MASKED)
def test_empty_masks_are_plain_joint_training(name: str, vectorised: bool) -> None:
    one, plain = problem(name), problem(name, steps=0)
    fill(one.parameters.phi, "mask_logits", -CERTAIN)
    for parameters in (one.parameters, plain.parameters):
        for part, value in {"t_layers.first": 0.3, "t_layers.second": -0.2}.items():
            fill(parameters.phi, part, value)
    found, expected = one.gradient(vectorised), plain.gradient(vectorised)
    assert largest_relative_error(found.theta, expected.theta) < 1e-12
    skip = ["mask_logits", "inner_rates"]
    assert largest_relative_error(without(found.phi, skip), without(expected.phi, skip)) < 1e-12
    adapted = one.trajectory()
    assert all(torch.equal(adapted[0][key], adapted[-1][key]) for key in adapted[0])


# --- masks -------------------------------------------------------------------------------------------------


def test_a_mask_is_zero_or_one_and_its_logit_gets_the_soft_draws_derivative() -> None:
    uniform = torch.rand(1000, dtype=torch.float64)
    logit = torch.full((1000,), 0.4, dtype=torch.float64, requires_grad=True)
    mask = straight_through(logit, uniform)
    assert set(mask.tolist()) == {0.0, 1.0}
    (found,) = torch.autograd.grad(mask.sum(), logit)
    soft = torch.sigmoid(0.4 + torch.log(uniform / (1 - uniform)))
    torch.testing.assert_close(found, soft * (1 - soft))
    assert (found > 0).all()


@pytest.mark.parametrize("logit", [-2.0, 0.0, 1.5])
def test_the_mean_mask_is_the_sigmoid_of_its_logit(logit: float) -> None:
    """Within three standard errors, on the noise that a run draws."""
    draws = method_noise(0, "train", 0, 20_000, 1)
    probability = 1 / (1 + math.exp(-logit))
    mean = float(straight_through(torch.full_like(draws, logit), draws).mean())
    assert abs(mean - probability) < 3 * math.sqrt(probability * (1 - probability) / len(draws))


@pytest.mark.parametrize("end", [0.0, 1 - 2.0**-24])
@pytest.mark.parametrize("logit", [-CERTAIN, 0.0, CERTAIN])
def test_the_ends_of_the_noise_are_finite(logit: float, end: float) -> None:
    zeta = torch.tensor(logit, requires_grad=True)
    mask = straight_through(zeta, torch.tensor(end))
    (slope,) = torch.autograd.grad(mask, zeta)
    assert float(mask.detach()) in (0.0, 1.0) and torch.isfinite(slope)


@pytest.mark.parametrize("name", MASKED)
def test_which_weights_share_a_mask_and_for_how_long(name: str) -> None:
    """A unit's weights and bias move together in all steps of a task; a full mask is drawn for each weight and step."""
    one = problem(name, steps=3, tasks=4)
    moved = [
        [{key: (a[key] != b[key]).double() for key in a} for a, b in itertools.pairwise(iterates)]
        for iterates in (one.trajectory(task) for task in range(4))
    ]
    weights = [[step["first.weight"].flatten(1) for step in steps] for steps in moved]
    same_in_all_steps = all(torch.equal(steps[0], step) for steps in weights for step in steps)
    units_whole = all(step["first.weight"].flatten(1).std(1).max() == 0 for steps in moved for step in steps)
    shared_bias = all(
        torch.equal(step["first.weight"].flatten(1)[:, 0], step["first.bias"]) for steps in moved for step in steps
    )
    full = name == "mtnet full"
    assert same_in_all_steps == units_whole == shared_bias == (not full)
    assert len({str([step.tolist() for step in steps]) for steps in weights}) == 4  # different over tasks


def test_a_parameter_outside_layers_has_no_mask() -> None:
    """The affine of a norm layer is phi; a bare parameter adapts in full."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.scale = nn.Linear(3, 2).double(), nn.Parameter(torch.ones(2, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) * self.scale

    model = Scaled()
    method = METHODS["mtnet"](model, 0.1)
    fill(method.parameters.phi, "mask_logits", -CERTAIN)
    first, last = learning(model, method, regression_tasks(1), steps=1).trajectory()
    assert torch.equal(first["layer.weight"], last["layer.weight"]) and (first["scale"] != last["scale"]).all()


def test_masks_are_a_function_of_seed_split_and_index() -> None:
    """Not of which tasks share a batch."""
    one = problem("mtnet", tasks=5)
    each = one.learner.method.noise(2)

    def masks(seed: int, split: str, first: int, count: int) -> list[list[float]]:
        drawn = one._replace(noise=method_noise(seed, split, first, count, each))
        return [torch.cat(list(masks_of(drawn, task)[0].values())).tolist() for task in range(count)]

    together = masks(3, "train", 0, 5)
    assert together == masks(3, "train", 0, 2) + masks(3, "train", 2, 3)
    for other in (masks(4, "train", 0, 5), masks(3, "val", 0, 5), masks(3, "train", 5, 5)):
        assert together != other


def test_noise_is_asked_for_as_it_is_used() -> None:
    per_task, full, t_net = (problem(name).learner.method.noise for name in ("mtnet", "mtnet full", "T-net"))
    assert [per_task(steps) for steps in (0, 1, 5)] == [10, 10, 10]
    assert [full(steps) for steps in (0, 1, 5)] == [50, 50, 250]
    assert [t_net(steps) for steps in (0, 5)] == [0, 0]


# --- refusals ----------------------------------------------------------------------------------------------


def test_a_grouped_convolution_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=2))
    with pytest.raises(UserError, match=r"mtnet: 1 is a grouped convolution"):
        METHODS["mtnet"](model, 0.1)
    assert not hasattr(model, "t_layers")
