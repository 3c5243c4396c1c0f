"""How a run computes: chosen from the model and the device, or forced by `engine.*`; never changes what is computed."""

from __future__ import annotations

import ctypes
import platform

import torch
from torch import nn

from metarun.errors import UserError


def choose_device(wanted: str) -> torch.device:
    """Raises UserError where CUDA is asked for and not there."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(wanted)
    if device.type == "cuda":
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= found:
            raise UserError(
                f"device={wanted}: this machine has {found} CUDA devices that torch can use; try device=cpu"
            )
    return device


def choose_vectorised(wanted: str, model: nn.Module, device: torch.device) -> tuple[bool, str]:
    """Whether a meta-batch is computed at once or task after task, and why."""
    if wanted != "auto":
        return wanted == "vectorised", "as asked for"
    if device.type == "cuda":
        return True, "a GPU wants many tasks at once"
    if any(isinstance(module, nn.Conv2d) for module in model.modules()):
        return False, "on a CPU, convolutions with weights of their own for each task are faster one by one"
    return True, "small layers are faster at once"


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
ALL_THREADS = torch.get_num_threads()


def choose_threads(vectorised: bool, device: torch.device) -> int:
    """Threads of each operation, which torch is set to: those of a small vectorised network are too short to share.

    Two threads gain nothing on them, and lose fiftyfold where another process wants the second core.
    """
    threads = 1 if vectorised and device.type == "cpu" else ALL_THREADS
    torch.set_num_threads(threads)
    return threads


def keep_freed_memory() -> None:
    """Tell glibc's allocator to keep freed memory for the next step; returning it costs a third of a step's time."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_TRIM_THRESHOLD, 2**30)
        libc.mallopt(M_MMAP_THRESHOLD, 2**25)  # the largest that glibc takes
