"""The methods, by the name that `method=` takes, and how the class interface's switches compose.

Each is a function of a model, the inner learning rate and the method's keys, and returns a `Method`. It has the name of
its module; `metarun.config.methods` declares its keys, and thereby the method.
"""

from collections.abc import Callable, Iterable
from importlib import import_module
from inspect import signature
from typing import Any

from torch import nn

from metarun.config.methods import METHODS as CONFIGS
from metarun.errors import UserError, did_you_mean
from metarun.methods.base import Method, split_parameters
from metarun.methods.l2f import attenuate
from metarun.methods.layers import expand_across
from metarun.methods.maml import maml
from metarun.methods.msgd import learn_inner_rates
from metarun.methods.mtnet import add_t_layers
from metarun.methods.warpgrad import warp
from metarun.nn.norm import norm_parameters
from metarun.types import Parameters, Tensors

__all__ = ["METHODS", "Method", "Parameters", "Tensors", "compose", "prepare"]


METHODS: dict[str, Callable[..., Method]] = {
    name: getattr(import_module(f"metarun.methods.{config.module or name}"), name) for name, config in CONFIGS.items()
}


def prepare(
    name: str, model: nn.Module, inner_learning_rate: float, learn_lr: str | None, inner_loop: int, **options: Any
) -> Method:
    """The method of that name on a model, extended by learned inner rates of the kind `learn_lr` unless it is None."""
    method = METHODS[name](model, inner_learning_rate if learn_lr is None else 1.0, **options)
    if learn_lr is None:
        return method
    return learn_inner_rates(method, model, inner_learning_rate, learn_lr, steps=inner_loop)


EXTENSIONS: dict[str, Callable[..., Method]] = {  # switch of `Init` -> function that extends a method
    "use_warp": warp,
    "learn_lr": learn_inner_rates,
    "use_t": add_t_layers,
    "use_forget": attenuate,
}
ARGUMENTS = ("method", "model", "inner_learning_rate")  # of these functions, before their options
Switch = bool | dict[str, Any]


def compose(
    model: nn.Module, inner_learning_rate: float, across: Iterable[str] = (), **switches: Switch | None
) -> Method:
    """MAML on a model, extended as the switches say, each of which is off, on, or on with options.

    Args:
        across: names of parameters and modules that are learned across tasks only, besides the affine of norm layers,
            which adapts with use_warp alone.
        switches: those of `EXTENSIONS`. learn_lr goes with any one of the other three.

    Raises:
        UserError: two of use_t, use_warp and use_forget together; an option that a switch does not have; a name that
            the model does not have; nothing adapts.
    """
    on = {name: switch for name in EXTENSIONS if (switch := switches.get(name)) not in (None, False)}
    if len(alternatives := [name for name in ("use_t", "use_warp", "use_forget") if name in on]) > 1:
        raise UserError(
            f"{' and '.join(alternatives)}: no published method is both; choose one of them (learn_lr goes with any)"
        )
    options = {name: switch_options(name, switch) for name, switch in on.items()}
    warp_options = options.get("use_warp", {})
    if "learn_lr" in on and warp_options.get("approximate"):
        raise UserError("learn_lr and use_warp approximate=True: no gradient would reach the rates; choose one of them")
    if warp_options.get("objective") == "trajectory":
        raise UserError("use_warp objective='trajectory': learns from stored iterates, which the command does only")
    norms = set() if "use_warp" in on else norm_parameters(model)
    rate = 1.0 if "learn_lr" in on else inner_learning_rate
    method = maml(model, rate, split_parameters(model, norms | expand_across(model, across)), "Init")
    for name, chosen in options.items():
        first = {"inner_learning_rate": inner_learning_rate} if name == "learn_lr" else {}
        method = EXTENSIONS[name](method, model, **first, **chosen)
    return method


def switch_options(name: str, switch: Switch | None) -> dict[str, Any]:
    """The options that a switch is on with. Raises UserError for one that its method does not have."""
    given = switch if isinstance(switch, dict) else {}
    known = [option for option in signature(EXTENSIONS[name]).parameters if option not in ARGUMENTS]
    for option in given:
        if option not in known:
            allowed = f"its options: {', '.join(known)}" if known else "it has no options"
            raise UserError(f"{name}={{{option!r}: ...}}: no such option; {allowed}{did_you_mean(option, known)}")
    return given
