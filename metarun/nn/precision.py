"""The precision of a network's computations: `engine.precision`, the only engine key that changes more than rounding.

float32   everything, also on a GPU
tf32      on a GPU, matrix products and convolutions round their inputs to 10 bits of mantissa and sum in float32
bfloat16  the network's layers and their derivatives of every order, by autocast: 7 bits of mantissa. Parameters,
          statistics of norm layers, losses, inner updates, the outer optimiser and its moments stay float32
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from metarun.errors import UserError

AMPERE = (8, 0)  # the first compute capability with tf32 and bfloat16; older GPUs would silently use float32


def set_precision(wanted: str, device: torch.device) -> None:
    """Set whether torch uses tf32 for float32 operations on a GPU, whatever was set before.

    Raises:
        UserError: the device does not support the wanted precision.
    """
    if wanted == "tf32" and device.type != "cuda":
        raise UserError(
            f"engine.precision=tf32: is of GPUs, and the device is {device}; give engine.precision=float32 or bfloat16"
        )
    if wanted != "float32" and device.type == "cuda" and torch.cuda.get_device_capability(device) < AMPERE:
        raise UserError(
            f"engine.precision={wanted}: needs a GPU of compute capability 8.0 (Ampere) or more; "
            "give engine.precision=float32"
        )
    torch.set_float32_matmul_precision("high" if wanted == "tf32" else "highest")
    for kind in ("conv", "rnn"):
        getattr(torch.backends.cudnn, kind).fp32_precision = "tf32" if wanted == "tf32" else "ieee"


def autocast(precision: str, like: Tensor) -> AbstractContextManager[object]:
    """A context in which layers on the device of `like` compute in `precision`."""
    if precision != "bfloat16":
        return nullcontext()
    return torch.autocast(
        like.device.type, torch.bfloat16, cache_enabled=False
    )  # no cache: a forward pass uses each weight once


def at_least_float32(x: Tensor) -> Tensor:
    """x as float32 if it is bfloat16, else unchanged."""
    return x.float() if x.dtype == torch.bfloat16 else x
