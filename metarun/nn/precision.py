"""In what precision a network computes: `engine.precision`, the one engine key that changes more than rounding does.

float32   everything, on a GPU as well
tf32      on a GPU, matrix products and convolutions round what they are given to 10 bits behind the point; sums stay
bfloat16  the network's layers, by autocast, and their derivatives of every order: 7 bits. Parameters, statistics of
          norm layers, losses, inner updates, the outer optimiser and its moments stay float32
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from metarun.errors import UserError

AMPERE = (8, 0)  # the compute capability that has them; below it, tf32 would be float32 unseen


def set_precision(wanted: str, device: torch.device) -> None:
    """Set what torch makes of float32 on a GPU, whatever it was.

    Raises:
        UserError: the device does not have the wanted precision.
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
    """Within it, layers compute in that precision on the device of `like`."""
    if precision != "bfloat16":
        return nullcontext()
    return torch.autocast(like.device.type, torch.bfloat16, cache_enabled=False)  # a weight is used once a forward


def at_least_float32(x: Tensor) -> Tensor:
    """At least float32."""
    return x.float() if x.dtype == torch.bfloat16 else x
