"""The network's functional forward pass on a support or query set, and an objective's loss there."""

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
from metarun.methods import Method
from metarun.nn.norm import TORCH_NORMS, BatchNormPolicy, Norm, record_batch_stats, use_batch_stats
from metarun.nn.precision import at_least_float32, autocast
from metarun.types import Tensors

Metrics = dict[str, Tensor]  # name -> scalar, or [tasks, ...] for several tasks


@dataclass(frozen=True)
class MetaLearner:
    """The model, the method, the objectives and the settings of the inner loop: all that training does not change."""

    model: nn.Module
    method: Method
    inner_objective: Objective
    outer_objective: Objective
    inner_loop: int = 5
    use_second_order: bool = True
    norm: BatchNormPolicy = BatchNormPolicy()
    precision: str = "float32"  # of the network's layers, as the key engine.precision
    # computed once here instead of at each forward pass
    tied: bool = field(init=False)  # whether a tensor of the model has several names
    stateful: list[tuple[str, nn.Module]] = field(init=False)  # (name, module) of buffers a forward pass may change
    needs: Needs = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tied", has_tied_tensors(self.model))
        object.__setattr__(self, "stateful", stateful_buffers(self.model))
        object.__setattr__(self, "needs", needs(self.model))


def has_tied_tensors(model: nn.Module) -> bool:
    """Whether a parameter or buffer of the model is registered under several names."""
    parameters, buffers = model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)
    tensors = [id(tensor) for _, tensor in (*parameters, *buffers)]
    return len(set(tensors)) < len(tensors)


def stateful_buffers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """(Name, owning module) of every buffer outside norm layers, whose buffers `use_batch_stats` protects."""
    return [
        (f"{prefix}.{name}" if prefix else name, module)
        for prefix, module in model.named_modules()
        if not isinstance(module, (Norm, *TORCH_NORMS))
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]


def support_weights(learner: MetaLearner, theta: Tensors, phi: Tensors, taken: int) -> Tensors:
    """The weights that the network runs with on a support set after `taken` inner steps, by name."""
    return learner.norm.weights(learner.method.weights(theta, phi), taken, query=False)


def query_weights(learner: MetaLearner, theta: Tensors, phi: Tensors, support_data: Any, taken: int) -> Tensors:
    """The weights that the network runs with on a query set after `taken` inner steps, by name.

    They include batch norm statistics where the policy takes them from the support set or from training tasks.
    """
    norm = learner.norm
    weights = norm.weights(learner.method.weights(theta, phi), taken, query=True)
    if norm.rule != "support":
        return {**weights, **norm.after(taken)}
    with record_batch_stats(learner.model) as statistics:
        functional_forward(learner, weights, support_data)
    return {**weights, **statistics}


def functional_forward(learner: MetaLearner, weights: Tensors, *inputs: Any, **keywords: Any) -> Any:
    """The network's output with the given weights in place of its parameters; its buffers do not change."""
    output = run_within(learner, learner.model, weights, "", inputs, keywords)
    return at_least_float32(output) if learner.precision == "bfloat16" else output


def run_within(
    learner: MetaLearner, module: nn.Module, weights: Tensors, prefix: str, inputs: Any, keywords: Any
) -> Any:
    """Runs module(*inputs, **keywords), of which the network is the submodule `prefix`, with the given weights."""
    buffers = {name: owner._buffers[name.rpartition(".")[2]] for name, owner in learner.stateful}
    tensors = {**{name: buffer.clone() for name, buffer in buffers.items() if buffer is not None}, **weights}
    if prefix:
        tensors = {prefix + name: tensor for name, tensor in tensors.items()}
    recomputes = learner.needs.checkpoints and not torch.compiler.is_compiling()
    with (
        use_batch_stats(learner.model),
        autocast(learner.precision, next(iter(weights.values()))),
        substituted(learner.needs.substitutes) if learner.needs.substitutes else nullcontext(),
        recomputed_by(partial(run_part, learner, weights)) if recomputes else nullcontext(),
    ):
        return functional_call(module, tensors, inputs, keywords, tie_weights=learner.tied)


def run_part(
    learner: MetaLearner, weights: Tensors, function: Callable[..., Any], *inputs: Any, **keywords: Any
) -> Any:
    """Runs function(*inputs, **keywords), which calls a part of the network, with the given weights."""
    part = Part(learner.model, function)
    return run_within(learner, part, weights, "model.", inputs, keywords)


class Part(nn.Module):
    """A module that holds the network and whose forward is `function`, which calls a part of it."""

    def __init__(self, model: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.model = model
        self.run = (function,)  # in a tuple, so that a function that is a module is not registered as a submodule

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
    """The objective's loss, a scalar, and the metrics that it reports, at theta.

    weights: maps theta to the weights that the network runs with.

    Raises:
        UserError: the objective does not return a scalar tensor.
    """
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
    """Maps names to the list `weights` of adapted weights. Raises UserError if it is not a list of that length."""
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
    """The gradients of `loss` by each of `tensors`, dense; None for a tensor that the loss does not depend on.

    weights: how many of `tensors`, from the first on, are weights that adapt.
    graph: whether the gradients are differentiable.

    Raises:
        UserError: the loss depends on none of the weights that adapt.
    """
    grads: tuple[Tensor | None, ...] = ()
    if loss.requires_grad:
        grads = torch.autograd.grad(loss, tensors, create_graph=graph, allow_unused=True)
    if all(gradient is None for gradient in grads[:weights]):
        raise independent_error(objective)
    return [gradient.to_dense() if gradient is not None and gradient.is_sparse else gradient for gradient in grads]


def independent_error(objective: Objective) -> UserError:
    """The error for an objective whose loss does not depend on the weights that adapt."""
    return UserError(
        f"{name_of(objective)}: does not depend on the weights; "
        "run the network as state.model(state.data, state.updated_weights)"
    )
