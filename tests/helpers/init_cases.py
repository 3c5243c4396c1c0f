"""Every method that the class interface offers, by its switches, and the loss that its tests use."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from metarun import State

METHODS: dict[str, dict[str, Any]] = {
    "maml": {},
    "fomaml": {"use_second_order": False},
    "msgd": {"learn_lr": True},
    "a rate a tensor": {"learn_lr": {"alpha": "tensor"}},
    "one rate": {"learn_lr": {"alpha": "scalar"}},
    "a rate a tensor and step": {"learn_lr": {"alpha": "tensor_step", "steps": 2}},
    "T-net": {"use_t": {"mask": False}},
    "mtnet": {"use_t": True},
    "mtnet full": {"use_t": {"full": True}},
    "warpgrad": {"use_warp": True},
    "warpgrad unrolled": {"use_warp": {"objective": "unrolled"}},
    "l2f": {"use_forget": True},
    "learn_lr + use_t": {"learn_lr": True, "use_t": True},
    "learn_lr + use_warp": {"learn_lr": True, "use_warp": True},
    "learn_lr + use_forget": {"learn_lr": True, "use_forget": True},
}


def mse(state: State) -> Tensor:
    return F.mse_loss(state.model(state.data, state.updated_weights), state.target)
