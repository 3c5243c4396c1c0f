"""T-net and MT-net: Lee, Choi 2018, Gradient-Based Meta-Learning with Learned Layerwise Metric and Subspace,
arXiv 1801.05558, section 4.

    y = T (W x + b) on every convolution and linear layer, before norm and activation
    W_{k+1} = W_k - alpha M o grad_W L_support(W_k),   b likewise
    M in {0, 1} for each output unit, P(M = 1) = sigmoid(zeta), drawn once a task

T (first the identity) and zeta (first 0) are learned across tasks only. A draw is a straight-through Gumbel
softmax at temperature 1 over the pair (zeta, 0): hard forwards, soft backwards. As nothing nonlinear stands
between W and T, T is applied to the weights: the network runs on T W and T b.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from metarun.errors import UserError
from metarun.methods.slots import Bag, Layer, Method, Tensors, attach, layers, require_layers, spelt

FULL_LOGIT_STD = {True: 0.01, False: 0.1}  # of a mask for each weight: with convolutions, without


def transform(method: Method, model: nn.Module, mask: bool = True, full: bool = False) -> Method:
    """The method with T layers and masks.

    Args:
        mask: false is T-net: T without masks.
        full: a logit for each weight instead of each output unit, and a fresh mask at each inner step.

    Raises:
        UserError: no layer to act on, or a grouped convolution, whose T would have to be block-diagonal.
    """
    theta, phi = method.parameters
    found = require_layers(layers(model, theta), "mtnet")
    for layer in found:
        if getattr(layer.module, "groups", 1) != 1:
            raise UserError(f"mtnet: {layer.name} is a grouped convolution, which T cannot act on")
    transforms = {layer.weight: torch.eye(len(theta[layer.weight])) for layer in found}
    added = attach(model, "t_layers", Bag(transforms))

    def weights(theta: Tensors, phi: Tensors) -> Tensors:
        run = method.weights(theta, phi)
        for layer in found:
            t = phi[f"t_layers.{spelt(layer.weight)}"]  # [out, out]
            run[layer.weight] = (t @ run[layer.weight].flatten(1)).view_as(run[layer.weight])
            if layer.bias is not None:
                run[layer.bias] = t @ run[layer.bias]
        return run

    transformed = replace(method, parameters=method.parameters._replace(phi={**phi, **added}), weights=weights)
    return masked(transformed, model, found, full) if mask else transformed


def masked(method: Method, model: nn.Module, found: list[Layer], full: bool) -> Method:
    """The method with masked gradients: of a unit's weights and bias together, or of each weight (`full`)."""
    theta, phi = method.parameters
    units = {layer.weight: torch.zeros(len(theta[layer.weight])) for layer in found}
    if full:
        convolutional = any(theta[layer.weight].dim() > 2 for layer in found)
        names = [name for layer in found for name in (layer.weight, layer.bias) if name is not None]
        std = FULL_LOGIT_STD[convolutional]
        units = {name: nn.init.trunc_normal_(torch.empty(theta[name].shape), std=std) for name in names}
    added = attach(model, "mask_logits", Bag(units))
    sizes = [logit.numel() for logit in units.values()]
    owner = {name: name for name in units}  # whose mask a weight or bias takes
    if not full:
        owner.update({layer.bias: layer.weight for layer in found if layer.bias is not None})

    def draw(phi: Tensors, noise: Tensor) -> Tensors:
        logits = {name: phi[f"mask_logits.{spelt(name)}"] for name in units}
        parts = noise.split(sizes)
        return {
            name: straight_through(logit, part.view_as(logit))
            for (name, logit), part in zip(logits.items(), parts, strict=True)
        }

    def begin(
        theta: Tensors, phi: Tensors, gradient: Callable[[Tensors], Tensors], noise: Tensor
    ) -> tuple[Tensors, Any]:
        theta, fixed = method.begin(theta, phi, gradient, noise)
        return theta, (fixed, [draw(phi, part) for part in noise.view(-1, sum(sizes))])

    def update(theta: Tensors, gradient: Tensors, phi: Tensors, fixed: Any, step: int) -> Tensors:
        before, masks = fixed
        mask = masks[step if full else 0]
        kept = {name: g * aligned(mask[owner[name]], g) if name in owner else g for name, g in gradient.items()}
        return method.update(theta, kept, phi, before, step)

    def shown(theta: Tensors, phi: Tensors, gradient: Callable[[Tensors], Tensors], noise: Tensor) -> Tensors:
        """The share that a draw masks on average, P(M = 0)."""
        shares = {name: (-phi[f"mask_logits.{spelt(name)}"]).sigmoid().mean() for name in units}
        own = {f"masked_{'weights' if full else 'units'}/{name}": share for name, share in shares.items()}
        return {**method.shown(theta, phi, gradient, noise), **own}

    return replace(
        method,
        parameters=method.parameters._replace(phi={**phi, **added}),
        begin=begin,
        shown=shown,
        update=update,
        noise=lambda steps: sum(sizes) * (max(steps, 1) if full else 1),
    )


def straight_through(logit: Tensor, noise: Tensor) -> Tensor:
    """0 or 1 with P(1) = sigmoid(logit), from uniform noise; backwards the derivative of the soft draw.

    The difference of two Gumbel variables is logistic: the softmax over (logit, 0) is a sigmoid.
    """
    tiny = torch.finfo(noise.dtype).tiny
    soft = torch.sigmoid(logit + noise.clamp_min(tiny).log() - torch.log1p(-noise))
    return (soft > 0.5).to(soft) + (soft - soft.detach())  # exactly 0 or 1


def aligned(mask: Tensor, gradient: Tensor) -> Tensor:
    """A mask of output units [out] as [out, 1, ...]; one of the gradient's own shape as it is."""
    return mask if mask.shape == gradient.shape else mask.view(-1, *[1] * (gradient.dim() - 1))
