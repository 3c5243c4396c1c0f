"""The methods, by the name that `method=` takes, and how the class interface's switches compose.

Each is a function of a model, the inner learning rate and the method's keys, and returns a `Method`. It has the name of
its module; `metarun.config.methods` declares its keys, and thereby the method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from inspect import signature
from typing import Any

from torch import nn

from metarun.config.methods import METHODS as CONFIGS
from metarun.errors import UserError, did_you_mean
from metarun.methods.base import Method, split_parameters
from metarun.methods.l2f import attenuate
from metarun.methods.layers import resolved
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
    """The method of that name on a model, with learned inner rates of the kind `learn_lr` beside it, or without."""
    if learn_lr is None:
        return METHODS[name](model, inner_learning_rate, **options)
    return learn_inner_rates(
        METHODS[name](model, 1.0, **options), model, inner_learning_rate, learn_lr, steps=inner_loop
    )


ARGUMENTS = ("method", "model", "inner_learning_rate")  # of a function that extends a method, before its options
Switch = bool | dict[str, Any]


def compose(
    model: nn.Module,
    inner_learning_rate: float,
    learn_lr: Switch,
    use_t: Switch,
    use_warp: Switch,
    use_forget: Switch,
    across: Iterable[str] = (),
) -> Method:
    """A switch is off, on, or on with options. Learned rates go with any one of the other three.

    across: names of parameters and modules that are learned across tasks only, besides the affine of norm layers,
        which adapts with use_warp alone.

    Raises:
        UserError: two of use_t, use_warp and use_forget together; an option that a switch does not have; a name that
            the model does not have; nothing adapts.
    """
    on = [
        name
        for name, switch in {"use_t": use_t, "use_warp": use_warp, "use_forget": use_forget}.items()
        if is_on(switch)
    ]
    if len(on) > 1:
        raise UserError(f"{' and '.join(on)}: no published method is both; choose one of them (learn_lr goes with any)")
    if is_on(learn_lr) and options(use_warp, "use_warp", warp).get("approximate"):
        raise UserError("learn_lr and use_warp approximate=True: no gradient would reach the rates; choose one of them")
    if options(use_warp, "use_warp", warp).get("objective") == "trajectory":
        raise UserError("use_warp objective='trajectory': learns from stored iterates, which the command does only")
    rate = 1.0 if is_on(learn_lr) else inner_learning_rate
    norms = set() if is_on(use_warp) else norm_parameters(model)
    method = maml(model, rate, split_parameters(model, norms | resolved(model, across)), "Init")
    if is_on(use_warp):
        method = warp(method, model, **options(use_warp, "use_warp", warp))
    if is_on(learn_lr):
        method = learn_inner_rates(
            method, model, inner_learning_rate, **options(learn_lr, "learn_lr", learn_inner_rates)
        )
    if is_on(use_t):
        method = add_t_layers(method, model, **options(use_t, "use_t", add_t_layers))
    if is_on(use_forget):
        method = attenuate(method, model, **options(use_forget, "use_forget", attenuate))
    return method


def is_on(switch: Switch) -> bool:
    return switch is not None and switch is not False


def options(switch: Switch, name: str, function: Callable[..., Method]) -> dict[str, Any]:
    """The options of switch `name`, whose method `function` makes. Raises UserError for one that it does not have."""
    given = switch if isinstance(switch, dict) else {}
    known = [option for option in signature(function).parameters if option not in ARGUMENTS]
    for option in given:
        if option not in known:
            allowed = f"its options: {', '.join(known)}" if known else "it has no options"
            raise UserError(f"{name}={{{option!r}: ...}}: no such option; {allowed}{did_you_mean(option, known)}")
    return given
