"""Batch norm and max-pool for large images on a CPU, where torch's own take five to ten times as long.

Each computes what torch's function does, with the same derivatives of every order. What is slow there is to find the
statistics and the maxima; here they come from operations that run along rows of the image.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LARGE = 50_000  # elements from which on many short operations are faster than a long one


def large(x: Tensor) -> bool:
    """Whether these are the faster ones for x: not where the channels of a pixel lie side by side in memory."""
    return x.device.type == "cpu" and x.dim() == 4 and x.numel() >= LARGE and x.is_contiguous()


def batch_norm(x: Tensor, eps: float, sign: Tensor | None = None) -> Tensor:
    """(x - mean) / sqrt(var + eps) over all but the channels of [batch, channels, height, width].

    sign: [channels] of 1 and -1, by which channels are multiplied.
    """
    return BatchNorm.apply(x, sign, eps)[0]


def max_pool(x: Tensor) -> Tensor:
    """The maxima of squares of 2x2, as F.max_pool2d(x, 2) finds them."""
    return MaxPool.apply(x)[0]


class BatchNorm(torch.autograd.Function):
    """The normalised x, its mean and 1 / sqrt(var + eps), both [channels]."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, sign: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        count = x.shape[0] * x.shape[2] * x.shape[3]
        mean = x.sum((0, 2, 3)) / count
        centred = x - mean[:, None, None]
        reciprocal = (centred.square().sum((0, 2, 3)) / count + eps).rsqrt()
        scale = reciprocal if sign is None else reciprocal * sign
        return centred * scale[:, None, None], mean, reciprocal

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        x, sign, ctx.eps = inputs
        ctx.save_for_backward(x, sign, *output[1:])
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, sign, mean, reciprocal = ctx.saved_tensors
        found = torch.ops.aten.native_batch_norm_backward(
            gradients[0], x, sign, None, None, mean, reciprocal, True, ctx.eps, [True, False, False]
        )
        return found[0], None, None


class MaxPool(torch.autograd.Function):
    """The maximum of each square, and where in its image it lies: the first of equal ones, row by row."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        height, width = x.shape[-2] // 2 * 2, x.shape[-1] // 2 * 2
        left, right = x[..., :height, 0:width:2], x[..., :height, 1:width:2]
        is_right, row = right > left, torch.maximum(left, right)
        top, bottom = row[..., 0::2, :], row[..., 1::2, :]
        is_bottom = bottom > top
        is_right = (is_right[..., 1::2, :] & is_bottom) | (is_right[..., 0::2, :] & ~is_bottom)
        corner = torch.arange(0, height, 2)[:, None] * x.shape[-1] + torch.arange(0, width, 2)
        place = is_bottom.long() * x.shape[-1] + is_right.long() + corner
        return torch.maximum(top, bottom), place

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(inputs[0], output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        x, place = ctx.saved_tensors
        return torch.ops.aten.max_pool2d_with_indices_backward(
            gradients[0], x, [2, 2], [2, 2], [0, 0], [1, 1], False, place
        )
