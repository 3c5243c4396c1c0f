"""Batch norm fused with the max-pool and the activation after it, for CPU tensors.

torch's own operations read and write the activations about thirty times for both derivatives, which took more than half
the time of a convolutional network's outer step; the numba loops in `metarun.nn.kernels` take a tenth of that.
"""

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

MIN_ELEMENTS_FOR_THREADS = 200_000  # with fewer elements one thread is faster than several


@functools.cache
def kernels() -> ModuleType | None:
    """The module of numba kernels. Returns None, and logs a warning once, if numba cannot be imported."""
    try:
        from metarun.nn import kernels
    except Exception as error:  # numba fails in various ways with a numpy version that it does not know
        log.warning("batch norm and max-pool are torch's own, which is slower: %r", error)
        return None
    return kernels


def backend_name() -> str:
    """The library that computes supported batch norms: "numba <version>" or "torch"."""
    module = kernels()
    return f"numba {module.numba.__version__}" if module else "torch"


def is_supported(x: Tensor, *affine: Tensor) -> bool:
    """Whether `max_pool`, or `fused_batch_norm` with the given weight and bias, can be called with x.

    Inputs that torch's operations refuse or convert are not supported: other than four dimensions, no images, images of
    one pixel in height or width, an affine of another size, dtype or device.
    """
    return (
        may_be_supported(x)
        and x.is_contiguous()
        and len(x) > 0
        and min(x.shape[2:]) > 1
        and all(each.shape == x.shape[1:2] and each.dtype == x.dtype and each.device == x.device for each in affine)
    )


def may_be_supported(x: Tensor) -> bool:
    """Whether a convolution of x can have a supported output.

    False under torch.compile, tracing, torch.func transforms and forward-mode AD, which cannot see into the kernels.
    """
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
    """leaky_relu(max_pool2d(batch_norm(x), 2), slope) with the batch's statistics.

    Differentiable twice, but not for several gradients at once (`is_grads_batched`).

    Args:
        x: [batch, channels, height, width], for which `is_supported(x, weight, bias)` holds.
        weight, bias: [channels].
        pool: whether there is a max-pool.
        slope: of the leaky ReLU's negative side; 1 means no activation.

    Returns:
        [batch, channels, height, width], or [batch, channels, height // 2, width // 2] with a pool.
    """
    return FusedBatchNorm.apply(x, weight, bias, eps, pool, slope)


def max_pool(x: Tensor) -> Tensor:
    """max_pool2d(x, 2), for which `is_supported(x)` holds; differentiable any number of times."""
    largest = x.new_empty(pooled_shape(x))
    index = torch.empty_like(largest, dtype=torch.int64)
    run_kernel("max_pool", x, (x, x.shape[3]), (index, largest))
    return x.flatten(2).gather(2, index.flatten(2)).view(index.shape)


def pooled_shape(x: Tensor) -> list[int]:
    return [*x.shape[:2], *(size // 2 for size in x.shape[2:])]


class FusedBatchNorm(torch.autograd.Function):
    """The operation of `fused_batch_norm`; the formulas are in `metarun.nn.kernels`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, pool: bool, slope: float) -> Tensor:
        y = x.new_empty(pooled_shape(x)) if pool else torch.empty_like(x)
        index = x.new_empty(y.shape if pool else 0, dtype=torch.uint32)
        saved = index, torch.empty_like(y), torch.empty_like(weight), torch.empty_like(weight)
        run_kernel("forward", x, (x, x.shape[3], weight, bias, eps, slope), (y, *saved))
        ctx.save_for_backward(x, weight, bias, *saved)
        ctx.slope = slope
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *FusedBatchNormBackward.apply(*grads, ctx.slope, *ctx.saved_tensors), None, None, None


class FusedBatchNormBackward(torch.autograd.Function):
    """The gradients with respect to x, weight and bias, from the gradient `gy` with respect to y."""

    @staticmethod
    def forward(
        ctx: Any, gy: Tensor, slope: float, x: Tensor, weight: Tensor, bias: Tensor, *saved: Tensor
    ) -> tuple[Tensor, ...]:
        gx, gw, gb = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(bias)
        run_kernel("backward", x, (gy, slope, x, weight, bias, *saved), (gx, gw, gb))
        ctx.save_for_backward(gw.clone(), gb.clone(), gy, x, weight, bias, *saved)
        ctx.slope = slope
        return gx, gw, gb

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        d_gy, d_x, d_weight = FusedBatchNormDoubleBackward.apply(*grads, ctx.slope, *ctx.saved_tensors)
        return d_gy, None, d_x, d_weight, torch.zeros_like(d_weight), None, None, None, None


class FusedBatchNormDoubleBackward(torch.autograd.Function):
    """The gradients of <v, gx> + <vw, gw> + <vb, gb> with respect to gy, x and weight."""

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
        *saved: Tensor,
    ) -> tuple[Tensor, ...]:
        outputs = gy.new_empty(gy.shape), torch.empty_like(x), torch.empty_like(weight)
        run_kernel("double_backward", x, (v, vw, vb, gw, gb, gy, slope, x, weight, bias, *saved), outputs)
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError("batch norm and max-pool have no third derivative, here as in torch")


# --- threads -----------------------------------------------------------------------------------------------


def run_kernel(name: str, x: Tensor, inputs: tuple[Any, ...], outputs: tuple[Tensor, ...]) -> None:
    """Run a kernel on all channels of x, split among as many threads as torch's operations use.

    `inputs` are the kernel's arguments before its range of channels; it writes into `outputs`.
    """
    kernel = getattr(kernels(), name)
    inputs, outputs = tuple(map(to_array, inputs)), tuple(map(to_array, outputs))
    channels = x.shape[1]
    threads = min(torch.get_num_threads(), channels) if x.numel() >= MIN_ELEMENTS_FOR_THREADS else 1
    bounds = [channels * number // threads for number in range(threads + 1)]
    *others, last = itertools.pairwise(bounds)
    futures = [executor(len(others)).submit(kernel, *inputs, *channel_range, *outputs) for channel_range in others]
    kernel(*inputs, *last, *outputs)
    for future in futures:
        future.result()


def to_array(value: Any) -> Any:
    """A tensor as an array, images as [batch, channels, pixels]; any other value unchanged."""
    if not isinstance(value, Tensor):
        return value
    value = value.contiguous()
    return (value.flatten(2) if value.dim() == 4 else value).numpy(force=True)


@functools.cache
def executor(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="batch_norm")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=executor.cache_clear)  # threads do not survive a fork
