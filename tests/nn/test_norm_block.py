"""A convolutional block: its parts one after the other, wherever the loops cannot do the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.modules.module import register_module_forward_hook

from metarun.nn import fused
from metarun.nn.norm import Norm, conv_norm_act, norm_layer
from tests.helpers.derivatives import SHAPE, require_same


def test_torch_func_and_compilers_see_torchs_operations() -> None:
    norm, convolution = Norm("batch", 4), nn.Conv2d(4, 4, 3)
    x = torch.randn(2, *SHAPE)
    seen = []

    def loss(x: Tensor) -> Tensor:
        seen.append(fused.is_supported(x))
        return conv_norm_act(x, convolution, norm, pool=True).square().sum()

    found = torch.func.vmap(torch.func.grad(loss))(x)
    assert seen == [False] and fused.is_supported(x[0])
    for one, gradient in zip(x, found, strict=True):
        leaf = one.clone().requires_grad_()
        torch.testing.assert_close(torch.autograd.grad(loss(leaf), leaf)[0], gradient)


def test_a_compiled_network_is_one_graph_of_torchs_operations() -> None:
    model = Block("batch", pool=True, slope=0.0)
    x = torch.randn(SHAPE).double()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")  # torch's own forward mode
def test_a_tracer_and_forward_mode_see_torchs_operations() -> None:
    model = Block("batch", pool=True, slope=0.0)
    x, other = torch.randn(2, *SHAPE).double()
    traced: Any = make_fx(model)(x)
    torch.testing.assert_close(traced(other), model(other))
    with forward_ad.dual_level():
        torch.testing.assert_close(forward_ad.unpack_dual(model(forward_ad.make_dual(x, other))).primal, model(x))


@pytest.mark.parametrize(
    ("norm", "x"),
    [
        (Norm("batch", 4), torch.randn(2, 64, 4, 4)),
        (Norm("batch", 16), torch.randn(2, 8, 4, 4)),
        (Norm("batch", 4), torch.randn(2, 4, 4, 4).double()),
        (Norm("batch", 4).double(), torch.randn(2, 4, 4, 4)),
    ],
)
def test_other_numbers_of_channels_and_other_types_are_torchs_to_judge(norm: Norm, x: Tensor) -> None:
    assert not fused.is_supported(x, norm.weight, norm.bias)
    if x.shape[1] == 4:
        assert norm(x).dtype == torch.float64
    else:
        with pytest.raises(RuntimeError, match="must match the size"):
            norm(x)


HOOKS = {
    "none": lambda module: None,
    "output": lambda module: module.register_forward_hook(lambda module, inputs, output: output.sin()),
    "input": lambda module: module.register_forward_pre_hook(lambda module, inputs: (inputs[0].sin(),)),
    "gradient": lambda module: module.register_full_backward_hook(lambda module, inputs, outputs: (3 * inputs[0],)),
    "its gradient": lambda module: module.register_full_backward_pre_hook(lambda module, outputs: (3 * outputs[0],)),
}


class Block(nn.Module):
    def __init__(self, kind: str, pool: bool, slope: float) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(4, 4, 3, padding=1).double(), norm_layer(kind, 4).double()
        self.pool, self.slope = pool, slope

    def forward(self, x: Tensor) -> Tensor:
        return conv_norm_act(x, self.convolution, self.norm, self.pool, self.slope)


@pytest.mark.parametrize("hooked", ["convolution", "norm"])
@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("kind", ["batch", "group", "none"])
@pytest.mark.parametrize(("pool", "slope"), [(True, 0.0), (False, 0.1)])
def test_a_block_is_its_parts(
    monkeypatch: pytest.MonkeyPatch, kind: str, hook: str, hooked: str, pool: bool, slope: float
) -> None:
    torch.manual_seed(1)
    model = Block(kind, pool, slope)
    HOOKS[hook](getattr(model, hooked))
    names = {"norm.weight", "norm.bias", "convolution.bias"} & {name for name, _ in model.named_parameters()}

    def function(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        weights = {name: w if name == "norm.weight" else b for name in names}
        return torch.func.functional_call(model, weights, (x,)) + 0 * w.sum()

    def parts(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        with monkeypatch.context() as context:
            context.setattr(fused, "may_be_supported", lambda x: False)
            return function(x, w, b)

    require_same(function, parts)


@pytest.mark.parametrize(
    ("shape", "message"),
    [((1, 4, 1, 1), "more than 1 value per channel"), ((2, 4, 1, 4), "Output size is too small")],
)
def test_what_torch_refuses_is_refused(shape: tuple[int, ...], message: str) -> None:
    model = Block("batch", pool=True, slope=0.0)
    with pytest.raises((ValueError, RuntimeError), match=message):
        model(torch.zeros(shape).double())


class Halving(Norm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 2


class Standardised(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(input, self.weight - self.weight.mean(), self.bias)


@pytest.mark.parametrize("changed", [{"norm": Halving("batch", 4)}, {"convolution": Standardised(4, 4, 3)}])
def test_a_forward_of_its_own_is_run(changed: dict[str, nn.Module]) -> None:
    model = Block("batch", pool=False, slope=0.0).float()
    for name, module in changed.items():
        setattr(model, name, module)
    x = torch.randn(SHAPE)
    torch.testing.assert_close(model(x), model.norm(model.convolution(x)).relu())
    given = model.norm.forward
    model.norm.forward = lambda x: 3 * given(x)
    torch.testing.assert_close(model(x), model.norm(model.convolution(x)).relu())


def test_a_hook_of_all_modules_sees_them() -> None:
    model, seen = Block("batch", pool=False, slope=0.0), []
    hook = register_module_forward_hook(lambda module, given, output: seen.append(type(module).__name__))
    try:
        model(torch.randn(SHAPE).double())
    finally:
        hook.remove()
    assert seen == ["Conv2d", "Norm", "Block"]


def test_the_loops_do_it_whatever_lies_between_the_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """As between a support set's, where they are drawn together with the query set's."""
    model, taken = Block("batch", pool=True, slope=0.0), []
    normalised = fused.fused_batch_norm
    monkeypatch.setattr(fused, "fused_batch_norm", lambda *given: taken.append(given) or normalised(*given))
    x = torch.randn(6, *SHAPE[1:]).double()[::2]
    assert not x.is_contiguous()
    torch.testing.assert_close(model(x), model(x.contiguous()))
    assert len(taken) == 2


def test_pictures_that_shrink_to_a_pixel() -> None:
    convolution, norm = nn.Conv2d(3, 4, 3, stride=2, padding=1), Norm("batch", 4)
    x = torch.randn(5, 3, 2, 2)
    assert fused.is_supported(x) and torch.equal(conv_norm_act(x, convolution, norm), norm(convolution(x)).relu())


def test_the_bias_before_batch_norm_is_left_out_and_has_the_gradient_zero() -> None:
    model = Block("batch", pool=True, slope=0.0)
    x = torch.randn(SHAPE).double()
    before = model(x)
    with torch.no_grad():
        model.convolution.bias.fill_(1e9)  # type: ignore[union-attr]
    after = model(x)
    assert torch.equal(before, after)
    gradients = dict(
        zip(dict(model.named_parameters()), torch.autograd.grad(after.sum(), list(model.parameters())), strict=True)
    )
    assert not gradients["convolution.bias"].any() and gradients["norm.bias"].any()


def test_recorded_statistics_are_those_with_the_bias() -> None:
    model = Block("batch", pool=False, slope=0.0)
    x, model.norm.recorded_stats = torch.randn(SHAPE).double(), []  # type: ignore[assignment]
    model(x)
    torch.testing.assert_close(model.norm.recorded_stats[0], model.convolution(x).mean((0, 2, 3)))  # type: ignore[index]
