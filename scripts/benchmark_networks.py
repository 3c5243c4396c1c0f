"""The networks of the benchmark as others write them in PyTorch, their weights under metarun's names."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scripts.benchmark_contender import Problem


class Block(nn.Module):
    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, filters, 3, padding=1)
        self.norm = nn.BatchNorm2d(filters, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.relu(self.norm(self.convolution(x))), 2)


class Conv4(nn.Module):
    def __init__(self, channels: int, size: int, filters: int, outputs: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block(filters if number else channels, filters) for number in range(4)))
        self.head = nn.Linear(filters * (size // 16) ** 2, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x).flatten(1))


class Stage(nn.Module):
    def __init__(self, channels: int, filters: int, pool: bool) -> None:
        super().__init__()
        inwards = (channels, filters, filters)
        self.convolutions = nn.ModuleList(nn.Conv2d(width, filters, 3, padding=1, bias=False) for width in inwards)
        self.norms = nn.ModuleList(nn.BatchNorm2d(filters, track_running_stats=False) for _ in inwards)
        self.shortcut = nn.Conv2d(channels, filters, 1, bias=False)
        self.shortcut_norm = nn.BatchNorm2d(filters, track_running_stats=False)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for number, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            y = norm(convolution(F.relu(y) if number else y))
        y = F.relu(y + self.shortcut_norm(self.shortcut(x)))
        return F.max_pool2d(y, 2) if self.pool else y


class ResNet12(nn.Module):
    def __init__(self, channels: int, filters: list[int], pools: int, outputs: int) -> None:
        super().__init__()
        widths = [channels, *filters]
        self.blocks = nn.Sequential(*(Stage(widths[i], widths[i + 1], i < pools) for i in range(len(filters))))
        self.head = nn.Linear(filters[-1], outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x).mean((2, 3)))


class Mlp(nn.Module):
    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(widths[i], widths[i + 1]) for i in range(len(widths) - 1))

    def forward(self, x: Tensor) -> Tensor:
        *hidden, last = self.layers
        for layer in hidden:
            x = F.relu(layer(x))
        return last(x)


def network(problem: Problem, device: str) -> nn.Module:
    """With the weights that metarun starts from."""
    spec = problem.spec
    shape, backbone = spec["input_shape"], spec["backbone"]
    if backbone["name"] == "mlp":
        if device == "cpu":
            torch.set_num_threads(1)  # layers as small as these only lose by more
        made: nn.Module = Mlp([math.prod(shape), *backbone["hidden"], spec["outputs"]])
    elif backbone["name"] == "resnet12":
        made = ResNet12(shape[0], backbone["filters"], backbone["pools"], spec["outputs"])
    else:
        made = Conv4(shape[0], shape[1], backbone["filters"], spec["outputs"])
    made.load_state_dict({name: torch.from_numpy(value) for name, value in problem.parameters.items()})
    return made.to(device)
