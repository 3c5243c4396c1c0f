"""The `Method` contract: a few pure functions that the meta-learner calls, with MAML's as defaults.

theta denotes the parameters that adapt to a task, phi those that are learned across tasks only.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from metarun.errors import UserError
from metarun.nn.norm import norm_parameters
from metarun.types import Parameters, Tensors

SupportGradient = Callable[[Tensors], Tensors]  # theta -> gradient of a task's support loss, without a graph


class TaskLearnerProtocol(Protocol):
    """The operations on one task that a meta-objective may use; implemented by `core.meta_learner.TaskLearner`."""

    inner_loop: int  # K, the number of inner steps
    loss_weights: Tensor | None  # [K], weights of the multi-step loss; None: only theta_K is evaluated

    def adapt(self, parameters: Parameters, steps: int | None = None) -> list[Tensors]:
        """The iterates theta_0 .. theta_K of the inner loop, or of its first `steps` steps."""
        ...

    def adapted_loss(self, parameters: Parameters) -> Tensor:
        """The query loss at theta_K, or the multi-step loss if `loss_weights` is set: a scalar."""
        ...

    def multi_step_loss(self, trajectory: list[Tensors], phi: Tensors) -> Tensor:
        """The weighted sum of the query losses at theta_1 .. theta_K, given theta_0 .. theta_K: a scalar."""
        ...

    def inner_step(self, theta: Tensors, phi: Tensors, number: int) -> Tensors:
        """theta after inner step `number` (from 0), whose support gradient is computed here."""
        ...

    def query_loss(self, theta: Tensors, phi: Tensors, taken: int | None = None) -> Tensor:
        """The query loss at theta, reached after `taken` inner steps (None: all K): a scalar."""
        ...


def default_begin(theta: Tensors, phi: Tensors, gradient: SupportGradient, noise: Tensor) -> tuple[Tensors, Any]:
    return theta, None


def default_weights(theta: Tensors, phi: Tensors) -> Tensors:
    return {**theta, **phi}


def default_meta_objective(parameters: Parameters, task: TaskLearnerProtocol) -> Tensor:
    return task.adapted_loss(parameters)


def no_noise(steps: int) -> int:
    return 0


def default_summaries(theta: Tensors, phi: Tensors, gradient: SupportGradient, noise: Tensor) -> Tensors:
    return {}


@dataclass(frozen=True)
class Method:
    """A meta-learning method, prepared for one model. Fields that are not given are MAML's.

    parameters      the model's parameters and those that the method added to it, divided into theta and phi
    update          (theta, support gradient, phi, per-task state, step number from 0) -> the next theta; with
                    learned rates (`learn_lr`) the gradient has been multiplied by them, which needs a linear update
    begin           (theta, phi, gradient, noise) -> (the task's starting theta, per-task state); noise is uniform in
                    [0, 1), [noise(inner_loop)]
    weights         (theta, phi) -> the weights that the network runs with, by name
    meta_objective  (parameters, task learner) -> the task's contribution to the outer loss, a scalar
    offline         (theta_k, phi, task learner, k) -> the look-ahead loss that phi descends at a stored iterate, a
                    scalar; replaces meta_objective, see `metarun/core/offline.py`
    leap            offline only: whether theta_0 follows the tasks' trajectories or stays as it is
    noise           number of inner steps -> how many random numbers `begin` needs for a task
    summaries       (arguments of begin) -> summaries for TensorBoard by "quantity/layer": a scalar is drawn as the
                    curve of its mean over tasks, a larger tensor as a histogram for one task
    """

    parameters: Parameters
    update: Callable[[Tensors, Tensors, Tensors, Any, int], Tensors]
    begin: Callable[[Tensors, Tensors, SupportGradient, Tensor], tuple[Tensors, Any]] = default_begin
    weights: Callable[[Tensors, Tensors], Tensors] = default_weights
    meta_objective: Callable[[Parameters, TaskLearnerProtocol], Tensor] = default_meta_objective
    offline: Callable[[Tensors, Tensors, TaskLearnerProtocol, int], Tensor] | None = None
    leap: bool = True
    noise: Callable[[int], int] = no_noise
    summaries: Callable[[Tensors, Tensors, SupportGradient, Tensor], Tensors] = default_summaries


def extend(method: Method, model: nn.Module, name: str, module: nn.Module, **functions: Any) -> Method:
    """The method with the given functions in place of its own, and with the parameters of `module` in phi.

    `module` is added to the model as attribute `name`; its parameters are called "name.inner" in phi.

    Raises:
        UserError: the model has that attribute already, because a method was prepared on it before.
    """
    if hasattr(model, name):
        raise UserError(f"the model has a part {name!r} already: a method prepares a model once; give it a fresh one")
    model.add_module(name, module)
    added = {f"{name}.{inner}": parameter for inner, parameter in module.named_parameters()}
    theta, phi = method.parameters
    return replace(method, parameters=Parameters(theta, {**phi, **added}), **functions)


def split_parameters(model: nn.Module, across: Iterable[str] | None = None) -> Parameters:
    """Divides a model's trainable parameters into theta and phi; frozen ones (requires_grad=False) are in neither.

    across: names of the parameters that go to phi; by default the affine parameters of norm layers.

    Raises:
        UserError: a lazy module has not been initialised.
    """
    for name, module in model.named_modules():
        if any(is_lazy(held) for held in (*module._parameters.values(), *module._buffers.values()) if held is not None):
            raise UserError(
                f"model: {name or 'it'} ({type(module).__name__}) has no shapes yet; run the model once on data, as "
                "model(data), before it is given"
            )
    names = norm_parameters(model) if across is None else set(across)
    trainable = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
    return Parameters(
        theta={name: tensor for name, tensor in trainable.items() if name not in names},
        phi={name: tensor for name, tensor in trainable.items() if name in names},
    )


def require_adapting(parameters: Parameters, model: nn.Module, method: str) -> None:
    """Raises UserError if theta is empty; the message names the frozen parameters and those in phi."""
    if parameters.theta:
        return
    frozen = [name for name, tensor in model.named_parameters() if not tensor.requires_grad]
    parts = {"frozen (requires_grad=False)": frozen, "learned across tasks only": list(parameters.phi)}
    reasons = [
        f"{len(names)} are {what}: {', '.join(names[:3])}{', ...' * (len(names) > 3)}"
        for what, names in parts.items()
        if names
    ]
    raise UserError(
        f"{method}: no parameter of the model adapts to a task ({'; '.join(reasons) or 'it has none'}); the inner loop "
        "needs weights with requires_grad=True that are neither the affine of norm layers nor named in `across`"
    )


def widest(tensors: Tensors) -> torch.dtype:
    """The dtype to which the dtypes of all the tensors promote."""
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors.values()))


class PassThroughModuleDict(nn.ModuleDict):
    """Modules that do not act on the data: a model that runs all its children, such as nn.Sequential, skips them."""

    def forward(self, x: Any) -> Any:
        return x


class FlatParameterDict(nn.Module):
    """Parameters under names that may contain dots, which nn.ParameterDict does not allow: a dot is stored as '/'."""

    def __init__(self, tensors: Tensors) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_parameter(escape_dots(name), nn.Parameter(tensor))

    def forward(self, x: Any) -> Any:
        """Returns its input, as `PassThroughModuleDict` does."""
        return x


def escape_dots(name: str) -> str:
    """The name under which a parameter of a submodule can be registered: dots become slashes."""
    return name.replace(".", "/")


def require_choice(option: str, value: str, choices: Iterable[str]) -> None:
    """Raises UserError if the option's value is not among `choices`."""
    if value not in choices:
        raise UserError(f"{option}={value!r}: choose one of {', '.join(choices)}")
