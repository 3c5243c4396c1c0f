"""The layers of a model that methods act on, told by their types, and by the names that its parameters go by."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from metarun.errors import UserError, did_you_mean
from metarun.methods.base import Tensors

log = logging.getLogger(__name__)

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
NAMED = 5  # layers that a message names


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer whose weight is a parameter; one that is tied goes by the name it has first."""

    name: str
    module: nn.Module
    weight: str
    bias: str | None  # where it adapts

    @property
    def units(self) -> int:
        """The axis of the weight along which output units lie."""
        return int(isinstance(self.module, TRANSPOSED))


def layers(model: nn.Module, theta: Tensors) -> list[Layer]:
    """The convolution and linear layers whose weight adapts, in the order of the model."""
    names, found = names_by_tensor(model), []
    for name, module in model.named_modules():
        if isinstance(module, LINEAR):
            weight, bias = (names.get(id(module._parameters.get(part)), "") for part in ("weight", "bias"))
            if weight in theta:
                found.append(Layer(name, module, weight, bias if bias in theta else None))
    return found


def names_by_tensor(model: nn.Module) -> dict[int, str]:
    """The name of each parameter, by the identity of the tensor; of a tied one the first name."""
    return {id(tensor): name for name, tensor in model.named_parameters()}


def called(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of a model, without the projections within attention, whose weights are read and never called."""
    found = dict(model.named_modules())
    within = {id(module.out_proj) for module in found.values() if isinstance(module, nn.MultiheadAttention)}
    return {name: module for name, module in found.items() if id(module) not in within}


def linear_modules(model: nn.Module) -> dict[str, nn.Module]:
    """All convolution and linear layers, parametrised and frozen ones as well."""
    return {name: module for name, module in called(model).items() if isinstance(module, LINEAR)}


def parametrised(model: nn.Module) -> list[str]:
    """Those whose weight is not a parameter but computed of some, as by spectral or weight norm, or pruned."""
    return [name for name, module in linear_modules(model).items() if module._parameters.get("weight") is None]


def head(model: nn.Module, method: str) -> tuple[str, nn.Module]:
    """The last convolution or linear layer. Raises UserError where there is none."""
    found = linear_modules(model)
    if not found:
        raise UserError(f"{method}: the model has no convolution or linear layer, of which the last is its head")
    return list(found.items())[-1]


def head_names(model: nn.Module) -> set[str]:
    """The parameters of the last linear or convolution layer."""
    _, module = head(model, "anil and boil")
    names = names_by_tensor(model)
    return {names[id(tensor)] for tensor in module.parameters()}


def name_left_out(message: str, model: nn.Module, parameters: Iterable[str]) -> None:
    """Log which layers a method passes over, by the names of their parameters."""
    modules = dict(model.named_modules())
    owners = {name: name.rpartition(".")[0] for name in parameters}
    told = [f"{owner} ({type(modules[owner]).__name__})" if owner else name for name, owner in owners.items()]
    if told := list(dict.fromkeys(told)):
        more = f" and {len(told) - NAMED} more" if len(told) > NAMED else ""
        log.warning("%s: %s%s", message, ", ".join(told[:NAMED]), more)


def resolved(model: nn.Module, across: Iterable[str]) -> set[str]:
    """The parameters that names of parameters and of modules stand for.

    Raises:
        UserError: a name that is neither, or a module without parameters.
    """
    if isinstance(across, str):
        raise UserError(f"across={across!r}: give a list of names, [{across!r}]")
    names = names_by_tensor(model)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    modules = {name: module for name, module in model.named_modules(remove_duplicate=False) if name}
    found: set[str] = set()
    for name in across:
        held: list[Tensor] = [parameters[name]] if name in parameters else []
        if name in modules:
            held = list(modules[name].parameters())
        elif not held:
            close = did_you_mean(name, [*parameters, *modules])
            raise UserError(f"across: the model has no parameter or module {name!r}{close}")
        if not held:
            raise UserError(f"across: {name!r} has no parameters ({type(modules[name]).__name__}); leave it out")
        found |= {names[id(tensor)] for tensor in held}
    return found
