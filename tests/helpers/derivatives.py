"""A function of batch norm's form, its first derivatives and those of second order, in comparison with another's."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

SHAPE = (3, 4, 9, 7)  # of which the last row and column are in no square

Function = Callable[[Tensor, Tensor, Tensor], Tensor]


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
