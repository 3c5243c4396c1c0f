"""What a method is: a few small pure functions, which the meta-learner calls. MAML's are the defaults.

Two kinds of parameters: theta adapts to a task, phi is learned only across tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from metarun.errors import UserError
from metarun.norm import norm_parameters

Tensors = dict[str, Tensor]


class Parameters(NamedTuple):
    """All that the outer optimiser learns, by name."""

    theta: Tensors
    phi: Tensors


class TaskFunctions(Protocol):
    """What a meta-objective can ask of one task."""

    inner_loop: int  # K, the number of inner steps

    def adapt(self, parameters: Parameters, steps: int | None = None) -> list[Tensors]:
        """theta_0 .. theta_K of the inner loop, or only those of its first `steps`."""
        ...

    def adapted(self, parameters: Parameters) -> Tensors:
        """theta_K alone."""
        ...

    def step(self, theta: Tensors, phi: Tensors, number: int) -> Tensors:
        """The inner step of that number (from 0) from theta, with its own gradient whatever theta's graph."""
        ...

    def query_loss(self, theta: Tensors, phi: Tensors) -> Tensor:
        """The outer objective on the query set."""
        ...


def begin(theta: Tensors, phi: Tensors, gradient: Callable[[Tensors], Tensors], noise: Tensor) -> tuple[Tensors, Any]:
    """A task starts from theta itself, and nothing is fixed for it."""
    return theta, None


def weights(theta: Tensors, phi: Tensors) -> Tensors:
    """The network runs on theta and phi as they are."""
    return {**theta, **phi}


def meta_objective(parameters: Parameters, task: TaskFunctions) -> Tensor:
    """The query loss after the last inner step."""
    return task.query_loss(task.adapted(parameters), parameters.phi)


def no_noise(steps: int) -> int:
    return 0


def shown(theta: Tensors, phi: Tensors, gradient: Callable[[Tensors], Tensors], noise: Tensor) -> Tensors:
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
                    meta-objective, see `metarun/offline.py`
    leap            offline: the initialisation follows the tasks' trajectories, or stays
    noise           number of inner steps -> how many uniform numbers in [0, 1) a task is given
    shown           what begin is given -> what people see of the method in TensorBoard, by "what/of which layer":
                    scalars as curves of their mean over tasks, larger tensors as the distribution of one task
    """

    parameters: Parameters
    update: Callable[[Tensors, Tensors, Tensors, Any, int], Tensors]
    begin: Callable[[Tensors, Tensors, Callable[[Tensors], Tensors], Tensor], tuple[Tensors, Any]] = begin
    weights: Callable[[Tensors, Tensors], Tensors] = weights
    meta_objective: Callable[[Parameters, TaskFunctions], Tensor] = meta_objective
    offline: Callable[[Tensors, Tensors, TaskFunctions, int], Tensor] | None = None
    leap: bool = True
    noise: Callable[[int], int] = no_noise
    shown: Callable[[Tensors, Tensors, Callable[[Tensors], Tensors], Tensor], Tensors] = shown


def divide(model: nn.Module, across: Iterable[str] | None = None) -> Parameters:
    """A model's parameters: those named in `across` (the affine of norm layers, unless told) are phi, the rest theta.

    What is frozen (requires_grad=False) is neither.
    """
    names = norm_parameters(model) if across is None else set(across)
    learned = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
    return Parameters(
        theta={name: tensor for name, tensor in learned.items() if name not in names},
        phi={name: tensor for name, tensor in learned.items() if name in names},
    )


def attach(model: nn.Module, name: str, module: nn.Module) -> Tensors:
    """Add what a method learns across tasks to the model, as its part `name`; its parameters by their full names.

    Raises:
        UserError: the model has such a part already, as one that has been prepared before.
    """
    if hasattr(model, name):
        raise UserError(f"the model has a part {name!r} already: a method prepares a model once; give it a fresh one")
    model.add_module(name, module)
    reference = next(parameter for other, parameter in model.named_parameters() if not other.startswith(f"{name}."))
    module.to(reference)
    return {f"{name}.{inner}": parameter for inner, parameter in module.named_parameters()}


class Bag(nn.Module):
    """Parameters under names that may hold dots, which torch's own containers do not take."""

    def __init__(self, tensors: Tensors) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_parameter(spelt(name), nn.Parameter(tensor))

    def forward(self, x: Any) -> Any:
        """Nothing: a model that runs all its children, such as nn.Sequential, runs this too."""
        return x


class Parts(nn.ModuleDict):
    """Modules that a model holds but does not run: see `Bag.forward`."""

    def forward(self, x: Any) -> Any:
        return x


def spelt(name: str) -> str:
    return name.replace(".", "/")


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer of a model, by the names of its parameters."""

    name: str
    module: nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
    weight: str
    bias: str | None = field(default=None)


def layers(model: nn.Module, theta: Tensors) -> list[Layer]:
    """The convolution and linear layers whose weight adapts, in the order of the model."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    found = []
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(module, kinds) and f"{prefix}weight" in theta:
            bias = f"{prefix}bias"
            found.append(Layer(name, module, f"{prefix}weight", bias if bias in theta else None))
    return found


def head(model: nn.Module, method: str) -> Layer:
    """The last convolution or linear layer. Raises UserError where there is none."""
    return require_layers(layers(model, dict(model.named_parameters())), method)[-1]


def require_choice(option: str, value: str, choices: Iterable[str]) -> None:
    """Raises UserError where the option has another value."""
    if value not in choices:
        raise UserError(f"{option}={value!r}: choose one of {', '.join(choices)}")


def require_layers(found: list[Layer], method: str) -> list[Layer]:
    """Raises UserError where there are none."""
    if not found:
        raise UserError(f"{method}: the model has no convolution or linear layer whose weights adapt")
    return found
