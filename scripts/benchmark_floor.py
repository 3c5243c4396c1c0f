"""What bounds a step from below: the convolutions of the eager loop's step alone; and a large matrix product."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from metarun.engine.execution import configure_malloc
from scripts.benchmark_contender import Contender
from scripts.benchmark_peers import Setting, backward_of

SIDE = 2048  # of the square matrices
KINDS = (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default)


class Recorder(TorchDispatchMode):
    """Counts equal calls of convolutions, and their floating-point operations."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[tuple[Any, tuple[Hashable, ...]]] = Counter()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in KINDS:
            self.calls[func, tuple(described(value) for value in args)] += 1
            self.operations += flop_registry[func.overloadpacket](*args, out_val=out)
        return out


def described(value: Any) -> Hashable:
    if isinstance(value, Tensor):
        return "tensor", tuple(value.shape), value.stride()
    return tuple(value) if isinstance(value, list) else value


def made(value: Any, device: str) -> Any:
    """An argument like the one that was described."""
    if isinstance(value, tuple) and value[:1] == ("tensor",):
        return torch.empty_strided(*value[1:], device=device).normal_()
    return list(value) if isinstance(value, tuple) else value


def convolutions(role: dict[str, Any], stack: ExitStack) -> Contender:
    """A step calls every convolution of an eager outer step, each as often as that does; nothing between them."""
    s = Setting(role)
    backward = backward_of(s)
    configure_malloc()
    with Recorder() as recorder:
        for task in s.batches[0]:
            backward(task, len(s.batches[0]))
    calls = [
        (func, [made(value, s.device) for value in arguments], times)
        for (func, arguments), times in recorder.calls.items()
    ]

    @torch.no_grad()
    def steps(count: int) -> int:
        for _ in range(count):
            for func, arguments, times in calls:
                for _ in range(times):
                    func(*arguments)
        s.wait()
        return count

    return Contender(lambda: {"operations": np.array(recorder.operations)}, steps)


def product(role: dict[str, Any], stack: ExitStack) -> Contender:
    one, other = torch.randn(2, SIDE, SIDE, device=role["device"])

    def steps(count: int) -> int:
        for _ in range(count):
            torch.mm(one, other)
        if role["device"] != "cpu":
            torch.cuda.synchronize()
        return count

    return Contender(lambda: {"operations": np.array(2 * math.prod((SIDE, SIDE, SIDE)))}, steps)
