"""The same meta-gradient in memory that does not grow with the inner loop, but for one theta a step.

    forwards   theta_0 .. theta_K without a graph; a query loss together with its gradient
    backwards  for k = K-1 .. 0: theta_{k+1} = update(theta_k, grad L_support(theta_k)) once more, with a graph,
               lambda_k = (d theta_{k+1} / d theta_k)' lambda_{k+1}, and for phi likewise

A step is an autograd function that keeps what it was given and nothing else: a method's meta-objective may make what
it likes of the trajectory. The network must give the same twice, so no dropout. Kemaev et al. 2025, arXiv 2505.00793,
go through a step forward over reverse; on a CPU reverse over reverse takes two thirds of that time for conv4, and it
is exact where an objective stops a gradient as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from metarun.core.forward import independent
from metarun.core.meta_learner import Gradient, MetaLearner, TaskLearner, autograd_gradient, with_zeros
from metarun.methods import Parameters, Tensors
from metarun.types import Task

Graph = bool  # whether a step's inner gradient is to be differentiated
Several = tuple[Tensor, ...]


class CheckpointedTaskLearner(TaskLearner):
    """The meta-learner on one task.

    segment: theta is kept each so many steps, from where those between are found again; None: at each step.
    """

    def __init__(
        self, learner: MetaLearner, task: Task, noise: Tensor, gradient: Gradient, segment: int | None = None
    ) -> None:
        super().__init__(learner, task, noise, gradient)
        self.segment = segment
        self.vjp = tape_vjp if gradient is autograd_gradient else functional_vjp

    def inner_step(self, theta: Tensors, phi: Tensors, number: int) -> Tensors:
        if not self.learner.use_second_order:  # the graph is that of the update alone
            return super().inner_step(theta, phi, number)
        return self.recompute(lambda one, theta, phi: TaskLearner.inner_step(one, theta, phi, number), theta, phi)

    def adapt_final(self, parameters: Parameters) -> Tensors:
        if self.segment is None:
            return super().adapt_final(parameters)
        theta = self.initial_parameters(parameters)
        for first in range(0, self.inner_loop, self.segment):
            numbers = range(first, min(first + self.segment, self.inner_loop))
            theta = self.recompute(
                lambda one, theta, phi, n=numbers: one.inner_steps(theta, phi, n)[-1], theta, parameters.phi
            )
        return theta

    def recompute(
        self, function: Callable[[CheckpointedTaskLearner, Tensors, Tensors], Tensors], theta: Tensors, phi: Tensors
    ) -> Tensors:
        """function(this task, theta, phi), of which autograd keeps no more than that, and runs it again."""

        def run(graph: Graph, theta: Tensors, phi: Tensors, fixed: Any, task: Task) -> Tensors:
            learner = self.learner if graph else replace(self.learner, use_second_order=False)
            one = CheckpointedTaskLearner(learner, task, self.noise, self.gradient)
            one.fixed = fixed
            return function(one, theta, phi)

        return recomputed(run, self.vjp, theta, phi, self.fixed, self.task)

    def query_loss(self, theta: Tensors, phi: Tensors, taken: int | None = None) -> Tensor:
        """The loss, with its gradient taken at once; it holds no graph of the network."""
        tensors, form = tree_flatten((theta, phi))

        def loss(*tensors: Tensor) -> tuple[Several, Any]:
            return (TaskLearner.query_loss(self, *tree_unflatten(tensors, form), taken=taken),), self.measures

        with torch.no_grad():
            (value,), pull, self.measures = self.vjp(loss, *(tensor.detach() for tensor in tensors))
            gradient = pull((torch.ones_like(value),))
            del pull
        if all(entry is None for entry in gradient[: len(theta)]):
            raise independent(self.learner.outer_objective)
        gradient = with_zeros(gradient, tensors)
        return PrecomputedGradient.apply(value, *clone_all(gradient), *tensors)


# --- vector-Jacobian products, on torch.func or on the tape -------------------------------------------------

VjpFn = Callable[[Several], Sequence[Tensor | None]]  # cotangents of all results -> of all tensors; None: no dependence
Vjp = Callable[..., tuple[Several, VjpFn, Any]]  # function -> (results, what else it found), tensors


def functional_vjp(function: Callable[..., tuple[Several, Any]], *tensors: Tensor) -> tuple[Several, VjpFn, Any]:
    results, pull, found = torch.func.vjp(function, *tensors, has_aux=True)  # pyright: ignore[reportAssignmentType]
    return results, pull, found


def tape_vjp(function: Callable[..., tuple[Several, Any]], *tensors: Tensor) -> tuple[Several, VjpFn, Any]:
    with torch.enable_grad():
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        results, found = function(*leaves)

    def pull(cotangents: Several) -> Sequence[Tensor | None]:
        pairs = [pair for pair in zip(results, cotangents, strict=True) if pair[0].requires_grad]
        if not pairs:
            return [None] * len(leaves)
        outputs, inwards = zip(*pairs, strict=True)
        return torch.autograd.grad(outputs, leaves, inwards, allow_unused=True)

    return tuple(result.detach() for result in results), pull, found


# --- autograd functions that keep little --------------------------------------------------------------------


def recomputed(function: Callable[..., Tensors], vjp: Vjp, *arguments: Any) -> Tensors:
    """function(graph, *arguments): now without a graph, and once more with one when its gradient is asked for.

    function: of its arguments alone, since torch.func hands it others of the same form; they are trees.
    """
    leaves, form = tree_flatten(arguments)
    names: list[str] = []

    def run(graph: Graph, leaves: Sequence[Any]) -> Several:
        result = function(graph, *tree_unflatten(leaves, form))
        names[:] = result
        return tuple(result.values())

    results = Recomputed.apply(run, vjp, *leaves)
    return dict(zip(names, results, strict=True))


def clone_all(tensors: Sequence[Tensor]) -> Several:
    """Copies of what stays when the memory of what made it is free again: amid that, it would cut it into pieces."""
    return tuple(tensor.clone() for tensor in tensors)


class Recomputed(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(run: Callable[[Graph, Sequence[Any]], Several], vjp: Vjp, *leaves: Any) -> Several:
        with torch.no_grad():
            return clone_all(run(False, leaves))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Several) -> None:
        ctx.run, ctx.vjp, *leaves = inputs
        ctx.others = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        ctx.places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        ctx.save_for_backward(*(leaves[place] for place in ctx.places))

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        leaves = list(ctx.others)
        for place, tensor in zip(ctx.places, ctx.saved_tensors, strict=True):
            leaves[place] = tensor.detach()
        wanted = [place for place in ctx.places if ctx.needs_input_grad[2 + place]]

        def of_wanted(*tensors: Tensor) -> tuple[Several, Any]:
            replaced = dict(zip(wanted, tensors, strict=True))
            return ctx.run(True, [replaced.get(place, leaf) for place, leaf in enumerate(leaves)]), ()

        with torch.no_grad():
            _, pull, _ = ctx.vjp(of_wanted, *(leaves[place] for place in wanted))
            gradients: list[Tensor | None] = [None] * (2 + len(leaves))
            found = with_zeros(pull(cotangents), [leaves[place] for place in wanted])
            for place, gradient in zip(wanted, found, strict=True):
                gradients[2 + place] = gradient
        return tuple(gradients)


class PrecomputedGradient(torch.autograd.Function):
    """A value whose gradient by some tensors is known: value, *gradient, *tensors -> value."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, *known: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1 : 1 + len(inputs) // 2])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        (cotangent,), gradient = cotangents, ctx.saved_tensors
        return None, *(None for _ in gradient), *(cotangent * entry for entry in gradient)
