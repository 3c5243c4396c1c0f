"""Small problems whose answers are known, shared by the tests of the meta-learner and of the class interface."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metarun.core.objectives import State
from metarun.nn.norm import Norm
from metarun.types import Task


class Quadratic(nn.Module):
    """The parameter itself is the model: losses 1/2 (theta - c)' A (theta - c), with data A and target c."""

    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.randn(size, dtype=torch.float64))

    def forward(self, data: Tensor) -> Tensor:
        return self.theta


def quadratic_loss(state: State) -> Tensor:
    difference = state.model(state.data, state.updated_weights) - state.target
    return 0.5 * difference @ state.data @ difference


def quadratic_tasks(count: int, size: int = 4) -> Task:
    """Symmetric positive definite A [count, size, size] and centres c [count, size], for support and query."""

    def matrices() -> Tensor:
        root = torch.randn(count, size, size, dtype=torch.float64)
        return root @ root.mT / size + 0.1 * torch.eye(size, dtype=torch.float64)

    def centres() -> Tensor:
        return torch.randn(count, size, dtype=torch.float64)

    return Task(matrices(), centres(), matrices(), centres())


class Tanh(nn.Module):
    """Two smooth layers: finite differences need no kinks."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 8, dtype=torch.float64)
        self.second = nn.Linear(8, 2, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh())


class Twice(nn.Module):
    """One layer, used twice; `tied`: written as two, whose weight is one tensor with two names."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False, dtype=torch.float64)
        self.tied = tied
        if tied:
            self.second = nn.Linear(3, 3, bias=False, dtype=torch.float64)
            self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return (self.second if self.tied else self.first)(self.first(x).tanh())


class Normed(nn.Module):
    """A convolution, a norm layer with a random affine, and a linear head; smooth."""

    def __init__(self, norm: nn.Module, channels: int = 4) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(2, channels, 3, padding=1)
        self.norm = norm
        self.head = nn.Linear(channels, 3)
        self.double()
        with torch.no_grad():
            for parameter in norm.parameters():
                parameter.copy_(1 + 0.5 * torch.randn_like(parameter))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.convolution(x)).tanh().mean((2, 3)))


NORMS = {
    "metarun batch": lambda: Norm("batch", 4),
    "metarun instance": lambda: Norm("instance", 4),
    "metarun layer": lambda: Norm("layer", 4),
    "metarun group": lambda: Norm("group", 4),
    "torch batch": lambda: nn.BatchNorm2d(4),
    "torch batch without buffers": lambda: nn.BatchNorm2d(4, track_running_stats=False),
    "torch instance": lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
    "torch group": lambda: nn.GroupNorm(2, 4),
    "torch layer": lambda: nn.LayerNorm([4, 5, 5]),
}


def regression_tasks(count: int, shape: tuple[int, ...] = (3,), outputs: int = 2, each: int = 6) -> Task:
    def side() -> tuple[Tensor, Tensor]:
        return (
            torch.randn(count, each, *shape, dtype=torch.float64),
            torch.randn(count, each, outputs, dtype=torch.float64),
        )

    return Task(*side(), *side())
