"""Second derivatives that torch does not have or has wrong, computed another way or refused by the layer's name.

attention           its fused kernels have none: the math kernel is taken
recurrent layers    cuDNN's have none: torch's own kernels are taken
weight norm         the fused kernel's is wrong (torch 2.14): written out
hard sigmoid        has none: written out
sparse embeddings   their gradients are made dense
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm

from metarun.errors import UserError

WITHOUT = {  # layers that have no second derivative in torch, or a wrong one, and what to take instead
    nn.EmbeddingBag: "take nn.Embedding and a sum or mean over its output",
    nn.CrossMapLRN2d: "take nn.LocalResponseNorm",
}


class Substitute(NamedTuple):
    """What an attribute of an object is while the network runs."""

    owner: Any
    attribute: str
    value: Any


class Needs(NamedTuple):
    """What a network's forward needs besides its weights."""

    substitutes: list[Substitute]
    attention: bool  # whether it may compute attention
    recurrent: bool  # whether it has recurrent layers
    checkpoints: bool  # whether it may checkpoint activations


def needs(model: nn.Module) -> Needs:
    modules = list(model.modules())
    foreign = any(map(may_call_anything, modules))
    attention = foreign or any(isinstance(module, nn.MultiheadAttention) for module in modules)
    recurrent = any(isinstance(module, nn.RNNBase) for module in modules)
    return Needs([each for module in modules for each in substitutes(module)], attention, recurrent, foreign)


def may_call_anything(module: nn.Module) -> bool:
    """Whether its forward is neither torch's nor metarun's own."""
    ours = type(module).__module__.startswith(("torch.nn.", "metarun."))
    return not ours or "forward" in vars(module) or bool(module._forward_hooks or module._forward_pre_hooks)


def substitutes(module: nn.Module) -> Iterator[Substitute]:
    """For a layer whose second derivative is missing or wrong, and for a sparse embedding."""
    if isinstance(module, nn.Hardsigmoid):
        yield Substitute(module, "forward", hardsigmoid)
    elif isinstance(module, _WeightNorm):
        yield Substitute(module, "forward", partial(weight_norm, dim=module.dim))
    elif isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.sparse:
        yield Substitute(module, "sparse", False)
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            yield Substitute(hook, "compute_weight", partial(hooked_weight_norm, hook.name, hook.dim))


@contextmanager
def substituted(found: list[Substitute]) -> Iterator[None]:
    before = [vars(owner).get(attribute, MISSING) for owner, attribute, _ in found]
    for owner, attribute, value in found:
        vars(owner)[attribute] = value
    try:
        yield
    finally:
        for (owner, attribute, _), value in zip(found, before, strict=True):
            if value is MISSING:
                del vars(owner)[attribute]
            else:
                vars(owner)[attribute] = value


MISSING = object()


def hardsigmoid(x: Tensor) -> Tensor:
    return F.relu6(x + 3) / 6


def weight_norm(weight_g: Tensor, weight_v: Tensor, dim: int) -> Tensor:
    """g v / |v|, the norm over all axes but `dim`, or over all where it is -1; Salimans, Kingma 2016, equation 2."""
    return weight_v * (weight_g / torch.norm_except_dim(weight_v, 2, dim))


def hooked_weight_norm(name: str, dim: int, module: nn.Module) -> Tensor:
    return weight_norm(getattr(module, f"{name}_g"), getattr(module, f"{name}_v"), dim)


def exact_kernels(needs: Needs) -> AbstractContextManager[object]:
    """Within it, attention and recurrent layers compute by kernels that can be differentiated twice and mapped.

    Compilers cannot trace it; what metarun compiles has neither.
    """
    if torch.compiler.is_compiling() or not (needs.attention or needs.recurrent):
        return nullcontext()
    kernels = ExitStack()
    if needs.attention:
        kernels.enter_context(sdpa_kernel(SDPBackend.MATH))
    if needs.recurrent:
        kernels.enter_context(without_cudnn())
    return kernels


@contextmanager
def without_cudnn() -> Iterator[None]:
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = before


def require_second_derivatives(model: nn.Module) -> None:
    """Raises UserError for a layer whose second derivative torch does not have, or has wrong."""
    for name, module in model.named_modules():
        advice = next((advice for kind, advice in WITHOUT.items() if isinstance(module, kind)), None)
        if isinstance(module, nn.Embedding) and module.scale_grad_by_freq:
            advice = "take scale_grad_by_freq=False"
        if advice:
            raise UserError(
                f"{name or 'the model'} ({type(module).__name__}): torch has no second derivative of it, or a wrong "
                f"one; {advice}, or give use_second_order=False"
            )
