"""Methods that adapt a part of the network, by MAML's update.

ANIL: Raghu, Raghu, Bengio, Vinyals 2020, arXiv 1909.09157: the inner loop adapts the head only.
BOIL: Oh, Yoo, Kim, Yun 2021, arXiv 2008.08882: it adapts all but the head, the affine of norm layers included.
"""

from __future__ import annotations

from torch import nn

from metarun.methods.maml import maml
from metarun.methods.slots import Method, divide, head


def anil(model: nn.Module, inner_learning_rate: float) -> Method:
    """Raises UserError where the model has no linear or convolution layer."""
    names = head_names(model)
    body = [name for name, _ in model.named_parameters() if name not in names]
    return maml(model, inner_learning_rate, divide(model, across=body))


def boil(model: nn.Module, inner_learning_rate: float) -> Method:
    """Raises UserError where the model has no linear or convolution layer."""
    return maml(model, inner_learning_rate, divide(model, across=head_names(model)))


def head_names(model: nn.Module) -> set[str]:
    """The parameters of the last linear or convolution layer."""
    last = head(model, "anil and boil")
    return {last.weight} if last.bias is None else {last.weight, last.bias}
