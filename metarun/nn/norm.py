"""Normalisation layers whose affine is written out, whose statistics batch norm takes, and which are norms.

`grad(vmap(...))` is silently wrong through torch's fused norms when their affine adapts in the inner loop;
normalise without affine, then multiply and add is exact in every order of the two.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeGuard, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from metarun.nn import fused
from metarun.nn.precision import at_least_float32

Tensors = dict[str, Tensor]
Module = TypeVar("Module", bound=nn.Module)

TORCH_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


class Norm(nn.Module):
    """Normalises [batch, channels, height, width] by statistics of what it is given; keeps no running ones.

    Batch norm takes those that are put into its empty buffers instead, as `functional_call` does.
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
        self.running_mean: Tensor | None
        self.running_var: Tensor | None
        self.register_buffer("running_mean", None)
        self.register_buffer("running_var", None)
        self.recorded_stats: list[Tensor] | None = (
            None  # mean and variance of what it is given, while they are recorded
        )

    @property
    def uses_batch_stats(self) -> bool:
        """Whether it uses the statistics of the batch it is given and records none."""
        return self.groups is None and self.running_mean is None and self.recorded_stats is None

    def forward(self, x: Tensor) -> Tensor:
        x = at_least_float32(x)  # statistics of bfloat16 would have its error
        if self.running_mean is not None and self.running_var is not None:
            scale = self.weight * (self.running_var + self.eps).rsqrt()
            return x * scale[:, None, None] + (self.bias - self.running_mean * scale)[:, None, None]
        if self.recorded_stats is not None and self.groups is None:
            variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
            self.recorded_stats[:] = mean, variance
        if self.groups is not None:
            normal = F.group_norm(x, self.groups, eps=self.eps)
        elif fused.is_supported(x, self.weight, self.bias):
            return fused.fused_batch_norm(x, self.weight, self.bias, self.eps, pool=False, slope=1.0)
        else:
            normal = F.batch_norm(x, None, None, training=True, eps=self.eps)
        return normal * self.weight[:, None, None] + self.bias[:, None, None]


def conv_norm_act(x: Tensor, convolution: nn.Module, norm: nn.Module, pool: bool = False, slope: float = 0.0) -> Tensor:
    """leaky_relu(max_pool2d(norm(convolution(x)), 2), slope); pool: whether there is one."""
    if not (is_unhooked(convolution, nn.Conv2d) and is_unhooked(norm, Norm) and norm.groups is None):
        return pool_and_activate(norm(convolution(x)), pool, slope)
    if not (norm.uses_batch_stats and fused.may_be_supported(x)):
        return pool_and_activate(norm(before_norm(convolution, x)), pool, slope)
    x = at_least_float32(
        convolution._conv_forward(x, convolution.weight, None)
    )  # the norm would take its bias out again
    if fused.is_supported(x, norm.weight, norm.bias):
        shift = norm.bias if convolution.bias is None else norm.bias + 0 * convolution.bias
        return fused.fused_batch_norm(x, norm.weight, shift, norm.eps, pool, slope)
    if convolution.bias is not None:
        x = x + constant(convolution.bias)[:, None, None]
    return pool_and_activate(norm(x), pool, slope)


def before_norm(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """The convolution of x, behind which a batch norm takes the bias out again."""
    bias = convolution.bias
    return convolution._conv_forward(x, convolution.weight, None if bias is None else constant(bias))


def constant(bias: Tensor) -> Tensor:
    """The bias with the gradient 0, which is otherwise rounding noise that Adam turns into drift."""
    return bias.detach() + 0 * bias


def pool_and_activate(x: Tensor, pool: bool = False, slope: float = 0.0) -> Tensor:
    """leaky_relu(max_pool2d(x, 2), slope), likewise."""
    if pool:
        x = fused.pooled(x) if fused.is_supported(x) else F.max_pool2d(x, 2)
    return F.leaky_relu(x, slope) if slope else x.relu()  # behind the pool it is the same, on a quarter of the elements


def is_unhooked(module: nn.Module, kind: type[Module]) -> TypeGuard[Module]:
    """Whether to call it is to call kind.forward: it has neither hooks, as a warp layer's, nor a forward of its own."""
    return (
        isinstance(module, kind)
        and type(module).forward is kind.forward
        and "forward" not in vars(module)
        and not (module._forward_hooks or module._forward_pre_hooks)
        and not (module._backward_hooks or module._backward_pre_hooks)
        and not _has_any_global_hook()
    )


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


# --- batch norm --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BatchNormPolicy:
    """Whose statistics a query set is normalised by, and with which affine; a support set has statistics of its own.

    rule        "transductive": the query set's own; "support": the support set's, on the same weights; "per_step":
                `statistics`, and while there are none, in training, the query set's own
    steps       per_step: inner steps that have an affine of their own
    affine      per_step: names of those parameters, [steps, channels]
    statistics  per_step: of a query set after 0 .. steps inner steps, by name of a buffer, [steps + 1, channels]
    """

    rule: str = "transductive"
    steps: int = 0
    affine: tuple[str, ...] = ()
    statistics: Tensors | None = None

    def weights(self, weights: Tensors, taken: int, query: bool) -> Tensors:
        """With the affine of the next inner step for a support set, of the last one for a query set."""
        row = min(max(taken - query, 0), self.steps - 1)
        return {**weights, **{name: weights[name][row] for name in self.affine}}

    def after(self, taken: int) -> Tensors:
        """The statistics of a query set after so many inner steps; those after the last are as after it."""
        return {name: each[min(taken, self.steps)] for name, each in (self.statistics or {}).items()}


def batch_norms(model: nn.Module) -> dict[str, Norm]:
    found = {name: module for name, module in model.named_modules() if isinstance(module, Norm)}
    return {name: norm for name, norm in found.items() if norm.groups is None}


def per_step(model: nn.Module, steps: int) -> BatchNormPolicy:
    """Give the model's batch norms an affine for each step, all equal at first."""
    norms = batch_norms(model)
    for norm in norms.values():
        norm.weight, norm.bias = (nn.Parameter(held.detach().repeat(steps, 1)) for held in (norm.weight, norm.bias))
    return BatchNormPolicy("per_step", steps, tuple(f"{name}.{part}" for name in norms for part in ("weight", "bias")))


@contextmanager
def record_batch_stats(model: nn.Module) -> Iterator[Tensors]:
    """Collects mean and variance [channels] of what each batch norm is given, by the names of its buffers."""
    norms, found = batch_norms(model), {}
    for norm in norms.values():
        norm.recorded_stats = []
    try:
        yield found
        for name, norm in norms.items():
            if norm.recorded_stats:
                found[f"{name}.running_mean"], found[f"{name}.running_var"] = norm.recorded_stats
    finally:
        for norm in norms.values():
            norm.recorded_stats = None


@contextmanager
def use_batch_stats(model: nn.Module) -> Iterator[None]:
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
