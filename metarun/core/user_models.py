"""Modules of others: which are refused, how they are left as they were, and torch's errors in one line."""

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from metarun.errors import UserError

WRAPPERS = {  # by the name of the class, since importing some of them takes long
    "DataParallel": "give the module inside, model.module",
    "DistributedDataParallel": "give the module inside, model.module",
    "FullyShardedDataParallel": "give the module before it was sharded",
    "OptimizedModule": "give the module before torch.compile, model._orig_mod",
    "ScriptModule": "give the Python module that it was made from",
}


def require_supported(model: nn.Module) -> None:
    """Raises UserError for a module that cannot run on other weights than its own, or changes those it is given."""
    for name, module in model.named_modules():
        advice = next((WRAPPERS[kind.__name__] for kind in type(module).__mro__ if kind.__name__ in WRAPPERS), None)
        if module._compiled_call_impl is not None:
            advice = "give it as it was before .compile()"
        elif isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None:
            advice = "it changes its weights in place whenever it runs; give max_norm=None"
        elif any(type(parameter).__name__ == "DTensor" for parameter in module._parameters.values()):
            advice = "its weights are divided among devices; give the module before it was sharded"
        if advice:
            raise UserError(f"{named(name, module)} cannot be adapted: {advice}")


def named(name: str, module: nn.Module) -> str:
    return f"{name or 'the model'} ({type(module).__name__})"


@contextmanager
def differentiating(model: nn.Module) -> Iterator[None]:
    """Within it, gradients can be taken whatever the caller's mode; behind it, the model is as it was.

    Tensors that a module holds as plain attributes are put back: hooks such as weight norm's set them at each forward.
    """
    held = [
        (vars(module), name, value)
        for module in model.modules()
        for name, value in vars(module).items()
        if isinstance(value, Tensor)
    ]
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for attributes, name, value in held:
            attributes[name] = value


def outside_inference(tree: Any) -> Any:
    """Copies of the tensors in it that were made in inference mode, which autograd does not take."""
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) and leaf.is_inference() else leaf, tree)


def vectorising(error: RuntimeError, model: nn.Module) -> UserError:
    """Of a model or an objective that runs for one task alone, but not for several at once."""
    return UserError(
        f"vectorise=True: {place(error, model)} cannot be computed for several tasks at once ({reason(error)}); "
        "give vectorise=False"
    )


def explained(error: RuntimeError, model: nn.Module) -> UserError | None:
    """What to do about an error of torch's that has a cause here; None for any other."""
    missing = re.search(r"derivative for '?(?:aten::)?(\w+)'? is not implemented", str(error))
    if missing:
        return UserError(
            f"second order: torch has no second derivative of {missing[1].removesuffix('_backward')}; compute it "
            "another way in the model or the objective, or give use_second_order=False"
        )
    if "Inference tensors cannot be saved" in str(error):
        return UserError(
            f"{place(error, model)} holds a tensor that was made in torch.inference_mode(), which has no gradient; "
            "make the model and what the objectives hold outside of it, or .clone() it there"
        )
    return None


def reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def place(error: Exception, model: nn.Module) -> str:
    """The innermost of the model's layers that was running when it was raised."""
    names = {id(module): name for name, module in model.named_modules()}
    running = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
    layers = [module for module in running if isinstance(module, nn.Module) and id(module) in names]
    return named(names[id(layers[-1])], layers[-1]) if layers else "the model or an objective"
