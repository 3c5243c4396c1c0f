"""T-net and MT-net: Lee, Choi 2018, Gradient-Based Meta-Learning with Learned Layerwise Metric and Subspace,
arXiv 1801.05558, section 4.

    y = T (W x + b) on every convolution and linear layer, before norm and activation
    W_{k+1} = W_k - alpha M o grad_W L_support(W_k),   b likewise
    M in {0, 1} for each output unit, P(M = 1) = sigmoid(zeta), drawn once a task

T (first the identity) and zeta (first 0) are learned across tasks only. A draw is a straight-through Gumbel
softmax at temperature 1 over the pair (zeta, 0): hard forwards, soft backwards. As nothing nonlinear stands
between W and T, T is applied to the weights: the network runs on T W and T b.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from metarun.errors import UserError
from metarun.methods.base import FlatParameterDict, Method, SupportGradient, Tensors, escape_dots, extend
from metarun.methods.layers import LINEAR, TRANSPOSED, linear_modules, names_by_tensor
from metarun.methods.maml import maml

log = logging.getLogger(__name__)

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
    theta = method.parameters.theta
    maps = output_axes(model, theta)
    identities = {
        name: torch.eye(theta[name].shape[axis], dtype=theta[name].dtype, device=theta[name].device)
        for name, (owner, axis) in maps.items()
        if name == owner
    }
    weights = partial(transform_weights, method, maps)
    transformed = extend(method, model, "t_layers", FlatParameterDict(identities), weights=weights)
    warn_without_t(model, [name for name in theta if name not in maps])
    return add_gradient_masks(transformed, model, maps, full) if mask else transformed


def output_axes(model: nn.Module, theta: Tensors) -> Maps:
    """The weights and biases that T and masks act on. Raises UserError as `add_t_layers`."""
    computed = [name for name, module in linear_modules(model).items() if module._parameters.get("weight") is None]
    if computed:
        raise UserError(
            f"mtnet: {', '.join(computed)}: T is multiplied into weights, and there a parametrisation computes them, "
            "as spectral or weight norm does; remove it (torch.nn.utils.parametrize), or take another method"
        )
    names, maps = names_by_tensor(model), Maps()
    for layer, module in model.named_modules():
        weight, bias = (names.get(id(module._parameters.get(part)), "") for part in ("weight", "bias"))
        if not isinstance(module, LINEAR) or weight not in theta:
            continue
        if getattr(module, "groups", 1) != 1:
            raise UserError(f"mtnet: {layer} is a grouped convolution, which T cannot act on")
        maps[weight] = (weight, int(isinstance(module, TRANSPOSED)))
        if bias in theta:
            maps[bias] = (weight, 0)
    if not maps:
        raise UserError("mtnet: the model has no convolution or linear layer whose weights adapt")
    return maps


def warn_without_t(model: nn.Module, params: Iterable[str]) -> None:
    """Logs the modules that own these parameters."""
    owners = dict.fromkeys(name.rpartition(".")[0] for name in params)
    modules = [f"{owner or 'the model'} ({type(model.get_submodule(owner)).__name__})" for owner in owners]
    if modules:
        more = f" and {len(modules) - 5} more" if len(modules) > 5 else ""
        message = "mtnet: T and masks act on convolution and linear layers; these adapt without: %s%s"
        log.warning(message, ", ".join(modules[:5]), more)


def transform_weights(method: Method, maps: Maps, theta: Tensors, phi: Tensors) -> Tensors:
    """The method's weights, with T W and T b for each layer, T [out, out]."""
    weights = method.weights(theta, phi)
    for name, (owner, axis) in maps.items():
        t, tensor = phi[f"t_layers.{escape_dots(owner)}"], weights[name]
        if tensor.dim() == 1:
            weights[name] = t @ tensor
        else:
            moved = tensor.transpose(0, axis) if axis else tensor
            product = (t @ moved.flatten(1)).view(moved.shape)
            weights[name] = product.transpose(0, axis) if axis else product
    return weights


def add_gradient_masks(method: Method, model: nn.Module, maps: Maps, full: bool) -> Method:
    """Extends a method by masked gradients: one mask entry per output unit, or per weight and bias entry if `full`."""
    theta, logits = method.parameters.theta, Tensors()
    std = FULL_LOGIT_STD[any(theta[name].dim() > 2 for name in maps)]
    if full:
        maps = {name: (name, 0) for name in maps}
    for name, (owner, axis) in maps.items():
        if full:
            logits[name] = nn.init.trunc_normal_(torch.empty(theta[name].shape), std=std).to(theta[name])
        elif name == owner:
            logits[name] = theta[name].new_zeros(theta[name].shape[axis])
    masked = Masked(method, maps, {name: logit.shape for name, logit in logits.items()}, full)
    extended = extend(method, model, "mask_logits", FlatParameterDict(logits))
    return replace(extended, begin=masked.begin, update=masked.update, noise=masked.noise, summaries=masked.summaries)


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

    def begin(self, theta: Tensors, phi: Tensors, gradient: SupportGradient, noise: Tensor) -> tuple[Tensors, Any]:
        theta, fixed = self.method.begin(theta, phi, gradient, noise)
        return theta, (fixed, [self.draw(phi, part) for part in noise.view(-1, self.noise(1))])

    def update(self, theta: Tensors, gradient: Tensors, phi: Tensors, fixed: Any, step: int) -> Tensors:
        before, masks = fixed
        mask = masks[step if self.full else 0]
        masked = dict(gradient)
        for name, (owner, units) in self.maps.items():
            masked[name] = gradient[name] * broadcast_mask(mask[owner], gradient[name], units)
        return self.method.update(theta, masked, phi, before, step)

    def summaries(self, theta: Tensors, phi: Tensors, gradient: SupportGradient, noise: Tensor) -> Tensors:
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
