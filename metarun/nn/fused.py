"""Batch norm with the max-pool and the activation behind it, as one operation on a CPU.

torch's own operations go through memory some thirty times for its two derivatives, which took more than half the time
of a convolutional network's outer step; the loops of `kernels` take a tenth of that.
"""

from __future__ import annotations

import functools
import itertools
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode

log = logging.getLogger(__name__)

MIN_ELEMENTS_FOR_THREADS = 200_000  # elements, from which on threads are quicker than one


@functools.cache
def kernels() -> ModuleType | None:
    """The compiled loops; None, and a line in the log, where numba cannot be imported."""
    try:
        from metarun.nn import kernels
    except Exception as error:  # beside a numpy that it does not know, numba fails in various ways
        log.warning("batch norm and max-pool are torch's own, which is slower: %r", error)
        return None
    return kernels


def backend_name() -> str:
    """What computes batch norm where `fits` holds."""
    found = kernels()
    return f"numba {found.numba.__version__}" if found else "torch"


def is_supported(x: Tensor, *affine: Tensor) -> bool:
    """Whether `pooled`, or `normalised` with that weight and bias, takes x.

    The loops do not take what torch refuses or converts: no pictures, some of one pixel, other numbers of channels,
    other types.
    """
    return (
        may_be_supported(x)
        and x.is_contiguous()
        and len(x) > 0
        and min(x.shape[2:]) > 1
        and all(each.shape == x.shape[1:2] and each.dtype == x.dtype and each.device == x.device for each in affine)
    )


def may_be_supported(x: Tensor) -> bool:
    """Whether a convolution's output for x may; none does as compilers, tracers, torch.func and forward mode see it."""
    return (
        not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and _get_current_dispatch_mode() is None
        and forward_ad._current_level < 0
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and x.dim() == 4
        and kernels() is not None
    )


def fused_batch_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, pool: bool, slope: float) -> Tensor:
    """leaky_relu(max_pool2d(batch_norm(x), 2)) by x's own statistics; pool: whether there is one; slope 1: no ReLU.

    x: [batch, channels, height, width], for which `fits` holds. It can be differentiated twice, but not for several
    gradients at once (`is_grads_batched`).
    """
    return FusedBatchNorm.apply(x, weight, bias, eps, pool, slope)


def pooled(x: Tensor) -> Tensor:
    """max_pool2d(x, 2), likewise."""
    largest = x.new_empty(halved(x))
    place = torch.empty_like(largest, dtype=torch.int64)
    run("max_pool", x, (x, x.shape[3]), (place, largest))
    return x.flatten(2).gather(2, place.flatten(2)).view(place.shape)


def halved(x: Tensor) -> list[int]:
    return [*x.shape[:2], *(size // 2 for size in x.shape[2:])]


class FusedBatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, pool: bool, slope: float) -> Tensor:
        y = x.new_empty(halved(x)) if pool else torch.empty_like(x)
        place = x.new_empty(y.shape if pool else 0, dtype=torch.uint32)
        found = place, torch.empty_like(y), torch.empty_like(weight), torch.empty_like(weight)
        run("forward", x, (x, x.shape[3], weight, bias, eps, slope), (y, *found))
        ctx.save_for_backward(x, weight, bias, *found)
        ctx.slope = slope
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return *Backward.apply(*gradients, ctx.slope, *ctx.saved_tensors), None, None, None


class Backward(torch.autograd.Function):
    """The gradients by x, weight and bias."""

    @staticmethod
    def forward(
        ctx: Any, gy: Tensor, slope: float, x: Tensor, weight: Tensor, bias: Tensor, *found: Tensor
    ) -> tuple[Tensor, ...]:
        gx, gw, gb = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(bias)
        run("backward", x, (gy, slope, x, weight, bias, *found), (gx, gw, gb))
        ctx.save_for_backward(gw.clone(), gb.clone(), gy, x, weight, bias, *found)
        ctx.slope = slope
        return gx, gw, gb

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        by_gy, by_x, by_weight = BackwardTwice.apply(*gradients, ctx.slope, *ctx.saved_tensors)
        return by_gy, None, by_x, by_weight, torch.zeros_like(by_weight), None, None, None, None


class BackwardTwice(torch.autograd.Function):
    """The gradients of <gradients, what `Backward` gives> by gy, x and weight."""

    @staticmethod
    def forward(
        ctx: Any,
        v: Tensor,
        vw: Tensor,
        vb: Tensor,
        slope: float,
        gw: Tensor,
        gb: Tensor,
        gy: Tensor,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        *found: Tensor,
    ) -> tuple[Tensor, ...]:
        outputs = gy.new_empty(gy.shape), torch.empty_like(x), torch.empty_like(weight)
        run("backward_twice", x, (v, vw, vb, gw, gb, gy, slope, x, weight, bias, *found), outputs)
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError("batch norm and max-pool have no third derivative, here as in torch")


# --- threads -----------------------------------------------------------------------------------------------


def run(name: str, x: Tensor, given: tuple[Any, ...], outputs: tuple[Tensor, ...]) -> None:
    """A kernel on all channels of x, by as many threads as torch's operations take."""
    function = getattr(kernels(), name)
    given, outputs = tuple(map(array, given)), tuple(map(array, outputs))
    channels = x.shape[1]
    threads = min(torch.get_num_threads(), channels) if x.numel() >= MIN_ELEMENTS_FOR_THREADS else 1
    bounds = [channels * number // threads for number in range(threads + 1)]
    *others, own = itertools.pairwise(bounds)
    parts = [executor(len(others)).submit(function, *given, *pair, *outputs) for pair in others]
    function(*given, *own, *outputs)
    for part in parts:
        part.result()


def array(given: Any) -> Any:
    """[batch, channels, pixels] or [channels] of a tensor; anything else as it is."""
    if not isinstance(given, Tensor):
        return given
    given = given.contiguous()
    return (given.flatten(2) if given.dim() == 4 else given).numpy(force=True)


@functools.cache
def executor(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="on_cpu")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=executor.cache_clear)  # a child has none of its parent's threads
