"""Device, task execution, threads and memory of a run. They change only the rounding of its numbers."""

import ctypes
import os
import platform

import torch
from torch import nn

from metarun.core.compiled import has_compiler
from metarun.engine.rank import RENDEZVOUS_ENV, SINGLE_PROCESS, Rank
from metarun.errors import UserError

MIN_STEPS_TO_COMPILE = 10_000  # outer steps: compiling takes 10 to 40 s and saves a small network 2 to 10 ms a step
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
ALL_THREADS = torch.get_num_threads()


def choose_device(device_key: str, process: Rank = SINGLE_PROCESS) -> torch.device:
    """The device of this process: on GPUs, each process has its own. Raises UserError if there are not enough."""
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    device = torch.device(("cuda" if num_gpus else "cpu") if device_key == "auto" else device_key)
    given, world_size = f"device={device_key}", process.world_size
    if device.type == "cuda" and (device.index or 0) >= num_gpus:
        raise UserError(f"{given}: this machine has {num_gpus} CUDA devices that torch can use; try device=cpu")
    if device.type == "cpu" or world_size == 1:
        return device
    if device.index is not None:
        raise UserError(f"{given}: each of {world_size} processes takes a GPU of its own; give device=cuda")
    if process.local_world_size > num_gpus:
        raise UserError(
            f"{given}: {process.local_world_size} processes need as many GPUs, this machine has {num_gpus}; "
            "take fewer processes (engine.workers, or torchrun's), or device=cpu"
        )
    torch.cuda.set_device(process.local_rank)
    return torch.device("cuda", process.local_rank)


def select_task_execution(wanted: str, model: nn.Module, device: torch.device, steps: int) -> tuple[str, str]:
    """How the tasks of a meta-batch are computed ("looped", "vectorised" or "compiled"), and the reason for the log.

    Args:
        wanted: `engine.tasks`, one of these three or "auto".
        steps: outer steps of the run; 0 if its outer step cannot be compiled.
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
        reason = "small layers are faster at once; compiled they would be faster still, but no C++ compiler is found"
        return "vectorised", reason
    return "compiled", "small layers are fastest so, and the run is long enough for it to pay"


def set_num_threads(vectorised: bool, device: torch.device, process: Rank = SINGLE_PROCESS) -> int:
    """Sets torch's number of threads, and returns it.

    1 for vectorised tasks on a CPU: the operations of a small network are too short to share, and two threads are
    fifty times slower if another process uses the second core. Otherwise the processes on one machine divide its
    cores, but each process that torchrun started takes OMP_NUM_THREADS.
    """
    user_set = "OMP_NUM_THREADS" in os.environ and RENDEZVOUS_ENV not in os.environ
    each = ALL_THREADS if user_set else max(1, ALL_THREADS // process.local_world_size)
    threads = 1 if vectorised and device.type == "cpu" else each
    torch.set_num_threads(threads)
    return threads


def configure_malloc() -> None:
    """Lets glibc's allocator keep freed memory for the next step: returning it costs a third of a step's time."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_TRIM_THRESHOLD, 2**30)
        libc.mallopt(M_MMAP_MAX, 0)  # memory from mmap would be returned at once, whatever the threshold
