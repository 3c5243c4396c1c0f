"""WarpGrad's offline form (Flennerhag et al. 2020, arXiv 1909.00025, Algorithm 2), for tasks of many inner steps.

every task of a meta-batch adapts from theta_0; its iterates are stored, without a graph
phi takes a step of the outer optimiser for each stored iterate, in random order, on the look-ahead loss
theta_0 follows the mean of the tasks' paths, each segment of unit length (a simplified Leap), or stays
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from metarun.core.meta_learner import MetaLearner, Metrics, TaskLearner, autograd_gradient, tree_stack, unbind_tasks
from metarun.core.second_order import exact_kernels
from metarun.methods import Parameters, Tensors
from metarun.types import Task


class Trajectory(NamedTuple):
    """A task and the iterates theta_0 .. theta_K of its inner loop."""

    task: TaskLearner
    iterates: list[Tensors]


def collect_trajectories(learner: MetaLearner, parameters: Parameters, tasks: Task, noise: Tensor) -> list[Trajectory]:
    """The inner loop of each task; keeps no graph."""
    paths = []
    for task, own_noise in zip(unbind_tasks(tasks), noise, strict=True):
        one = TaskLearner(replace(learner, use_second_order=False), task, own_noise, autograd_gradient)
        with torch.no_grad():
            iterates = one.adapt(tree_map(torch.detach, parameters))
        one.learner = learner  # from here on, steps are differentiated
        paths.append(Trajectory(one, iterates))
    return paths


def final_query_loss(paths: list[Trajectory], phi: Tensors) -> tuple[Tensor, Metrics]:
    """Query loss [tasks] and measures [tasks] at the end of each path."""
    with torch.no_grad():
        return tree_stack([(path.task.query_loss(path.iterates[-1], phi), path.task.measures) for path in paths])


def lookahead_gradients(paths: list[Trajectory], phi: Tensors, order: list[int]) -> Iterator[Tensors]:
    """The gradient of the look-ahead loss by phi as it then is, at each stored iterate, in the given order.

    order: a permutation of range(tasks * inner_loop).
    """
    steps = len(paths[0].iterates) - 1
    for place in order:
        path, number = paths[place // steps], place % steps
        offline = path.task.learner.method.offline
        assert offline is not None
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in phi.items()}
        with exact_kernels(path.task.learner.needs):
            loss = offline(path.iterates[number], leaves, path.task, number)
            gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
        yield dict(zip(leaves, gradients, strict=True))


def leap_gradient(paths: list[Trajectory]) -> Tensors:
    """Minus the direction of the tasks' paths: the sum of theta_k - theta_{k+1}, each of unit norm, mean over tasks."""
    total = {name: torch.zeros_like(tensor) for name, tensor in paths[0].iterates[0].items()}
    for path in paths:
        for here, there in zip(path.iterates[:-1], path.iterates[1:], strict=True):
            segment = {name: here[name] - there[name] for name in here}
            norm = torch.stack([part.square().sum() for part in segment.values()]).sum().sqrt()
            for name, part in segment.items():
                total[name] += part / norm / len(paths) if norm > 0 else 0
    return total
