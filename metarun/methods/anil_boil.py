"""ANIL and BOIL, which adapt a part of the network by MAML's update.

ANIL: Raghu, Raghu, Bengio, Vinyals 2020, arXiv 1909.09157: the inner loop adapts the head only.
BOIL: Oh, Yoo, Kim, Yun 2021, arXiv 2008.08882: it adapts all but the head, the affine of norm layers included.
"""

from torch import nn

from metarun.methods.base import Method, split_parameters
from metarun.methods.layers import head_names
from metarun.methods.maml import maml


def anil(model: nn.Module, inner_learning_rate: float) -> Method:
    """Adapts the head only. Raises UserError if the model has no linear or convolution layer, or its head is frozen."""
    names = head_names(model)
    body = [name for name, _ in model.named_parameters() if name not in names]
    return maml(model, inner_learning_rate, split_parameters(model, across=body), "anil")


def boil(model: nn.Module, inner_learning_rate: float) -> Method:
    """Adapts all but the head. Raises UserError if the model has no linear or convolution layer, or nothing else."""
    return maml(model, inner_learning_rate, split_parameters(model, across=head_names(model)), "boil")
