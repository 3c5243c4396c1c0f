"""WarpGrad: Flennerhag, Rusu, Pascanu, Visin, Yin, Hadsell 2020, Meta-Learning with Warped Gradient Descent,
arXiv 1909.00025, equations 11 to 13 and Algorithm 1.

    f = omega_L h_L ... omega_1 h_1:  h (theta) adapts, the warp layers omega (phi) are frozen while it does
    L(phi) = sum over tasks and iterates theta_k of L_query(theta_k - alpha grad L_support(theta_k; phi); phi)
    J = L(phi) + C(theta_0),   with MAML's objective, or a multi-step loss, as C: Warp-MAML, the few-shot form

The iterates theta_k in L(phi) are detached: each term is differentiated through one look-ahead step only. The
approximation (equation 12) differentiates L_query by phi but not the step. C is differentiated by theta_0 alone.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from metarun.errors import UserError
from metarun.methods.base import (
    Method,
    Parameters,
    PassThroughModuleDict,
    SupportGradient,
    TaskLearnerProtocol,
    Tensors,
    escape_dots,
    extend,
    require_choice,
    split_parameters,
)
from metarun.methods.maml import maml
from metarun.methods.warp_layers import Warp, default_warp_sites, make_warps, run_warp


def warpgrad(model: nn.Module, inner_learning_rate: float, **options: Any) -> Method:
    """WarpGrad on a model, all of which adapts, the affine of its norm layers included; see `warp` for the options."""
    everything = split_parameters(model, across=())
    return warp(maml(model, inner_learning_rate, everything, "warpgrad"), model, **options)


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
    names = default_warp_sites(model) if after is None else after
    make = partial(Warp, start=start, depth=depth, kernel=kernel, norm=norm, activation=activation, residual=residual)
    warps = make_warps(model, names, norm, make)
    layers = PassThroughModuleDict({escape_dots(name): layer for name, layer in warps.items()})
    warped_update, warped_summaries = partial(update, method.update, warps), partial(summaries, method.summaries, names)
    method = extend(method, model, "warp_layers", layers, update=warped_update, summaries=warped_summaries)
    for name, layer in warps.items():
        module = model.get_submodule(name)
        module.register_forward_hook(partial(run_warp, name, layer))  # a partial is copied along with the model
    if objective == "unrolled":
        return method
    if objective == "trajectory":
        return replace(method, offline=partial(look_ahead, approximate), leap=initialisation == "leap")
    return replace(method, meta_objective=partial(warp_maml, approximate))


# --- the functions of the method ---------------------------------------------------------------------------


def update(
    inner: Callable[..., Tensors],
    warps: dict[str, Warp],
    theta: Tensors,
    gradient: Tensors,
    phi: Tensors,
    fixed: Any,
    step: int,
) -> Tensors:
    """The update of the method without warps. Raises UserError if the model did not call one of the warp layers."""
    if not torch.compiler.is_compiling():
        dead = [name for name, layer in warps.items() if not layer.ran]
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


def summaries(
    inner: Callable[..., Tensors],
    names: list[str],
    theta: Tensors,
    phi: Tensors,
    gradient: SupportGradient,
    noise: Tensor,
) -> Tensors:
    """The summaries of the method without warps, and the norm of each warp layer's parameters."""
    norms = {}
    for name in names:
        prefix = f"warp_layers.{escape_dots(name)}."
        entries = [tensor.flatten() for key, tensor in phi.items() if key.startswith(prefix)]
        norms[f"warp_norm/{name}"] = torch.cat(entries).norm()
    return {**inner(theta, phi, gradient, noise), **norms}
