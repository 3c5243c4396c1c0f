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
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from metarun.core.forward import (
    MetaLearner,
    Metrics,
    dense_gradients,
    evaluate_objective,
    query_weights,
    support_weights,
)
from metarun.core.objectives import Objective
from metarun.core.second_order import exact_kernels
from metarun.methods import Parameters, Tensors
from metarun.types import Task

Loss = Callable[[Tensors], Tensor]  # of theta, on one side of a task


# --- the gradient of a support loss, on torch.func or on the tape ------------------------------------------

# loss, theta, whether the gradient has a graph of its own, and the objective that the loss is of
Gradient = Callable[[Loss, Tensors, bool, Objective], Tensors]


def functional_gradient(loss: Loss, theta: Tensors, graph: bool, objective: Objective) -> Tensors:
    return grad(loss)(theta)  # where nothing above it is differentiated, torch.func records nothing


def autograd_gradient(loss: Loss, theta: Tensors, graph: bool, objective: Objective) -> Tensors:
    with torch.enable_grad():
        if not all(tensor.requires_grad for tensor in theta.values()):
            theta = {name: tensor.detach().requires_grad_() for name, tensor in theta.items()}
        gradients = dense_gradients(loss(theta), list(theta.values()), len(theta), objective, graph)
    return dict(zip(theta, with_zeros(gradients, theta.values()), strict=True))


def with_zeros(gradients: Iterable[Tensor | None], tensors: Iterable[Tensor]) -> list[Tensor]:
    """Zeros for the gradient by a tensor that nothing depends on."""
    pairs = zip(gradients, tensors, strict=True)
    return [torch.zeros_like(tensor) if gradient is None else gradient for gradient, tensor in pairs]


# --- one task ----------------------------------------------------------------------------------------------


class TaskLearner:
    """The meta-learner on one task: what a method's meta-objective is made of."""

    def __init__(self, learner: MetaLearner, task: Task, noise: Tensor, gradient: Gradient) -> None:
        self.learner, self.task, self.noise, self.gradient = learner, task, noise, gradient
        self.inner_loop = learner.inner_loop
        self.loss_weights: Tensor | None = None  # of a multi-step loss, one for each inner step
        self.fixed: Any = None  # by the method's begin, for this task
        self.measures: Metrics = {}  # of the query loss that was asked for last

    def support_gradient(self, theta: Tensors, phi: Tensors, graph: bool, taken: int = 0) -> Tensors:
        """Of the inner objective, after `taken` steps; without a graph, nothing flows back to theta or phi."""
        if not graph:
            theta, phi = tree_map(torch.detach, (theta, phi))

        def loss(theta: Tensors) -> Tensor:
            return self.support_loss(theta, phi, taken)

        return self.gradient(loss, theta, graph, self.learner.inner_objective)

    def support_loss(self, theta: Tensors, phi: Tensors, taken: int = 0) -> Tensor:
        learner, data, target = self.learner, self.task.support_data, self.task.support_target

        def weights(theta: Tensors) -> Tensors:
            return support_weights(learner, theta, phi, taken)

        return evaluate_objective(learner, learner.inner_objective, theta, weights, data, target)[0]

    def inner_step(self, theta: Tensors, phi: Tensors, number: int) -> Tensors:
        gradient = self.support_gradient(theta, phi, self.learner.use_second_order, number)
        return self.learner.method.update(theta, gradient, phi, self.fixed, number)

    def initial_parameters(self, parameters: Parameters) -> Tensors:
        """theta_0, with all that stays fixed from there on."""
        theta, phi = parameters
        theta, self.fixed = self.learner.method.begin(
            theta, phi, lambda t: self.support_gradient(t, phi, graph=False), self.noise
        )
        return theta

    def inner_steps(self, theta: Tensors, phi: Tensors, numbers: Iterable[int]) -> list[Tensors]:
        """theta, and what it becomes at each of the steps."""
        trajectory = [theta]
        for number in numbers:
            trajectory.append(self.inner_step(trajectory[-1], phi, number))
        return trajectory

    def adapt(self, parameters: Parameters, steps: int | None = None) -> list[Tensors]:
        """theta_0 .. theta_K, or only those of the first `steps`."""
        numbers = range(self.inner_loop if steps is None else steps)
        return self.inner_steps(self.initial_parameters(parameters), parameters.phi, numbers)

    def adapt_final(self, parameters: Parameters) -> Tensors:
        """theta_K alone."""
        return self.adapt(parameters)[-1]

    def adapted_loss(self, parameters: Parameters) -> Tensor:
        """The query loss of theta_K, or the multi-step loss."""
        if self.loss_weights is None:
            return self.query_loss(self.adapt_final(parameters), parameters.phi)
        return self.multi_step_loss(self.adapt(parameters), parameters.phi)

    def multi_step_loss(self, trajectory: list[Tensors], phi: Tensors) -> Tensor:
        """The weighted query losses of theta_1 .. theta_K; what is measured is that of theta_K."""
        assert self.loss_weights is not None
        losses = [self.query_loss(theta, phi, taken) for taken, theta in enumerate(trajectory[1:], 1)]
        return self.loss_weights @ torch.stack(losses)

    def query_loss(self, theta: Tensors, phi: Tensors, taken: int | None = None) -> Tensor:
        """Of the outer objective, at theta after `taken` inner steps; None: after all."""
        learner, task = self.learner, self.task
        steps = self.inner_loop if taken is None else taken

        def weights(theta: Tensors) -> Tensors:
            return query_weights(learner, theta, phi, task.support_data, steps)

        data, target = task.query_data, task.query_target
        loss, self.measures = evaluate_objective(learner, learner.outer_objective, theta, weights, data, target)
        return loss


TaskLearnerFactory = Callable[[MetaLearner, Task, Tensor, Gradient], TaskLearner]


def task_loss(
    kind: TaskLearnerFactory,
    learner: MetaLearner,
    gradient: Gradient,
    parameters: Parameters,
    task: Task,
    noise: Tensor,
    loss_weights: Tensor | None = None,
) -> tuple[Tensor, Metrics]:
    """The loss that a task contributes to the meta-objective, and what was measured on its query set."""
    one = kind(learner, task, noise, gradient)
    one.loss_weights = loss_weights
    return learner.method.meta_objective(parameters, one), one.measures


# --- a meta-batch ------------------------------------------------------------------------------------------


def meta_gradient(
    learner: MetaLearner,
    parameters: Parameters,
    tasks: Task | list[Task],
    noise: Tensor,
    vectorised: bool,
    kind: TaskLearnerFactory = TaskLearner,
    loss_weights: Tensor | None = None,
) -> tuple[Parameters, Tensor, Metrics]:
    """Mean gradient over a meta-batch, with each task's loss [tasks] and measures [tasks].

    tasks: trees of tensors with tasks along their leading axis (a None is the same for all); looped, also a list.
    noise: [tasks, method.noise(inner_loop)], uniform in [0, 1).
    kind: of a task, which says what is kept of its inner loop: `OneTask` unrolls it, `mixed.MixedTask` keeps little.
    loss_weights: [inner_loop], of a multi-step loss.
    """
    with exact_kernels(learner.needs) if vectorised or learner.use_second_order else nullcontext():
        return batch_gradient(learner, parameters, tasks, noise, vectorised, kind, loss_weights)


def batch_gradient(
    learner: MetaLearner,
    parameters: Parameters,
    tasks: Task | list[Task],
    noise: Tensor,
    vectorised: bool,
    kind: TaskLearnerFactory,
    loss_weights: Tensor | None,
) -> tuple[Parameters, Tensor, Metrics]:
    parameters = tree_map(torch.detach, parameters)
    if vectorised:
        assert not isinstance(tasks, list)
        one_task = partial(task_loss, kind, learner, functional_gradient, loss_weights=loss_weights)
        one_gradient = torch.func.grad_and_value(one_task, has_aux=True)
        axes = tree_map(lambda leaf: None if leaf is None else 0, tasks)
        gradients, (losses, measures) = vmap(one_gradient, in_dims=(None, axes, 0))(parameters, tasks, noise)
        return tree_map(lambda tensor: tensor.mean(0), gradients), losses, measures

    total = tree_map(torch.zeros_like, parameters)
    leaves = tree_map(lambda tensor: tensor.requires_grad_(), parameters)
    judged = []
    each = tasks if isinstance(tasks, list) else unbind_tasks(tasks)
    for task, own_noise in zip(each, noise, strict=True):
        loss, measures = task_loss(kind, learner, autograd_gradient, leaves, task, own_noise, loss_weights)
        accumulate_gradient(loss, leaves, total, learner.outer_objective)
        judged.append((loss.detach(), measures))
    losses, measures = tree_stack(judged)
    return tree_map(lambda tensor: tensor / len(judged), total), losses, measures


def accumulate_gradient(loss: Tensor, leaves: Parameters, total: Parameters, objective: Objective) -> None:
    """Add the gradient of `loss` by each leaf to `total`; a leaf that the loss does not depend on adds nothing."""
    pairs = [(leaf, part[name]) for tensors, part in zip(leaves, total, strict=True) for name, leaf in tensors.items()]
    gradients = dense_gradients(loss, [leaf for leaf, _ in pairs], len(leaves.theta), objective)
    for (_, accumulated), gradient in zip(pairs, gradients, strict=True):
        if gradient is not None:
            accumulated += gradient


def unbind_tasks(tasks: Task) -> Iterator[Task]:
    """The tasks of trees with tasks along the leading axis of every tensor; a None is the same for all."""
    leaves, form = tree_flatten(tasks)
    count = next(len(leaf) for leaf in leaves if leaf is not None)
    rows = [[None] * count if leaf is None else leaf for leaf in leaves]
    return (tree_unflatten(row, form) for row in zip(*rows, strict=True))


def tree_stack(results: list[Any]) -> Any:
    """A list of equal trees of tensors -> one tree with a leading axis."""
    return tree_map(lambda *tensors: torch.stack(tensors), *results)


# --- evaluation --------------------------------------------------------------------------------------------


def evaluate_tasks(
    learner: MetaLearner, parameters: Parameters, tasks: Task, noise: Tensor, vectorised: bool
) -> tuple[Tensor, Metrics]:
    """Query loss and measures after each inner step, each [tasks, inner_loop + 1]; keeps no graph."""
    learner = replace(learner, use_second_order=False)
    parameters = tree_map(torch.detach, parameters)
    gradient = functional_gradient if vectorised else autograd_gradient

    def one_task(task: Task, noise: Tensor) -> tuple[Tensor, Metrics]:
        one = TaskLearner(learner, task, noise, gradient)
        trajectory = enumerate(one.adapt(parameters))
        return tree_stack([(one.query_loss(theta, parameters.phi, taken), one.measures) for taken, theta in trajectory])

    with exact_kernels(learner.needs) if vectorised else nullcontext():
        return vmap_or_loop(one_task, tasks, noise, vectorised)


def vmap_or_loop(one_task: Callable[[Task, Tensor], Any], tasks: Task, noise: Tensor, vectorised: bool) -> Any:
    """What a function finds for each task, a tree of tensors, with a leading axis of tasks; keeps no graph."""
    with torch.no_grad():
        if vectorised:
            return vmap(one_task)(tasks, noise)
        return tree_stack([one_task(task, own) for task, own in zip(unbind_tasks(tasks), noise, strict=True)])
