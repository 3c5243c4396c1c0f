"""The meta-learner: adapt to a task, judge what came out, differentiate both. Pure functions of tensors.

    adapt          theta_0 = begin(theta);  theta_{k+1} = update(theta_k, grad L_support(theta_k))
    task loss      L_query(theta_K), or what the method's meta-objective makes of theta_0..theta_K
    meta-gradient  mean over tasks of each task's gradient

Tasks are vectorised as vmap(grad(task loss)) or looped over; both give the same gradient. The gradient is
never taken outside the vmap, where torch's norms are silently wrong. The loop differentiates with torch's
tape, which on a CPU takes three quarters of the time that torch.func takes for a convolutional network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils._pytree import tree_map

from metarun.errors import UserError
from metarun.methods import Method, Parameters, Tensors
from metarun.norm import batch_statistics
from metarun.objective import Objective, State
from metarun.precision import full, layers_in
from metarun.task import Task

Loss = Callable[[Tensors], Tensor]  # of theta, on one side of a task
Measures = dict[str, Tensor]


@dataclass(frozen=True)
class MetaLearner:
    """All that stays fixed while the parameters are learned."""

    model: nn.Module
    method: Method
    inner_objective: Objective
    outer_objective: Objective
    inner_loop: int = 5
    use_second_order: bool = True
    precision: str = "float32"  # of the network's layers: `engine.precision`
    tied: bool = field(init=False)  # whether a tensor of the model has two names; looked up here, not at each forward

    def __post_init__(self) -> None:
        object.__setattr__(self, "tied", has_tied_tensors(self.model))


def has_tied_tensors(model: nn.Module) -> bool:
    parameters, buffers = model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)
    tensors = [id(tensor) for _, tensor in (*parameters, *buffers)]
    return len(set(tensors)) < len(tensors)


def run_model(learner: MetaLearner, theta: Tensors, phi: Tensors, data: Any) -> Any:
    """The network's output on `data` with the weights that the method makes of theta and phi."""
    weights = learner.method.weights(theta, phi)
    with batch_statistics(learner.model), layers_in(learner.precision, next(iter(weights.values()))):
        output = functional_call(learner.model, weights, (data,), tie_weights=learner.tied)
    return full(output) if learner.precision == "bfloat16" else output


def evaluate_objective(
    learner: MetaLearner, objective: Objective, theta: Tensors, phi: Tensors, data: Any, target: Any
) -> tuple[Tensor, Measures]:
    """The objective's loss (a scalar) and what it measured, at theta."""
    names = tuple(theta)

    def model(data: Any, updated_weights: list[Tensor]) -> Any:
        return run_model(learner, dict(zip(names, updated_weights, strict=True)), phi, data)

    state = State(data, target, model, list(theta.values()))
    loss = objective(state)
    if not isinstance(loss, Tensor) or loss.dim() != 0:
        found = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise UserError(f"{name_of(objective)}: an objective must return a scalar tensor, this one returned {found}")
    return loss, state.measures


def name_of(objective: Objective) -> str:
    return getattr(objective, "__name__", type(objective).__name__)


def require_dependence(loss: Tensor, objective: Objective) -> None:
    """Raises UserError where the loss, which the tape has recorded, does not depend on the weights."""
    if not loss.requires_grad:
        raise UserError(
            f"{name_of(objective)}: does not depend on the weights; "
            "run the network as state.model(state.data, state.updated_weights)"
        )


# --- the gradient of a support loss, on torch.func or on the tape ------------------------------------------

Gradient = Callable[[Loss, Tensors, bool], Tensors]  # loss, theta, whether the gradient has a graph of its own


def functional_gradient(loss: Loss, theta: Tensors, graph: bool) -> Tensors:
    return grad(loss)(theta)  # where nothing above it is differentiated, torch.func records nothing


def tape_gradient(loss: Loss, theta: Tensors, graph: bool) -> Tensors:
    with torch.enable_grad():
        if not all(tensor.requires_grad for tensor in theta.values()):
            theta = {name: tensor.detach().requires_grad_() for name, tensor in theta.items()}
        gradients = torch.autograd.grad(
            loss(theta), list(theta.values()), create_graph=graph, allow_unused=True, materialize_grads=True
        )
    return dict(zip(theta, gradients, strict=True))


# --- one task ----------------------------------------------------------------------------------------------


class OneTask:
    """The meta-learner on one task: what a method's meta-objective is made of."""

    def __init__(self, learner: MetaLearner, task: Task, noise: Tensor, gradient: Gradient) -> None:
        self.learner, self.task, self.noise, self.gradient = learner, task, noise, gradient
        self.inner_loop = learner.inner_loop
        self.fixed: Any = None  # by the method's begin, for this task
        self.measures: Measures = {}  # of the query loss that was asked for last

    def support_gradient(self, theta: Tensors, phi: Tensors, graph: bool) -> Tensors:
        """Of the inner objective; without a graph, nothing flows back through it to theta or phi."""
        if not graph:
            theta, phi = tree_map(torch.detach, (theta, phi))

        def loss(theta: Tensors) -> Tensor:
            found = self.support_loss(theta, phi)
            if self.gradient is tape_gradient:
                require_dependence(found, self.learner.inner_objective)
            return found

        return self.gradient(loss, theta, graph)

    def support_loss(self, theta: Tensors, phi: Tensors) -> Tensor:
        learner, data, target = self.learner, self.task.support_data, self.task.support_target
        return evaluate_objective(learner, learner.inner_objective, theta, phi, data, target)[0]

    def step(self, theta: Tensors, phi: Tensors, number: int) -> Tensors:
        gradient = self.support_gradient(theta, phi, self.learner.use_second_order)
        return self.learner.method.update(theta, gradient, phi, self.fixed, number)

    def begin(self, parameters: Parameters) -> Tensors:
        """theta_0, with all that stays fixed from there on."""
        theta, phi = parameters
        theta, self.fixed = self.learner.method.begin(
            theta, phi, lambda t: self.support_gradient(t, phi, graph=False), self.noise
        )
        return theta

    def steps(self, theta: Tensors, phi: Tensors, numbers: Iterable[int]) -> list[Tensors]:
        """theta, and what it becomes at each of the steps."""
        trajectory = [theta]
        for number in numbers:
            trajectory.append(self.step(trajectory[-1], phi, number))
        return trajectory

    def adapt(self, parameters: Parameters, steps: int | None = None) -> list[Tensors]:
        """theta_0 .. theta_K, or only those of the first `steps`."""
        numbers = range(self.inner_loop if steps is None else steps)
        return self.steps(self.begin(parameters), parameters.phi, numbers)

    def adapted(self, parameters: Parameters) -> Tensors:
        """theta_K alone."""
        return self.adapt(parameters)[-1]

    def query_loss(self, theta: Tensors, phi: Tensors) -> Tensor:
        loss, self.measures = evaluate_objective(
            self.learner, self.learner.outer_objective, theta, phi, self.task.query_data, self.task.query_target
        )
        return loss


Kind = Callable[[MetaLearner, Task, Tensor, Gradient], OneTask]


def task_loss(
    kind: Kind, learner: MetaLearner, gradient: Gradient, parameters: Parameters, task: Task, noise: Tensor
) -> tuple[Tensor, Measures]:
    """The loss that a task contributes to the meta-objective, and what was measured on its query set."""
    one = kind(learner, task, noise, gradient)
    return learner.method.meta_objective(parameters, one), one.measures


# --- a meta-batch ------------------------------------------------------------------------------------------


def meta_gradient(
    learner: MetaLearner,
    parameters: Parameters,
    tasks: Task,
    noise: Tensor,
    vectorised: bool,
    kind: Kind = OneTask,
) -> tuple[Parameters, Tensor, Measures]:
    """Mean gradient over a meta-batch, with each task's loss [tasks] and measures [tasks].

    noise: [tasks, method.noise(inner_loop)], uniform in [0, 1).
    kind: of a task, which says what is kept of its inner loop: `OneTask` unrolls it, `mixed.MixedTask` keeps little.
    """
    parameters = tree_map(torch.detach, parameters)
    if vectorised:
        one_task = partial(task_loss, kind, learner, functional_gradient)
        one_gradient = torch.func.grad_and_value(one_task, has_aux=True)
        gradients, (losses, measures) = vmap(one_gradient, in_dims=(None, 0, 0))(parameters, tasks, noise)
        return tree_map(lambda tensor: tensor.mean(0), gradients), losses, measures

    total = tree_map(torch.zeros_like, parameters)
    leaves = tree_map(lambda tensor: tensor.requires_grad_(), parameters)
    judged = []
    for task, own_noise in zip(one_by_one(tasks), noise, strict=True):
        loss, measures = task_loss(kind, learner, tape_gradient, leaves, task, own_noise)
        require_dependence(loss, learner.outer_objective)
        accumulate_gradient(loss, leaves, total)
        judged.append((loss.detach(), measures))
    losses, measures = stack(judged)
    return tree_map(lambda tensor: tensor / len(judged), total), losses, measures


def accumulate_gradient(loss: Tensor, leaves: Parameters, total: Parameters) -> None:
    """Add the gradient of `loss` by each leaf to `total`; a leaf that the loss does not depend on adds nothing."""
    pairs = [(leaf, part[name]) for tensors, part in zip(leaves, total, strict=True) for name, leaf in tensors.items()]
    gradients = torch.autograd.grad(loss, [leaf for leaf, _ in pairs], allow_unused=True)
    for (_, accumulated), gradient in zip(pairs, gradients, strict=True):
        if gradient is not None:
            accumulated += gradient


def one_by_one(tasks: Task) -> Iterator[Task]:
    return (Task(*sides) for sides in zip(*tasks, strict=True))


def stack(results: list[Any]) -> Any:
    """A list of equal trees of tensors -> one tree with a leading axis."""
    return tree_map(lambda *tensors: torch.stack(tensors), *results)


# --- evaluation --------------------------------------------------------------------------------------------


def evaluate_tasks(
    learner: MetaLearner, parameters: Parameters, tasks: Task, noise: Tensor, vectorised: bool
) -> tuple[Tensor, Measures]:
    """Query loss and measures after each inner step, each [tasks, inner_loop + 1]; keeps no graph."""
    learner = replace(learner, use_second_order=False)
    parameters = tree_map(torch.detach, parameters)
    gradient = functional_gradient if vectorised else tape_gradient

    def one_task(task: Task, noise: Tensor) -> tuple[Tensor, Measures]:
        one = OneTask(learner, task, noise, gradient)
        return stack([(one.query_loss(theta, parameters.phi), one.measures) for theta in one.adapt(parameters)])

    with torch.no_grad():
        if vectorised:
            return vmap(one_task)(tasks, noise)
        return stack([one_task(task, own) for task, own in zip(one_by_one(tasks), noise, strict=True)])
