"""The methods, by the name that `method=` takes, and how the class interface's switches compose.

Each is a function of a model, the inner learning rate and the method's options, and returns a `Method`.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

from torch import nn

from metarun.errors import UserError, nearest
from metarun.methods.l2f import forget
from metarun.methods.maml import maml
from metarun.methods.msgd import learn_rates
from metarun.methods.mtnet import transform
from metarun.methods.partial import anil, boil
from metarun.methods.pretrain import pretrain
from metarun.methods.slots import Method, Parameters, Tensors, divide
from metarun.methods.warpgrad import warp

__all__ = ["METHODS", "Method", "Parameters", "Tensors", "compose"]


def msgd(model: nn.Module, inner_learning_rate: float, **options: Any) -> Method:
    return learn_rates(maml(model, inner_learning_rate), model, inner_learning_rate, **options)


def mtnet(model: nn.Module, inner_learning_rate: float, **options: Any) -> Method:
    return transform(maml(model, inner_learning_rate), model, **options)


def warpgrad(model: nn.Module, inner_learning_rate: float, **options: Any) -> Method:
    """Everything of the model adapts, the affine of its norm layers included."""
    return warp(maml(model, inner_learning_rate, divide(model, across=())), model, **options)


def l2f(model: nn.Module, inner_learning_rate: float) -> Method:
    return forget(maml(model, inner_learning_rate), model)


METHODS: dict[str, Callable[..., Method]] = {
    "maml": maml,
    "fomaml": maml,  # its config turns second order off
    "msgd": msgd,
    "mtnet": mtnet,
    "warpgrad": warpgrad,
    "l2f": l2f,
    "anil": anil,
    "boil": boil,
    "pretrain": pretrain,
}

ARGUMENTS = ("method", "model", "inner_learning_rate")  # of a function that extends a method, before its options
Switch = bool | dict[str, Any]


def compose(
    model: nn.Module, inner_learning_rate: float, learn_lr: Switch, use_t: Switch, use_warp: Switch, use_forget: Switch
) -> Method:
    """A switch is off, on, or on with options. Learned rates go with any one of the other three.

    Raises:
        UserError: two of use_t, use_warp and use_forget together; an option that a switch does not have.
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
    method = maml(model, inner_learning_rate)
    if is_on(use_warp):
        method = warpgrad(model, inner_learning_rate, **options(use_warp, "use_warp", warp))
    if is_on(learn_lr):
        method = learn_rates(method, model, inner_learning_rate, **options(learn_lr, "learn_lr", learn_rates))
    if is_on(use_t):
        method = transform(method, model, **options(use_t, "use_t", transform))
    if is_on(use_forget):
        method = forget(method, model, **options(use_forget, "use_forget", forget))
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
            raise UserError(f"{name}={{{option!r}: ...}}: no such option; {allowed}{nearest(option, known)}")
    return given
