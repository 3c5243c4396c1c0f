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
from torch import Tensor, nn
from torch.func import functional_call

from metarun.methods.slots import Method, Tensors, attach


def forget(method: Method, model: nn.Module) -> Method:
    """The method from an attenuated initialisation."""
    theta, phi = method.parameters
    size = len(theta)
    attenuator = nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, size), nn.Sigmoid())
    added = attach(model, "attenuator", attenuator)
    inner_names = {name: name.removeprefix("attenuator.") for name in added}

    def begin(
        theta: Tensors, phi: Tensors, gradient: Callable[[Tensors], Tensors], noise: Tensor
    ) -> tuple[Tensors, Any]:
        seen = torch.stack([entry.mean() for entry in gradient(theta).values()]).detach()
        gamma = functional_call(attenuator, {inner: phi[name] for name, inner in inner_names.items()}, (seen,))
        kept = {name: gamma[i] * tensor for i, (name, tensor) in enumerate(theta.items())}
        return method.begin(kept, phi, gradient, noise)

    return replace(method, parameters=method.parameters._replace(phi={**phi, **added}), begin=begin)
