"""Pretraining of an ordinary classifier of all training classes, whose body a meta-learning run can start from.

    minimise over theta the mean cross-entropy of mini-batches of images from all training classes

There is no inner loop: few-shot tasks are solved by the nearest class mean, see `metarun/core/nearest_centroid.py`.
"""

from typing import Any

from torch import nn

from metarun.methods.base import Method, Tensors, split_parameters


def pretrain(model: nn.Module, inner_learning_rate: float, batch: int) -> Method:
    """Pretraining on a model. There is no inner loop; `batch` is used by the task sampler only."""
    return Method(split_parameters(model), no_update)


def no_update(theta: Tensors, gradient: Tensors, phi: Tensors, fixed: Any, step: int) -> Tensors:
    """Returns theta unchanged."""
    return theta
