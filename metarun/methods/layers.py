"""The layers of a model that methods act on, found by their types, and the names of their parameters."""

from collections.abc import Iterable

from torch import nn

from metarun.errors import UserError, did_you_mean

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)


def names_by_tensor(model: nn.Module) -> dict[int, str]:
    """id of each parameter -> its name; a tied parameter has the first of its names."""
    return {id(tensor): name for name, tensor in model.named_parameters()}


def called_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> module, without the output projections of attention, which are never called: their weights are read."""
    modules = dict(model.named_modules())
    projections = {id(module.out_proj) for module in modules.values() if isinstance(module, nn.MultiheadAttention)}
    return {name: module for name, module in modules.items() if id(module) not in projections}


def linear_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> module of all convolution and linear layers, including parametrised and frozen ones."""
    return {name: module for name, module in called_modules(model).items() if isinstance(module, LINEAR)}


def head(model: nn.Module, method: str) -> tuple[str, nn.Module]:
    """The last convolution or linear layer and its name. Raises UserError if there is none."""
    modules = linear_modules(model)
    if not modules:
        raise UserError(f"{method}: the model has no convolution or linear layer, of which the last is its head")
    return list(modules.items())[-1]


def head_names(model: nn.Module) -> set[str]:
    """The names of the parameters of the last linear or convolution layer."""
    _, module = head(model, "anil and boil")
    names = names_by_tensor(model)
    return {names[id(tensor)] for tensor in module.parameters()}


def expand_across(model: nn.Module, across: Iterable[str]) -> set[str]:
    """The names of all parameters that `across` names, by the parameter itself or by a module that holds it.

    Raises:
        UserError: a name that is neither, or a module without parameters.
    """
    if isinstance(across, str):
        raise UserError(f"across={across!r}: give a list of names, [{across!r}]")
    names, params = names_by_tensor(model), dict(model.named_parameters(remove_duplicate=False))
    modules = {name: module for name, module in model.named_modules(remove_duplicate=False) if name}
    expanded: set[str] = set()
    for name in across:
        if name not in params and name not in modules:
            close = did_you_mean(name, [*params, *modules])
            raise UserError(f"across: the model has no parameter or module {name!r}{close}")
        tensors = list(modules[name].parameters()) if name in modules else [params[name]]
        if not tensors:
            raise UserError(f"across: {name!r} has no parameters ({type(modules[name]).__name__}); leave it out")
        expanded |= {names[id(tensor)] for tensor in tensors}
    return expanded
