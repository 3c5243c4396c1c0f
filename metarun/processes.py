"""The processes of a run: which of them this is, how they are started and joined, and that one of them has ended.

torchrun starts them all; `engine.workers=N` starts N - 1 beside this one, and tells them what torchrun would have.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from metarun.errors import RunFailure
from metarun.seat import ALONE, JOIN, Seat, given_seat

FOREVER = timedelta(days=365)  # a process waits while another reads data; one that has ended is noticed at once
CODE = "import sys; sys.path[:] = {!r}; from metarun.cli import main; sys.exit(main())"


class Lost(Exception):
    """Another process has ended."""


@contextmanager
def connection() -> Iterator[None]:
    """Raises Lost where what is done within needs a process that has ended."""
    try:
        yield
    except RuntimeError as error:  # gloo and NCCL have no narrower one
        raise Lost(str(error).splitlines()[0]) from error


def join(seat: Seat) -> None:
    """Meet the other processes. What is sent by CPU goes through gloo."""
    place = os.environ.get(JOIN, "env://")
    dist.init_process_group("gloo", init_method=place, rank=seat.rank, world_size=seat.size, timeout=FOREVER)


@contextmanager
def started(workers: int) -> Iterator[tuple[Seat, Sequence[subprocess.Popen[str]]]]:
    """Start `workers` - 1 processes, which end with the block; none where torchrun has started them all."""
    seat = given_seat()
    if seat is not None or workers == 1:
        yield seat or ALONE, ()
        return
    with tempfile.TemporaryDirectory(prefix="metarun-") as place:
        environment = {JOIN: (Path(place) / "meet").as_uri(), **local_only()}
        others = [start(rank, workers, environment) for rank in range(1, workers)]
        try:
            with patched(environment):
                yield Seat(0, workers, 0, workers), others
        finally:
            for other in others:  # which have nothing to lose
                other.kill()
                other.communicate()
            if dist.is_initialized():
                dist.destroy_process_group()


def start(rank: int, size: int, environment: dict[str, str]) -> subprocess.Popen[str]:
    own = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size}
    return subprocess.Popen(
        [sys.executable, "-c", CODE.format(sys.path)],
        env={**os.environ, **environment, **{name: str(value) for name, value in own.items()}},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )


def local_only() -> dict[str, str]:
    """Keeps gloo off the network where all processes are on this machine."""
    name = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)
    return {"GLOO_SOCKET_IFNAME": name} if name and "GLOO_SOCKET_IFNAME" not in os.environ else {}


@contextmanager
def patched(environment: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def await_ready(others: Sequence[subprocess.Popen[str]]) -> None:
    """Until each process that was started can be joined. Raises Lost where one ends before."""
    for other in others:
        if other.stdout is not None and not other.stdout.readline():
            raise Lost


def failure(others: Sequence[subprocess.Popen[str]]) -> RunFailure:
    """What to tell where a process has ended that should not have."""
    time.sleep(0.5)  # the system may not have taken note of it yet
    for rank, other in enumerate(others, 1):
        if status := other.poll():
            how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
            return RunFailure(f"process {rank} of {len(others) + 1} {how} (engine.workers={len(others) + 1})")
    return RunFailure("another process of this run has ended, or its connection is lost; torchrun tells which")


def attend() -> None:
    """What a process does that follows: it leaves signals to the one that leads, and ends when that has ended."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if JOIN in os.environ:
        threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
        print("ready", flush=True)


def end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
