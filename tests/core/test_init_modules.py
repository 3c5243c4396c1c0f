"""The methods on other people's modules: what adapts, which layers are acted on, types, ties, lazy layers, copies."""

from __future__ import annotations

import io
import logging
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from metarun import Init, State
from metarun.errors import UserError
from metarun.methods import METHODS as ON_COMMAND_LINE
from metarun.methods.layers import head_names
from metarun.methods.mtnet import straight_through
from tests.helpers.init_cases import METHODS, mse
from tests.helpers.laws import fill, largest_relative_error, shake
from tests.helpers.problems import Tanh, Twice, regression_tasks

every_method = pytest.mark.parametrize("method", METHODS)


def gradients(meta: Init) -> dict[str, Tensor]:
    found = {name: parameter.grad for name, parameter in meta.named_parameters() if parameter.grad is not None}
    meta.zero_grad()
    return found


def optimized(meta: Init, *tasks: Any, seed: int = 3) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    assert meta.optimize(*tasks, batched=True).isfinite()
    return gradients(meta)


# --- what adapts -------------------------------------------------------------------------------------------


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 2))


@every_method
def test_a_frozen_model_is_told_with_what_is_frozen(method: str) -> None:
    switches = METHODS[method]
    for _ in range(2):  # as often as it is asked for
        with pytest.raises(
            UserError, match=r"no parameter of the model adapts .*4 are frozen .*first\.weight"
        ) as error:
            Init(Tanh().requires_grad_(False), mse, mse, **switches)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("method", [name for name in METHODS if "warp" not in name])
def test_norms_alone_do_not_adapt(method: str) -> None:
    model = normed().requires_grad_(False)
    model[1].requires_grad_()  # type: ignore[index]
    with pytest.raises(UserError, match=r"4 are frozen .*2 are learned across tasks only: 1\.weight, 1\.bias"):
        Init(model, mse, mse, **METHODS[method])


def test_norms_adapt_behind_warp_layers() -> None:
    model = normed().requires_grad_(False)
    model[1].requires_grad_()  # type: ignore[index]
    assert Init(model, mse, mse, use_warp=True).weight_names == ("1.weight", "1.bias")


@pytest.mark.parametrize("method", ["maml", "msgd", "mtnet", "warpgrad", "l2f", "anil", "boil"])
def test_the_commands_methods_say_so_as_well(method: str) -> None:
    with pytest.raises(UserError, match="no parameter of the model adapts"):
        ON_COMMAND_LINE[method](Tanh().requires_grad_(False), 0.1)


def test_anil_with_a_frozen_head_and_boil_with_a_head_alone() -> None:
    model = Tanh()
    model.second.requires_grad_(False)
    with pytest.raises(UserError, match=r"anil: no parameter .*2 are frozen .*2 are learned across tasks only: first"):
        ON_COMMAND_LINE["anil"](model, 0.1)
    with pytest.raises(UserError, match=r"boil: no parameter .*2 are learned across tasks only: 0\.weight"):
        ON_COMMAND_LINE["boil"](nn.Sequential(nn.Linear(3, 2)), 0.1)


def test_a_model_without_parameters_is_told() -> None:
    with pytest.raises(UserError, match="adapts to a task \\(it has none\\)"):
        Init(nn.Flatten(), mse, mse)


@every_method
def test_a_frozen_body_stays_and_the_head_adapts(method: str) -> None:
    model = Tanh()
    model.first.requires_grad_(False)
    meta = Init(model, mse, mse, 0.1, 2, **METHODS[method])
    assert meta.weight_names == ("second.weight", "second.bias")
    found = optimized(meta, *regression_tasks(2))
    assert not any(name.startswith("model.first") for name in found)


# --- layers that are learned across tasks only -------------------------------------------------------------


def test_across_is_anil_and_boil() -> None:
    for names, method in ((["first"], "anil"), (["second.weight", "second.bias"], "boil")):
        model = Tanh()
        meta = Init(model, mse, mse, 0.1, 2, across=names)
        theta, phi = ON_COMMAND_LINE[method](model, 0.1).parameters
        assert meta.meta_parameters.theta.keys() == theta.keys() and meta.meta_parameters.phi.keys() == phi.keys()
        assert len(optimized(meta, *regression_tasks(2))) == 4  # all are learned


@every_method
def test_across_goes_with_every_method(method: str) -> None:
    meta = Init(normed(), mse, mse, 0.1, 2, **METHODS[method], across=["3"])
    assert set(meta.weight_names) == {"0.weight", "0.bias"} | ({"1.weight", "1.bias"} if "warp" in method else set())
    data, target = (side.float() for side in regression_tasks(2)[:2])
    found = optimized(meta, data, target, data, target)
    assert {"model.3.weight", "model.3.bias"} <= found.keys()
    before = {name: tensor.clone() for name, tensor in meta.model.named_parameters()}
    meta.adapt(data[0], target[0])
    torch.testing.assert_close(dict(meta.model.named_parameters()), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("across", "message"),
    [
        (["frist"], r"no parameter or module 'frist'; did you mean 'first'\?"),
        (["first.wieght"], r"'first.wieght'; did you mean 'first.weight'\?"),
        ([""], "no parameter or module ''"),
        ("first", r"across='first': give a list of names, \['first'\]"),
        (["first", "second"], r"no parameter of the model adapts .*4 are learned across tasks only"),
    ],
)
def test_names_of_across_that_cannot_be_are_told(across: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Init(Tanh(), mse, mse, across=across)


def test_across_of_a_module_without_parameters() -> None:
    with pytest.raises(UserError, match=r"across: '2' has no parameters \(Tanh\)"):
        Init(normed(), mse, mse, across=["2"])


# --- layers that methods act on ----------------------------------------------------------------------------


class Sequence(nn.Module):
    """[batch, 5, 3] -> [batch, 2] through a recurrent network, by its outputs or by its hidden states alone."""

    def __init__(self, cell: Callable[..., nn.Module], by: str = "outputs", bidirectional: bool = False) -> None:
        super().__init__()
        self.r = cell(3, 4, num_layers=2, batch_first=True, bidirectional=bidirectional)
        self.h, self.by = nn.Linear(4 * (1 + bidirectional), 2), by
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        if self.by == "packed":
            packed = pack_padded_sequence(x, torch.full((len(x),), 5), batch_first=True)
            return self.h(pad_packed_sequence(self.r(packed)[0], batch_first=True)[0][:, -1])
        outputs, states = self.r(x)
        if self.by == "outputs":
            return self.h(outputs[:, -1])
        hidden = states[0] if isinstance(states, tuple) else states
        return self.h(torch.cat(hidden[-(self.h.in_features // 4) :].unbind(), -1))


class Attention(nn.Module):
    """[batch, 5, 3] -> [batch, 2] through attention."""

    def __init__(self) -> None:
        super().__init__()
        self.i, self.a = nn.Linear(3, 4), nn.MultiheadAttention(4, 2, batch_first=True)
        self.h = nn.Linear(4, 2)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = self.i(x)
        return self.h(self.a(x, x, x)[0].mean(1))


class Words(nn.Module):
    """[batch, 5, 3] -> [batch, 2] by an embedding of what is positive."""

    def __init__(self) -> None:
        super().__init__()
        self.e, self.h = nn.Embedding(2, 4), nn.Linear(12, 2)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.h(self.e((x > 0).long()).mean(1).flatten(1).tanh())


def decoder() -> nn.Module:
    """[batch, 5, 3] -> [batch, 2] by transposed convolutions, of which one has groups."""
    layers = nn.ConvTranspose1d(5, 4, 3), nn.Tanh(), nn.ConvTranspose1d(4, 6, 2, groups=2), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(36, 2)).double()


def spectral() -> nn.Module:
    first = parametrizations.weight_norm(nn.Linear(15, 4))
    return nn.Sequential(nn.Flatten(), first, nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)).double()


WARPED: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "GRU": (partial(Sequence, nn.GRU), ["r"]),
    "GRU by its states": (partial(Sequence, nn.GRU, "states"), ["r"]),
    "packed RNN": (partial(Sequence, nn.RNN, "packed"), ["r"]),
    "LSTM by its states": (partial(Sequence, nn.LSTM, "states"), ["r"]),
    "two-way LSTM": (partial(Sequence, nn.LSTM, "outputs", True), ["r"]),
    "two-way GRU by its states": (partial(Sequence, nn.GRU, "states", True), ["r"]),
    "attention": (Attention, ["i", "a"]),
    "embedding": (Words, ["e"]),
    "transposed convolutions": (decoder, ["0", "2"]),
    "weight norm": (spectral, ["1", "3"]),
}


@pytest.mark.filterwarnings("ignore:RNN module weights")
@pytest.mark.parametrize("network", WARPED)
def test_warp_layers_act_behind_every_layer_but_the_last(network: str) -> None:
    make, names = WARPED[network]
    model, tasks = make(), regression_tasks(2, (5, 3))
    before = model(tasks.query_data[0])
    meta = Init(model, mse, mse, 0.1, 2, use_warp={"start": "identity"})
    torch.testing.assert_close(model(tasks.query_data[0]), before)  # the identity, whatever comes out of a module
    assert list(model.get_submodule("warp_layers")._modules) == names
    shake(meta.meta_parameters.phi)
    found = optimized(meta, *tasks)
    for name, entry in found.items():
        assert "warp" not in name or entry.abs().max() > 1e-7, name


def test_the_hidden_states_of_a_recurrent_network_are_its_outputs_behind_a_warp_too() -> None:
    """One network that reads the last output, another that reads the last state: the same function and gradient."""
    found = []
    for by in ("outputs", "states", "packed"):
        torch.manual_seed(1)
        meta = Init(Sequence(nn.GRU, by), mse, mse, 0.1, 2, use_warp=True)
        torch.manual_seed(2)
        found.append(optimized(meta, *regression_tasks(2, (5, 3))))
    for other in found[1:]:
        assert largest_relative_error(other, found[0]) < 1e-9


class Read(nn.Module):
    """Reads a layer's weight without calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(3, size).double() for size in (3, 3, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.c(nn.functional.linear(self.a(x), self.b.weight, self.b.bias).tanh())


@pytest.mark.parametrize("vectorise", [False, True])
def test_a_warp_layer_that_would_be_dead_is_refused(vectorise: bool) -> None:
    tasks = regression_tasks(2)
    with pytest.raises(UserError, match=r"no data passes through b, .*name the modules to warp, after="):
        Init(Read(), mse, mse, use_warp=True).optimize(*tasks, batched=True, vectorise=vectorise)
    Init(Read(), mse, mse, use_warp={"after": ["a"]}).optimize(*tasks, batched=True, vectorise=vectorise)


def test_a_warp_behind_something_of_another_width_is_refused() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(3, 8), nn.GLU()), nn.Linear(4, 2)).double()
    with pytest.raises(UserError, match=r"module '0' gives a tensor of shape \[6, 4\], which a warp of 8 channels"):
        Init(model, mse, mse, use_warp={"after": ["0"]}).optimize(*regression_tasks(2), batched=True)


def test_t_names_the_layers_that_adapt_without_it(caplog: pytest.LogCaptureFixture) -> None:
    for make, told in (
        (Attention, "a (MultiheadAttention)"),
        (partial(Sequence, nn.GRU), "r (GRU)"),
        (Words, "e (Emb"),
    ):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            meta = Init(make(), mse, mse, 0.1, 2, use_t=True)
        assert caplog.messages[0].startswith("mtnet: T and masks act on convolution and linear layers; these adapt wi")
        assert told in caplog.messages[0] and len(caplog.messages) == 1
        shake(meta.meta_parameters.phi)
        optimized(meta, *regression_tasks(2, (5, 3)))


@pytest.mark.parametrize("layer", [nn.Linear(3, 4), nn.Conv1d(3, 4, 1)])
def test_t_refuses_layers_whose_weight_is_computed(layer: nn.Module) -> None:
    for norm in (parametrizations.weight_norm, parametrizations.spectral_norm):
        model = nn.Sequential(norm(layer), nn.Linear(4, 2))
        with pytest.raises(UserError, match=r"mtnet: 0: T is multiplied into weights.*take another method"):
            Init(model, mse, mse, use_t=True)
        nn.utils.parametrize.remove_parametrizations(layer, "weight")


@pytest.mark.parametrize("mask", [False, True])
def test_t_acts_on_the_outputs_of_a_transposed_convolution(mask: bool) -> None:
    """T (W x + b), as behind the layer; and a mask holds whole output units."""
    model = nn.Sequential(nn.ConvTranspose1d(5, 4, 3), nn.Flatten(), nn.Linear(20, 2)).double()
    meta = Init(model, mse, mse, 0.1, 1, use_t={"mask": mask})
    shake(meta.meta_parameters.phi)
    tasks = regression_tasks(1, (5, 3))
    t = meta.meta_parameters.phi["t_layers.0/weight"]
    plain = model[0](tasks.query_data[0])  # type: ignore[index]
    run = meta.learner.method.weights(meta.meta_parameters.theta, meta.meta_parameters.phi)
    found = nn.functional.conv_transpose1d(tasks.query_data[0], run["0.weight"], run["0.bias"])
    torch.testing.assert_close(found, torch.einsum("oc,bcl->bol", t, plain))
    if mask:
        fill(meta.meta_parameters.phi, "mask_logits.0", torch.tensor([50.0, -50.0, 50.0, -50.0]))
        moved = dict(zip(meta.weight_names, meta.adapt(tasks.support_data[0], tasks.support_target[0]), strict=True))
        change = (moved["0.weight"] - meta.meta_parameters.theta["0.weight"]).abs().amax((0, 2)).tolist()
        assert [bool(entry) for entry in change] == [True, False, True, False]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (decoder, {"4.weight", "4.bias"}),
        (lambda: nn.Sequential(nn.Linear(2, 3), nn.ConvTranspose1d(3, 2, 1)), {"1.weight", "1.bias"}),
        (
            lambda: nn.Sequential(nn.Linear(2, 3), parametrizations.weight_norm(nn.Linear(3, 2))),
            {"1.bias", "1.parametrizations.weight.original0", "1.parametrizations.weight.original1"},
        ),
        (lambda: nn.Sequential(nn.Linear(4, 4), nn.MultiheadAttention(4, 2)), {"0.weight", "0.bias"}),
        (partial(Twice, True), {"first.weight"}),
    ],
)
def test_the_head_is_the_last_layer_whatever_its_form(make: Callable[[], nn.Module], expected: set[str]) -> None:
    assert head_names(make()) == expected


# --- types, ties, lazy layers ------------------------------------------------------------------------------


class Mixed(nn.Module):
    """A body and a head of different types."""

    def __init__(self, body: torch.dtype, head: torch.dtype) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 8)).to(body)
        self.head = nn.Linear(8, 2).to(head)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x.to(self.body[0].weight.dtype)).tanh()  # type: ignore[union-attr]
        return self.head(hidden.to(self.head.weight.dtype)).float()


TYPES = [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16), (torch.float64, torch.float32)]


@pytest.mark.parametrize("vectorise", [False, True])
@pytest.mark.parametrize("types", TYPES, ids=str)
@every_method
def test_what_is_added_has_the_type_of_the_layer_that_it_serves(method: str, types: Any, vectorise: bool) -> None:
    meta = Init(Mixed(*types), mse, mse, 0.125, 2, **METHODS[method])
    body, head = types
    for name, tensor in meta.meta_parameters.phi.items():
        of_all = name.startswith("attenuator") or METHODS[method] == METHODS["one rate"]
        expected = torch.promote_types(body, head) if of_all else head if "head" in name else body
        assert tensor.dtype == expected, name
    tasks = [side.float() for side in regression_tasks(2)]
    assert meta.optimize(*tasks, batched=True, vectorise=vectorise).isfinite()
    assert all(parameter.grad is None or parameter.grad.dtype == parameter.dtype for parameter in meta.parameters())
    weights = meta.adapt(tasks[0][0], tasks[1][0])
    assert [weight.dtype for weight in weights] == [tensor.dtype for tensor in meta.meta_parameters.theta.values()]
    assert meta.predict(weights, tasks[2][0]).dtype == torch.float32


AS_MAML: dict[str, Callable[[Init], None]] = {
    "msgd": lambda meta: None,
    "a rate a tensor": lambda meta: None,
    "one rate": lambda meta: None,
    "T-net": lambda meta: None,
    "mtnet": lambda meta: fill(meta.meta_parameters.phi, "mask_logits", 90.0),
    "mtnet full": lambda meta: fill(meta.meta_parameters.phi, "mask_logits", 90.0),
    "l2f": lambda meta: fill(meta.meta_parameters.phi, "attenuator.2.bias", 200.0),
}


@pytest.mark.parametrize("types", TYPES, ids=str)
@pytest.mark.parametrize("method", AS_MAML)
def test_methods_reduce_to_maml_in_mixed_types(method: str, types: Any) -> None:
    """At rates of 1/8, T the identity, masks of 1 and gamma of 1, which are exact in each type: to the bit."""
    torch.manual_seed(1)
    plain = Init(Mixed(*types), mse, mse, 0.125, 2)
    torch.manual_seed(1)
    meta = Init(Mixed(*types), mse, mse, 0.125, 2, **METHODS[method])
    AS_MAML[method](meta)
    x, y = (side[0].float() for side in regression_tasks(1)[:2])
    torch.testing.assert_close(meta.adapt(x, y), plain.adapt(x, y), rtol=0, atol=0)


def test_masks_of_half_the_precision_are_still_0_or_1() -> None:
    logit = torch.randn(200, dtype=torch.bfloat16)
    mask = straight_through(logit, torch.rand(200))
    assert mask.dtype == torch.bfloat16 and set(mask.tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("vectorise", [False, True])
@every_method
def test_a_tied_layer_is_the_same_layer_used_twice(method: str, vectorise: bool) -> None:
    """The gradient of the one weight that both have, also through warp layers that begin as the identity."""
    switches, found = dict(METHODS[method]), []
    if "warp" in method:
        switches["use_warp"] = {"after": ["first"], "start": "identity"}
    for tied in (False, True):
        torch.manual_seed(1)
        model = Twice(tied)
        torch.manual_seed(2)  # of what the method draws
        meta = Init(model, mse, mse, 0.1, 2, **switches)
        assert meta.weight_names == ("first.weight",)
        torch.manual_seed(3)
        meta.optimize(*regression_tasks(2, (3,), outputs=3), batched=True, vectorise=vectorise)
        found.append(gradients(meta)["model.first.weight"])
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-13)


def test_t_acts_on_every_bias_of_a_tied_weight() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    model[2].weight = model[0].weight  # type: ignore[index]
    meta = Init(model, mse, mse, 0.1, 2, use_t={"mask": False})
    shake(meta.meta_parameters.phi)
    t, x = meta.meta_parameters.phi["t_layers.0/weight"], torch.randn(5, 3).double()
    expected = model[2](torch.tanh(model[0](x) @ t.T)) @ t.T  # type: ignore[index]
    torch.testing.assert_close(meta.predict(list(meta.meta_parameters.theta.values()), x), expected)


@every_method
def test_a_lazy_layer_is_run_once_before(method: str) -> None:
    model = nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.Linear(4, 2))
    with pytest.raises(UserError, match=r"model: 0 \(LazyLinear\) has no shapes yet; run the model once on data"):
        Init(model, mse, mse, **METHODS[method])
    tasks = [side.float() for side in regression_tasks(2)]
    model(tasks[0][0])
    optimized(Init(model, mse, mse, 0.1, 2, **METHODS[method]), *tasks)


@pytest.mark.parametrize("second_order", [False, True])
def test_autocast_of_the_caller_is_kept(second_order: bool) -> None:
    """What the layers give is bfloat16, whether torch keeps the weights' casts or not."""
    seen: set[torch.dtype] = set()

    def loss(state: State) -> Tensor:
        output = state.model(state.data, state.updated_weights)
        seen.add(output.dtype)
        return (output.float() - state.target).square().mean()

    tasks, found = [side.float() for side in regression_tasks(2)], []
    meta = Init(Tanh().float(), loss, loss, 0.1, 2, second_order)
    for cached in (True, False):
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=cached):
            found.append(optimized(meta, *tasks))
            meta.adapt(tasks[0][0], tasks[1][0])
    assert seen == {torch.bfloat16}
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


# --- copies ------------------------------------------------------------------------------------------------


def torch_copy(meta: Init) -> Init:
    file = io.BytesIO()
    torch.save(meta, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


@pytest.mark.parametrize("copied", [lambda meta: pickle.loads(pickle.dumps(meta)), torch_copy], ids=["pickle", "torch"])
@every_method
def test_a_pickled_meta_learner_goes_on_as_it_was(method: str, copied: Callable[[Init], Init]) -> None:
    meta, tasks = Init(Tanh(), mse, mse, 0.1, 2, **METHODS[method]), regression_tasks(2)
    shake(meta.meta_parameters.phi)
    twin = copied(meta)
    expected = optimized(meta, *tasks)
    found = optimized(twin, *tasks)
    assert found.keys() == expected.keys()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    with torch.no_grad():
        for parameter in meta.parameters():
            parameter.zero_()
    torch.testing.assert_close(optimized(twin, *tasks), expected, rtol=0, atol=0)  # it shares nothing
    other = Init(Tanh(), mse, mse, 0.1, 2, **METHODS[method])
    other.load_state_dict(twin.state_dict())
    torch.testing.assert_close(optimized(other, *tasks), expected, rtol=0, atol=0)


def test_a_parametrised_module_is_saved_by_its_state_dict() -> None:
    meta, other = (Init(spectral(), mse, mse, 0.1, 2, use_warp=True) for _ in range(2))
    with pytest.raises(RuntimeError, match="parametrized modules is only supported through state_dict"):
        pickle.dumps(meta)
    other.load_state_dict(meta.state_dict())
    tasks = regression_tasks(2, (5, 3))
    torch.testing.assert_close(optimized(other, *tasks), optimized(meta, *tasks), rtol=0, atol=0)
