"""An outer step as one function of tensors, so that it can be compiled whole: the meta-gradient, and Adam upon it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from metarun.core.forward import MetaLearner
from metarun.core.meta_learner import meta_gradient
from metarun.methods import Parameters
from metarun.types import Task

FIRST, SECOND, SMALL = 0.9, 0.999, 1e-8  # Adam's own beta_1, beta_2 and epsilon (Kingma and Ba 2015)


class AdamState(NamedTuple):
    """Adam's state of one tensor, as torch.optim.Adam holds it."""

    step: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor


def adam_state(optimizer: torch.optim.Adam) -> list[AdamState]:
    """Of each tensor in the optimiser's order, zero where it has not stepped yet; the optimiser's own, not copies."""
    tensors = optimizer.param_groups[0]["params"]
    for tensor in tensors:
        if not optimizer.state[tensor]:
            zeros = torch.zeros((), device=tensor.device), torch.zeros_like(tensor), torch.zeros_like(tensor)
            optimizer.state[tensor] = AdamState(*zeros)._asdict()
    return [AdamState(*(optimizer.state[tensor][name] for name in AdamState._fields)) for tensor in tensors]


OuterStep = Callable[..., Tensor]


def make_outer_step(learner: MetaLearner, metric: str, clip: float | None) -> OuterStep:
    """A function that changes parameters and moments in place, by a step of Adam on a meta-batch's gradient.

    It returns three numbers, [3]: 1, the mean loss and the mean metric of the meta-batch; or, where a loss or an
    entry of the gradient is not finite, 0 and the same, with parameters and moments as before.
    """

    def step(
        tasks: Task,
        noise: Tensor,
        parameters: Parameters,
        state: list[AdamState],
        rate: Tensor,
        loss_weights: Tensor | None = None,
    ) -> Tensor:
        gradient, losses, measures = meta_gradient(
            learner, parameters, tasks, noise, vectorised=True, loss_weights=loss_weights
        )
        entries = [entry for part in gradient for entry in part.values()]
        sizes = [losses.abs().amax(), *(entry.abs().amax() for entry in entries if entry.numel())]
        finite = torch.stack(sizes).amax().isfinite()
        tensors = [tensor for part in parameters for tensor in part.values()]
        for tensor, entry, held in zip(tensors, entries, state, strict=True):
            clipped = entry if clip is None else entry.clamp(-clip, clip)
            adam(tensor, clipped, held, rate, finite)
        return torch.stack([finite.to(losses.dtype), losses.mean(), measures[metric].mean()])

    return step


def adam(tensor: Tensor, gradient: Tensor, held: AdamState, rate: Tensor, finite: Tensor) -> None:
    """A step of Adam in place, where `finite` is true."""
    count = held.step + 1
    mean = held.exp_avg + (gradient - held.exp_avg) * (1 - FIRST)
    square = held.exp_avg_sq * SECOND + (1 - SECOND) * gradient * gradient
    scale = (square / (1 - SECOND**count)).sqrt() + SMALL
    new = tensor - rate / (1 - FIRST**count) * mean / scale
    for old, entry in ((held.step, count), (held.exp_avg, mean), (held.exp_avg_sq, square), (tensor, new)):
        old.copy_(torch.where(finite, entry, old))
