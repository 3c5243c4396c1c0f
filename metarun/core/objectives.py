"""`State`, the argument of an objective, and the objectives of the command line."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from torch import Tensor


@dataclass
class State:
    """The support or the query set of a task, with the weights adapted so far.

    Every field can be read as an attribute or as a key. `model(*inputs, updated_weights, **keywords)` runs the
    network's forward(*inputs, **keywords) with the weights, which come last: `model(data, updated_weights)`.
    """

    data: Any
    target: Any
    model: Callable[..., Any]
    updated_weights: list[Tensor]  # theta, in the order of `weight_names`
    measures: dict[str, Tensor] = field(default_factory=dict)  # scalar metrics that the objective reports

    def __getitem__(self, key: str) -> Any:
        return getattr(self, key)


Objective = Callable[[State], Tensor]


def classification(state: State) -> Tensor:
    """Mean cross-entropy of the logits; reports the accuracy, a fraction."""
    logits = state.model(state.data, state.updated_weights)
    state.measures["accuracy"] = accuracy(logits, state.target)
    return F.cross_entropy(logits, state.target)


def classification_by(outputs: int, details: bool) -> Objective:
    """Classification by the first `outputs` of a network's, as an evaluation judges it.

    details: measure for each query, [queries], which class was `found` and the `confidence`, its probability, as well.
    """

    def classification(state: State) -> Tensor:
        logits = state.model(state.data, state.updated_weights)[:, :outputs]
        state.measures.update(accuracy=accuracy(logits, state.target))
        if details:
            confidence, found = logits.detach().double().softmax(-1).max(-1)
            state.measures.update(found=found.double(), confidence=confidence)
        return F.cross_entropy(logits, state.target)

    return classification


def accuracy(logits: Tensor, target: Tensor) -> Tensor:
    return (logits.detach().argmax(-1) == target).to(logits.dtype).mean()


def classification_among(counts: Tensor) -> Objective:
    """Classification by the first outputs alone, one for each of `counts`: how many images each class has.

    Each class weighs the same, as in training, where each has as many images.
    """
    weight = None if len(counts.unique()) == 1 else 1 / counts.float()

    def classification(state: State) -> Tensor:
        logits = state.model(state.data, state.updated_weights)
        return F.cross_entropy(logits[:, : len(counts)], state.target, weight)

    return classification


def regression(state: State) -> Tensor:
    """Mean squared error, which is reported as a metric as well."""
    loss = F.mse_loss(state.model(state.data, state.updated_weights), state.target)
    state.measures["mse"] = loss.detach()
    return loss
