"""How a run computes: chosen from the model and the device, or forced by `engine.*`; changes nothing but rounding."""

from __future__ import annotations

import ctypes
import os
import platform

import torch
from torch import nn

from metarun.core.compiled import has_compiler
from metarun.engine.rank import RENDEZVOUS_ENV, SINGLE_PROCESS, Rank
from metarun.errors import UserError


def choose_device(wanted: str, seat: Rank = SINGLE_PROCESS) -> torch.device:
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


MIN_STEPS_TO_COMPILE = 10_000  # outer steps: a small network's take 2 to 10 ms less each, compiling them 10 to 40 s


def select_task_execution(wanted: str, model: nn.Module, device: torch.device, steps: int) -> tuple[str, str]:
    """How a meta-batch is computed: "looped", "vectorised" or "compiled", and why.

    steps: outer steps of the run that are one function of a meta-batch; 0 where there are none to compile.
    """
    if wanted != "auto":
        return wanted, "as asked for"
    if device.type == "cuda":
        return "vectorised", "a GPU wants many tasks at once"
    if any(isinstance(module, nn.Conv2d) for module in model.modules()):
        return "looped", "on a CPU, convolutions with weights of their own for each task are faster one by one"
    if steps < MIN_STEPS_TO_COMPILE:
        return "vectorised", "small layers are faster at once"
    if not has_compiler():
        return (
            "vectorised",
            "small layers are faster at once; compiled they would be faster still, but no C++ compiler is found",
        )
    return "compiled", "small layers are fastest so, and the run is long enough for it to pay"


MIN_STEPS_FOR_WORKERS = 200  # outer steps: a process takes 3 seconds to start
WORTH_STARTING_TO_TEST = 600  # test tasks, each counted once for every theta: conv4 takes some 16 ms for one, twice


def select_num_workers(wanted: int | None, convolutional: bool, device: torch.device, worth: float, tasks: int) -> int:
    """How many processes share `tasks`, as those of a meta-batch: on a CPU one with one thread for each core.

    worth: the work there is, in units of the least that is worth starting a process for.

    Two with a thread each do 1.3 times what one with two does: threads wait for one another at every layer.
    """
    if wanted is not None:
        return wanted
    pays = convolutional and device.type == "cpu" and worth >= 1
    return min(ALL_THREADS, tasks) if pays else 1


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
ALL_THREADS = torch.get_num_threads()


def set_num_threads(vectorised: bool, device: torch.device, seat: Rank = SINGLE_PROCESS) -> int:
    """Threads of each operation, which torch is set to: those of a small vectorised network are too short to share.

    Two threads gain nothing on them, and lose fiftyfold where another process wants the second core. Processes on
    one machine divide its cores; OMP_NUM_THREADS says what the run takes, or of torchrun's processes each.
    """
    given = "OMP_NUM_THREADS" in os.environ and RENDEZVOUS_ENV not in os.environ
    each = ALL_THREADS if given else max(1, ALL_THREADS // seat.local_size)
    threads = 1 if vectorised and device.type == "cpu" else each
    torch.set_num_threads(threads)
    return threads


def configure_malloc() -> None:
    """Tell glibc's allocator to keep freed memory for the next step; returning it costs a third of a step's time."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_TRIM_THRESHOLD, 2**30)
        libc.mallopt(M_MMAP_MAX, 0)  # what is mapped by itself goes back at once, however large the threshold
