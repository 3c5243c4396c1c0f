"""The meta-learner: adapt to a task, judge what came out, differentiate both. Pure functions of tensors.

    adapt          theta_0 = begin(theta);  theta_{k+1} = update(theta_k, grad L_support(theta_k))
    task loss      L_query(theta_K), or what the method's meta-objective makes of theta_0..theta_K
    meta-gradient  mean over tasks of each task's gradient

Tasks are vectorised as vmap(grad(task loss)) or looped over; both give the same gradient. The gradient is
never taken outside the vmap, where torch's norms are silently wrong. The loop differentiates with torch's
tape, which on a CPU takes three quarters of the time that torch.func takes for a convolutional network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils._pytree import tree_map

from metarun.methods import Method, Parameters, Tensors
from metarun.norm import batch_statistics
from metarun.objective import Objective, State
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
    inner_learning_rate: float = 0.01
    inner_loop: int = 5
    use_second_order: bool = True


def run_model(learner: MetaLearner, theta: Tensors, phi: Tensors, data: Any) -> Any:
    """The network's output on `data` with the weights that the method makes of theta and phi."""
    with batch_statistics(learner.model):
        return functional_call(learner.model, learner.method.weights(theta, phi), (data,))


def evaluate_objective(
    learner: MetaLearner, objective: Objective, theta: Tensors, phi: Tensors, data: Any, target: Any
) -> tuple[Tensor, Measures]:
    """The objective's loss (a scalar) and what it measured, at theta."""
    names = tuple(theta)

    def model(data: Any, updated_weights: list[Tensor]) -> Any:
        return run_model(learner, dict(zip(names, updated_weights, strict=True)), phi, data)

    state = State(data, target, model, list(theta.values()))
    loss = objective(state)
    return loss, state.measures


# --- the gradient of a support loss, on torch.func or on the tape ------------------------------------------

Gradient = Callable[[Loss, Tensors], Tensors]


def functional_gradient(loss: Loss, theta: Tensors) -> Tensors:
    return grad(loss)(theta)


def tape_gradient(loss: Loss, theta: Tensors) -> Tensors:
    """The same on the tape. Where theta is no part of a graph, neither is the gradient (first-order, evaluation)."""
    in_graph = any(tensor.requires_grad for tensor in theta.values())
    with torch.enable_grad():
        if not in_graph:
            theta = {name: tensor.detach().requires_grad_() for name, tensor in theta.items()}
        gradients = torch.autograd.grad(
            loss(theta), list(theta.values()), create_graph=in_graph, allow_unused=True, materialize_grads=True
        )
    return dict(zip(theta, gradients, strict=True))


# --- adapt, task loss, meta-gradient -----------------------------------------------------------------------


def adapt(
    learner: MetaLearner, parameters: Parameters, data: Any, target: Any, gradient: Gradient = tape_gradient
) -> list[Tensors]:
    """theta_0 .. theta_K on one task's support set; first-order stops each step's gradient."""

    def support_gradient(theta: Tensors) -> Tensors:
        phi = parameters.phi
        if not learner.use_second_order:
            theta, phi = tree_map(torch.detach, (theta, phi))
        return gradient(lambda t: evaluate_objective(learner, learner.inner_objective, t, phi, data, target)[0], theta)

    theta = learner.method.begin(parameters.theta, parameters.phi, support_gradient)
    trajectory = [theta]
    for _ in range(learner.inner_loop):
        theta = learner.method.update(theta, support_gradient(theta), parameters.phi, learner.inner_learning_rate)
        trajectory.append(theta)
    return trajectory


def task_loss(
    learner: MetaLearner, parameters: Parameters, task: Task, gradient: Gradient = tape_gradient
) -> tuple[Tensor, Measures]:
    """The loss that a task contributes to the meta-objective, and what was measured on its query set."""
    trajectory = adapt(learner, parameters, task.support_data, task.support_target, gradient)
    measures: Measures = {}

    def query_loss(theta: Tensors) -> Tensor:
        loss, measured = evaluate_objective(
            learner, learner.outer_objective, theta, parameters.phi, task.query_data, task.query_target
        )
        measures.update(measured)
        return loss

    return learner.method.meta_objective(trajectory, query_loss), measures


def meta_gradient(
    learner: MetaLearner, parameters: Parameters, tasks: Task, vectorised: bool
) -> tuple[Parameters, Tensor, Measures]:
    """Mean gradient over a meta-batch, with each task's loss [tasks] and measures [tasks]."""
    parameters = tree_map(torch.detach, parameters)
    if vectorised:
        one_task = partial(task_loss, learner, gradient=functional_gradient)
        one_gradient = torch.func.grad_and_value(one_task, has_aux=True)
        gradients, (losses, measures) = vmap(one_gradient, in_dims=(None, 0))(parameters, tasks)
        return tree_map(lambda tensor: tensor.mean(0), gradients), losses, measures

    total = tree_map(torch.zeros_like, parameters)
    leaves = tree_map(lambda tensor: tensor.requires_grad_(), parameters)
    judged = []
    for task in one_by_one(tasks):
        loss, measures = task_loss(learner, leaves, task)
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
    learner: MetaLearner, parameters: Parameters, tasks: Task, vectorised: bool
) -> tuple[Tensor, Measures]:
    """Query loss and measures after each inner step, each [tasks, inner_loop + 1]; keeps no graph."""
    learner = replace(learner, use_second_order=False)
    parameters = tree_map(torch.detach, parameters)
    gradient = functional_gradient if vectorised else tape_gradient

    def one_task(task: Task) -> tuple[Tensor, Measures]:
        trajectory = adapt(learner, parameters, task.support_data, task.support_target, gradient)
        query = task.query_data, task.query_target
        return stack(
            [
                evaluate_objective(learner, learner.outer_objective, theta, parameters.phi, *query)
                for theta in trajectory
            ]
        )

    with torch.no_grad():
        if vectorised:
            return vmap(one_task)(tasks)
        return stack([one_task(task) for task in one_by_one(tasks)])
