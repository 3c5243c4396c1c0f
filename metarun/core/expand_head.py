"""Expands a trained head to more classes.

Labels are permuted from task to task, so the learned rows of the head have the same distribution. They are kept, and
the new rows are drawn from a normal distribution with their mean and standard deviation: with equal rows the body
would get no gradient in the first inner step. If the head alone adapts, all rows become their mean instead: Ye, Chao
2022, How to Train Your MAML to Excel in Few-Shot Classification, arXiv 2106.16245.
"""

from collections.abc import Collection

import torch
from torch import Tensor

from metarun.methods.base import escape_dots
from metarun.types import Parameters, Tensors

SEED = 0  # of the new rows


class HeadNotExpandable(Exception):
    """The method learned a tensor whose size depends on the number of outputs; the message names it."""


def expand_head(saved: Parameters, wanted: Parameters, network: Collection[str]) -> Parameters:
    """Returns the saved parameters expanded to the shapes of `wanted`, which has more outputs.

    Args:
        network: names of the network's parameters, without those that the method added. Of the latter, only Meta-SGD's
            rates for each element of the head can be expanded; new rows get the mean rate.

    Raises:
        HeadNotExpandable: another tensor of the method depends on the number of outputs.
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
    """The names in both whose shapes differ."""
    return [name for name in new if name in old and old[name].shape != new[name].shape]


def spread(rows: Tensor) -> Tensor:
    """The standard deviation of the entries of rows [n, ...] about their column's mean: a scalar."""
    squares = (rows - rows.mean(0, keepdim=True)).square().sum()
    return (squares / max(1, (len(rows) - 1) * rows[0].numel())).sqrt()
