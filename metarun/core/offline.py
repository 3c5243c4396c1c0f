"""WarpGrad's offline form (Flennerhag et al. 2020, arXiv 1909.00025, Algorithm 2), for tasks of many inner steps.

1. Every task of a meta-batch adapts from theta_0; its iterates are stored, without a graph.
2. phi takes a step of the outer optimizer on the look-ahead loss at each stored iterate, in random order.
3. theta_0 follows the tasks' mean trajectory, with segments of unit length (a simplified Leap), or stays.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from metarun.core.meta_learner import MetaLearner, Metrics, TaskLearner, autograd_gradient, tree_stack, unbind_tasks
from metarun.core.second_order import exact_kernels
from metarun.types import Parameters, Task, Tensors


class Trajectory(NamedTuple):
    """A task and the iterates theta_0 .. theta_K of its inner loop."""

    task: TaskLearner
    iterates: list[Tensors]


def collect_trajectories(learner: MetaLearner, parameters: Parameters, tasks: Task, noise: Tensor) -> list[Trajectory]:
    """The trajectory of each task's inner loop, without a graph. noise: [tasks, method.noise(inner_loop)]."""
    trajectories = []
    for task, task_noise in zip(unbind_tasks(tasks), noise, strict=True):
        task_learner = TaskLearner(replace(learner, use_second_order=False), task, task_noise, autograd_gradient)
        with torch.no_grad():
            iterates = task_learner.adapt(tree_map(torch.detach, parameters))
        task_learner.learner = learner  # the look-ahead step is differentiated
        trajectories.append(Trajectory(task_learner, iterates))
    return trajectories


def final_query_loss(trajectories: list[Trajectory], phi: Tensors) -> tuple[Tensor, Metrics]:
    """Query loss [tasks] and metrics [tasks] at the end of each trajectory."""
    with torch.no_grad():
        return tree_stack([(task.query_loss(iterates[-1], phi), task.measures) for task, iterates in trajectories])


def lookahead_gradients(trajectories: list[Trajectory], phi: Tensors, order: list[int]) -> Iterator[Tensors]:
    """Yields the gradient of the look-ahead loss by phi's current value at each stored iterate, in the given order.

    order: a permutation of range(tasks * inner_loop); entry task * inner_loop + k stands for the task's iterate k.
    """
    steps = len(trajectories[0].iterates) - 1
    for index in order:
        (task, iterates), number = trajectories[index // steps], index % steps
        offline = task.learner.method.offline
        assert offline is not None
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in phi.items()}
        with exact_kernels(task.learner.needs):
            loss = offline(iterates[number], leaves, task, number)
            gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
        yield dict(zip(leaves, gradients, strict=True))


def leap_gradient(trajectories: list[Trajectory]) -> Tensors:
    """The gradient by theta_0: the sum over k of (theta_k - theta_{k+1}) / its norm, mean over tasks."""
    total = {name: torch.zeros_like(tensor) for name, tensor in trajectories[0].iterates[0].items()}
    for _, iterates in trajectories:
        for before, after in pairwise(iterates):
            segment = {name: before[name] - after[name] for name in before}
            norm = torch.stack([part.square().sum() for part in segment.values()]).sum().sqrt()
            for name, part in segment.items():
                total[name] += part / norm / len(trajectories) if norm > 0 else 0
    return total
