"""L2F: Baik, Hong, Lee 2020, Learning to Forget for Meta-Learning, arXiv 1906.05895, Algorithm 1.

    gamma = g_psi(mean of grad_l L_support(theta), one signed mean for each parameter tensor l)
    theta_0 = gamma_l theta_l for each tensor, then MAML's inner loop from there

g_psi is Linear(L, L), ReLU, Linear(L, L), Sigmoid; the gradient that it sees is detached. psi and the affine of
norm layers are learned across tasks only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.methods.slots import Method, Parts, Tensors, attach


def forget(method: Method, model: nn.Module) -> Method:
    """The method from an attenuated initialisation."""
    theta, phi = method.parameters
    size = len(theta)
    attenuator = Parts({"0": nn.Linear(size, size), "2": nn.Linear(size, size)})
    added = attach(model, "attenuator", attenuator)

    def attenuation(theta: Tensors, phi: Tensors, gradient: Callable[[Tensors], Tensors]) -> Tensor:
        """gamma, [tensors of theta]."""
        seen = torch.stack([entry.mean() for entry in gradient(theta).values()]).detach()
        hidden = F.linear(seen, phi["attenuator.0.weight"], phi["attenuator.0.bias"]).relu()
        return F.linear(hidden, phi["attenuator.2.weight"], phi["attenuator.2.bias"]).sigmoid()

    def begin(
        theta: Tensors, phi: Tensors, gradient: Callable[[Tensors], Tensors], noise: Tensor
    ) -> tuple[Tensors, Any]:
        gamma = attenuation(theta, phi, gradient)
        kept = {name: gamma[i] * tensor for i, (name, tensor) in enumerate(theta.items())}
        return method.begin(kept, phi, gradient, noise)

    def shown(theta: Tensors, phi: Tensors, gradient: Callable[[Tensors], Tensors], noise: Tensor) -> Tensors:
        gamma = attenuation(theta, phi, gradient)
        own = {f"gamma/{name}": gamma[i] for i, name in enumerate(theta)}
        return {**method.shown(theta, phi, gradient, noise), **own}

    return replace(method, parameters=method.parameters._replace(phi={**phi, **added}), begin=begin, shown=shown)
