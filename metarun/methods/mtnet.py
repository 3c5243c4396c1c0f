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
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from metarun.errors import UserError
from metarun.methods.base import FlatParameterDict, Method, Tensors, attach, escape_dots
from metarun.methods.layers import layers, name_left_out, parametrised
from metarun.methods.maml import maml

FULL_LOGIT_STD = {True: 0.01, False: 0.1}  # initial spread of zeta with full=True: with convolutions, without


Maps = dict[str, tuple[str, int]]  # weight or bias -> (the weight whose T or mask acts on it, axis of output units)


def mtnet(model: nn.Module, inner_learning_rate: float, **options: Any) -> Method:
    """MT-net on a model; see `add_t_layers` for the options."""
    return add_t_layers(maml(model, inner_learning_rate), model, **options)


def add_t_layers(method: Method, model: nn.Module, mask: bool = True, full: bool = False) -> Method:
    """Extends a method by T layers and masks on every convolution and linear layer.

    A warning names the layers of other types, which adapt without T and mask.

    Args:
        mask: False gives T-net, which has T layers and no masks.
        full: a logit zeta for each weight instead of each output unit, and a new mask at each inner step.

    Raises:
        UserError: no layer to act on; a grouped convolution, whose T would have to be block-diagonal; or a layer whose
            weight is computed by a parametrisation.
    """
    theta, phi = method.parameters
    if computed := parametrised(model):
        raise UserError(
            f"mtnet: {', '.join(computed)}: T is multiplied into weights, and there a parametrisation computes them, "
            "as spectral or weight norm does; remove it (torch.nn.utils.parametrize), or take another method"
        )
    maps: Maps = {}
    for layer in layers(model, theta):
        if getattr(layer.module, "groups", 1) != 1:
            raise UserError(f"mtnet: {layer.name} is a grouped convolution, which T cannot act on")
        maps[layer.weight] = (layer.weight, layer.units)
        if layer.bias is not None:
            maps[layer.bias] = (layer.weight, 0)
    if not maps:
        raise UserError("mtnet: the model has no convolution or linear layer whose weights adapt")
    transforms = {
        name: torch.eye(theta[name].shape[units], dtype=theta[name].dtype, device=theta[name].device)
        for name, (owner, units) in maps.items()
        if name == owner
    }
    added = attach(model, "t_layers", FlatParameterDict(transforms))
    name_left_out(
        "mtnet: T and masks act on convolution and linear layers; these adapt without",
        model,
        theta.keys() - maps.keys(),
    )
    with_t = Transformed(method, maps)
    transformed = replace(method, parameters=method.parameters._replace(phi={**phi, **added}), weights=with_t.weights)
    return add_gradient_masks(transformed, model, maps, full) if mask else transformed


@dataclass(frozen=True)
class Transformed:
    """`method` with a network that runs on T W and T b."""

    method: Method
    maps: Maps

    def weights(self, theta: Tensors, phi: Tensors) -> Tensors:
        """T W and T b for each layer, T [out, out]; other weights as they are."""
        weights = self.method.weights(theta, phi)
        for name, (owner, units) in self.maps.items():
            t, tensor = phi[f"t_layers.{escape_dots(owner)}"], weights[name]
            if tensor.dim() == 1:
                weights[name] = t @ tensor
            else:
                moved = tensor.transpose(0, units) if units else tensor
                product = (t @ moved.flatten(1)).view(moved.shape)
                weights[name] = product.transpose(0, units) if units else product
        return weights


def add_gradient_masks(method: Method, model: nn.Module, maps: Maps, full: bool) -> Method:
    """Extends a method by masked gradients: one mask entry per output unit, or per weight and bias entry if `full`."""
    theta, phi = method.parameters
    if full:
        std = FULL_LOGIT_STD[any(theta[name].dim() > 2 for name in maps)]
        maps = {name: (name, 0) for name in maps}
        units = {name: nn.init.trunc_normal_(torch.empty(theta[name].shape), std=std).to(theta[name]) for name in maps}
    else:
        units = {
            name: theta[name].new_zeros(theta[name].shape[axis])
            for name, (owner, axis) in maps.items()
            if name == owner
        }
    added = attach(model, "mask_logits", FlatParameterDict(units))
    masked = Masked(method, maps, {name: logit.shape for name, logit in units.items()}, full)
    parameters = method.parameters._replace(phi={**phi, **added})
    return replace(
        method,
        parameters=parameters,
        begin=masked.begin,
        summaries=masked.summaries,
        update=masked.update,
        noise=masked.noise,
    )


@dataclass(frozen=True)
class Masked:
    """`method` with its gradients multiplied by masks drawn for each task.

    maps    weight or bias -> (the weight whose mask it takes, the axis of output units)
    shapes  name of a mask -> its shape
    full    one mask entry per weight, drawn at each inner step
    """

    method: Method
    maps: Maps
    shapes: dict[str, torch.Size]
    full: bool

    def draw(self, phi: Tensors, noise: Tensor) -> Tensors:
        """The masks M by name, from uniform noise [noise(1)]."""
        parts = noise.split([shape.numel() for shape in self.shapes.values()])
        return {
            name: straight_through(phi[f"mask_logits.{escape_dots(name)}"], part.view(shape))
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def begin(
        self, theta: Tensors, phi: Tensors, gradient: Callable[[Tensors], Tensors], noise: Tensor
    ) -> tuple[Tensors, Any]:
        theta, fixed = self.method.begin(theta, phi, gradient, noise)
        return theta, (fixed, [self.draw(phi, part) for part in noise.view(-1, self.noise(1))])

    def update(self, theta: Tensors, gradient: Tensors, phi: Tensors, fixed: Any, step: int) -> Tensors:
        before, masks = fixed
        mask = masks[step if self.full else 0]
        masked = dict(gradient)
        for name, (owner, units) in self.maps.items():
            masked[name] = gradient[name] * broadcast_mask(mask[owner], gradient[name], units)
        return self.method.update(theta, masked, phi, before, step)

    def summaries(self, theta: Tensors, phi: Tensors, gradient: Callable[[Tensors], Tensors], noise: Tensor) -> Tensors:
        """Adds, for each mask, the expected share of masked units or weights: the mean of P(M = 0)."""
        shares = {name: (-phi[f"mask_logits.{escape_dots(name)}"]).sigmoid().mean() for name in self.shapes}
        masked = {f"masked_{'weights' if self.full else 'units'}/{name}": share for name, share in shares.items()}
        return {**self.method.summaries(theta, phi, gradient, noise), **masked}

    def noise(self, steps: int) -> int:
        """How many uniform random numbers the masks of one task need."""
        return sum(shape.numel() for shape in self.shapes.values()) * (max(steps, 1) if self.full else 1)


def straight_through(logit: Tensor, noise: Tensor) -> Tensor:
    """Draws 0 or 1 with P(1) = sigmoid(logit) from uniform noise; the gradient is that of the soft sample.

    The difference of two Gumbel variables is logistic: the softmax over (logit, 0) is a sigmoid.
    """
    noise, tiny = noise.to(logit.device), torch.finfo(noise.dtype).tiny
    soft = torch.sigmoid(logit + noise.clamp_min(tiny).log() - torch.log1p(-noise))
    return ((soft > 0.5).to(soft) + (soft - soft.detach())).to(logit)  # exactly 0 or 1


def broadcast_mask(mask: Tensor, gradient: Tensor, units: int) -> Tensor:
    """Views a mask [out] so that it broadcasts along axis `units` of the gradient; a mask of its shape is unchanged."""
    if mask.shape == gradient.shape:
        return mask
    return mask.view([-1 if axis == units else 1 for axis in range(gradient.dim())])
