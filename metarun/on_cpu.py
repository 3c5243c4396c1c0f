"""Batch norm with the max-pool and the activation behind it, as one operation on a CPU.

torch's own operations go through memory some thirty times for its two derivatives, which took more than half the time
of a convolutional network's outer step; the loops of `kernels` take a tenth of that.
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

log = logging.getLogger(__name__)

WORTH_SHARING = 200_000  # elements, from which on threads are quicker than one


@functools.cache
def kernels() -> ModuleType | None:
    """The compiled loops; None, and a line in the log, where numba cannot be imported."""
    try:
        from metarun import kernels
    except ImportError as error:
        log.warning("batch norm and max-pool are torch's own, which is slower: %s", error)
        return None
    return kernels


def fits(x: Tensor) -> bool:
    """Whether `normalised` takes x: as torch.func and compilers see it, only torch's operations will do."""
    return (
        x.device.type == "cpu"
        and x.dim() == 4
        and x.dtype in (torch.float32, torch.float64)
        and x.is_contiguous()
        and not torch._C._are_functorch_transforms_active()
        and not torch.compiler.is_compiling()
        and kernels() is not None
    )


def normalised(x: Tensor, weight: Tensor, bias: Tensor, eps: float, pool: bool, slope: float) -> Tensor:
    """leaky_relu(max_pool2d(batch_norm(x), 2)) by x's own statistics; pool: whether there is one; slope 1: no ReLU.

    x: [batch, channels, height, width], for which `fits` holds. It can be differentiated twice.
    """
    return Normalised.apply(x, weight, bias, eps, pool, slope)


def pooled(x: Tensor, slope: float) -> Tensor:
    """leaky_relu(max_pool2d(x, 2)), likewise."""
    one = x.new_ones(x.shape[1])
    return Normalised.apply(x, one, torch.zeros_like(one), None, True, slope)


class Normalised(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float | None, pool: bool, slope: float
    ) -> Tensor:
        batch, channels, height, width = x.shape
        y = x.new_empty(batch, channels, height // 2, width // 2) if pool else torch.empty_like(x)
        values, output = planes(x, y)
        place = np.empty(output.shape, np.uint32) if pool else None
        p, mean, reciprocal = (np.empty(shape, values.dtype) for shape in (output.shape, channels, channels))
        given = values, width, *arrays(weight, bias), eps, slope
        run("forward", values, given, (place, p, output, mean, reciprocal))
        ctx.save_for_backward(x, weight, bias)
        count = math.inf if eps is None else float(x.numel() // channels)
        ctx.found = count, slope, place, p, mean, reciprocal
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        return *Backward.apply(gradients[0], x, weight, bias, ctx.found), None, None, None


class Backward(torch.autograd.Function):
    """The gradients by x, weight and bias."""

    @staticmethod
    def forward(
        ctx: Any, gy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, found: tuple[Any, ...]
    ) -> tuple[Tensor, ...]:
        gx, gw, gb = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(bias)
        ahead, values, output = planes(gy, x, gx)
        given = ahead, values, *arrays(weight, bias), *found
        run("backward", values, given, (output, *arrays(gw, gb)))
        ctx.save_for_backward(gy, x, weight, bias, gw, gb)
        ctx.found = found
        return gx, gw, gb

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return *BackwardTwice.apply(*gradients, *ctx.saved_tensors, ctx.found), None, None


class BackwardTwice(torch.autograd.Function):
    """The gradients of <gradients, what `Backward` gives> by gy, x and weight."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, ...]:
        v, vw, vb, gy, x, weight, bias, gw, gb, found = given
        by_gy, by_x, by_weight = torch.empty(gy.shape, dtype=gy.dtype), torch.empty_like(x), torch.empty_like(weight)
        ahead, gradient, values, *outputs = planes(v, gy, x, by_gy, by_x)
        given = ahead, *arrays(vw, vb), gradient, values, *arrays(weight, bias), *found, *arrays(gw, gb)
        run("backward_twice", values, given, (*outputs, *arrays(by_weight)))
        return by_gy, by_x, by_weight

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError("batch norm and max-pool have no third derivative, here as in torch")


def arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().contiguous().numpy() for tensor in tensors]


def planes(*tensors: Tensor) -> list[np.ndarray]:
    """Each [batch, channels, height * width]."""
    return [array.reshape(*array.shape[:2], -1) for array in arrays(*tensors)]


# --- threads -----------------------------------------------------------------------------------------------


def run(name: str, x: np.ndarray, given: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
    """A kernel on all channels of x, by as many threads as torch's operations take."""
    function = getattr(kernels(), name)
    channels = x.shape[1]
    threads = min(torch.get_num_threads(), channels) if x.size >= WORTH_SHARING else 1
    if threads == 1:
        function(*given, 0, channels, *outputs)
        return
    bounds = [channels * number // threads for number in range(threads + 1)]
    parts = [pool(threads).submit(function, *given, *pair, *outputs) for pair in itertools.pairwise(bounds)]
    for part in parts:
        part.result()


@functools.cache
def pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="on_cpu")
