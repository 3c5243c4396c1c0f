"""What a method is: a few small pure functions, which the meta-learner calls. MAML's are the defaults.

Two kinds of parameters: theta adapts to a task, phi is learned only across tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from metarun.errors import UserError
from metarun.nn.norm import norm_parameters

Tensors = dict[str, Tensor]


class Parameters(NamedTuple):
    """All that the outer optimiser learns, by name."""

    theta: Tensors
    phi: Tensors


class TaskLearnerProtocol(Protocol):
    """What a meta-objective can ask of one task."""

    inner_loop: int  # K, the number of inner steps
    loss_weights: Tensor | None  # of a multi-step loss, one for each inner step

    def adapt(self, parameters: Parameters, steps: int | None = None) -> list[Tensors]:
        """theta_0 .. theta_K of the inner loop, or only those of its first `steps`."""
        ...

    def adapt_final(self, parameters: Parameters) -> Tensors:
        """theta_K alone."""
        ...

    def adapted_loss(self, parameters: Parameters) -> Tensor:
        """The query loss of theta_K, or the multi-step loss."""
        ...

    def multi_step_loss(self, trajectory: list[Tensors], phi: Tensors) -> Tensor:
        """Of a trajectory theta_0 .. theta_K: the query losses of theta_1 .. theta_K, weighted."""
        ...

    def inner_step(self, theta: Tensors, phi: Tensors, number: int) -> Tensors:
        """The inner step of that number (from 0) from theta, with its own gradient whatever theta's graph."""
        ...

    def query_loss(self, theta: Tensors, phi: Tensors, taken: int | None = None) -> Tensor:
        """The outer objective on the query set, at theta after `taken` inner steps; None: after all."""
        ...


def default_begin(
    theta: Tensors, phi: Tensors, gradient: Callable[[Tensors], Tensors], noise: Tensor
) -> tuple[Tensors, Any]:
    """A task starts from theta itself, and nothing is fixed for it."""
    return theta, None


def weights(theta: Tensors, phi: Tensors) -> Tensors:
    """The network runs on theta and phi as they are."""
    return {**theta, **phi}


def meta_objective(parameters: Parameters, task: TaskLearnerProtocol) -> Tensor:
    """The query loss after the last inner step, or after each."""
    return task.adapted_loss(parameters)


def no_noise(steps: int) -> int:
    return 0


def default_summaries(theta: Tensors, phi: Tensors, gradient: Callable[[Tensors], Tensors], noise: Tensor) -> Tensors:
    """Nothing but what every run shows."""
    return {}


@dataclass(frozen=True)
class Method:
    """A method, prepared for one model. What is not given is MAML's.

    parameters      of the model and of what the method added to it, divided into theta and phi
    update          theta, its gradient, phi, what begin fixed, number of the step -> the next theta
    begin           theta, phi, gradient of the support loss (without a graph), noise -> the task's starting theta,
                    and whatever stays fixed for this task
    weights         theta, phi -> the weights that the network runs with
    meta_objective  parameters, one task -> the task's loss
    offline         theta_k, phi, one task, k -> the loss that phi descends from a stored iterate; instead of a
                    meta-objective, see `metarun/core/offline.py`
    leap            offline: the initialisation follows the tasks' trajectories, or stays
    noise           number of inner steps -> how many uniform numbers in [0, 1) a task is given
    shown           what begin is given -> what people see of the method in TensorBoard, by "what/of which layer":
                    scalars as curves of their mean over tasks, larger tensors as the distribution of one task
    """

    parameters: Parameters
    update: Callable[[Tensors, Tensors, Tensors, Any, int], Tensors]
    begin: Callable[[Tensors, Tensors, Callable[[Tensors], Tensors], Tensor], tuple[Tensors, Any]] = default_begin
    weights: Callable[[Tensors, Tensors], Tensors] = weights
    meta_objective: Callable[[Parameters, TaskLearnerProtocol], Tensor] = meta_objective
    offline: Callable[[Tensors, Tensors, TaskLearnerProtocol, int], Tensor] | None = None
    leap: bool = True
    noise: Callable[[int], int] = no_noise
    shown: Callable[[Tensors, Tensors, Callable[[Tensors], Tensors], Tensor], Tensors] = default_summaries


def split_parameters(model: nn.Module, across: Iterable[str] | None = None) -> Parameters:
    """A model's parameters: those named in `across` (the affine of norm layers, unless told) are phi, the rest theta.

    What is frozen (requires_grad=False) is neither.

    Raises:
        UserError: a lazy module without shapes.
    """
    for name, module in model.named_modules():
        if any(is_lazy(held) for held in (*module._parameters.values(), *module._buffers.values()) if held is not None):
            raise UserError(
                f"model: {name or 'it'} ({type(module).__name__}) has no shapes yet; run the model once on data, as "
                "model(data), before it is given"
            )
    names = norm_parameters(model) if across is None else set(across)
    learned = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
    return Parameters(
        theta={name: tensor for name, tensor in learned.items() if name not in names},
        phi={name: tensor for name, tensor in learned.items() if name in names},
    )


def require_adapting(parameters: Parameters, model: nn.Module, method: str) -> None:
    """Raises UserError where no parameter of the model adapts; it says what is frozen and what learned across tasks."""
    if parameters.theta:
        return
    frozen = [name for name, tensor in model.named_parameters() if not tensor.requires_grad]
    parts = {"frozen (requires_grad=False)": frozen, "learned across tasks only": list(parameters.phi)}
    told = [
        f"{len(names)} are {what}: {', '.join(names[:3])}{', ...' * (len(names) > 3)}"
        for what, names in parts.items()
        if names
    ]
    raise UserError(
        f"{method}: no parameter of the model adapts to a task ({'; '.join(told) or 'it has none'}); the inner loop "
        "needs weights with requires_grad=True that are neither the affine of norm layers nor named in `across`"
    )


def widest(tensors: Tensors) -> torch.dtype:
    """The type that holds what every one of the tensors holds."""
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors.values()))


def attach(model: nn.Module, name: str, module: nn.Module) -> Tensors:
    """Add what a method learns across tasks to the model, as its part `name`; its parameters by their full names.

    Each tensor of it has the type and the device of the layer that it serves.

    Raises:
        UserError: the model has such a part already, as one that has been prepared before.
    """
    if hasattr(model, name):
        raise UserError(f"the model has a part {name!r} already: a method prepares a model once; give it a fresh one")
    model.add_module(name, module)
    return {f"{name}.{inner}": parameter for inner, parameter in module.named_parameters()}


class FlatParameterDict(nn.Module):
    """Parameters under names that may hold dots, which torch's own containers do not take."""

    def __init__(self, tensors: Tensors) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_parameter(escape_dots(name), nn.Parameter(tensor))

    def forward(self, x: Any) -> Any:
        """Nothing: a model that runs all its children, such as nn.Sequential, runs this too."""
        return x


class PassThroughModuleDict(nn.ModuleDict):
    """Modules that a model holds but does not run: see `Bag.forward`."""

    def forward(self, x: Any) -> Any:
        return x


def escape_dots(name: str) -> str:
    return name.replace(".", "/")


def require_choice(option: str, value: str, choices: Iterable[str]) -> None:
    """Raises UserError where the option has another value."""
    if value not in choices:
        raise UserError(f"{option}={value!r}: choose one of {', '.join(choices)}")
