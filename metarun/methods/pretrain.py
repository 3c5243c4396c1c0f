"""Pretraining: an ordinary classifier of all training classes, whose body a meta-learning run can begin with.

    minimise over theta the mean cross-entropy of mini-batches of images from all training classes

Nothing adapts: few-shot tasks are solved by the nearest class mean, see `metarun/core/nearest_centroid.py`.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from metarun.methods.base import Method, Tensors, split_parameters


def pretrain(model: nn.Module, inner_learning_rate: float, batch: int) -> Method:
    """inner_learning_rate and batch belong to the other methods' inner loop and to what the tasks are drawn from."""
    return Method(split_parameters(model), no_update)


def no_update(theta: Tensors, gradient: Tensors, phi: Tensors, fixed: Any, step: int) -> Tensors:
    return theta
