"""How a run computes: chosen from the model and the device, or forced by `engine.*`; never changes what is computed."""

from __future__ import annotations

import ctypes
import os
import platform

import torch
from torch import nn

from metarun.errors import UserError
from metarun.seat import ALONE, Seat


def choose_device(wanted: str, seat: Seat = ALONE) -> torch.device:
    """One GPU for each process. Raises UserError where CUDA is asked for and not there."""
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    device = torch.device(("cuda" if found else "cpu") if wanted == "auto" else wanted)
    if device.type == "cuda" and (device.index or 0) >= found:
        raise UserError(f"device={wanted}: this machine has {found} CUDA devices that torch can use; try device=cpu")
    if device.type == "cpu" or seat.size == 1:
        return device
    if device.index is not None:
        raise UserError(f"device={wanted}: each of {seat.size} processes takes a GPU of its own; give device=cuda")
    if seat.local_size > found:
        raise UserError(
            f"device={wanted}: {seat.local_size} processes need as many GPUs, this machine has {found}; "
            "take fewer processes (engine.workers, or torchrun's), or device=cpu"
        )
    torch.cuda.set_device(seat.local_rank)
    return torch.device("cuda", seat.local_rank)


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


def choose_threads(vectorised: bool, device: torch.device, seat: Seat = ALONE) -> int:
    """Threads of each operation, which torch is set to: those of a small vectorised network are too short to share.

    Two threads gain nothing on them, and lose fiftyfold where another process wants the second core. Processes on
    one machine divide its cores, unless OMP_NUM_THREADS says what each takes.
    """
    each = ALL_THREADS if "OMP_NUM_THREADS" in os.environ else max(1, ALL_THREADS // seat.local_size)
    threads = 1 if vectorised and device.type == "cpu" else each
    torch.set_num_threads(threads)
    return threads


def keep_freed_memory() -> None:
    """Tell glibc's allocator to keep freed memory for the next step; returning it costs a third of a step's time."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_TRIM_THRESHOLD, 2**30)
        libc.mallopt(M_MMAP_THRESHOLD, 2**25)  # the largest that glibc takes
