"""Batch norm, max-pool and activation as one operation: torch's values and derivatives of first and second order."""

from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.nn import fused
from tests.helpers.derivatives import Function, derivatives, inputs, require_same

EPS = 1e-5
FORMS = list(itertools.product((True, False), (0.0, 0.1, 1.0)))  # with a max-pool or none, slope


def torchs(x: Tensor, weight: Tensor, bias: Tensor, pool: bool, slope: float) -> Tensor:
    y = F.batch_norm(x, None, None, weight, bias, training=True, eps=EPS)
    y = F.max_pool2d(y, 2) if pool else y
    return F.leaky_relu(y, slope) if slope else y.relu()


def ours(x: Tensor, weight: Tensor, bias: Tensor, pool: bool, slope: float) -> Tensor:
    return fused.fused_batch_norm(x, weight, bias, EPS, pool, slope)


def ties(x: Tensor) -> Tensor:
    """Rounded, so that many squares hold their maximum more than once; the gradient goes through."""
    return x + (x.round() - x).detach()


@pytest.mark.parametrize(("pool", "slope"), FORMS)
@pytest.mark.parametrize("of", [lambda x: x, ties], ids=["", "ties"])
def test_it_is_torchs(pool: bool, slope: float, of: Callable[[Tensor], Tensor]) -> None:
    require_same(
        lambda x, w, b: ours(of(x), w, b, pool, slope),
        lambda x, w, b: torchs(of(x), w, b, pool, slope),
    )


def test_a_pool_without_a_norm_is_torchs() -> None:
    require_same(
        lambda x, w, b: fused.max_pool(ties(x * w[:, None, None] + b[:, None, None])),
        lambda x, w, b: F.max_pool2d(ties(x * w[:, None, None] + b[:, None, None]), 2),
    )


def test_an_infinity_keeps_its_gradient_to_itself() -> None:
    x = torch.zeros(1, 1, 4, 4)
    x[..., 0, 0] = float("inf")
    x.requires_grad_()
    torch.testing.assert_close(
        torch.autograd.grad(fused.max_pool(x).sum(), x), torch.autograd.grad(F.max_pool2d(x, 2).sum(), x)
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
    monkeypatch.setattr(fused, "MIN_ELEMENTS_FOR_THREADS", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    shared = derivatives(lambda x, w, b: ours(x, w, b, True, 0.0))
    assert all(torch.equal(*pair) for pair in zip(alone, shared, strict=True))


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("pool", [True, False])
def test_a_nan_stays(place: int, pool: bool) -> None:
    x = torch.zeros(1, 1, 2, 2)
    x.view(-1)[place] = float("nan")
    assert fused.fused_batch_norm(x, torch.ones(1), torch.zeros(1), EPS, pool, 0.0).isnan().all()


@pytest.mark.parametrize("place", range(4))
def test_a_nan_stays_without_a_norm(place: int) -> None:
    x = torch.zeros(1, 1, 2, 2)
    x.view(-1)[place] = float("nan")
    assert fused.max_pool(x).isnan().all()


def test_gradients_and_inputs_of_any_layout() -> None:
    def transposed(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        y = ours(x, w, b, True, 0.0)
        return y.transpose(2, 3).contiguous().transpose(2, 3) * 2

    require_same(transposed, lambda x, w, b: 2 * torchs(x, w, b, True, 0.0))
    x = inputs()[0].transpose(2, 3)
    assert not fused.is_supported(x) and fused.is_supported(x.contiguous())


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


@pytest.mark.parametrize("pool", [True, False])
def test_an_infinite_gradient_stays_where_it_is(pool: bool) -> None:
    """The square root's, at the zeros behind a ReLU."""
    x, weight, bias = inputs()
    found, expected = (
        torch.autograd.grad(each(x, weight, bias, pool, 0.0).sqrt().sum(), (weight, bias)) for each in (ours, torchs)
    )
    assert all(map(torch.equal, map(torch.isfinite, found), map(torch.isfinite, expected)))
    assert expected[1].isfinite().all()


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
    monkeypatch.setattr(fused, "MIN_ELEMENTS_FOR_THREADS", 0)
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
