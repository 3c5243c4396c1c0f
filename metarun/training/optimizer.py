"""The outer optimizer's learning rate, and Adam's state by parameter name as a checkpoint holds it."""

import math

import torch

from metarun.checkpointing.state import CheckpointState, Tensors
from metarun.config.schema import Settings
from metarun.methods import Parameters

ADAM_STATE_KEYS = {"exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq", "adam_steps": "step"}  # by CheckpointState field


def learning_rate(settings: Settings, step: int) -> float:
    """Outer learning rate of outer step `step` (counted from 0), by `outer_schedule`: constant, or cosine annealing."""
    if settings.outer_schedule == "constant":
        return settings.outer_learning_rate
    end = settings.outer_learning_rate_end
    return end + (settings.outer_learning_rate - end) * 0.5 * (1 + math.cos(math.pi * step / settings.iterations))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def named_tensors(parameters: Parameters) -> Tensors:
    """All meta-parameters by "theta/NAME" and "phi/NAME", in the order in which the optimizer holds them."""
    parts = parameters._asdict()
    return {f"{part}/{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}


def adam_state_by_name(optimizer: torch.optim.Adam, parameters: Parameters) -> dict[str, Tensors]:
    """A copy of Adam's state as fields of `CheckpointState`; parameters that were never updated are left out."""
    states = {name: optimizer.state[tensor] for name, tensor in named_tensors(parameters).items()}
    return {
        field: {name: state[key].detach().clone() for name, state in states.items() if state}
        for field, key in ADAM_STATE_KEYS.items()
    }


def load_adam_state(optimizer: torch.optim.Adam, parameters: Parameters, state: CheckpointState) -> None:
    """Load Adam's state from a checkpoint, whose names and shapes `CheckpointState.validate` has checked."""
    moments = {
        index: {"step": steps, "exp_avg": state.exp_avg[name], "exp_avg_sq": state.exp_avg_sq[name]}
        for index, name in enumerate(named_tensors(parameters))
        if (steps := state.adam_steps.get(name)) is not None
    }
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
