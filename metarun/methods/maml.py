"""MAML: Finn, Abbeel, Levine 2017, Model-Agnostic Meta-Learning, arXiv 1703.03400, equation 1 and Algorithm 2.

    theta_{k+1} = theta_k - alpha grad L_support(theta_k),   k = 0..K-1
    minimise over theta_0 the mean over tasks of L_query(theta_K)

First-order MAML (section 5.2 there) drops the second derivatives: `method=fomaml`, or `use_second_order=false`.
"""

from functools import partial
from typing import Any

from torch import nn

from metarun.methods.base import Method, Parameters, Tensors, require_adapting, split_parameters


def maml(
    model: nn.Module, inner_learning_rate: float, parameters: Parameters | None = None, name: str = "maml"
) -> Method:
    """MAML on a model.

    Args:
        parameters: the division into theta and phi; by default the affine parameters of norm layers are phi.
        name: the method's name, with which an error message begins.

    Raises:
        UserError: no parameter of the model adapts.
    """
    parameters = split_parameters(model) if parameters is None else parameters
    require_adapting(parameters, model, name)
    return Method(parameters, partial(descend, inner_learning_rate))


fomaml = maml  # its keys turn second order off


def descend(
    inner_learning_rate: float, theta: Tensors, gradient: Tensors, phi: Tensors, fixed: Any, step: int
) -> Tensors:
    """One inner step of gradient descent."""
    return {name: tensor - inner_learning_rate * gradient[name] for name, tensor in theta.items()}
