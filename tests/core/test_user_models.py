"""`Init` on other people's modules: exact, or refused in one line; the model and `.grad` are as they were."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from metarun import Init, State
from metarun.errors import UserError
from tests.helpers.init_cases import mse

both_ways = pytest.mark.parametrize("vectorise", [False, True], ids=["looped", "vectorised"])
both_orders = pytest.mark.parametrize("order", [True, False], ids=["second order", "first order"])


def batch(*shape: int, tasks: int = 2, outputs: int = 2) -> list[Tensor]:
    """Support and query of regression tasks, each [tasks, 6, ...]."""
    torch.manual_seed(7)
    sides = [(torch.randn(tasks, 6, *shape), torch.randn(tasks, 6, outputs)) for _ in range(2)]
    return [tensor.double() for side in sides for tensor in side]


def gradient(meta: Init, *tasks: Any, **how: Any) -> Tensor:
    meta.zero_grad()
    meta.optimize(*tasks, **how)
    return torch.cat([p.grad.flatten() for p in meta.parameters() if p.grad is not None])


def same(found: Tensor, expected: Tensor, bound: float = 1e-10) -> None:
    assert float((found - expected).norm() / expected.norm()) < bound


class Bag(nn.Module):
    """Word numbers -> the mean of their vectors -> 2 outputs."""

    def __init__(self, words: nn.Module) -> None:
        super().__init__()
        self.words, self.head = words, nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        found = self.words(x)
        return self.head(found.mean(1) if found.dim() == 3 else found)


def words() -> list[Tensor]:
    _, target, _, other = batch(1)
    return [torch.randint(0, 9, (2, 6, 5)), target, torch.randint(0, 9, (2, 6, 5)), other]


# --- an objective that does not depend on the weights ------------------------------------------------------


@both_ways
@pytest.mark.parametrize("side", ["inner", "outer"])
@pytest.mark.parametrize("scaled", [False, True], ids=["the model itself", "beside a parameter of the objective's"])
def test_an_objective_that_calls_the_model_itself_is_refused(scaled: bool, side: str, vectorise: bool) -> None:
    net, scale = nn.Linear(3, 2).double(), torch.ones((), requires_grad=True)

    def loss(state: State) -> Tensor:
        return (net(state.data) * (scale if scaled else 1) - state.target).square().mean()

    pair = (loss, mse) if side == "inner" else (mse, loss)
    with pytest.raises(UserError, match=r"loss: does not depend on the weights; run the network as state\.model"):
        Init(net, *pair).optimize(*batch(3), batched=True, vectorise=vectorise)
    assert all(parameter.grad is None for parameter in net.parameters())


@both_ways
def test_an_objective_that_sees_the_norms_affine_alone_is_refused(vectorise: bool) -> None:
    """It does depend on what is learned, but on nothing that adapts."""
    net = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2)).double()

    def loss(state: State) -> Tensor:
        return state.model(torch.zeros_like(state.data), [w.detach() for w in state.updated_weights]).square().mean()

    with pytest.raises(UserError, match="loss: does not depend on the weights"):
        Init(net, mse, loss).optimize(*batch(3), batched=True, vectorise=vectorise)


# --- activation checkpoints ---------------------------------------------------------------------------------


class Checkpointed(nn.Module):
    """how: whether reentrant; None: without a checkpoint."""

    def __init__(self, how: bool | None) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.how = how
        self.a = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.BatchNorm1d(8), nn.Linear(8, 2))
        self.head = nn.Linear(2, 2)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        if self.how is None:
            return self.head(self.a(x).tanh())
        return self.head(checkpoint(self.a, x, use_reentrant=self.how).tanh())


@both_ways
@both_orders
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("how", [False, True], ids=["not reentrant", "reentrant"])
def test_activation_checkpoints_are_exact(how: bool, train: bool, order: bool, vectorise: bool) -> None:
    with_and_without = []
    for each in (how, None):
        meta = Init(Checkpointed(each), mse, mse, 0.05, 3, use_second_order=order).train(train)
        with_and_without.append(gradient(meta, *batch(3), batched=True, vectorise=vectorise))
    same(*with_and_without, bound=1e-12)


class Nested(Checkpointed):
    def forward(self, x: Tensor) -> Tensor:
        def inner(x: Tensor) -> Tensor:
            return self.a(x) if self.how is None else checkpoint(self.a, x, use_reentrant=self.how)

        def outer(x: Tensor) -> Tensor:
            return self.head(inner(x).tanh())

        return outer(x) if self.how is None else checkpoint(outer, x, use_reentrant=self.how)


@pytest.mark.parametrize("how", [False, True], ids=["not reentrant", "reentrant"])
def test_checkpoints_within_checkpoints_are_exact(how: bool) -> None:
    checkpointed, plain = (
        gradient(Init(Nested(each), mse, mse, 0.05, 3), *batch(3), batched=True) for each in (how, None)
    )
    same(checkpointed, plain)


class Offloaded(Checkpointed):
    def forward(self, x: Tensor) -> Tensor:
        if self.how is None:
            return super().forward(x)
        with torch.autograd.graph.save_on_cpu():
            return self.head(self.a(x).tanh())


def test_saved_tensor_hooks_are_exact_looped_and_refused_vectorised() -> None:
    checkpointed, plain = (
        gradient(Init(Offloaded(each), mse, mse, 0.05, 3), *batch(3), batched=True) for each in (True, None)
    )
    same(checkpointed, plain)
    with pytest.raises(UserError, match=r"vectorise=True: the model \(Offloaded\) .*give vectorise=False"):
        Init(Offloaded(True), mse, mse).optimize(*batch(3), batched=True, vectorise=True)


# --- inference mode ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_the_callers_mode_does_not_matter(mode: Callable[[], Any]) -> None:
    meta, tasks = Init(nn.Linear(3, 2).double(), mse, mse), [side[0] for side in batch(3)]
    expected, weights = gradient(meta, *tasks), meta.adapt(*tasks[:2])
    with mode():
        made = [side + 0 for side in tasks]
        found, adapted = gradient(meta, *made), meta.adapt(*made[:2])
    assert torch.equal(found, expected)
    torch.testing.assert_close(adapted, weights, rtol=0, atol=0)


def test_a_model_that_was_made_in_inference_mode_adapts() -> None:
    with torch.inference_mode():
        meta = Init(nn.Linear(3, 2).double(), mse, mse)
        weights = meta.adapt(*(side[0] for side in batch(3)[:2]))
    assert not any(weight.is_inference() for weight in weights)


# --- what is not finite --------------------------------------------------------------------------------------


def with_root(state: State) -> Tensor:
    output = state.model(state.data, state.updated_weights)
    return (output - state.target).square().mean() + (output - output.detach()).square().sum().sqrt()


@both_ways
@pytest.mark.parametrize("side", ["inner", "outer"])
def test_a_gradient_that_is_not_finite_is_told_and_leaves_grad_as_it_was(side: str, vectorise: bool) -> None:
    net, tasks = nn.Linear(3, 2).double(), batch(3)
    meta = Init(net, *((with_root, mse) if side == "inner" else (mse, with_root)))
    message = {
        "inner": "loss of task 0 is nan: the inner objective is .*, but its gradient by weight, bias is not finite",
        "outer": "the gradient of task 0 by weight, bias is not finite, its outer loss is .*; .grad is as it was",
    }[side]
    held = torch.ones_like(net.weight)
    net.weight.grad = held
    with pytest.raises(FloatingPointError, match=message):
        meta.optimize(*tasks, batched=True, vectorise=vectorise)
    assert net.weight.grad is held and bool((held == 1).all()) and net.bias.grad is None


def test_adapt_returns_no_weights_that_are_not_finite() -> None:
    data, target, *_ = (side[0] for side in batch(3))
    with pytest.raises(FloatingPointError, match="adapt: the weights are not finite: the inner loop diverged"):
        Init(nn.Linear(3, 2).double(), mse, mse, 1e200, 5).adapt(data, target)
    with pytest.raises(FloatingPointError, match=r"adapt: .* the inner objective is nan before the first inner step"):
        Init(nn.Linear(3, 2).double(), mse, mse).adapt(data, target * float("nan"))


# --- vectorised ----------------------------------------------------------------------------------------------


class Branching(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.layer = how, nn.Linear(3, 2)
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "item":
            return self.layer(x) * x.mean().item()
        if self.how == "branch":
            return self.layer(x if x.mean() > 0 else -x)
        self.mean.mul_(0.9).add_(0.1 * x.mean(0))
        return self.layer(x - self.mean)


class Recurrent(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])


ALONE = {
    "GRU": (lambda: Recurrent(nn.GRU(3, 4, batch_first=True)), (5, 3), r"layer \(GRU\)"),
    "LSTM": (lambda: Recurrent(nn.LSTM(3, 4, batch_first=True)), (5, 3), r"layer \(LSTM\)"),
    "RNN": (lambda: Recurrent(nn.RNN(3, 4, batch_first=True)), (5, 3), r"layer \(RNN\)"),
    "dropout": (lambda: nn.Sequential(nn.Linear(3, 2), nn.Dropout()), (3,), r"1 \(Dropout\)"),
    "item": (lambda: Branching("item"), (3,), r"the model \(Branching\)"),
    "branch": (lambda: Branching("branch"), (3,), r"the model \(Branching\)"),
    "buffer": (lambda: Branching("buffer"), (3,), r"the model \(Branching\)"),
    "spectral norm": (lambda: parametrizations.spectral_norm(nn.Linear(3, 2)), (3,), r"\(_SpectralNorm\)"),
}


@pytest.mark.parametrize("name", ALONE)
def test_what_cannot_be_vectorised_is_told_with_its_layer_and_works_looped(name: str) -> None:
    make, shape, layer = ALONE[name]
    meta, tasks = Init(make().double(), mse, mse), batch(*shape)
    assert gradient(meta, *tasks, batched=True).isfinite().all()
    meta.zero_grad()
    with pytest.raises(UserError, match=rf"^vectorise=True: .*{layer} cannot be computed .*give vectorise=False$"):
        meta.optimize(*tasks, batched=True, vectorise=True)
    assert all(parameter.grad is None for parameter in meta.parameters())


def test_a_mistake_of_the_users_own_stays_what_it_is() -> None:
    def wrong(state: State) -> Tensor:
        return (state.model(state.data, state.updated_weights) @ torch.ones(5, dtype=torch.float64)).mean()

    for vectorise in (False, True):
        with pytest.raises(RuntimeError, match="size mismatch") as found:
            Init(nn.Linear(3, 2).double(), wrong, mse).optimize(*batch(3), batched=True, vectorise=vectorise)
        assert not isinstance(found.value, UserError)


SWITCHES: dict[str, dict[str, Any]] = {
    "maml": {},
    "msgd": {"learn_lr": True},
    "mtnet": {"use_t": {"mask": False}},
    "warpgrad": {"use_warp": {"after": ["words"], "start": "identity"}},
    "l2f": {"use_forget": True},
}


@both_ways
@pytest.mark.parametrize("name", [name for name in SWITCHES if name != "warpgrad"])
def test_sparse_embeddings_are_what_dense_ones_are(name: str, vectorise: bool) -> None:
    found = []
    for sparse in (True, False):
        torch.manual_seed(3)
        meta = Init(Bag(nn.Embedding(9, 4, sparse=sparse)).double(), mse, mse, 0.1, 2, **SWITCHES[name])
        found.append(gradient(meta, *words(), batched=True, vectorise=vectorise))
        assert meta.model.words.sparse == sparse  # type: ignore[union-attr]
    same(*found, bound=1e-13)


# --- the model is as it was ------------------------------------------------------------------------------------


def old_weight_norm() -> nn.Module:
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(nn.Linear(3, 2))


STATEFUL: dict[str, Callable[[], nn.Module]] = {
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(3, 2)),
    "spectral norm by a hook": lambda: nn.utils.spectral_norm(nn.Linear(3, 2)),
    "weight norm by a hook": old_weight_norm,
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(3, 2)),
    "batch norm": lambda: nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)),
    "a running mean": lambda: Branching("buffer"),
}


def everything(model: nn.Module) -> dict[str, Any]:
    found: dict[str, Any] = {
        f"{prefix}/{name}": value.detach().clone()
        for prefix, module in model.named_modules()
        for held in (module._parameters, module._buffers, vars(module))
        for name, value in held.items()
        if isinstance(value, Tensor)
    }
    return found | {f"{prefix}/mode": module.training for prefix, module in model.named_modules()}


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", STATEFUL)
def test_the_model_is_as_it_was_after_adapt_and_optimize(name: str, train: bool) -> None:
    model = STATEFUL[name]().double().train(train)
    meta, tasks = Init(model, mse, mse, 0.1, 2), batch(3)
    before = everything(model)
    first = gradient(meta, *tasks, batched=True)
    meta.adapt(tasks[0][0], tasks[1][0])
    after = everything(model)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[n], v) if isinstance(v, Tensor) else after[n] == v for n, v in before.items())
    assert torch.equal(gradient(meta, *tasks, batched=True), first)
    if name != "weight norm by a hook":  # torch itself leaves a graph there
        copy.deepcopy(meta)


# --- refused ---------------------------------------------------------------------------------------------------


def in_place_compiled() -> nn.Module:
    model = nn.Linear(3, 2)
    model.compile()
    return model


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "DataParallel": (lambda: nn.DataParallel(nn.Linear(3, 2)), r"model \(DataParallel\) .* give .* model\.module"),
    "compiled": (lambda: torch.compile(nn.Linear(3, 2)), r"\(OptimizedModule\) .*model\._orig_mod"),  # type: ignore
    "compiled in place": (in_place_compiled, r"\(Linear\) cannot be adapted: give it as it was before .compile\(\)"),
    "scripted": (lambda: scripted(), "RecursiveScriptModule.*give the Python module that it was made from"),
    "inside": (lambda: nn.Sequential(nn.DataParallel(nn.Linear(3, 2))), r"^0 \(DataParallel\)"),
    "max_norm": (lambda: Bag(nn.Embedding(9, 4, max_norm=1.0)), r"^words \(Embedding\) .*give max_norm=None"),
    "EmbeddingBag": (lambda: Bag(nn.EmbeddingBag(9, 4)), r"^words \(EmbeddingBag\): torch has no second derivative"),
    "scaled": (lambda: Bag(nn.Embedding(9, 4, scale_grad_by_freq=True)), "scale_grad_by_freq=False"),
}


def scripted() -> nn.Module:
    with pytest.warns((DeprecationWarning, FutureWarning)):
        return torch.jit.script(nn.Linear(3, 2))


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_adapted_is_refused_with_what_to_give(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(UserError, match=message):
        Init(make(), mse, mse)


def test_an_embedding_bag_learns_by_first_order() -> None:
    meta = Init(Bag(nn.EmbeddingBag(9, 4)).double(), mse, mse, use_second_order=False)
    assert gradient(meta, *words(), batched=True).isfinite().all()


def test_an_operation_without_a_second_derivative_is_named() -> None:
    def loss(state: State) -> Tensor:
        output = state.model(state.data, state.updated_weights)
        return torch.nn.functional.multi_margin_loss(output, torch.zeros(6, dtype=torch.int64))

    with pytest.raises(UserError, match=r"no second derivative of multi_margin_loss; .*use_second_order=False"):
        Init(nn.Linear(3, 2).double(), loss, mse).optimize(*(side[0] for side in batch(3)))
    assert Init(nn.Linear(3, 2).double(), loss, mse, use_second_order=False).optimize(*(s[0] for s in batch(3))) > 0
