"""Norm layers that are exact in the inner loop, and the batch-norm policies: which statistics and which affine to use.

`grad(vmap(...))` is silently wrong through torch's fused norms when their affine is adapted in the inner loop.
Normalising without an affine, then multiplying and adding, is exact for derivatives of every order.
"""

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
    """Normalises [batch, channels, height, width] by its own statistics, then applies weight and bias [channels].

    It updates no running statistics. Batch norm uses `running_mean` and `running_var` if they are set, for example by
    `functional_call`; both are None at first.

    Args:
        kind: axes of the statistics: "batch" (batch and space), "instance" (space), "layer" (channels and space),
            "group" (space and groups of channels; at most 8 groups).
    """

    def __init__(self, kind: str, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        groups = {"instance": channels, "layer": 1, "group": largest_divisor(channels, 8)}
        self.groups = groups.get(kind)  # None for batch norm
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.running_mean: Tensor | None
        self.running_var: Tensor | None
        self.register_buffer("running_mean", None)
        self.register_buffer("running_var", None)
        self.recorded_stats: list[Tensor] | None = None  # the input's mean and variance, under `record_batch_stats`

    @property
    def uses_batch_stats(self) -> bool:
        """Whether this is a batch norm that uses its input's statistics and does not record them."""
        return self.groups is None and self.running_mean is None and self.recorded_stats is None

    def forward(self, x: Tensor) -> Tensor:
        x = at_least_float32(x)  # statistics in bfloat16 would be too coarse
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
    """leaky_relu(max_pool2d(norm(convolution(x)), 2), slope), by the fused kernels where they apply.

    Before a batch norm the convolution's bias has no effect, so it is left out and its gradient is exactly 0.

    Args:
        x: [batch, channels, height, width].
        pool: whether there is a max-pool.
        slope: of the leaky ReLU's negative side.
    """
    if not (is_unhooked(convolution, nn.Conv2d) and is_unhooked(norm, Norm) and norm.groups is None):
        return pool_and_activate(norm(convolution(x)), pool, slope)
    if not (norm.uses_batch_stats and fused.may_be_supported(x)):
        return pool_and_activate(norm(before_norm(convolution, x)), pool, slope)
    x = at_least_float32(convolution._conv_forward(x, convolution.weight, None))
    if fused.is_supported(x, norm.weight, norm.bias):
        shift = norm.bias if convolution.bias is None else norm.bias + 0 * convolution.bias
        return fused.fused_batch_norm(x, norm.weight, shift, norm.eps, pool, slope)
    if convolution.bias is not None:
        x = x + zero_gradient(convolution.bias)[:, None, None]
    return pool_and_activate(norm(x), pool, slope)


def before_norm(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """The convolution of x in front of a batch norm, which subtracts the bias again: its gradient is exactly 0."""
    bias = convolution.bias
    return convolution._conv_forward(x, convolution.weight, None if bias is None else zero_gradient(bias))


def zero_gradient(bias: Tensor) -> Tensor:
    """The bias with a gradient of exactly 0: its rounding noise would become drift under Adam."""
    return bias.detach() + 0 * bias


def pool_and_activate(x: Tensor, pool: bool = False, slope: float = 0.0) -> Tensor:
    """leaky_relu(max_pool2d(x, 2), slope), by the fused max-pool where it applies."""
    if pool:
        x = fused.max_pool(x) if fused.is_supported(x) else F.max_pool2d(x, 2)
    return F.leaky_relu(x, slope) if slope else x.relu()  # after the pool: same result, a quarter of the elements


def is_unhooked(module: nn.Module, kind: type[Module]) -> TypeGuard[Module]:
    """Whether module(x) is just kind.forward(module, x): no hooks (as WarpGrad adds), no replaced `forward`."""
    return (
        isinstance(module, kind)
        and type(module).forward is kind.forward
        and "forward" not in vars(module)
        and not (module._forward_hooks or module._forward_pre_hooks)
        and not (module._backward_hooks or module._backward_pre_hooks)
        and not _has_any_global_hook()
    )


def norm_layer(kind: str, channels: int) -> nn.Module:
    """`Norm(kind, channels)`, or the identity if kind is "none"."""
    return nn.Identity() if kind == "none" else Norm(kind, channels)


def largest_divisor(number: int, limit: int) -> int:
    return max(d for d in range(1, limit + 1) if number % d == 0)


def norm_parameters(model: nn.Module) -> set[str]:
    """Names of the parameters of `Norm` and torch's norm layers."""
    return {
        f"{module_name}.{name}" if module_name else name
        for module_name, module in model.named_modules()
        if isinstance(module, (Norm, *TORCH_NORMS))
        for name, _ in module.named_parameters(recurse=False)
    }


def is_transductive(model: nn.Module) -> bool:
    """Whether the output for an image depends on the other images of its batch, as with batch norm."""
    return any(
        isinstance(module, nn.modules.batchnorm._BatchNorm) or (isinstance(module, Norm) and module.groups is None)
        for module in model.modules()
    )


# --- batch norm --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BatchNormPolicy:
    """Which statistics and affine batch norm uses on a query set; a support set always uses its own statistics.

    Attributes:
        rule: "transductive": the query set's statistics. "support": those of the support set under the same weights.
            "per_step" (MAML++, Antoniou et al. 2019, arXiv 1810.09502): `statistics`, or, in training, while they are
            None, the query set's.
        steps: per_step: number of inner steps, each of which has an affine.
        affine: per_step: names of these parameters, each [steps, channels].
        statistics: per_step: a query set's statistics after 0 .. steps inner steps, [steps + 1, channels], by buffer
            name.
    """

    rule: str = "transductive"
    steps: int = 0
    affine: tuple[str, ...] = ()
    statistics: Tensors | None = None

    def weights(self, weights: Tensors, taken: int, query: bool) -> Tensors:
        """The weights after `taken` inner steps, with one step's affine [channels] instead of all [steps, channels].

        It is the affine of the next inner step for a support set, of the last step taken for a query set.
        """
        row = min(max(taken - query, 0), self.steps - 1)
        return {**weights, **{name: weights[name][row] for name in self.affine}}

    def after(self, taken: int) -> Tensors:
        """The query statistics [channels] after `taken` inner steps; beyond `steps`, those after the last step."""
        return {name: each[min(taken, self.steps)] for name, each in (self.statistics or {}).items()}


def batch_norms(model: nn.Module) -> dict[str, Norm]:
    """The model's batch norms of class `Norm`, by name."""
    norms = {name: module for name, module in model.named_modules() if isinstance(module, Norm)}
    return {name: norm for name, norm in norms.items() if norm.groups is None}


def per_step(model: nn.Module, steps: int) -> BatchNormPolicy:
    """The per_step policy; replaces each batch norm's affine by one for each inner step, all equal at first."""
    norms = batch_norms(model)
    for norm in norms.values():
        norm.weight, norm.bias = (nn.Parameter(old.detach().repeat(steps, 1)) for old in (norm.weight, norm.bias))
    return BatchNormPolicy("per_step", steps, tuple(f"{name}.{part}" for name in norms for part in ("weight", "bias")))


@contextmanager
def record_batch_stats(model: nn.Module) -> Iterator[Tensors]:
    """Yields a dict that on exit holds the mean and variance [channels] of each batch norm's input, by buffer name."""
    norms, stats = batch_norms(model), {}
    for norm in norms.values():
        norm.recorded_stats = []
    try:
        yield stats
        for name, norm in norms.items():
            if norm.recorded_stats:
                stats[f"{name}.running_mean"], stats[f"{name}.running_var"] = norm.recorded_stats
    finally:
        for norm in norms.values():
            norm.recorded_stats = None


@contextmanager
def use_batch_stats(model: nn.Module) -> Iterator[None]:
    """Make torch's norm layers in train mode use the batch's statistics without updating their running buffers.

    torch updates the buffers in place, which fails under vmap and leaks from one task into the next.
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
