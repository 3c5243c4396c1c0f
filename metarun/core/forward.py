"""The network on one side of a task: the weights that it runs with, and an objective's loss there."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metarun.core.activation_checkpoints import recomputed_by
from metarun.core.objectives import Objective, State
from metarun.core.second_order import Needs, needs, substituted
from metarun.errors import UserError
from metarun.methods import Method, Tensors
from metarun.nn.norm import TORCH_NORMS, BatchNormPolicy, Norm, record_batch_stats, use_batch_stats
from metarun.nn.precision import at_least_float32, autocast

Metrics = dict[str, Tensor]


@dataclass(frozen=True)
class MetaLearner:
    """All that stays fixed while the parameters are learned."""

    model: nn.Module
    method: Method
    inner_objective: Objective
    outer_objective: Objective
    inner_loop: int = 5
    use_second_order: bool = True
    norm: BatchNormPolicy = BatchNormPolicy()
    precision: str = "float32"  # of the network's layers: `engine.precision`
    # looked up here, not at each forward
    tied: bool = field(init=False)  # whether a tensor of the model has two names
    stateful: list[tuple[str, nn.Module]] = field(init=False)  # a buffer that a forward may change: its name, its owner
    needs: Needs = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tied", has_tied_tensors(self.model))
        object.__setattr__(self, "stateful", stateful_buffers(self.model))
        object.__setattr__(self, "needs", needs(self.model))


def has_tied_tensors(model: nn.Module) -> bool:
    parameters, buffers = model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)
    tensors = [id(tensor) for _, tensor in (*parameters, *buffers)]
    return len(set(tensors)) < len(tensors)


def stateful_buffers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Those of all layers but norms, whose buffers `batch_statistics` keeps."""
    return [
        (f"{prefix}.{name}" if prefix else name, module)
        for prefix, module in model.named_modules()
        if not isinstance(module, (Norm, *TORCH_NORMS))
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]


def support_weights(learner: MetaLearner, theta: Tensors, phi: Tensors, taken: int) -> Tensors:
    """What the network runs with on a support set: what the method makes of theta, after `taken` steps, and phi."""
    return learner.norm.weights(learner.method.weights(theta, phi), taken, query=False)


def query_weights(learner: MetaLearner, theta: Tensors, phi: Tensors, support_data: Any, taken: int) -> Tensors:
    """The same on a query set, with those statistics of batch norm that are not the set's own."""
    norm = learner.norm
    weights = norm.weights(learner.method.weights(theta, phi), taken, query=True)
    if norm.rule != "support":
        return {**weights, **norm.after(taken)}
    with record_batch_stats(learner.model) as seen:
        functional_forward(learner, weights, support_data)
    return {**weights, **seen}


def functional_forward(learner: MetaLearner, weights: Tensors, *inputs: Any, **keywords: Any) -> Any:
    """The network's output on what its forward takes; its buffers stay as they are."""
    output = run_within(learner, learner.model, weights, "", inputs, keywords)
    return at_least_float32(output) if learner.precision == "bfloat16" else output


def run_within(
    learner: MetaLearner, module: nn.Module, weights: Tensors, prefix: str, inputs: Any, keywords: Any
) -> Any:
    """module(*inputs, **keywords), where the network's weights have their names behind `prefix`."""
    buffers = {name: owner._buffers[name.rpartition(".")[2]] for name, owner in learner.stateful}
    tensors = {**{name: buffer.clone() for name, buffer in buffers.items() if buffer is not None}, **weights}
    if prefix:
        tensors = {prefix + name: tensor for name, tensor in tensors.items()}
    watched = learner.needs.checkpoints and not torch.compiler.is_compiling()
    with (
        use_batch_stats(learner.model),
        autocast(learner.precision, next(iter(weights.values()))),
        substituted(learner.needs.substitutes) if learner.needs.substitutes else nullcontext(),
        recomputed_by(partial(run_part, learner, weights)) if watched else nullcontext(),
    ):
        return functional_call(module, tensors, inputs, keywords, tie_weights=learner.tied)


def run_part(
    learner: MetaLearner, weights: Tensors, function: Callable[..., Any], *inputs: Any, **keywords: Any
) -> Any:
    """function(*inputs, **keywords), which runs a part of the network, with those weights."""
    part = Part(learner.model, function)
    return run_within(learner, part, weights, "model.", inputs, keywords)


class Part(nn.Module):
    """A network of which a function runs a part."""

    def __init__(self, model: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.model = model
        self.run = (function,)  # in a tuple, or a function that is a module would become one of its parts

    def forward(self, *inputs: Any, **keywords: Any) -> Any:
        return self.run[0](*inputs, **keywords)


def evaluate_objective(
    learner: MetaLearner,
    objective: Objective,
    theta: Tensors,
    weights: Callable[[Tensors], Tensors],
    data: Any,
    target: Any,
) -> tuple[Tensor, Metrics]:
    """The objective's loss (a scalar) and what it measured, at theta, of which `weights` makes the network's."""
    names = tuple(theta)

    def model(*inputs: Any, **keywords: Any) -> Any:
        updated = by_name(names, inputs[-1] if inputs else None)
        return functional_forward(learner, weights(updated), *inputs[:-1], **keywords)

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


def dense_gradients(
    loss: Tensor, tensors: list[Tensor], weights: int, objective: Objective, graph: bool = False
) -> list[Tensor | None]:
    """Of a loss that the tape has recorded, by each of `tensors`; None where it does not depend on one.

    Raises:
        UserError: it depends on none of the first `weights` tensors, the weights that adapt.
    """
    found: tuple[Tensor | None, ...] = ()
    if loss.requires_grad:
        found = torch.autograd.grad(loss, tensors, create_graph=graph, allow_unused=True)
    if all(gradient is None for gradient in found[:weights]):
        raise independent(objective)
    return [gradient.to_dense() if gradient is not None and gradient.is_sparse else gradient for gradient in found]


def independent(objective: Objective) -> UserError:
    return UserError(
        f"{name_of(objective)}: does not depend on the weights; "
        "run the network as state.model(state.data, state.updated_weights)"
    )
