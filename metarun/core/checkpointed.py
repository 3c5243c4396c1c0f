"""The exact meta-gradient with a checkpointed inner loop: memory grows by one theta per inner step, not by its graph.

    forward   compute theta_0 .. theta_K without a graph, and the query loss together with its gradient
    backward  for k = K-1 .. 0: recompute theta_{k+1} = update(theta_k, grad L_support(theta_k)) with a graph,
              lambda_k = (d theta_{k+1} / d theta_k)' lambda_{k+1}, and likewise for phi

Each inner step is an autograd function that saves its inputs only, so that a method's meta-objective may use the
trajectory in any way. The network must be deterministic, since each step is computed twice: no dropout. Kemaev et al.
2025, arXiv 2505.00793, differentiate a step in forward-over-reverse mode; on a CPU reverse-over-reverse takes two
thirds of that time for conv4, and is also exact if an objective stops a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from metarun.core.forward import independent_error
from metarun.core.meta_learner import Gradient, MetaLearner, TaskLearner, autograd_gradient, with_zeros
from metarun.types import Parameters, Task, Tensors

Graph = bool  # whether a step is computed with a graph
Several = tuple[Tensor, ...]


class CheckpointedTaskLearner(TaskLearner):
    """A `TaskLearner` that recomputes the inner loop in the backward pass instead of keeping its graph.

    segment: theta is stored every `segment` inner steps, and the steps between are recomputed; None: at every step.
    """

    def __init__(
        self, learner: MetaLearner, task: Task, noise: Tensor, gradient: Gradient, segment: int | None = None
    ) -> None:
        super().__init__(learner, task, noise, gradient)
        self.segment = segment
        self.vjp = tape_vjp if gradient is autograd_gradient else functional_vjp

    def inner_step(self, theta: Tensors, phi: Tensors, number: int) -> Tensors:
        if not self.learner.use_second_order:  # the graph holds the update alone, which is small
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
        """Returns function(task learner, theta, phi); autograd saves its inputs only and recomputes it when needed."""

        def run(graph: Graph, theta: Tensors, phi: Tensors, fixed: Any, task: Task) -> Tensors:
            learner = self.learner if graph else replace(self.learner, use_second_order=False)
            task_learner = CheckpointedTaskLearner(learner, task, self.noise, self.gradient)
            task_learner.fixed = fixed
            return function(task_learner, theta, phi)

        return recomputed(run, self.vjp, theta, phi, self.fixed, self.task)

    def query_loss(self, theta: Tensors, phi: Tensors, taken: int | None = None) -> Tensor:
        """The query loss, whose gradient is computed at once, so that the loss keeps no graph of the network."""
        tensors, form = tree_flatten((theta, phi))

        def loss(*tensors: Tensor) -> tuple[Several, Any]:
            return (TaskLearner.query_loss(self, *tree_unflatten(tensors, form), taken=taken),), self.measures

        with torch.no_grad():
            (value,), vjp_fn, self.measures = self.vjp(loss, *(tensor.detach() for tensor in tensors))
            gradient = vjp_fn((torch.ones_like(value),))
            del vjp_fn  # frees the graph before the gradient is copied
        if all(entry is None for entry in gradient[: len(theta)]):
            raise independent_error(self.learner.outer_objective)
        gradient = with_zeros(gradient, tensors)
        return PrecomputedGradient.apply(value, *clone_all(gradient), *tensors)


# --- vector-Jacobian products, by torch.func or by autograd -------------------------------------------------

VjpFn = Callable[[Several], Sequence[Tensor | None]]  # cotangents of results -> of tensors (None: independent)
Vjp = Callable[
    ..., tuple[Several, VjpFn, Any]
]  # (function, *tensors) -> (results, its VjpFn, auxiliary output of function)


def functional_vjp(function: Callable[..., tuple[Several, Any]], *tensors: Tensor) -> tuple[Several, VjpFn, Any]:
    """The results of `function`, which returns (results, auxiliary output), and its VJP by torch.func."""
    results, vjp_fn, aux = torch.func.vjp(function, *tensors, has_aux=True)  # pyright: ignore[reportAssignmentType]
    return results, vjp_fn, aux


def tape_vjp(function: Callable[..., tuple[Several, Any]], *tensors: Tensor) -> tuple[Several, VjpFn, Any]:
    """`functional_vjp` by autograd."""
    with torch.enable_grad():
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        results, aux = function(*leaves)

    def vjp_fn(cotangents: Several) -> Sequence[Tensor | None]:
        pairs = [pair for pair in zip(results, cotangents, strict=True) if pair[0].requires_grad]
        if not pairs:
            return [None] * len(leaves)
        outputs, grad_outputs = zip(*pairs, strict=True)
        return torch.autograd.grad(outputs, leaves, grad_outputs, allow_unused=True)

    return tuple(result.detach() for result in results), vjp_fn, aux


# --- autograd functions that save their inputs only ---------------------------------------------------------


def recomputed(function: Callable[..., Tensors], vjp: Vjp, *arguments: Any) -> Tensors:
    """Returns function(False, *arguments), and calls function(True, *arguments) in the backward pass.

    function: takes trees of tensors and must not capture any, since torch.func calls it with other tensors.
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
    """Clones tensors that outlive the computation that made them, so that they do not fragment its freed memory."""
    return tuple(tensor.clone() for tensor in tensors)


class Recomputed(torch.autograd.Function):
    """run(False, leaves) in the forward pass; the backward pass differentiates run(True, leaves)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(run: Callable[[Graph, Sequence[Any]], Several], vjp: Vjp, *leaves: Any) -> Several:
        with torch.no_grad():
            return clone_all(run(False, leaves))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Several) -> None:
        ctx.run, ctx.vjp, *leaves = inputs
        ctx.constants = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        ctx.places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        ctx.save_for_backward(*(leaves[place] for place in ctx.places))

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        leaves = list(ctx.constants)
        for place, tensor in zip(ctx.places, ctx.saved_tensors, strict=True):
            leaves[place] = tensor.detach()
        wanted = [place for place in ctx.places if ctx.needs_input_grad[2 + place]]

        def run_with_graph(*tensors: Tensor) -> tuple[Several, Any]:
            replaced = dict(zip(wanted, tensors, strict=True))
            return ctx.run(True, [replaced.get(place, leaf) for place, leaf in enumerate(leaves)]), ()

        with torch.no_grad():
            _, vjp_fn, _ = ctx.vjp(run_with_graph, *(leaves[place] for place in wanted))
            gradients: list[Tensor | None] = [None] * (2 + len(leaves))
            wanted_grads = with_zeros(vjp_fn(cotangents), [leaves[place] for place in wanted])
            for place, gradient in zip(wanted, wanted_grads, strict=True):
                gradients[2 + place] = gradient
        return tuple(gradients)


class PrecomputedGradient(torch.autograd.Function):
    """(value, *gradients, *tensors) -> value, a scalar whose gradient by the tensors is given."""

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
