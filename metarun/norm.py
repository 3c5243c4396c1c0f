"""Normalisation layers whose affine is written out, and how norm layers are told from others.

`grad(vmap(...))` is silently wrong through torch's fused norms when their affine adapts in the inner loop;
normalise without affine, then multiply and add is exact in every order of the two.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun import on_cpu
from metarun.precision import full

TORCH_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


class Norm(nn.Module):
    """Normalises [batch, channels, height, width] by statistics of what it is given; keeps no running ones.

    `kind` says over what: "batch" (batch and space), "instance" (space), "layer" (channels and space),
    "group" (space and groups of channels).
    """

    def __init__(self, kind: str, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        groups = {"instance": channels, "layer": 1, "group": largest_divisor(channels, 8)}
        self.groups = groups.get(kind)  # none: batch norm
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        x = full(x)  # statistics of bfloat16 would have its error
        if self.groups is not None:
            normal = F.group_norm(x, self.groups, eps=self.eps)
        elif on_cpu.large(x):
            normal = on_cpu.batch_norm(x, self.eps)
        else:
            normal = F.batch_norm(x, None, None, training=True, eps=self.eps)
        return normal * self.weight[:, None, None] + self.bias[:, None, None]


def max_pool(x: Tensor, norm: nn.Module) -> Tensor:
    """F.max_pool2d(norm(x), 2); where it is faster, the affine comes after the pool and touches a quarter of x."""
    if not on_cpu.large(x):
        return F.max_pool2d(norm(x), 2)
    if not isinstance(norm, Norm) or norm.groups is not None or norm._forward_hooks:  # such as a warp layer's
        return on_cpu.max_pool(norm(x))
    sign = torch.where(norm.weight.detach() < 0, -1.0, 1.0).to(norm.weight.dtype)  # the maximum of -x is not that of x
    pooled = on_cpu.max_pool(on_cpu.batch_norm(full(x), norm.eps, sign))
    return pooled * (norm.weight * sign)[:, None, None] + norm.bias[:, None, None]


def norm_layer(kind: str, channels: int) -> nn.Module:
    """A norm of one of `Norm`'s kinds, or "none"."""
    return nn.Identity() if kind == "none" else Norm(kind, channels)


def largest_divisor(number: int, limit: int) -> int:
    return max(d for d in range(1, limit + 1) if number % d == 0)


def norm_parameters(model: nn.Module) -> set[str]:
    """Names of the parameters that belong to norm layers, told by the layer's type."""
    return {
        f"{module_name}.{name}" if module_name else name
        for module_name, module in model.named_modules()
        if isinstance(module, (Norm, *TORCH_NORMS))
        for name, _ in module.named_parameters(recurse=False)
    }


def is_transductive(model: nn.Module) -> bool:
    """Whether the output for an image depends on the others of its batch."""
    return any(
        isinstance(module, nn.modules.batchnorm._BatchNorm) or (isinstance(module, Norm) and module.groups is None)
        for module in model.modules()
    )


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Norm layers in train mode use the batch's statistics and leave their running buffers alone.

    torch would update the buffers in place, which fails under vmap and leaks from one task into the next.
    """
    hidden = [
        (module._buffers, name, module._buffers[name])
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.training
        for name in ("running_mean", "running_var", "num_batches_tracked")
        if module._buffers.get(name) is not None
    ]
    for buffers, name, _ in hidden:
        buffers[name] = None
    try:
        yield
    finally:
        for buffers, name, buffer in hidden:
            buffers[name] = buffer
