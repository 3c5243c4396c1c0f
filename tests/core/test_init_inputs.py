"""`Init` with several inputs a task, dicts and keyword arguments, and its adapted weights at work."""

from __future__ import annotations

import copy
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from metarun import Init, State
from metarun.errors import UserError
from tests.helpers.init_cases import METHODS, mse
from tests.helpers.laws import shake
from tests.helpers.problems import Tanh, regression_tasks

Pair = namedtuple("Pair", "left right")
FORMS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tuple": lambda a, b: (a, b),
    "list": lambda a, b: [a, b],
    "dict": lambda a, b: {"left": a, "right": b},
    "namedtuple": lambda a, b: Pair(a, b),
    "nested": lambda a, b: {"sides": (a, [b]), "mask": None},
}


class Product(nn.Module):
    """A layer on the product of two inputs, which stand in any of the forms."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2, dtype=torch.float64)

    def forward(self, data: Any) -> Tensor:
        if isinstance(data, dict) and "mask" in data:
            assert data["mask"] is None
            left, (right,) = data["sides"]
        else:
            left, right = data.values() if isinstance(data, dict) else data
        return self.layer(left * right)


def gradient(meta: Init) -> list[Tensor]:
    found = [parameter.grad for parameter in meta.parameters() if parameter.grad is not None]
    meta.zero_grad()
    return found


@pytest.mark.parametrize("form", FORMS)
def test_trees_of_tensors_are_the_tasks_one_by_one(form: str) -> None:
    """Data in every form, the target as a tree as well: vectorised, looped and a task a call give one gradient."""

    def loss(state: State) -> Tensor:
        return F.mse_loss(state.model(state.data, state.updated_weights), state.target["y"][0])

    def side() -> tuple[Any, Any]:
        left, right, target = (torch.randn(4, 6, size, dtype=torch.float64) for size in (3, 3, 2))
        return FORMS[form](left, right), {"y": [target]}

    def of_task(tree: Any, number: int) -> Any:
        return tree_map(lambda leaf: None if leaf is None else leaf[number], tree)

    meta, sides = Init(Product(), loss, loss, 0.1, 2), (*side(), *side())
    results = []
    for vectorise in (True, False):
        results.append((meta.optimize(*sides, batched=True, vectorise=vectorise), gradient(meta)))
    single = torch.stack([meta.optimize(*(of_task(side, number) for side in sides)) for number in range(4)])
    results.append((single.mean(), [entry / 4 for entry in gradient(meta)]))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-12, atol=1e-14)


def test_as_many_inputs_as_tasks_are_not_taken_for_tasks() -> None:
    """Two tasks of two inputs each: a tuple of as many tensors as there are tasks."""
    left, right, target = (torch.randn(2, 6, size, dtype=torch.float64) for size in (3, 3, 2))
    meta = Init(Product(), mse, mse, 0.1, 2)
    together = meta.optimize((left, right), target, (left, right), target, batched=True)
    each = [meta.optimize((left[i], right[i]), target[i], (left[i], right[i]), target[i]) for i in (0, 1)]
    torch.testing.assert_close(together, torch.stack(each).mean())


@pytest.mark.parametrize("vectorise", [False, True])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            (torch.zeros(2, 6, 3), torch.zeros(3, 6, 3)),
            r"2 in train_data\[0\], 3 in train_data\[1\], 2 in train_target",
        ),
        ({"x": torch.zeros(2, 6, 3), "k": 5}, r"train_data\['k'\] is a int; every leaf is a tensor"),
        ([torch.zeros(2, 6, 3), torch.tensor(1.0)], r"train_data\[1\] is a tensor without axes"),
        (torch.zeros(0, 6, 3), r"0 in train_data, 2 in train_target"),
        ("text", r"train_data is a str"),
    ],
)
def test_batches_of_unlike_sizes_are_told_in_one_line(data: Any, message: str, vectorise: bool) -> None:
    target, good = torch.zeros(2, 6, 2), torch.zeros(2, 6, 3)
    with pytest.raises(UserError, match=message) as error:
        Init(Product(), mse, mse).optimize(data, target, good, target, batched=True, vectorise=vectorise)
    assert "\n" not in str(error.value)


def test_nothing_but_none_is_no_batch() -> None:
    with pytest.raises(UserError, match="found no tensor"):
        Init(Product(), mse, mse).optimize(None, None, None, None, batched=True)


def test_a_single_task_may_hold_anything() -> None:
    """Without `batched` the objectives alone look at data and targets."""

    def loss(state: State) -> Tensor:
        assert state.data["name"] == "curve"
        return F.mse_loss(state.model(state.data["x"], state.updated_weights), state.target)

    x, y = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    meta = Init(Tanh(), loss, loss, 0.1, 1)
    data = {"x": x, "name": "curve"}
    named = meta.optimize(data, y, data, y)
    torch.testing.assert_close(named, Init(meta.model, mse, mse, 0.1, 1).optimize(x, y, x, y))
    meta.adapt(data, y)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2, dtype=torch.float64)

    def forward(self, a: Tensor, b: Tensor, *, scale: float = 1.0) -> Tensor:
        return scale * self.layer(a + b)


def test_a_network_of_several_inputs_and_keywords() -> None:
    def several(state: State) -> Tensor:
        return F.mse_loss(state.model(*state.data, state.updated_weights, scale=2.0), state.target)

    def by_hand(state: State) -> Tensor:
        weight, bias = state.updated_weights
        return F.mse_loss(2 * F.linear(state.data[0] + state.data[1], weight, bias), state.target)

    meta, data = Init(Scaled(), several, several, 0.1, 2), (torch.randn(6, 3).double(), torch.randn(6, 3).double())
    y = torch.randn(6, 2).double()
    found = meta.optimize(data, y, data, y), gradient(meta)
    other = Init(meta.model, by_hand, by_hand, 0.1, 2)
    torch.testing.assert_close(found, (other.optimize(data, y, data, y), gradient(other)))
    weights = meta.adapt(data, y)
    torch.testing.assert_close(meta.predict(weights, *data, scale=2.0), 2 * F.linear(data[0] + data[1], *weights))


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (lambda state: (state.data,), "found a Tensor"),
        (lambda state: (state.updated_weights, state.data), "found a Tensor"),
        (lambda state: (state.data, state.updated_weights[:1]), "found a list of 1"),
        (lambda state: (), "found a NoneType"),
    ],
)
def test_weights_that_are_not_the_last_argument_are_told(arguments: Callable[[State], Any], found: str) -> None:
    def loss(state: State) -> Tensor:
        return state.model(*arguments(state)).mean()

    x, y = torch.randn(6, 3).double(), torch.randn(6, 2).double()
    with pytest.raises(UserError, match=f"the list of the 4 weights that adapt.*{found}; write state.model"):
        Init(Tanh(), loss, loss).optimize(x, y, x, y)


# --- adapted weights at work -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_predict_is_what_the_outer_objective_sees(method: str) -> None:
    seen: list[Tensor] = []

    def outer(state: State) -> Tensor:
        seen.append(state.model(state.data, state.updated_weights).detach())
        return F.mse_loss(seen[-1], state.target) + mse(state)

    meta = Init(Tanh(), mse, outer, 0.1, 2, **METHODS[method])
    shake(meta.meta_parameters.phi)
    x, y, new, truth = (side[0] for side in regression_tasks(1))
    torch.manual_seed(4)
    meta.optimize(x, y, new, truth)
    torch.manual_seed(4)  # the masks of MT-net
    found = meta.predict(meta.adapt(x, y), new)
    torch.testing.assert_close(found, seen[-1], rtol=1e-12, atol=1e-14)
    assert not found.requires_grad
    assert (found - meta.predict(list(meta.meta_parameters.theta.values()), new)).abs().max() > 1e-3


def test_predict_without_adapting_is_the_model() -> None:
    meta = Init(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)), mse, mse)
    x = torch.randn(50, 3)
    meta.model[1].running_mean += 1  # type: ignore[index]
    before = copy.deepcopy(meta.model.state_dict())
    weights = [tensor.detach() for tensor in meta.meta_parameters.theta.values()]
    meta.eval()
    torch.testing.assert_close(meta.predict(weights, x), meta.model(x))
    meta.train()
    torch.manual_seed(0)
    found = meta.predict(weights, x)
    torch.testing.assert_close(dict(meta.model.state_dict()), dict(before), rtol=0, atol=0)  # no running statistics
    torch.manual_seed(0)
    torch.testing.assert_close(found, meta.model(x).detach())


def test_predict_takes_the_layers_learned_across_tasks_as_they_are_now() -> None:
    meta = Init(Tanh(), mse, mse, 0.1, 2, use_t={"mask": False})
    x, y, new, _ = (side[0] for side in regression_tasks(1))
    weights = meta.adapt(x, y)
    before = meta.predict(weights, new)
    shake(meta.meta_parameters.phi)
    assert (meta.predict(weights, new) - before).abs().max() > 1e-3


def test_predict_with_weights_of_another_network_is_told() -> None:
    meta = Init(Tanh(), mse, mse)
    with pytest.raises(UserError, match=r"the list of the 4 weights .*found a list of 3"):
        meta.predict(meta.adapt(torch.randn(6, 3).double(), torch.randn(6, 2).double())[:3], torch.randn(6, 3).double())
