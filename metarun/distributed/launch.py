"""The processes of a run: which of them this is, how they are started and joined, and that one of them has ended.

torchrun starts them all; `engine.workers=N` starts N - 1 beside this one, and tells them what torchrun would have.
"""

from __future__ import annotations

import ctypes
import math
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from metarun.engine.rank import RENDEZVOUS_ENV, SINGLE_PROCESS, Rank, rank_from_env
from metarun.errors import RunFailure
from metarun.utils.signals import asked_to_stop, end_with_parent

FOREVER = timedelta(days=365)  # of gloo: how long is waited, `wait` says; one that has ended is noticed at once
TICK = 0.5  # seconds of waiting after which signals are looked at
STARTING = 600.0  # seconds that processes wait for one another before the first step that they share has ended
PATIENCE = 120.0  # and from then on at least
SHARES = 20  # or so many times as long as the leader's own share of the work has taken
ASKED = 10.0  # where a signal has asked the run to stop, at least; else twice the share
LEADING = 3600.0  # that the others wait for the leader within a run, which also writes and draws
READING = 86400.0  # and between runs, while it prepares data
PR_SET_PDEATHSIG = 1  # of prctl
WORKER_ENTRYPOINT = "import sys; sys.path[:] = {!r}; from metarun.cli.app import main; sys.exit(main())"


class PeerLost(Exception):
    """Another process has ended, or does not answer."""


abandoned: list[bool] = []  # not empty where torch's threads still wait for a process that does not answer


@contextmanager
def raise_peer_lost() -> Iterator[None]:
    """Raises Lost where what is done within needs a process that has ended."""
    try:
        yield
    except RuntimeError as error:  # gloo and NCCL have no narrower one
        raise PeerLost(str(error).splitlines()[0]) from error


def wait(operation: Callable[[], Any], patience: float, asked: float = math.inf) -> None:
    """Do what all processes share, and is begun by `operation` with async_op=True.

    Time counts as long as this process runs itself: all of them may be suspended, and go on.

    Args:
        patience: seconds to wait for the others.
        asked: the same where a signal has asked the run to stop.

    Raises:
        Lost: another process has ended, or has not answered for so long.
    """
    with raise_peer_lost():
        begun = operation()
    waited = 0.0
    while True:
        try:
            begun.wait(timedelta(seconds=TICK))
            return
        except RuntimeError as error:
            if begun.is_completed():
                raise PeerLost(str(error).splitlines()[0]) from error
        waited += TICK
        if waited >= (limit := min(patience, asked) if asked_to_stop() else patience):
            raise PeerLost(f"has not answered for {limit:.0f} s")


def init_process_group(seat: Rank) -> None:
    """Meet the other processes. What is sent by CPU goes through gloo."""
    place = os.environ.get(RENDEZVOUS_ENV, "env://")
    dist.init_process_group("gloo", init_method=place, rank=seat.rank, world_size=seat.size, timeout=FOREVER)


@contextmanager
def launch_workers(workers: int) -> Iterator[tuple[Rank, Sequence[subprocess.Popen[str]]]]:
    """Start `workers` - 1 processes, which end with the block; none where torchrun has started them all."""
    seat = rank_from_env()
    if seat is not None or workers == 1:
        yield seat or SINGLE_PROCESS, ()
        return
    with tempfile.TemporaryDirectory(prefix="metarun-") as place:
        environment = {RENDEZVOUS_ENV: (Path(place) / "meet").as_uri(), **local_only()}
        others = [start(rank, workers, environment) for rank in range(1, workers)]
        try:
            with patched_environ(environment):
                yield Rank(0, workers, 0, workers), others
        finally:
            part(others)


def part(others: Sequence[subprocess.Popen[str]]) -> None:
    """End the other processes, which have nothing to lose; those of torchrun end when they are left alone."""
    for other in others:
        other.kill()
        other.wait()
        if other.stdout is not None:
            other.stdout.close()
    if dist.is_initialized() and not abandoned:
        if others:  # before, torch would wait for what they have begun
            dist.destroy_process_group()
        else:
            abandoned.append(True)


def start(rank: int, size: int, environment: dict[str, str]) -> subprocess.Popen[str]:
    own = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size}
    return subprocess.Popen(
        [sys.executable, "-c", WORKER_ENTRYPOINT.format(sys.path)],
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
def patched_environ(environment: dict[str, str]) -> Iterator[None]:
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


def wait_until_ready(others: Sequence[subprocess.Popen[str]]) -> None:
    """Until each process that was started can be joined. Raises Lost where one ends before."""
    for other in others:
        assert other.stdout is not None
        if not select.select([other.stdout], [], [], STARTING)[0]:
            raise PeerLost(f"has not answered for {STARTING:.0f} s")
        if not other.stdout.readline():
            raise PeerLost("has ended")


def failure(others: Sequence[subprocess.Popen[str]], lost: PeerLost) -> RunFailure:
    """What to tell where a process has ended that should not have, or does not answer."""
    time.sleep(0.5)  # the system may not have taken note of it yet
    silent = str(lost) if str(lost).startswith("has not") else ""
    for rank, other in enumerate(others, 1):
        how = ""
        if (status := other.poll()) is not None:
            how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        elif silent and (len(others) == 1 or is_stopped(other.pid)):
            how = f"{silent}{', it is stopped' if is_stopped(other.pid) else ''}"
        if how:
            return RunFailure(f"process {rank} of {len(others) + 1} {how} (engine.workers={len(others) + 1})")
    if silent:
        return RunFailure(f"another process of this run {silent}")
    return RunFailure("another process of this run has ended, or its connection is lost; torchrun tells which")


def is_stopped(process: int) -> bool:
    """Whether a signal has stopped it, where the system tells."""
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] in "Tt"
    except (OSError, IndexError):
        return False


def run_as_worker() -> None:
    """What a process does that follows: it leaves signals to the one that leads, and ends when that has ended."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if RENDEZVOUS_ENV in os.environ:
        end_with_parent(lambda: os._exit(1))
        if sys.platform == "linux":  # also where this process is stopped then
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        print("ready", flush=True)
