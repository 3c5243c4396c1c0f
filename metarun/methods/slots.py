"""What a method is: a few small pure functions, which the meta-learner calls. MAML's are the defaults.

Two kinds of parameters: theta adapts to a task, phi is learned only across tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from metarun.norm import norm_parameters

Tensors = dict[str, Tensor]


class Parameters(NamedTuple):
    """All that the outer optimiser learns, by name."""

    theta: Tensors
    phi: Tensors


def prepare(model: nn.Module) -> Parameters:
    """Everything adapts but the affine of norm layers, which is learned across tasks only; what is frozen stays so."""
    across = norm_parameters(model)
    named = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
    return Parameters(
        theta={name: tensor for name, tensor in named.items() if name not in across},
        phi={name: tensor for name, tensor in named.items() if name in across},
    )


def begin(theta: Tensors, phi: Tensors, gradient: Callable[[Tensors], Tensors]) -> Tensors:
    """A task starts from theta itself; `gradient` is that of the support loss, for methods that look first."""
    return theta


def weights(theta: Tensors, phi: Tensors) -> Tensors:
    """The network runs on theta and phi as they are."""
    return {**theta, **phi}


def update(theta: Tensors, gradient: Tensors, phi: Tensors, learning_rate: float) -> Tensors:
    """theta - learning_rate * gradient."""
    return {name: tensor - learning_rate * gradient[name] for name, tensor in theta.items()}


def meta_objective(trajectory: list[Tensors], query_loss: Callable[[Tensors], Tensor]) -> Tensor:
    """The query loss after the last inner step."""
    return query_loss(trajectory[-1])


@dataclass(frozen=True)
class Method:
    """The five slots.

    prepare         model -> its parameters, divided into theta and phi
    begin           theta, phi, gradient of the support loss -> the task's starting theta
    weights         theta, phi -> the weights that the network runs with
    update          theta, its gradient, phi, learning rate -> the next theta
    meta_objective  theta_0..theta_K, query loss -> the task's loss
    """

    prepare: Callable[[nn.Module], Parameters] = prepare
    begin: Callable[[Tensors, Tensors, Callable[[Tensors], Tensors]], Tensors] = begin
    weights: Callable[[Tensors, Tensors], Tensors] = weights
    update: Callable[[Tensors, Tensors, Tensors, float], Tensors] = update
    meta_objective: Callable[[list[Tensors], Callable[[Tensors], Tensor]], Tensor] = meta_objective
