"""Meta-SGD: Li, Zhou, Chen, Li 2017, Learning to Learn Quickly for Few-Shot Learning, arXiv 1707.09835, Algorithm 1.

    theta_{k+1} = theta_k - alpha o grad L_support(theta_k)
    minimise over theta_0 and alpha the mean over tasks of L_query(theta_K)

alpha has the shape of theta, is shared by all tasks and steps, and is not bounded: an entry may turn negative.
The paper takes one step; more are an extension.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from metarun.methods.slots import Bag, Method, Tensors, attach, require_choice, spelt

PAPER_RANGE = (0.005, 0.1)  # of alpha's first value


def learn_rates(
    method: Method, model: nn.Module, inner_learning_rate: float, alpha: str = "element", start: str = "rate"
) -> Method:
    """The method with learned inner rates.

    Args:
        alpha: a rate for each "element" of theta (the paper's), for each "tensor", or one "scalar" for all.
        start: every rate begins at `inner_learning_rate` ("rate"), or at one draw from U[0.005, 0.1] ("random").
    """
    require_choice("alpha", alpha, ("element", "tensor", "scalar"))
    require_choice("start", start, ("rate", "random"))
    theta, phi = method.parameters
    first = inner_learning_rate if start == "rate" else float(torch.empty((), device="cpu").uniform_(*PAPER_RANGE))
    shapes = {"element": torch.Tensor.size, "tensor": lambda tensor: (), "scalar": lambda tensor: ()}
    chosen = theta if alpha != "scalar" else dict([next(iter(theta.items()))])
    rates = {name: torch.full(shapes[alpha](tensor), first, dtype=tensor.dtype) for name, tensor in chosen.items()}
    added = attach(model, "inner_rates", Bag(rates))
    common = f"inner_rates.{spelt(next(iter(rates)))}"
    key = {name: f"inner_rates.{spelt(name)}" if alpha != "scalar" else common for name in theta}

    def update(theta: Tensors, gradient: Tensors, phi: Tensors, fixed: Any, step: int) -> Tensors:
        def rate(name: str) -> Tensor:
            return phi[key[name]]

        return {name: tensor - rate(name) * gradient[name] for name, tensor in theta.items()}

    def shown(theta: Tensors, phi: Tensors, gradient: Callable[[Tensors], Tensors], noise: Tensor) -> Tensors:
        own = {f"inner_learning_rate/{name if alpha != 'scalar' else 'all'}": phi[key[name]] for name in rates}
        return {**method.shown(theta, phi, gradient, noise), **own}

    return replace(method, parameters=method.parameters._replace(phi={**phi, **added}), update=update, shown=shown)
