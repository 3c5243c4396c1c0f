"""The class interface's switches: the command line's methods on a person's own model, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun import Init, State
from metarun.core.meta_learner import MetaLearner, TaskLearner, autograd_gradient, meta_gradient, unbind_tasks
from metarun.core.objectives import regression
from metarun.errors import UserError
from metarun.methods import METHODS, Method, compose
from tests.helpers.laws import Record, check, largest_relative_error, shake
from tests.helpers.problems import Tanh, regression_tasks

ON_LINE: dict[str, tuple[dict[str, Any], Callable[[nn.Module, float], Method]]] = {
    "maml": ({}, METHODS["maml"]),
    "fomaml": ({"use_second_order": False}, METHODS["fomaml"]),
    "msgd": ({"learn_lr": True}, METHODS["msgd"]),
    "T-net": ({"use_t": {"mask": False}}, lambda model, rate: METHODS["mtnet"](model, rate, mask=False)),
    "mtnet": ({"use_t": True}, METHODS["mtnet"]),
    "mtnet full": ({"use_t": {"full": True}}, lambda model, rate: METHODS["mtnet"](model, rate, full=True)),
    "warpgrad": ({"use_warp": True}, METHODS["warpgrad"]),
    "warpgrad approximate": (
        {"use_warp": {"approximate": True}},
        lambda model, rate: METHODS["warpgrad"](model, rate, approximate=True),
    ),
    "warpgrad unrolled": (
        {"use_warp": {"objective": "unrolled"}},
        lambda model, rate: METHODS["warpgrad"](model, rate, objective="unrolled"),
    ),
    "l2f": ({"use_forget": True}, METHODS["l2f"]),
    "learn_lr + use_t": (
        {"learn_lr": True, "use_t": True},
        lambda model, rate: compose(model, rate, learn_lr=True, use_t=True),
    ),
    "learn_lr + use_warp": (
        {"learn_lr": True, "use_warp": True},
        lambda model, rate: compose(model, rate, learn_lr=True, use_warp=True),
    ),
    "learn_lr + use_forget": (
        {"learn_lr": True, "use_forget": True},
        lambda model, rate: compose(model, rate, learn_lr=True, use_forget=True),
    ),
}
SWITCHES = {"use_t": "mtnet", "use_warp": "warpgrad", "use_forget": "l2f"}
every_switch = pytest.mark.parametrize("name", ON_LINE)


def switched(*names: str) -> dict[str, Any]:
    """Arguments of Init with these switches on."""
    return dict.fromkeys(names, True)


def user_objective(state: State) -> Tensor:
    return F.mse_loss(state.model(state.data, state.updated_weights), state["target"])


def prepared(name: str, steps: int = 2) -> Init:
    switches, _ = ON_LINE[name]
    meta = Init(Tanh(), user_objective, user_objective, 0.1, steps, **switches)
    torch.manual_seed(5)
    shake(meta.meta_parameters.phi)
    return meta


@pytest.mark.parametrize("vectorise", [False, True], ids=["task by task", "vectorised"])
@every_switch
def test_same_gradient_as_the_command_lines_method(name: str, vectorise: bool, record_property: Record) -> None:
    """Of every learned tensor, by name, from the same draws."""
    meta, tasks = prepared(name), regression_tasks(3)
    model = Tanh()
    method = ON_LINE[name][1](model, 0.1)
    model.load_state_dict(meta.model.state_dict())
    learner = MetaLearner(model, method, regression, regression, 2, name != "fomaml")
    torch.manual_seed(7)
    loss = meta.optimize(*tasks, batched=True, vectorise=vectorise)
    torch.manual_seed(7)
    noise = torch.rand(3, method.noise(2))
    expected, losses, _ = meta_gradient(learner, method.parameters, tasks, noise, vectorised=False)
    found = {key: parameter.grad for key, parameter in meta.model.named_parameters()}
    united = {**expected.theta, **expected.phi}
    assert set(found) == set(united)
    error = largest_relative_error({key: found[key] for key in united}, united)
    check(record_property, "Init = command line", name, error, 1e-12)
    torch.testing.assert_close(loss, losses.mean())
    assert not loss.requires_grad


@every_switch
def test_adapt_gives_the_last_iterate_of_the_inner_loop(name: str) -> None:
    meta, task = prepared(name), next(unbind_tasks(regression_tasks(1)))
    torch.manual_seed(3)
    weights = meta.adapt(task.support_data, task.support_target)
    torch.manual_seed(3)
    noise = torch.rand(1, meta.learner.method.noise(2))[0]
    expected = TaskLearner(meta.learner, task, noise, autograd_gradient).adapt(meta.meta_parameters)[-1]
    assert tuple(expected) == meta.weight_names
    torch.testing.assert_close(weights, [tensor.detach() for tensor in expected.values()], rtol=1e-13, atol=0)
    assert not any(weight.requires_grad for weight in weights)
    assert any((w - t).abs().max() > 1e-4 for w, t in zip(weights, meta.meta_parameters.theta.values(), strict=True))


@every_switch
def test_parameters_are_all_that_is_learned_and_state_dict_takes_them_along(name: str) -> None:
    meta, other = prepared(name), Init(Tanh(), user_objective, user_objective, 0.1, 2, **ON_LINE[name][0])
    learned = {*meta.meta_parameters.theta.values(), *meta.meta_parameters.phi.values()}
    assert set(meta.parameters()) == learned
    task = next(unbind_tasks(regression_tasks(1)))

    def loss(meta: Init) -> Tensor:
        torch.manual_seed(3)
        return meta.optimize(*task)

    assert loss(meta) != loss(other)
    other.load_state_dict(meta.state_dict())
    torch.testing.assert_close(loss(other), loss(meta), rtol=1e-14, atol=0)


@every_switch
def test_an_outer_step_moves_all_that_is_learned(name: str) -> None:
    meta, tasks = prepared(name), regression_tasks(8)
    before = {key: tensor.detach().clone() for key, tensor in meta.named_parameters()}
    optimizer = torch.optim.SGD(meta.parameters(), 0.1)
    torch.manual_seed(3)
    first = meta.optimize(*tasks, batched=True)
    optimizer.step()
    assert all((tensor != before[key]).any() for key, tensor in meta.named_parameters())
    torch.manual_seed(3)
    assert meta.optimize(*tasks, batched=True) < first


# --- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("learn_lr", [False, True])
@pytest.mark.parametrize(
    "together", [("use_t", "use_warp"), ("use_t", "use_forget"), ("use_warp", "use_forget"), tuple(SWITCHES)]
)
def test_two_of_t_warp_and_forget_are_refused(together: tuple[str, ...], learn_lr: bool) -> None:
    model = Tanh()
    with pytest.raises(UserError, match=f"{' and '.join(together)}: no published method is both"):
        Init(model, user_objective, user_objective, learn_lr=learn_lr, **switched(*together))
    Init(model, user_objective, user_objective, learn_lr=True)  # the model is as it was


class Bare(nn.Module):
    """No convolution and no linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 2))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


def sequential() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 2)).double()


@pytest.mark.parametrize("vectorise", [False, True], ids=["task by task", "vectorised"])
@every_switch
def test_any_switch_on_a_plain_sequence(name: str, vectorise: bool) -> None:
    """The model that most people bring, which runs whatever is added to it."""
    meta = Init(sequential(), user_objective, user_objective, 0.1, 2, **ON_LINE[name][0])
    shake(meta.meta_parameters.phi)
    loss = meta.optimize(*regression_tasks(3), batched=True, vectorise=vectorise)
    assert torch.isfinite(loss)
    assert all(torch.isfinite(parameter.grad).all() for parameter in meta.parameters() if parameter.grad is not None)


@pytest.mark.parametrize(
    ("switch", "message"),
    [
        ("use_t", "mtnet: the model has no convolution or linear layer"),
        ("use_warp", "warpgrad: the model has a single"),
    ],
)
def test_a_model_without_layers_is_refused(switch: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Init(Bare(), user_objective, user_objective, **switched(switch))


@pytest.mark.parametrize("switches", [{"learn_lr": True}, {"use_forget": True}])
def test_rates_and_forgetting_need_no_layers(switches: dict[str, Any]) -> None:
    meta = Init(Bare().double(), user_objective, user_objective, 0.1, 2, **switches)
    meta.optimize(*regression_tasks(2), batched=True)
    assert all(parameter.grad is not None for parameter in meta.parameters())
    assert list(meta.parameters())[-1].grad.abs().max() > 0  # type: ignore[union-attr]


def test_a_grouped_convolution_is_refused_by_t_alone() -> None:
    def model() -> nn.Module:
        return nn.Sequential(nn.Conv1d(2, 4, 1, groups=2), nn.Flatten(), nn.Linear(4, 2))

    with pytest.raises(UserError, match="0 is a grouped convolution, which T cannot act on"):
        Init(model(), user_objective, user_objective, use_t=True)
    for switch in ("learn_lr", "use_warp", "use_forget"):
        Init(model(), user_objective, user_objective, **switched(switch))


@pytest.mark.parametrize("switch", ["learn_lr", *SWITCHES])
def test_a_model_is_prepared_once(switch: str) -> None:
    model = Tanh()
    Init(model, user_objective, user_objective, **switched(switch))
    with pytest.raises(UserError, match=r"the model has a part '.*' already"):
        Init(model, user_objective, user_objective, **switched(switch))


@pytest.mark.parametrize("switch", ["learn_lr", *SWITCHES])
def test_a_refused_preparation_leaves_the_model_as_it_was(switch: str) -> None:
    model, x = Tanh(), torch.randn(4, 3, dtype=torch.float64)
    Init(model, user_objective, user_objective, **switched(switch))
    before = model(x)
    with pytest.raises(UserError):
        Init(model, user_objective, user_objective, **switched(switch))
    torch.testing.assert_close(model(x), before, rtol=0, atol=0)


def test_a_misspelt_place_leaves_the_model_as_it_was() -> None:
    """So that the corrected call can follow, as in a notebook."""
    model, x = Tanh(), torch.randn(4, 3, dtype=torch.float64)
    before = model(x)
    with pytest.raises(UserError, match="no module 'secnod'"):
        Init(model, user_objective, user_objective, use_warp={"after": ["first", "secnod"]})
    torch.testing.assert_close(model(x), before, rtol=0, atol=0)


@every_switch
def test_a_copy_is_a_meta_learner_of_its_own(name: str) -> None:
    """Training the copy does not see, or move, the original."""
    meta, tasks = prepared(name), regression_tasks(3)
    twin = copy.deepcopy(meta)

    def gradients(meta: Init) -> list[Tensor]:
        meta.zero_grad()
        torch.manual_seed(3)
        meta.optimize(*tasks, batched=True)
        return [torch.zeros(()) if p.grad is None else p.grad.clone() for p in meta.parameters()]

    expected = gradients(meta)
    assert largest_relative_error(gradients(twin), expected) < 1e-14
    with torch.no_grad():
        for parameter in meta.parameters():
            parameter.zero_()
    assert largest_relative_error(gradients(twin), expected) < 1e-14
