"""Statistics of batch norm after each inner step (`batch_norm=per_step`), over training tasks.

They are found anew for the weights that are judged, as the mean over the query sets of a fixed lot of tasks. A mean
that runs along with training lags behind the weights: Wu, Johnson 2021, Rethinking "Batch" in BatchNorm, arXiv
2105.07576. So they are a function of the weights alone: the same after a resume, and in any number of processes.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from metarun.core.forward import MetaLearner, functional_forward, query_weights
from metarun.core.meta_learner import TaskLearner, autograd_gradient, functional_gradient, tree_stack, vmap_or_loop
from metarun.methods import Parameters, Tensors
from metarun.nn.norm import batch_norms, record_batch_stats
from metarun.types import Task

TASKS = 100  # their query sets, of 25 images or more each, leave an error of a few thousandths of a deviation


@dataclass
class BatchNormStatistics:
    """The statistics that a run has found last, and whether they are of its present parameters."""

    tensors: Tensors  # by name of a batch norm's buffer, [steps + 1, channels]
    current: bool = False

    def take(self, mean: Tensor) -> None:
        """All of them one after another, flat."""
        sizes = [tensor.numel() for tensor in self.tensors.values()]
        for tensor, part in zip(self.tensors.values(), mean.split(sizes), strict=True):
            tensor.copy_(part.view_as(tensor))
        self.current = True


def zero_statistics(learner: MetaLearner) -> BatchNormStatistics:
    norms = batch_norms(learner.model)
    return BatchNormStatistics(
        {
            f"{name}.{buffer}": norm.weight.new_zeros(learner.norm.steps + 1, norm.weight.shape[-1])
            for name, norm in norms.items()
            for buffer in ("running_mean", "running_var")
        }
    )


def accumulate_statistics(
    learner: MetaLearner, parameters: Parameters, tasks: Task, noise: Tensor, vectorised: bool
) -> Tensors:
    """Means and variances of the query sets after 0, 1, ... inner steps, each [steps + 1, channels], added up."""
    learner = replace(learner, use_second_order=False, norm=replace(learner.norm, statistics=None))
    parameters = tree_map(torch.detach, parameters)
    gradient = functional_gradient if vectorised else autograd_gradient

    def seen_after(taken: int, theta: Tensors, task: Task) -> Tensors:
        with record_batch_stats(learner.model) as seen:
            weights = query_weights(learner, theta, parameters.phi, task.support_data, taken)
            functional_forward(learner, weights, task.query_data)
        return seen

    def one_task(task: Task, noise: Tensor) -> Tensors:
        trajectory = TaskLearner(learner, task, noise, gradient).adapt(parameters)
        return tree_stack([seen_after(taken, theta, task) for taken, theta in enumerate(trajectory)])

    return {name: each.sum(0) for name, each in vmap_or_loop(one_task, tasks, noise, vectorised).items()}
