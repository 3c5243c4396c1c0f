"""Batch norm, max-pool and activation as one operation: torch's values and derivatives of first and second order."""

from __future__ import annotations

import builtins
import itertools
import logging
import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numba.core import config
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.modules.module import register_module_forward_hook

from metarun import kernels, on_cpu
from metarun.norm import Norm, block, norm_layer

SHAPE = (3, 4, 9, 7)  # of which the last row and column are in no square
EPS = 1e-5
FORMS = list(itertools.product((True, False), (0.0, 0.1, 1.0)))  # with a max-pool or none, slope

Function = Callable[[Tensor, Tensor, Tensor], Tensor]


def torchs(x: Tensor, weight: Tensor, bias: Tensor, pool: bool, slope: float) -> Tensor:
    y = F.batch_norm(x, None, None, weight, bias, training=True, eps=EPS)
    y = F.max_pool2d(y, 2) if pool else y
    return F.leaky_relu(y, slope) if slope else y.relu()


def ours(x: Tensor, weight: Tensor, bias: Tensor, pool: bool, slope: float) -> Tensor:
    return on_cpu.normalised(x, weight, bias, EPS, pool, slope)


def ties(x: Tensor) -> Tensor:
    """Rounded, so that many squares hold their maximum more than once; the gradient goes through."""
    return x + (x.round() - x).detach()


def inputs(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """x, a weight of either sign, a bias."""
    torch.manual_seed(0)
    given = torch.randn(SHAPE), torch.tensor([1.0, -0.5, 2.0, -1.5]), torch.randn(4)
    return [tensor.to(dtype).requires_grad_() for tensor in given]


def derivatives(function: Function, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """The value, its gradients, and those of a smooth function of the gradients."""
    given = inputs(dtype)
    y = function(*given)
    first = torch.autograd.grad((y * torch.randn(y.shape, dtype=dtype) + y**3).sum(), given, create_graph=True)
    again = sum((entry * torch.randn(entry.shape, dtype=dtype) + entry**2).sum() for entry in first)
    assert isinstance(again, Tensor)
    return [y, *first, *torch.autograd.grad(again, given)]


def require_same(one: Function, other: Function) -> None:
    for found, expected in zip(derivatives(one), derivatives(other), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("pool", "slope"), FORMS)
@pytest.mark.parametrize("of", [lambda x: x, ties], ids=["", "ties"])
def test_it_is_torchs(pool: bool, slope: float, of: Callable[[Tensor], Tensor]) -> None:
    require_same(
        lambda x, w, b: ours(of(x), w, b, pool, slope),
        lambda x, w, b: torchs(of(x), w, b, pool, slope),
    )


def test_a_pool_without_a_norm_is_torchs() -> None:
    require_same(
        lambda x, w, b: on_cpu.pooled(ties(x * w[:, None, None] + b[:, None, None])),
        lambda x, w, b: F.max_pool2d(ties(x * w[:, None, None] + b[:, None, None]), 2),
    )


def test_an_infinity_keeps_its_gradient_to_itself() -> None:
    x = torch.zeros(1, 1, 4, 4)
    x[..., 0, 0] = float("inf")
    x.requires_grad_()
    torch.testing.assert_close(
        torch.autograd.grad(on_cpu.pooled(x).sum(), x), torch.autograd.grad(F.max_pool2d(x, 2).sum(), x)
    )


@pytest.mark.parametrize(("pool", "slope"), FORMS)
def test_finite_differences(pool: bool, slope: float) -> None:
    given = inputs()
    assert torch.autograd.gradcheck(lambda x, w, b: ours(x, w, b, pool, slope), given)
    assert torch.autograd.gradgradcheck(lambda x, w, b: ours(x, w, b, pool, slope), given)


def test_single_precision_where_the_mean_is_a_hundred_deviations() -> None:
    def errors(function: Function) -> list[float]:
        found, exact = (derivatives(each, torch.float32) for each in (far(function), far(in_double(function))))
        return [float(((one - other).norm() / other.norm()).detach()) for one, other in zip(found, exact, strict=True)]

    def far(function: Function) -> Function:
        return lambda x, w, b: function(x + 100, w, b)

    def in_double(function: Function) -> Function:
        return lambda x, w, b: function(x.double(), w.double(), b.double()).float()

    own, theirs = (errors(lambda x, w, b, f=f: f(x, w, b, True, 0.0)) for f in (ours, torchs))
    assert all(one <= 4 * other + 1e-6 for one, other in zip(own, theirs, strict=True)), (own, theirs)


def test_threads_share_the_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = derivatives(lambda x, w, b: ours(x, w, b, True, 0.0))
    monkeypatch.setattr(on_cpu, "WORTH_SHARING", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    shared = derivatives(lambda x, w, b: ours(x, w, b, True, 0.0))
    assert all(torch.equal(*pair) for pair in zip(alone, shared, strict=True))


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("pool", [True, False])
def test_a_nan_stays(place: int, pool: bool) -> None:
    x = torch.zeros(1, 1, 2, 2)
    x.view(-1)[place] = float("nan")
    assert on_cpu.normalised(x, torch.ones(1), torch.zeros(1), EPS, pool, 0.0).isnan().all()


@pytest.mark.parametrize("place", range(4))
def test_a_nan_stays_without_a_norm(place: int) -> None:
    x = torch.zeros(1, 1, 2, 2)
    x.view(-1)[place] = float("nan")
    assert on_cpu.pooled(x).isnan().all()


def test_gradients_and_inputs_of_any_layout() -> None:
    def transposed(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        y = ours(x, w, b, True, 0.0)
        return y.transpose(2, 3).contiguous().transpose(2, 3) * 2

    require_same(transposed, lambda x, w, b: 2 * torchs(x, w, b, True, 0.0))
    x = inputs()[0].transpose(2, 3)
    assert not on_cpu.fits(x) and on_cpu.fits(x.contiguous())


@pytest.mark.parametrize(("function", "message"), [(ours, "no third derivative"), (torchs, "3rd")])
def test_a_third_derivative_is_refused_as_torchs_is(function: Callable[..., Tensor], message: str) -> None:
    given = inputs()
    y = function(*given, True, 0.0)
    for _ in range(2):
        y = torch.autograd.grad((y**3).sum(), given[0], create_graph=True)[0]
    with pytest.raises(RuntimeError, match=message):
        torch.autograd.grad((y**3).sum(), given[0])


def test_gradients_that_do_not_depend_on_the_bias_are_differentiated_by_it() -> None:
    x, weight, bias = inputs()
    (first,) = torch.autograd.grad(ours(x, weight, bias, True, 0.0).sum(), x, create_graph=True)
    assert not torch.autograd.grad(first.square().sum(), bias)[0].any()


# --- memory and processes ----------------------------------------------------------------------------------


def test_what_it_keeps_for_the_gradient_goes_with_it() -> None:
    x, weight, bias = inputs()
    y = ours(x, weight, bias, True, 0.0)
    assert y.grad_fn is not None and set(vars(y.grad_fn)) <= {"slope"}
    (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    first.sum().backward()
    nodes = [y.grad_fn, behind(first.grad_fn, "Backward")]
    for node in nodes:
        assert set(vars(node)) <= {"slope"}
        with pytest.raises(RuntimeError, match="have already been freed"):
            _ = node.saved_tensors


def behind(node: Any, name: str) -> Any:
    """The first node of that class on the way back."""
    while name not in type(node).__name__:
        node = node.next_functions[0][0]
    return node


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="a system without forks")
def test_a_fork_has_threads_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_cpu, "WORTH_SHARING", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    x, weight, bias = inputs()
    expected = ours(x, weight, bias, True, 0.0)
    context = multiprocessing.get_context("fork")
    found = context.Queue()
    child = context.Process(target=lambda: found.put(ours(x, weight, bias, True, 0.0).detach().numpy()))
    child.start()
    try:
        assert np.array_equal(found.get(timeout=30), expected.detach().numpy())
    finally:
        child.kill()


# --- which operation is taken ------------------------------------------------------------------------------


def test_torch_func_and_compilers_see_torchs_operations() -> None:
    norm, convolution = Norm("batch", 4), nn.Conv2d(4, 4, 3)
    x = torch.randn(2, *SHAPE)
    seen = []

    def loss(x: Tensor) -> Tensor:
        seen.append(on_cpu.fits(x))
        return block(x, convolution, norm, pool=True).square().sum()

    found = torch.func.vmap(torch.func.grad(loss))(x)
    assert seen == [False] and on_cpu.fits(x[0])
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
    assert not on_cpu.fits(x, norm.weight, norm.bias)
    if x.shape[1] == 4:
        assert norm(x).dtype == torch.float64
    else:
        with pytest.raises(RuntimeError, match="must match the size"):
            norm(x)


@pytest.mark.parametrize("pool", [True, False])
def test_an_infinite_gradient_stays_where_it_is(pool: bool) -> None:
    """The square root's, at the zeros behind a ReLU."""
    x, weight, bias = inputs()
    found, expected = (
        torch.autograd.grad(each(x, weight, bias, pool, 0.0).sqrt().sum(), (weight, bias)) for each in (ours, torchs)
    )
    assert all(map(torch.equal, map(torch.isfinite, found), map(torch.isfinite, expected)))
    assert expected[1].isfinite().all()


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
        return block(x, self.convolution, self.norm, self.pool, self.slope)


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
            context.setattr(on_cpu, "fits", lambda *given: False)
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


def test_pictures_that_shrink_to_a_pixel() -> None:
    convolution, norm = nn.Conv2d(3, 4, 3, stride=2, padding=1), Norm("batch", 4)
    x = torch.randn(5, 3, 2, 2)
    assert on_cpu.fits(x) and torch.equal(block(x, convolution, norm), norm(convolution(x)).relu())


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
    x, model.norm.seen = torch.randn(SHAPE).double(), []  # type: ignore[assignment]
    model(x)
    torch.testing.assert_close(model.norm.seen[0], model.convolution(x).mean((0, 2, 3)))  # type: ignore[index]


# --- numba -------------------------------------------------------------------------------------------------


def test_without_numba_it_is_torchs_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    given = builtins.__import__

    def without(name: str, scope: Any = None, *others: Any) -> Any:
        if name == "metarun" and others[1] == ("kernels",):
            raise ImportError("Numba needs NumPy 2.4 or less")
        return given(name, scope, *others)

    monkeypatch.setattr(builtins, "__import__", without)
    on_cpu.kernels.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert not on_cpu.fits(torch.zeros(SHAPE)) and not on_cpu.fits(torch.zeros(SHAPE))
            assert on_cpu.computed_by() == "torch"
    finally:
        on_cpu.kernels.cache_clear()
    assert [record.message for record in caplog.records] == [
        "batch norm and max-pool are torch's own, which is slower: ImportError('Numba needs NumPy 2.4 or less')"
    ]


def test_kernels_need_no_place_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = numba.njit

    def nowhere(function: Any, cache: bool = False, **options: Any) -> Any:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return compiled(function, **options)

    monkeypatch.setattr(numba, "njit", nowhere)
    found = np.zeros(1)
    kernel()(found)
    assert found[0] == 1


def empty_files(folder: Path) -> None:
    for path in folder.glob("*.nb[ic]"):
        path.write_bytes(b"")


def file_in_its_place(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_bytes(b"")


@pytest.mark.parametrize("harm", [empty_files, file_in_its_place])
def test_a_place_on_disk_that_fails_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))
    kernel()(np.zeros(1))
    (folder,) = tmp_path.iterdir()
    assert list(folder.glob("*.nbc"))
    loop, found = kernel(), np.zeros(1)
    harm(folder)
    with caplog.at_level(logging.WARNING):
        loop(found)
        loop(found)
    assert found[0] == 1
    (told,) = [record.message for record in caplog.records]
    assert str(folder) in told and "compiled for this process alone" in told and "delete the files" in told


def kernel() -> kernels.Kernel:
    def set_to_one(found: Any) -> None:
        found[0] = 1

    return kernels.Kernel(set_to_one)
