"""Multi-layer perceptron; hidden widths 40-40 are MAML's sinusoid regression network (arXiv 1703.03400, 5.1)."""

import itertools
import math
from collections.abc import Sequence

from torch import Tensor, nn


class MLP(nn.Module):
    """Inputs [batch, ...], flattened to [batch, features], -> [batch, outputs]; ReLU between layers, no norm."""

    def __init__(self, input_shape: Sequence[int], outputs: int, hidden: Sequence[int] = (40, 40)) -> None:
        super().__init__()
        widths = [math.prod(input_shape), *hidden, outputs]
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in itertools.pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)
