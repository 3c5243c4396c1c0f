"""A head for more classes than a network was trained with.

Labels are permuted from task to task, so that the learned rows of the head are alike in distribution. They stay, and
further rows are drawn about their mean with their spread: apart from each other, as the learned ones are, the rows
send their classes' features apart from the first inner step on. From equal rows the body gets no gradient in that
step. Where the head alone adapts there is nothing to send, and all rows become their mean: Ye, Chao 2022, How to
Train Your MAML to Excel in Few-Shot Classification, arXiv 2106.16245.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from metarun.methods import Parameters, Tensors
from metarun.methods.base import escape_dots

SEED = 0  # of the rows that are drawn


class HeadNotExpandable(Exception):
    """The method ties the outputs to each other; the message says by what."""


def expand_head(saved: Parameters, wanted: Parameters, network: Collection[str]) -> Parameters:
    """Saved parameters in the shapes of `wanted`, which has more outputs.

    Args:
        network: names of the network's own parameters, without what the method added. Of the latter only Meta-SGD's
            rates for each element of the head can grow with it; further rows have the mean rate.

    Raises:
        Fixed: something else depends on the number of outputs.
    """
    head = {name for part in zip(saved, wanted, strict=True) for name in differing(*part) if name in network}
    rates = {f"inner_rates.{escape_dots(name)}" for name in head}
    generator = torch.Generator().manual_seed(SEED)  # on the CPU, whatever the device: the same rows everywhere

    @torch.no_grad()
    def grown(name: str, old: Tensor, new: Tensor) -> Tensor:
        if name not in head | rates or old.shape[1:] != new.shape[1:]:
            raise HeadNotExpandable(f"its {name} of {list(old.shape)} ties the outputs to each other")
        mean = old.mean(0, keepdim=True)
        if head >= wanted.theta.keys():
            return mean.expand_as(new)
        further = mean.expand(len(new) - len(old), *old.shape[1:])
        if name in head:
            further = further + spread(old) * torch.randn(further.shape, generator=generator).to(old)
        return torch.cat([old, further])

    return Parameters(
        *(
            {**old, **{name: grown(name, old[name], new[name]) for name in differing(old, new)}}
            for old, new in zip(saved, wanted, strict=True)
        )
    )


def differing(old: Tensors, new: Tensors) -> list[str]:
    return [name for name in new if name in old and old[name].shape != new[name].shape]


def spread(rows: Tensor) -> Tensor:
    """The standard deviation of an entry about the mean of its column: a scalar."""
    squares = (rows - rows.mean(0, keepdim=True)).square().sum()
    return (squares / max(1, (len(rows) - 1) * rows[0].numel())).sqrt()
