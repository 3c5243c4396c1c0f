"""The inner loop on a task, the meta-gradient of a meta-batch, and evaluation, as pure functions of tensors.

    inner loop     theta_0 = begin(theta);  theta_{k+1} = update(theta_k, grad L_support(theta_k)),  k = 0..K-1
    task loss      L_query(theta_K), or the method's meta-objective of theta_0 .. theta_K
    meta-gradient  mean over tasks of the task loss's gradient by the parameters

Tasks are either vectorised, as vmap(grad(task loss)), or looped over; both give the same gradient. The gradient is
taken inside the vmap, because torch's norm layers are silently wrong when it is taken outside. The loop uses autograd,
which for a convolutional network on a CPU takes three quarters of the time of torch.func.
"""

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
from metarun.types import Parameters, Task, Tensors

Loss = Callable[[Tensors], Tensor]  # theta -> scalar loss on the support or the query set


# --- the gradient of a support loss, by torch.func or by autograd ------------------------------------------

# (loss, theta, whether the gradient is itself differentiable, the loss's objective for error messages) -> gradient
Gradient = Callable[[Loss, Tensors, bool, Objective], Tensors]


def functional_gradient(loss: Loss, theta: Tensors, graph: bool, objective: Objective) -> Tensors:
    """The gradient by torch.func; `graph` is not needed, since torch.func records only what an outer grad asks for."""
    return grad(loss)(theta)


def autograd_gradient(loss: Loss, theta: Tensors, graph: bool, objective: Objective) -> Tensors:
    """The gradient by autograd. Raises UserError if the loss does not depend on theta."""
    with torch.enable_grad():
        if not all(tensor.requires_grad for tensor in theta.values()):
            theta = {name: tensor.detach().requires_grad_() for name, tensor in theta.items()}
        gradients = dense_gradients(loss(theta), list(theta.values()), len(theta), objective, graph)
    return dict(zip(theta, with_zeros(gradients, theta.values()), strict=True))


def with_zeros(gradients: Iterable[Tensor | None], tensors: Iterable[Tensor]) -> list[Tensor]:
    """The gradients, with zeros in place of None."""
    pairs = zip(gradients, tensors, strict=True)
    return [torch.zeros_like(tensor) if gradient is None else gradient for gradient, tensor in pairs]


# --- one task ----------------------------------------------------------------------------------------------


class TaskLearner:
    """The meta-learner on one task, which a method's meta-objective is computed with.

    noise: [method.noise(inner_loop)], uniform in [0, 1).
    """

    def __init__(self, learner: MetaLearner, task: Task, noise: Tensor, gradient: Gradient) -> None:
        self.learner, self.task, self.noise, self.gradient = learner, task, noise, gradient
        self.inner_loop = learner.inner_loop
        self.loss_weights: Tensor | None = None  # [inner_loop], weights of a multi-step loss
        self.fixed: Any = None  # per-task state from the method's begin
        self.measures: Metrics = {}  # metrics of the last call of query_loss

    def support_gradient(self, theta: Tensors, phi: Tensors, graph: bool, taken: int = 0) -> Tensors:
        """The support loss's gradient by theta after `taken` inner steps; differentiable if `graph`."""
        if not graph:
            theta, phi = tree_map(torch.detach, (theta, phi))

        def loss(theta: Tensors) -> Tensor:
            return self.support_loss(theta, phi, taken)

        return self.gradient(loss, theta, graph, self.learner.inner_objective)

    def support_loss(self, theta: Tensors, phi: Tensors, taken: int = 0) -> Tensor:
        """The inner objective on the support set at theta, reached after `taken` inner steps: a scalar."""
        learner, data, target = self.learner, self.task.support_data, self.task.support_target

        def weights(theta: Tensors) -> Tensors:
            return support_weights(learner, theta, phi, taken)

        return evaluate_objective(learner, learner.inner_objective, theta, weights, data, target)[0]

    def inner_step(self, theta: Tensors, phi: Tensors, number: int) -> Tensors:
        """theta after inner step `number` (from 0)."""
        gradient = self.support_gradient(theta, phi, self.learner.use_second_order, number)
        return self.learner.method.update(theta, gradient, phi, self.fixed, number)

    def initial_parameters(self, parameters: Parameters) -> Tensors:
        """Returns theta_0, and sets `fixed`, the method's state for this task."""
        theta, phi = parameters
        theta, self.fixed = self.learner.method.begin(
            theta, phi, lambda t: self.support_gradient(t, phi, graph=False), self.noise
        )
        return theta

    def inner_steps(self, theta: Tensors, phi: Tensors, numbers: Iterable[int]) -> list[Tensors]:
        """Returns theta and the parameters after each of the inner steps in `numbers`."""
        trajectory = [theta]
        for number in numbers:
            trajectory.append(self.inner_step(trajectory[-1], phi, number))
        return trajectory

    def adapt(self, parameters: Parameters, steps: int | None = None) -> list[Tensors]:
        """The iterates theta_0 .. theta_K of the inner loop, or of its first `steps` steps."""
        numbers = range(self.inner_loop if steps is None else steps)
        return self.inner_steps(self.initial_parameters(parameters), parameters.phi, numbers)

    def adapt_final(self, parameters: Parameters) -> Tensors:
        """The adapted parameters theta_K."""
        return self.adapt(parameters)[-1]

    def adapted_loss(self, parameters: Parameters) -> Tensor:
        """The query loss at theta_K, or the multi-step loss if `loss_weights` is set."""
        if self.loss_weights is None:
            return self.query_loss(self.adapt_final(parameters), parameters.phi)
        return self.multi_step_loss(self.adapt(parameters), parameters.phi)

    def multi_step_loss(self, trajectory: list[Tensors], phi: Tensors) -> Tensor:
        """The weighted sum of the query losses at theta_1 .. theta_K; `measures` are those at theta_K."""
        assert self.loss_weights is not None
        losses = [self.query_loss(theta, phi, taken) for taken, theta in enumerate(trajectory[1:], 1)]
        return self.loss_weights @ torch.stack(losses)

    def query_loss(self, theta: Tensors, phi: Tensors, taken: int | None = None) -> Tensor:
        """The outer objective on the query set at theta, after `taken` inner steps (None: all); sets `measures`."""
        learner, task = self.learner, self.task
        steps = self.inner_loop if taken is None else taken

        def weights(theta: Tensors) -> Tensors:
            return query_weights(learner, theta, phi, task.support_data, steps)

        data, target = task.query_data, task.query_target
        loss, self.measures = evaluate_objective(learner, learner.outer_objective, theta, weights, data, target)
        return loss


TaskLearnerFactory = Callable[[MetaLearner, Task, Tensor, Gradient], TaskLearner]


def task_loss(
    make_task_learner: TaskLearnerFactory,
    learner: MetaLearner,
    gradient: Gradient,
    parameters: Parameters,
    task: Task,
    noise: Tensor,
    loss_weights: Tensor | None = None,
) -> tuple[Tensor, Metrics]:
    """The method's meta-objective on one task, a scalar, and the metrics on its query set."""
    task_learner = make_task_learner(learner, task, noise, gradient)
    task_learner.loss_weights = loss_weights
    return learner.method.meta_objective(parameters, task_learner), task_learner.measures


# --- a meta-batch ------------------------------------------------------------------------------------------


def meta_gradient(
    learner: MetaLearner,
    parameters: Parameters,
    tasks: Task | list[Task],
    noise: Tensor,
    vectorised: bool,
    make_task_learner: TaskLearnerFactory = TaskLearner,
    loss_weights: Tensor | None = None,
) -> tuple[Parameters, Tensor, Metrics]:
    """Returns the mean gradient over a meta-batch, each task's loss [tasks] and each task's metrics [tasks].

    tasks: trees of tensors with tasks along their leading axis, or None for all tasks; if looped, also a list of tasks.
    noise: [tasks, method.noise(inner_loop)], uniform in [0, 1).
    make_task_learner: `TaskLearner` keeps the graph of the whole inner loop, `CheckpointedTaskLearner` recomputes it.
    loss_weights: [inner_loop], weights of a multi-step loss.

    Raises:
        UserError: looped, an objective that does not depend on the weights.
    """
    with exact_kernels(learner.needs) if vectorised or learner.use_second_order else nullcontext():
        return batch_gradient(learner, parameters, tasks, noise, vectorised, make_task_learner, loss_weights)


def batch_gradient(
    learner: MetaLearner,
    parameters: Parameters,
    tasks: Task | list[Task],
    noise: Tensor,
    vectorised: bool,
    make_task_learner: TaskLearnerFactory,
    loss_weights: Tensor | None,
) -> tuple[Parameters, Tensor, Metrics]:
    """`meta_gradient` with the kernels that torch's settings choose."""
    parameters = tree_map(torch.detach, parameters)
    if vectorised:
        assert not isinstance(tasks, list)
        one_task = partial(task_loss, make_task_learner, learner, functional_gradient, loss_weights=loss_weights)
        one_gradient = torch.func.grad_and_value(one_task, has_aux=True)
        axes = tree_map(lambda leaf: None if leaf is None else 0, tasks)
        gradients, (losses, measures) = vmap(one_gradient, in_dims=(None, axes, 0))(parameters, tasks, noise)
        return tree_map(lambda tensor: tensor.mean(0), gradients), losses, measures

    total = tree_map(torch.zeros_like, parameters)
    leaves = tree_map(lambda tensor: tensor.requires_grad_(), parameters)
    results = []
    task_list = tasks if isinstance(tasks, list) else unbind_tasks(tasks)
    for task, task_noise in zip(task_list, noise, strict=True):
        loss, measures = task_loss(
            make_task_learner, learner, autograd_gradient, leaves, task, task_noise, loss_weights
        )
        accumulate_gradient(loss, leaves, total, learner.outer_objective)
        results.append((loss.detach(), measures))
    losses, measures = tree_stack(results)
    return tree_map(lambda tensor: tensor / len(results), total), losses, measures


def accumulate_gradient(loss: Tensor, leaves: Parameters, total: Parameters, objective: Objective) -> None:
    """Adds the gradient of `loss` by each leaf to `total` in place; leaves that do not affect it are skipped."""
    pairs = [(leaf, part[name]) for tensors, part in zip(leaves, total, strict=True) for name, leaf in tensors.items()]
    gradients = dense_gradients(loss, [leaf for leaf, _ in pairs], len(leaves.theta), objective)
    for (_, accumulated), gradient in zip(pairs, gradients, strict=True):
        if gradient is not None:
            accumulated += gradient


def unbind_tasks(tasks: Task) -> Iterator[Task]:
    """Splits a meta-batch, tensors [tasks, ...], into its tasks; a None leaf is None for every task."""
    leaves, form = tree_flatten(tasks)
    count = next(len(leaf) for leaf in leaves if leaf is not None)
    rows = [[None] * count if leaf is None else leaf for leaf in leaves]
    return (tree_unflatten(row, form) for row in zip(*rows, strict=True))


def tree_stack(results: list[Any]) -> Any:
    """Stacks a list of trees of the same structure into one tree of tensors with a new leading axis."""
    return tree_map(lambda *tensors: torch.stack(tensors), *results)


# --- evaluation --------------------------------------------------------------------------------------------


def evaluate_tasks(
    learner: MetaLearner, parameters: Parameters, tasks: Task, noise: Tensor, vectorised: bool
) -> tuple[Tensor, Metrics]:
    """Query loss and metrics after 0 .. inner_loop inner steps, each [tasks, inner_loop + 1], without a graph."""
    learner = replace(learner, use_second_order=False)
    parameters = tree_map(torch.detach, parameters)
    gradient = functional_gradient if vectorised else autograd_gradient

    def one_task(task: Task, noise: Tensor) -> tuple[Tensor, Metrics]:
        task_learner = TaskLearner(learner, task, noise, gradient)
        iterates = enumerate(task_learner.adapt(parameters))
        return tree_stack(
            [
                (task_learner.query_loss(theta, parameters.phi, taken), task_learner.measures)
                for taken, theta in iterates
            ]
        )

    with exact_kernels(learner.needs) if vectorised else nullcontext():
        return vmap_or_loop(one_task, tasks, noise, vectorised)


def vmap_or_loop(one_task: Callable[[Task, Tensor], Any], tasks: Task, noise: Tensor, vectorised: bool) -> Any:
    """Applies `one_task` to every task; returns its trees of tensors stacked along a leading axis, without a graph."""
    with torch.no_grad():
        if vectorised:
            return vmap(one_task)(tasks, noise)
        return tree_stack(
            [one_task(task, task_noise) for task, task_noise in zip(unbind_tasks(tasks), noise, strict=True)]
        )
