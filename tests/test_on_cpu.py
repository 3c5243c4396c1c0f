"""Batch norm and max-pool for large images: torch's values and derivatives of first and second order."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun import on_cpu
from metarun.norm import Norm, max_pool

SHAPE = (3, 4, 9, 7)  # of which the last row and column are in no square
SIGN = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64)


def torch_norm(x: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, training=True, eps=1e-5)


def ties(x: Tensor) -> Tensor:
    """Rounded, so that many squares hold their maximum more than once; the gradient goes through."""
    return x + (x.round() - x).detach()


PAIRS = {
    "batch_norm": (lambda x: on_cpu.batch_norm(x, 1e-5), torch_norm),
    "signed": (lambda x: on_cpu.batch_norm(x, 1e-5, SIGN), lambda x: torch_norm(x) * SIGN[:, None, None]),
    "max_pool": (on_cpu.max_pool, lambda x: F.max_pool2d(x, 2)),
    "ties": (lambda x: on_cpu.max_pool(ties(x)), lambda x: F.max_pool2d(ties(x), 2)),
    "flat": (lambda x: on_cpu.max_pool(0 * x), lambda x: F.max_pool2d(0 * x, 2)),
}


def derivatives(function: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """The value, a gradient, and the gradient of a smooth function of that gradient."""
    torch.manual_seed(0)
    x = torch.randn(SHAPE, dtype=torch.float64, requires_grad=True)
    y = function(x)
    (first,) = torch.autograd.grad((y * torch.randn_like(y) + y**3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad((first * torch.randn_like(x) + first**2).sum(), x)
    return [y, first, second]


@pytest.mark.parametrize("name", PAIRS)
def test_it_is_torchs(name: str) -> None:
    ours, theirs = PAIRS[name]
    for found, expected in zip(derivatives(ours), derivatives(theirs), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["batch_norm", "max_pool"])
def test_it_is_torchs_for_each_of_many(name: str) -> None:
    ours, theirs = PAIRS[name]
    x = torch.randn(2, *SHAPE, dtype=torch.float64)
    found, expected = (
        torch.func.vmap(torch.func.grad(lambda x, f=f: f(x).square().mul(torch.arange(4.0)[:, None, None]).sum()))(x)
        for f in (ours, theirs)
    )
    torch.testing.assert_close(found, expected)


def test_a_nan_stays() -> None:
    for place in range(4):
        x = torch.zeros(1, 1, 2, 2)
        x.view(-1)[place] = float("nan")
        assert on_cpu.max_pool(x).isnan().all()


@pytest.mark.parametrize("weight", [torch.tensor([1.0, -0.5, 2.0, 0.0]), torch.ones(4)])
@pytest.mark.parametrize("hooked", [False, True])
def test_the_pool_before_the_affine_is_the_pool_behind_it(
    monkeypatch: pytest.MonkeyPatch, weight: Tensor, hooked: bool
) -> None:
    norm = Norm("batch", 4).double()
    norm.weight = nn.Parameter(weight.double())
    norm.bias = nn.Parameter(torch.randn(4, dtype=torch.float64))
    if hooked:
        norm.register_forward_hook(lambda module, inputs, output: output.sin())
    x, outwards = torch.randn(SHAPE, dtype=torch.float64), torch.randn(3, 4, 4, 3, dtype=torch.float64)
    found = []
    for least in (0, 10**9):
        monkeypatch.setattr(on_cpu, "LARGE", least)
        y = max_pool(x, norm)
        found.append([y, *torch.autograd.grad((y * outwards).sum(), [norm.bias, norm.weight])])
    for one, other in zip(found[0], found[1], strict=True):
        if weight[3] == 0:  # every element is a maximum: where the gradient goes is open
            one, other = one[..., :3] if one.dim() == 1 else one, other[..., :3] if other.dim() == 1 else other
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("norm", [nn.Identity(), Norm("group", 4)])
def test_other_norms_are_pooled_as_they_are(monkeypatch: pytest.MonkeyPatch, norm: nn.Module) -> None:
    monkeypatch.setattr(on_cpu, "LARGE", 0)
    x = torch.randn(SHAPE)
    torch.testing.assert_close(max_pool(x, norm), F.max_pool2d(norm(x), 2))
