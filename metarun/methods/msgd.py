"""Meta-SGD: Li, Zhou, Chen, Li 2017, Learning to Learn Quickly for Few-Shot Learning, arXiv 1707.09835, Algorithm 1.

    theta_{k+1} = theta_k - alpha o grad L_support(theta_k)
    minimise over theta_0 and alpha the mean over tasks of L_query(theta_K)

alpha has the shape of theta, is shared by all tasks and steps, and is not bounded: an entry may turn negative.
The paper takes one step; more are an extension. MAML++ (Antoniou, Edwards, Storkey 2019, arXiv 1810.09502) learns a
rate for each tensor and step, alpha_{l,k}.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from metarun.errors import UserError
from metarun.methods.base import FlatParameterDict, Method, Tensors, attach, escape_dots, require_choice, widest

ALPHAS = ("element", "tensor", "tensor_step", "scalar")
PAPER_RANGE = (0.005, 0.1)  # of alpha's first value


def learn_inner_rates(
    method: Method,
    model: nn.Module,
    inner_learning_rate: float,
    alpha: str = "element",
    start: str = "rate",
    steps: int | None = None,
) -> Method:
    """The method with learned inner rates; it is to be prepared with a rate of 1, by which its update then steps.

    Args:
        alpha: a rate for each "element" of theta (Meta-SGD), each "tensor", each tensor and step ("tensor_step",
            MAML++), or one "scalar" for all.
        start: every rate begins at `inner_learning_rate` ("rate"), or at one draw from U[0.005, 0.1] ("random").
        steps: of "tensor_step": how many have rates of their own; those after them take the last one's.

    Raises:
        UserError: an unknown choice, or "tensor_step" without steps.
    """
    require_choice("alpha", alpha, ALPHAS)
    require_choice("start", start, ("rate", "random"))
    if alpha == "tensor_step" and not steps:
        raise UserError(f"alpha='tensor_step': needs steps=N, the number of inner steps in training; found {steps}")
    theta, phi = method.parameters
    first = inner_learning_rate if start == "rate" else float(torch.empty((), device="cpu").uniform_(*PAPER_RANGE))

    def rate(tensor: Tensor, dtype: torch.dtype) -> Tensor:
        shape = {"element": tensor.shape, "tensor_step": (steps,)}.get(alpha, ())
        return torch.full(shape, first, dtype=dtype, device=tensor.device)

    rates = {name: rate(tensor, tensor.dtype) for name, tensor in theta.items()}
    if alpha == "scalar":
        name, tensor = next(iter(theta.items()))
        rates = {name: rate(tensor, widest(theta))}
    added = attach(model, "inner_rates", FlatParameterDict(rates))
    own = Rates(
        method,
        alpha,
        {name: f"inner_rates.{escape_dots(name if name in rates else next(iter(rates)))}" for name in theta},
    )
    parameters = method.parameters._replace(phi={**phi, **added})
    return replace(method, parameters=parameters, update=own.update, shown=own.shown)


@dataclass(frozen=True)
class Rates:
    """The functions of a method with learned rates.

    method  without them
    key     the name of the rate in phi, by that of the parameter
    """

    method: Method
    alpha: str
    key: dict[str, str]

    def rate(self, phi: Tensors, name: str, step: int, device: torch.device) -> Tensor:
        rates = phi[self.key[name]]
        if self.alpha == "scalar":
            return rates.to(device)  # one for layers on several devices
        return rates[min(step, len(rates) - 1)] if self.alpha == "tensor_step" else rates

    def update(self, theta: Tensors, gradient: Tensors, phi: Tensors, fixed: Any, step: int) -> Tensors:
        scaled = {name: self.rate(phi, name, step, entry.device) * entry for name, entry in gradient.items()}
        return self.method.update(theta, scaled, phi, fixed, step)

    def shown(self, theta: Tensors, phi: Tensors, gradient: Callable[[Tensors], Tensors], noise: Tensor) -> Tensors:
        names = {"all": next(iter(theta))} if self.alpha == "scalar" else {name: name for name in theta}
        own = {f"inner_learning_rate/{told}": phi[self.key[name]] for told, name in names.items()}
        return {**self.method.shown(theta, phi, gradient, noise), **own}
