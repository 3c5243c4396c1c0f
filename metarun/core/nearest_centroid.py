"""Few-shot classification without an inner loop, by the nearest class mean of a network's features.

    w_c = mean of f(x) over the support images x of class c,   class of a query x = argmax over c of cos(f(x), w_c)

Chen, Liu, Xu, Darrell, Wang 2021, Meta-Baseline, arXiv 2003.04390: their evaluation of a classifier of all training
classes. f(x) is the input of the head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from metarun.core.forward import MetaLearner, Metrics, functional_forward, support_weights
from metarun.core.meta_learner import tree_stack, unbind_tasks
from metarun.methods.layers import head
from metarun.types import Parameters, Task

SCALE = 10.0  # multiplies the cosines to give the logits of the reported loss; the paper's initial value


def nearest_centroid_evaluate(
    learner: MetaLearner, parameters: Parameters, tasks: Task, ways: int
) -> tuple[Tensor, Metrics]:
    """Query loss and accuracy of each task, each [tasks, 1], without a graph."""
    parameters = tree_map(torch.detach, parameters)

    def one_task(task: Task) -> tuple[Tensor, Metrics]:
        support = penultimate_features(learner, parameters, task.support_data)
        one_hot = F.one_hot(task.support_target, ways).to(support)  # [images, ways]
        means = one_hot.T @ support  # [ways, features], up to their length, which cosines ignore
        query = penultimate_features(learner, parameters, task.query_data)
        cosines = F.normalize(query) @ F.normalize(means).T  # [images, ways]
        accuracy = (cosines.argmax(1) == task.query_target).to(cosines.dtype).mean()
        return F.cross_entropy(SCALE * cosines, task.query_target)[None], {"accuracy": accuracy[None]}

    with torch.no_grad():
        return tree_stack([one_task(task) for task in unbind_tasks(tasks)])


def penultimate_features(learner: MetaLearner, parameters: Parameters, data: Tensor) -> Tensor:
    """The input of the head, [images, features]; a convolutional head's is averaged over the image."""
    inputs_seen: list[Tensor] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        inputs_seen.append(inputs[0])

    hook = head(learner.model, "pretrain")[1].register_forward_pre_hook(look)
    try:
        functional_forward(learner, support_weights(learner, *parameters, 0), data)
    finally:
        hook.remove()
    features = inputs_seen[0]
    return features.flatten(2).mean(2) if features.dim() > 2 else features
