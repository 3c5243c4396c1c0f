"""The network's logits and the method's summaries on a few tasks during the inner loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from metarun.core.forward import MetaLearner, functional_forward, query_weights
from metarun.core.meta_learner import TaskLearner, autograd_gradient, functional_gradient, unbind_tasks, vmap_or_loop
from metarun.methods import Parameters, Tensors
from metarun.types import Task


def logits_by_inner_step(
    learner: MetaLearner, parameters: Parameters, tasks: Task, noise: Tensor, steps: Sequence[int], vectorised: bool
) -> Tensor:
    """Logits on each query set after each of the inner `steps`: [tasks, steps, queries, outputs]."""
    learner = replace(learner, use_second_order=False)
    parameters = tree_map(torch.detach, parameters)
    gradient = functional_gradient if vectorised else autograd_gradient

    def of_task(task: Task, own: Tensor) -> Tensor:
        iterates = TaskLearner(learner, task, own, gradient).adapt(parameters)
        weights = [query_weights(learner, iterates[step], parameters.phi, task.support_data, step) for step in steps]
        return torch.stack([functional_forward(learner, each, task.query_data) for each in weights])

    return vmap_or_loop(of_task, tasks, noise, vectorised)


def method_summaries(learner: MetaLearner, parameters: Parameters, tasks: Task, noise: Tensor) -> list[Tensors]:
    """What the method shows of each task, by its name."""
    theta, phi = tree_map(torch.detach, parameters)

    def of_task(task: Task, own: Tensor) -> Tensors:
        one = TaskLearner(learner, task, own, autograd_gradient)
        return learner.method.summaries(theta, phi, lambda t: one.support_gradient(t, phi, graph=False), own)

    with torch.no_grad():
        return [of_task(task, own) for task, own in zip(unbind_tasks(tasks), noise, strict=True)]
