"""L2F: Baik, Hong, Lee 2020, Learning to Forget for Meta-Learning, arXiv 1906.05895, Algorithm 1.

    gamma = g_psi(mean of grad_l L_support(theta), one signed mean for each parameter tensor l)
    theta_0 = gamma_l theta_l for each tensor, then MAML's inner loop from there

g_psi is Linear(L, L), ReLU, Linear(L, L), Sigmoid; the gradient that it sees is detached. psi and the affine of
norm layers are learned across tasks only.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.methods.base import Method, PassThroughModuleDict, SupportGradient, Tensors, extend, widest
from metarun.methods.maml import maml


def l2f(model: nn.Module, inner_learning_rate: float) -> Method:
    """L2F on a model."""
    return attenuate(maml(model, inner_learning_rate), model)


def attenuate(method: Method, model: nn.Module) -> Method:
    """Extends a method: each task starts from an attenuated theta. Adds `attenuator`, g_psi, to the model."""
    theta = method.parameters.theta
    size, device = len(theta), next(iter(theta.values())).device
    attenuator = PassThroughModuleDict({"0": nn.Linear(size, size), "2": nn.Linear(size, size)})
    attenuator.to(device, widest(theta))
    attenuated = Attenuated(method)
    return extend(method, model, "attenuator", attenuator, begin=attenuated.begin, summaries=attenuated.summaries)


@dataclass(frozen=True)
class Attenuated:
    """`method` with the initialisation gamma_l theta_l for each tensor l."""

    method: Method

    def attenuation(self, theta: Tensors, phi: Tensors, gradient: SupportGradient) -> Tensor:
        """gamma in (0, 1), one for each tensor of theta: [len(theta)]."""
        like = phi["attenuator.0.weight"]
        means = torch.stack([entry.mean().to(like) for entry in gradient(theta).values()]).detach()
        hidden = F.linear(means, like, phi["attenuator.0.bias"]).relu()
        return F.linear(hidden, phi["attenuator.2.weight"], phi["attenuator.2.bias"]).sigmoid()

    def begin(self, theta: Tensors, phi: Tensors, gradient: SupportGradient, noise: Tensor) -> tuple[Tensors, Any]:
        gamma = self.attenuation(theta, phi, gradient)
        attenuated = {name: gamma[i].to(tensor) * tensor for i, (name, tensor) in enumerate(theta.items())}
        return self.method.begin(attenuated, phi, gradient, noise)

    def summaries(self, theta: Tensors, phi: Tensors, gradient: SupportGradient, noise: Tensor) -> Tensors:
        gamma = self.attenuation(theta, phi, gradient)
        gammas = {f"gamma/{name}": gamma[i] for i, name in enumerate(theta)}
        return {**self.method.summaries(theta, phi, gradient, noise), **gammas}
