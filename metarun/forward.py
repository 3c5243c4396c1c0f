"""The network on one side of a task: the weights that it runs with, and an objective's loss there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from metarun.errors import UserError
from metarun.methods import Method, Tensors
from metarun.norm import BatchNorm, batch_statistics, recorded
from metarun.objective import Objective, State
from metarun.precision import full, layers_in

Measures = dict[str, Tensor]


@dataclass(frozen=True)
class MetaLearner:
    """All that stays fixed while the parameters are learned."""

    model: nn.Module
    method: Method
    inner_objective: Objective
    outer_objective: Objective
    inner_loop: int = 5
    use_second_order: bool = True
    norm: BatchNorm = BatchNorm()
    precision: str = "float32"  # of the network's layers: `engine.precision`
    tied: bool = field(init=False)  # whether a tensor of the model has two names; looked up here, not at each forward

    def __post_init__(self) -> None:
        object.__setattr__(self, "tied", has_tied_tensors(self.model))


def has_tied_tensors(model: nn.Module) -> bool:
    parameters, buffers = model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)
    tensors = [id(tensor) for _, tensor in (*parameters, *buffers)]
    return len(set(tensors)) < len(tensors)


def support_weights(learner: MetaLearner, theta: Tensors, phi: Tensors, taken: int) -> Tensors:
    """What the network runs with on a support set: what the method makes of theta, after `taken` steps, and phi."""
    return learner.norm.weights(learner.method.weights(theta, phi), taken, query=False)


def query_weights(learner: MetaLearner, theta: Tensors, phi: Tensors, support_data: Any, taken: int) -> Tensors:
    """The same on a query set, with those statistics of batch norm that are not the set's own."""
    norm = learner.norm
    weights = norm.weights(learner.method.weights(theta, phi), taken, query=True)
    if norm.rule != "support":
        return {**weights, **norm.after(taken)}
    with recorded(learner.model) as seen:
        run_model(learner, weights, support_data)
    return {**weights, **seen}


def run_model(learner: MetaLearner, weights: Tensors, *inputs: Any, **keywords: Any) -> Any:
    """The network's output on what its forward takes."""
    with batch_statistics(learner.model), layers_in(learner.precision, next(iter(weights.values()))):
        output = functional_call(learner.model, weights, inputs, keywords, tie_weights=learner.tied)
    return full(output) if learner.precision == "bfloat16" else output


def evaluate_objective(
    learner: MetaLearner,
    objective: Objective,
    theta: Tensors,
    weights: Callable[[Tensors], Tensors],
    data: Any,
    target: Any,
) -> tuple[Tensor, Measures]:
    """The objective's loss (a scalar) and what it measured, at theta, of which `weights` makes the network's."""
    names = tuple(theta)

    def model(*inputs: Any, **keywords: Any) -> Any:
        updated = by_name(names, inputs[-1] if inputs else None)
        return run_model(learner, weights(updated), *inputs[:-1], **keywords)

    state = State(data, target, model, list(theta.values()))
    loss = objective(state)
    if not isinstance(loss, Tensor) or loss.dim() != 0:
        found = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise UserError(f"{name_of(objective)}: an objective must return a scalar tensor, this one returned {found}")
    return loss, state.measures


def by_name(names: tuple[str, ...], weights: Any) -> Tensors:
    """The weights that adapt, by their names. Raises UserError where they are not a list of as many."""
    if not isinstance(weights, (list, tuple)) or len(weights) != len(names):
        found = f"a list of {len(weights)}" if isinstance(weights, (list, tuple)) else f"a {type(weights).__name__}"
        raise UserError(
            f"weights: must be the list of the {len(names)} weights that adapt, as state.updated_weights and adapt "
            f"have it, found {found}; write state.model(*inputs, state.updated_weights), meta.predict(weights, *inputs)"
        )
    return dict(zip(names, weights, strict=True))


def name_of(objective: Objective) -> str:
    return getattr(objective, "__name__", type(objective).__name__)


def require_dependence(loss: Tensor, objective: Objective) -> None:
    """Raises UserError where the loss, which the tape has recorded, does not depend on the weights."""
    if not loss.requires_grad:
        raise UserError(
            f"{name_of(objective)}: does not depend on the weights; "
            "run the network as state.model(state.data, state.updated_weights)"
        )
