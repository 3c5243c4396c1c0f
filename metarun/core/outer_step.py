"""One outer step, the meta-gradient and an Adam update, as a function of tensors that can be compiled whole."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from metarun.core.forward import MetaLearner
from metarun.core.meta_learner import meta_gradient
from metarun.types import Parameters, Task

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8  # Adam's defaults (Kingma and Ba 2015, Algorithm 1)


class AdamState(NamedTuple):
    """Adam's state for one parameter, under the names of torch.optim.Adam."""

    step: Tensor  # scalar
    exp_avg: Tensor  # first moment, of the parameter's shape
    exp_avg_sq: Tensor  # second moment, of the parameter's shape


def adam_state(optimizer: torch.optim.Adam) -> list[AdamState]:
    """The optimizer's state for each of its parameters, not copied; created as zeros before the first step."""
    params = optimizer.param_groups[0]["params"]
    for tensor in params:
        if not optimizer.state[tensor]:
            zeros = torch.zeros((), device=tensor.device), torch.zeros_like(tensor), torch.zeros_like(tensor)
            optimizer.state[tensor] = AdamState(*zeros)._asdict()
    return [AdamState(*(optimizer.state[tensor][name] for name in AdamState._fields)) for tensor in params]


OuterStep = Callable[..., Tensor]


def make_outer_step(learner: MetaLearner, metric: str, clip: float | None) -> OuterStep:
    """Returns a function that updates parameters and Adam state in place from the gradient of one meta-batch.

    The function returns a tensor [3]: 1 if the step was taken, the mean loss, and the mean of `metric`. If a loss or
    an entry of the gradient is non-finite, the first number is 0 and nothing is updated.

    clip: bound on the absolute value of each entry of the gradient; None: no bound.
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
        grads = [grad for part in gradient for grad in part.values()]
        maxima = [losses.abs().amax(), *(grad.abs().amax() for grad in grads if grad.numel())]
        finite = torch.stack(maxima).amax().isfinite()
        params = [param for part in parameters for param in part.values()]
        for param, grad, param_state in zip(params, grads, state, strict=True):
            clipped = grad if clip is None else grad.clamp(-clip, clip)
            adam_(param, clipped, param_state, rate, finite)
        return torch.stack([finite.to(losses.dtype), losses.mean(), measures[metric].mean()])

    return step


def adam_(param: Tensor, grad: Tensor, state: AdamState, rate: Tensor, finite: Tensor) -> None:
    """Updates `param` and `state` in place by one step of Adam if `finite`, a boolean scalar, is true."""
    step = state.step + 1
    exp_avg = state.exp_avg + (grad - state.exp_avg) * (1 - BETA_1)
    exp_avg_sq = state.exp_avg_sq * BETA_2 + (1 - BETA_2) * grad * grad
    scale = (exp_avg_sq / (1 - BETA_2**step)).sqrt() + EPSILON
    updated = param - rate / (1 - BETA_1**step) * exp_avg / scale
    for old, new in zip((*state, param), (step, exp_avg, exp_avg_sq, updated), strict=True):
        old.copy_(torch.where(finite, new, old))
