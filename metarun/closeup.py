"""A few tasks seen from inside: what the network says after some of its inner steps, and what the method shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from metarun.forward import MetaLearner, query_weights, run_model
from metarun.meta import OneTask, functional_gradient, map_tasks, one_by_one, tape_gradient
from metarun.methods import Parameters, Tensors
from metarun.task import Task


def outputs(
    learner: MetaLearner, parameters: Parameters, tasks: Task, noise: Tensor, steps: Sequence[int], vectorised: bool
) -> Tensor:
    """Of the network on each query set after each of the inner `steps`: [tasks, steps, queries, outputs]."""
    learner = replace(learner, use_second_order=False)
    parameters = tree_map(torch.detach, parameters)
    gradient = functional_gradient if vectorised else tape_gradient

    def of_task(task: Task, own: Tensor) -> Tensor:
        iterates = OneTask(learner, task, own, gradient).adapt(parameters)
        weights = [query_weights(learner, iterates[step], parameters.phi, task.support_data, step) for step in steps]
        return torch.stack([run_model(learner, each, task.query_data) for each in weights])

    return map_tasks(of_task, tasks, noise, vectorised)


def shown(learner: MetaLearner, parameters: Parameters, tasks: Task, noise: Tensor) -> list[Tensors]:
    """What the method shows of each task, by its name."""
    theta, phi = tree_map(torch.detach, parameters)

    def of_task(task: Task, own: Tensor) -> Tensors:
        one = OneTask(learner, task, own, tape_gradient)
        return learner.method.shown(theta, phi, lambda t: one.support_gradient(t, phi, graph=False), own)

    with torch.no_grad():
        return [of_task(task, own) for task, own in zip(one_by_one(tasks), noise, strict=True)]
