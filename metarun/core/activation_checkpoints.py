"""`torch.utils.checkpoint` inside a network that runs on other weights than its own.

What a checkpoint runs again in the backward pass would find the network's own weights there: the adapted ones are put
in for its forward pass alone. Here it is given what puts them in again.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.utils.checkpoint as torch_checkpoint

# The two that `checkpoint` calls, by whatever name a model's file imported it.
NAMES = ("_checkpoint_without_reentrant_generator_impl", "_checkpoint_without_reentrant_generator")
GENERATOR = next(name for name in NAMES if hasattr(torch_checkpoint, name))
REENTRANT = "CheckpointFunction"


@contextmanager
def recomputed_by(run: Callable[..., Any]) -> Iterator[None]:
    """Within it, a checkpoint of function(*arguments) runs run(function, *arguments) in the backward pass.

    The reentrant form, which gives no gradient of weights that are not its arguments, is computed as the other one.
    torch.func allows neither; there the function is run as if without a checkpoint.
    """
    generator, reentrant = getattr(torch_checkpoint, GENERATOR), getattr(torch_checkpoint, REENTRANT)

    def begin(function: Callable[..., Any], *rest: Any, **options: Any) -> Iterator[None]:
        if torch._C._are_functorch_transforms_active():
            return nothing()
        return generator(partial(run, function), *rest, **options)

    setattr(torch_checkpoint, GENERATOR, begin)
    setattr(torch_checkpoint, REENTRANT, NotReentrant)
    try:
        yield
    finally:
        setattr(torch_checkpoint, GENERATOR, generator)
        setattr(torch_checkpoint, REENTRANT, reentrant)


def nothing() -> Iterator[None]:
    """Neither before the function nor behind it."""
    yield


class NotReentrant:
    @staticmethod
    def apply(function: Callable[..., Any], preserve_rng_state: bool, *arguments: Any) -> Any:
        return torch_checkpoint.checkpoint(
            function, *arguments, use_reentrant=False, preserve_rng_state=preserve_rng_state
        )
