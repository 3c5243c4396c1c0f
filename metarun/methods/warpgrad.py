"""WarpGrad: Flennerhag, Rusu, Pascanu, Visin, Yin, Hadsell 2020, Meta-Learning with Warped Gradient Descent,
arXiv 1909.00025, equations 11 to 13 and Algorithm 1.

    f = omega_L h_L ... omega_1 h_1:  h (theta) adapts, the warp layers omega (phi) are frozen while it does
    L(phi) = sum over tasks and iterates theta_k of L_query(theta_k - alpha grad L_support(theta_k; phi); phi)
    J = L(phi) + C(theta_0),   with MAML's objective as C: Warp-MAML, the few-shot form

The iterates theta_k in L(phi) are detached: each term is differentiated through its one look-ahead step. The
approximation (equation 12) differentiates only L_query's own phi. C is differentiated by theta_0 alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from metarun.errors import UserError
from metarun.methods.slots import (
    Method,
    Parameters,
    Parts,
    TaskFunctions,
    Tensors,
    attach,
    layers,
    require_choice,
    require_layers,
    spelt,
)
from metarun.norm import Norm

Map = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


class Warp(nn.Module):
    """One warp: `depth` linear maps or convolutions of unchanged width, [batch, channels, ...] -> the same shape."""

    def __init__(self, like: Map, depth: int, kernel: int, norm: bool, activation: bool, residual: bool) -> None:
        super().__init__()
        width = like.out_features if isinstance(like, nn.Linear) else like.out_channels
        self.maps = nn.ModuleList(
            nn.Linear(width, width)
            if isinstance(like, nn.Linear)
            else type(like)(width, width, kernel, padding=kernel // 2)
            for _ in range(depth)
        )
        self.norm = Norm("batch", width) if norm else nn.Identity()
        self.activation = activation
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for number, layer in enumerate(self.maps):
            y = layer(y)
            if self.activation or number < len(self.maps) - 1:
                y = y.relu()
        return self.norm(y + x if self.residual else y)

    def start_as_identity(self) -> None:
        for layer in self.maps:
            for parameter in layer.parameters():
                if parameter.dim() == 1:
                    nn.init.zeros_(parameter)
                elif isinstance(layer, nn.Linear):
                    nn.init.eye_(parameter)
                else:
                    nn.init.dirac_(parameter)


def warp(
    method: Method,
    model: nn.Module,
    after: list[str] | None = None,
    objective: str = "warp_maml",
    initialisation: str = "leap",
    approximate: bool = False,
    start: str = "reference",
    depth: int = 1,
    kernel: int = 3,
    norm: bool = False,
    activation: bool = False,
    residual: bool = False,
) -> Method:
    """The method on a model with warp layers.

    Args:
        after: names of the modules behind which a warp layer stands; by default each of the model's `blocks`,
            or each convolution and linear layer but the last.
        objective: "warp_maml"; "trajectory", Algorithm 2 with stored iterates, for many inner steps; or "unrolled":
            everything by backpropagation through the inner loop.
        initialisation: of "trajectory": it follows the trajectories ("leap"), or stays as it is ("frozen").
        approximate: drop the derivative through the look-ahead step (equation 12).
        start: "reference" is torch's random initialisation, "identity" leaves the model's function as it was.
        depth, kernel, norm, activation, residual: of each warp layer; by default one linear 3x3 convolution.

    Raises:
        UserError: no place for a warp layer, a name that is no module or stands twice, an even kernel, or a norm
            behind something not 2-d.
    """
    require_choice("objective", objective, ("warp_maml", "trajectory", "unrolled"))
    require_choice("initialisation", initialisation, ("leap", "frozen"))
    require_choice("start", start, ("reference", "identity"))
    if kernel % 2 == 0:
        raise UserError(f"warpgrad: kernel={kernel} would change the shape of what it warps; give an odd one")
    phi = method.parameters.phi
    places = dict(model.named_modules())
    names = default_places(model) if after is None else after
    if len(set(names)) < len(names):
        raise UserError(f"warpgrad: after={names} names a module twice")
    warps = Parts()
    for name in names:
        if name not in places:
            raise UserError(f"warpgrad: the model has no module {name!r} to put a warp layer behind")
        inner = require_layers(layers(places[name], dict(places[name].named_parameters())), f"warpgrad behind {name!r}")
        like = inner[-1].module
        if norm and not isinstance(like, nn.Conv2d):
            raise UserError(f"warpgrad: norm=true needs 2-d convolutions, {name!r} ends in {type(like).__name__}")
        layer = Warp(like, depth, kernel, norm, activation, residual)
        if start == "identity":
            layer.start_as_identity()
        warps[spelt(name)] = layer
    added = attach(model, "warp_layers", warps)
    for name, layer in zip(names, warps.values(), strict=True):
        places[name].register_forward_hook(partial(run_warp, layer))  # a partial is copied along with the model

    def step(theta: Tensors, phi: Tensors, task: TaskFunctions, number: int) -> Tensors:
        """The look-ahead; approximate: it does not see phi change."""
        return task.step(theta, tree_map(torch.detach, phi) if approximate else phi, number)

    def look_ahead(theta: Tensors, phi: Tensors, task: TaskFunctions, number: int) -> Tensor:
        """L_query after one step from an iterate, which is detached."""
        return task.query_loss(step(tree_map(torch.detach, theta), phi, task, number), phi)

    def warp_maml(parameters: Parameters, task: TaskFunctions) -> Tensor:
        theta, phi = parameters
        still = tree_map(torch.detach, phi)
        if task.inner_loop == 0:
            return task.query_loss(task.adapt(parameters)[0], still)
        last = task.inner_loop - 1
        trajectory = task.adapt(Parameters(theta, still), last)
        total = sum(look_ahead(iterate, phi, task, number) for number, iterate in enumerate(trajectory[:-1]))
        # MAML's loss by theta and the last look-ahead's by phi are derivatives of one value, computed once for both.
        both = task.query_loss(step(trajectory[-1], phi, task, last), phi)
        return total + both + both.detach()

    method = replace(method, parameters=method.parameters._replace(phi={**phi, **added}), shown=norms(method, names))
    if objective == "unrolled":
        return method
    if objective == "trajectory":
        return replace(method, offline=look_ahead, leap=initialisation == "leap")
    return replace(method, meta_objective=warp_maml)


def norms(method: Method, names: list[str]) -> Callable[..., Tensors]:
    """What the method shows, and the norm of each warp layer's parameters."""

    def shown(theta: Tensors, phi: Tensors, gradient: Callable[[Tensors], Tensors], noise: Tensor) -> Tensors:
        own = {}
        for name in names:
            prefix = f"warp_layers.{spelt(name)}."
            entries = [tensor.flatten() for key, tensor in phi.items() if key.startswith(prefix)]
            own[f"warp_norm/{name}"] = torch.cat(entries).norm()
        return {**method.shown(theta, phi, gradient, noise), **own}

    return shown


def run_warp(layer: nn.Module, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return layer(output)


def default_places(model: nn.Module) -> list[str]:
    blocks = getattr(model, "blocks", None)
    if isinstance(blocks, nn.Module):
        return [f"blocks.{name}" for name, _ in blocks.named_children()]
    found = layers(model, dict(model.named_parameters()))[:-1]
    if not found:
        raise UserError("warpgrad: the model has a single layer or none; warp layers stand between layers")
    return [layer.name for layer in found]
