"""WarpGrad: Flennerhag, Rusu, Pascanu, Visin, Yin, Hadsell 2020, Meta-Learning with Warped Gradient Descent,
arXiv 1909.00025, equations 11 to 13 and Algorithm 1.

    f = omega_L h_L ... omega_1 h_1:  h (theta) adapts, the warp layers omega (phi) are frozen while it does
    L(phi) = sum over tasks and iterates theta_k of L_query(theta_k - alpha grad L_support(theta_k; phi); phi)
    J = L(phi) + C(theta_0),   with MAML's objective, or a multi-step loss, as C: Warp-MAML, the few-shot form

The iterates theta_k in L(phi) are detached: each term is differentiated through one look-ahead step only. The
approximation (equation 12) differentiates L_query by phi but not the step. C is differentiated by theta_0 alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_map

from metarun.errors import UserError
from metarun.methods.base import (
    Method,
    Parameters,
    PassThroughModuleDict,
    TaskLearnerProtocol,
    Tensors,
    attach,
    escape_dots,
    require_choice,
)
from metarun.methods.layers import called
from metarun.nn.norm import Norm, before_norm

CONVOLUTIONS = {  # types of layers -> type of the convolution that warps their output
    (nn.Conv1d, nn.ConvTranspose1d): nn.Conv1d,
    (nn.Conv2d, nn.ConvTranspose2d): nn.Conv2d,
    (nn.Conv3d, nn.ConvTranspose3d): nn.Conv3d,
}
WIDTHS: dict[
    type[nn.Module] | tuple[type[nn.Module], ...], Callable[[Any], int]
] = {  # types of layers -> width of their output
    (nn.Linear, nn.Bilinear): lambda module: module.out_features,
    **dict.fromkeys(CONVOLUTIONS, lambda module: module.out_channels),
    (nn.Embedding, nn.EmbeddingBag): lambda module: module.embedding_dim,
    nn.MultiheadAttention: lambda module: module.embed_dim,
    nn.RNNBase: lambda module: (module.proj_size or module.hidden_size) * (1 + module.bidirectional),
    nn.RNNCellBase: lambda module: module.hidden_size,
}
WARPED = tuple(t for types in WIDTHS for t in (types if isinstance(types, tuple) else (types,)))


class Warp(nn.Module):
    """A warp, [batch, channels, ...] -> the same shape: `depth` layers, as in the authors' code.

    Each layer: batch norm if `norm`; a linear map or convolution; ReLU if `activation`; if `residual`, its input is
    added, followed by another batch norm if `norm`.
    """

    def __init__(self, like: nn.Module, depth: int, kernel: int, norm: bool, activation: bool, residual: bool) -> None:
        super().__init__()
        width = next(width for types, width in WIDTHS.items() if isinstance(like, types))(like)
        convolution = next((made for types, made in CONVOLUTIONS.items() if isinstance(like, types)), None)
        self.maps = nn.ModuleList(
            nn.Linear(width, width) if convolution is None else convolution(width, width, kernel, padding=kernel // 2)
            for _ in range(depth)
        )
        self.norms_in = nn.ModuleList(Norm("batch", width) for _ in range(depth if norm else 0))
        self.norms_out = nn.ModuleList(Norm("batch", width) for _ in range(depth if norm and residual else 0))
        self.activation = activation
        self.residual = residual
        self.width = width
        self.axis = -1 if convolution is None else 1 - next(self.maps[0].parameters()).dim()  # of the channels
        self.ran = False  # whether forward has been called by the model
        self.to(next(like.parameters()))

    def forward(self, x: Tensor) -> Tensor:
        for number, layer in enumerate(self.maps):
            h = self.norms_in[number](x) if self.norms_in else x
            normed = bool(self.norms_out) or (bool(self.norms_in) and number < len(self.maps) - 1)
            h = before_norm(layer, h) if normed and isinstance(layer, nn.Conv2d) and not self.activation else layer(h)
            h = h.relu() if self.activation else h
            h = h + x if self.residual else h
            x = self.norms_out[number](h) if self.norms_out else h
        return x

    def start_as_identity(self) -> None:
        """Sets the layers' weights to the identity and their biases to zero."""
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
    """Extends a method by warp layers, which are inserted into the model.

    Args:
        after: names of the modules that a warp layer follows; by default each of the model's `blocks`, or else each
            layer but the last: convolutions (transposed too), linear, recurrent and attention layers, embeddings.
        objective: "warp_maml"; "trajectory", Algorithm 2 with stored iterates, for many inner steps; or "unrolled",
            backpropagation through the whole inner loop for theta and phi.
        initialisation: for "trajectory": theta_0 follows the trajectories ("leap") or stays as it is ("frozen").
        approximate: drop the derivative through the look-ahead step (equation 12).
        start: "reference" is torch's random initialisation, "identity" leaves the model's function unchanged.
        depth, kernel, norm, activation, residual: of each warp, see `Warp`; by default one linear 3x3 convolution.

    Raises:
        UserError: no layer that a warp can follow, an unknown or repeated name, an even kernel, or norm=True with a
            warp that is not 2-d; while adapting, a named module that is not called or whose output has another width.
    """
    require_choice("objective", objective, ("warp_maml", "trajectory", "unrolled"))
    require_choice("initialisation", initialisation, ("leap", "frozen"))
    require_choice("start", start, ("reference", "identity"))
    if kernel % 2 == 0:
        raise UserError(f"warpgrad: kernel={kernel} would change the shape of what it warps; give an odd one")
    phi = method.parameters.phi
    places = dict(model.named_modules())
    names = default_warp_sites(model) if after is None else after
    if len(set(names)) < len(names):
        raise UserError(f"warpgrad: after={names} names a module twice")
    warps = PassThroughModuleDict()
    for name in names:
        if name not in places:
            raise UserError(f"warpgrad: the model has no module {name!r} to put a warp layer behind")
        inner = list(warped_modules(places[name]).values())
        if not inner:
            raise UserError(
                f"warpgrad behind {name!r}: the model has no convolution, linear, recurrent or attention layer there, "
                "which would say how wide a warp is; name another module"
            )
        if norm and not isinstance(inner[-1], (nn.Conv2d, nn.ConvTranspose2d)):
            raise UserError(f"warpgrad: norm=true needs 2-d convolutions, {name!r} ends in {type(inner[-1]).__name__}")
        layer = Warp(inner[-1], depth, kernel, norm, activation, residual)
        if start == "identity":
            layer.start_as_identity()
        warps[escape_dots(name)] = layer
    added = attach(model, "warp_layers", warps)
    for name in names:
        layer = warps[escape_dots(name)]
        assert isinstance(layer, Warp)
        places[name].register_forward_hook(partial(run_warp, name, layer))  # a partial is copied along with the model

    method = replace(
        method,
        parameters=method.parameters._replace(phi={**phi, **added}),
        update=partial(update, method.update, warps),
        shown=partial(shown, method.shown, names),
    )
    if objective == "unrolled":
        return method
    if objective == "trajectory":
        return replace(method, offline=partial(look_ahead, approximate), leap=initialisation == "leap")
    return replace(method, meta_objective=partial(warp_maml, approximate))


# --- the functions of the method ---------------------------------------------------------------------------


def update(
    inner: Callable[..., Tensors],
    warps: PassThroughModuleDict,
    theta: Tensors,
    gradient: Tensors,
    phi: Tensors,
    fixed: Any,
    step: int,
) -> Tensors:
    """The update of the method without warps. Raises UserError if the model did not call one of the warp layers."""
    if not torch.compiler.is_compiling():
        dead = [name.replace("/", ".") for name, layer in warps.items() if not layer.ran]
        if dead:
            raise UserError(
                f"warpgrad: no data passes through {', '.join(dead)}, so that a warp layer behind it never acts: its "
                "parent uses the weights without calling it; name the modules to warp, after=[...]"
            )
    return inner(theta, gradient, phi, fixed, step)


def ahead(approximate: bool, theta: Tensors, phi: Tensors, task: TaskLearnerProtocol, number: int) -> Tensors:
    """theta after one look-ahead step, which is not differentiated by phi if `approximate`."""
    return task.inner_step(theta, tree_map(torch.detach, phi) if approximate else phi, number)


def look_ahead(approximate: bool, theta: Tensors, phi: Tensors, task: TaskLearnerProtocol, number: int) -> Tensor:
    """L_query after one look-ahead step from a detached iterate: a term of L(phi), a scalar."""
    return task.query_loss(ahead(approximate, tree_map(torch.detach, theta), phi, task, number), phi)


def warp_maml(approximate: bool, parameters: Parameters, task: TaskLearnerProtocol) -> Tensor:
    """J = L(phi) + C(theta_0) of one task, a scalar."""
    theta, phi = parameters
    detached_phi = tree_map(torch.detach, phi)
    if task.inner_loop == 0:
        return task.query_loss(task.adapt(parameters)[0], detached_phi)
    if task.loss_weights is not None:
        trajectory = task.adapt(Parameters(theta, detached_phi))
        losses = [look_ahead(approximate, iterate, phi, task, k) for k, iterate in enumerate(trajectory[:-1])]
        return torch.stack(losses).sum() + task.multi_step_loss(trajectory, detached_phi)
    last = task.inner_loop - 1
    trajectory = task.adapt(Parameters(theta, detached_phi), last)
    total = sum(look_ahead(approximate, iterate, phi, task, k) for k, iterate in enumerate(trajectory[:-1]))
    # C and the last term of L have the same value: one is needed by theta, the other by phi, so it is computed once.
    both = task.query_loss(ahead(approximate, trajectory[-1], phi, task, last), phi)
    return total + both + both.detach()


def shown(
    inner: Callable[..., Tensors],
    names: list[str],
    theta: Tensors,
    phi: Tensors,
    gradient: Callable[[Tensors], Tensors],
    noise: Tensor,
) -> Tensors:
    """The summaries of the method without warps, and the norm of each warp layer's parameters."""
    norms = {}
    for name in names:
        prefix = f"warp_layers.{escape_dots(name)}."
        entries = [tensor.flatten() for key, tensor in phi.items() if key.startswith(prefix)]
        norms[f"warp_norm/{name}"] = torch.cat(entries).norm()
    return {**inner(theta, phi, gradient, noise), **norms}


# --- warp layers behind the modules of a model --------------------------------------------------------------


def run_warp(name: str, layer: Warp, module: nn.Module, inputs: Any, output: Any) -> Any:
    """Forward hook that warps the module's output: the first of a tuple, and a recurrent network's hidden states."""
    warped = partial(warp_output, name, layer)
    if isinstance(module, nn.RNNBase):
        sequence, states = output
        directions = 1 + int(module.bidirectional)
        if isinstance(module, nn.LSTM):
            return warped(sequence), (warp_states(warped, states[0], directions), states[1])
        return warped(sequence), warp_states(warped, states, directions)
    if isinstance(output, tuple) and not isinstance(output, PackedSequence):
        return warped(output[0]), *output[1:]
    return warped(output)


def warp_states(warped: Callable[[Tensor], Tensor], states: Tensor, directions: int) -> Tensor:
    """Warps hidden states [layers * directions, ..., width], with the directions joined as in the network's output."""
    joined = torch.cat(states.unflatten(0, (-1, directions)).unbind(1), -1)
    return torch.stack(warped(joined).chunk(directions, -1), 1).flatten(0, 1)


def warp_output(name: str, layer: Warp, x: Any) -> Any:
    """Warps a tensor or a packed sequence. Raises UserError if module `name` gave another type or another width."""
    if isinstance(x, PackedSequence):
        return x._replace(data=warp_output(name, layer, x.data))
    if not isinstance(x, Tensor) or x.dim() < -layer.axis or x.shape[layer.axis] != layer.width:
        found = f"a tensor of shape {list(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise UserError(
            f"warpgrad: module {name!r} gives {found}, which a warp of {layer.width} channels cannot act on; name "
            "the modules to warp, after=[...]"
        )
    if not torch.compiler.is_compiling():
        layer.ran = True
    return layer(x)


def warped_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> module of the layers that a warp can follow."""
    return {name: module for name, module in called(model).items() if isinstance(module, WARPED)}


def default_warp_sites(model: nn.Module) -> list[str]:
    """Names of the modules that warp layers follow by default. Raises UserError if there are none."""
    blocks = getattr(model, "blocks", None)
    if isinstance(blocks, nn.Module):
        return [f"blocks.{name}" for name, _ in blocks.named_children()]
    names = list(warped_modules(model))[:-1]
    if not names:
        raise UserError("warpgrad: the model has a single layer or none; warp layers stand between layers")
    return names
