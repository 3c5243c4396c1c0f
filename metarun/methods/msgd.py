"""Meta-SGD: Li, Zhou, Chen, Li 2017, Learning to Learn Quickly for Few-Shot Learning, arXiv 1707.09835, Algorithm 1.

    theta_{k+1} = theta_k - alpha o grad L_support(theta_k)
    minimise over theta_0 and alpha the mean over tasks of L_query(theta_K)

o is the elementwise product. alpha has the shape of theta, is shared by all tasks and steps, and is not bounded: an
entry may become negative. The paper takes one step; more are an extension. MAML++ (Antoniou, Edwards, Storkey
2019, arXiv 1810.09502) learns a rate for each tensor and step, alpha_{l,k}.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from metarun.errors import UserError
from metarun.methods.base import (
    FlatParameterDict,
    Method,
    SupportGradient,
    Tensors,
    escape_dots,
    extend,
    require_choice,
    widest,
)
from metarun.methods.maml import maml

ALPHAS = ("element", "tensor", "tensor_step", "scalar")
PAPER_RANGE = (0.005, 0.1)  # from which alpha is initialised


def msgd(model: nn.Module, inner_learning_rate: float, **options: Any) -> Method:
    """Meta-SGD on a model; see `learn_inner_rates` for the options."""
    return learn_inner_rates(maml(model, 1.0), model, inner_learning_rate, **options)


def learn_inner_rates(
    method: Method,
    model: nn.Module,
    inner_learning_rate: float,
    alpha: str = "element",
    start: str = "rate",
    steps: int | None = None,
) -> Method:
    """Extends a method, prepared with an inner learning rate of 1, by learned rates, which multiply its gradients.

    Args:
        alpha: a rate for each "element" of theta (Meta-SGD), each "tensor", each tensor and step ("tensor_step",
            MAML++), or one "scalar" for all.
        start: every rate begins at `inner_learning_rate` ("rate"), or at one draw from U[0.005, 0.1] ("random").
        steps: for "tensor_step": how many inner steps have rates of their own; later steps use the last one's.

    Raises:
        UserError: an unknown value of alpha or start, or "tensor_step" without steps.
    """
    require_choice("alpha", alpha, ALPHAS)
    require_choice("start", start, ("rate", "random"))
    if alpha == "tensor_step" and not steps:
        raise UserError(f"alpha='tensor_step': needs steps=N, the number of inner steps in training; found {steps}")
    theta = method.parameters.theta
    initial = inner_learning_rate if start == "rate" else float(torch.empty((), device="cpu").uniform_(*PAPER_RANGE))
    first = next(iter(theta))  # a scalar has the name and device of the first parameter
    rates: Tensors = {}
    for name in [first] if alpha == "scalar" else theta:
        shape = {"element": theta[name].shape, "tensor_step": (steps,)}.get(alpha, ())
        dtype = widest(theta) if alpha == "scalar" else theta[name].dtype
        rates[name] = torch.full(shape, initial, dtype=dtype, device=theta[name].device)
    key = {name: f"inner_rates.{escape_dots(first if alpha == 'scalar' else name)}" for name in theta}
    learned = LearnedRates(method, alpha, key)
    added = FlatParameterDict(rates)
    return extend(method, model, "inner_rates", added, update=learned.update, summaries=learned.summaries)


@dataclass(frozen=True)
class LearnedRates:
    """`method` with its gradients multiplied by learned rates.

    alpha  what has a rate of its own, see `learn_inner_rates`
    key    parameter name -> name of its rate in phi
    """

    method: Method
    alpha: str
    key: dict[str, str]

    def rate(self, phi: Tensors, name: str, step: int, device: torch.device) -> Tensor:
        """The rate of parameter `name` at an inner step: of the parameter's shape for "element", else a scalar."""
        rates = phi[self.key[name]]
        if self.alpha == "scalar":
            return rates.to(device)  # a single rate serves layers on several devices
        return rates[min(step, len(rates) - 1)] if self.alpha == "tensor_step" else rates

    def update(self, theta: Tensors, gradient: Tensors, phi: Tensors, fixed: Any, step: int) -> Tensors:
        scaled = {name: self.rate(phi, name, step, entry.device) * entry for name, entry in gradient.items()}
        return self.method.update(theta, scaled, phi, fixed, step)

    def summaries(self, theta: Tensors, phi: Tensors, gradient: SupportGradient, noise: Tensor) -> Tensors:
        names = {"all": next(iter(theta))} if self.alpha == "scalar" else {name: name for name in theta}
        rates = {f"inner_learning_rate/{label}": phi[self.key[name]] for label, name in names.items()}
        return {**self.method.summaries(theta, phi, gradient, noise), **rates}
