"""Starts the processes of a run, joins them in a process group, and detects that one of them has ended or hangs.

torchrun starts all of them; `engine.workers=N` starts N - 1 workers beside this process, with torchrun's variables in
their environment.
"""

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

GLOO_TIMEOUT = timedelta(days=365)  # `wait` has its own timeout; a process that ended is noticed at once
POLL_SECONDS = 0.5  # between two looks at signals while waiting
STARTUP_TIMEOUT = 600.0  # seconds, until the first collective operation has completed
STEP_TIMEOUT = 120.0  # seconds, from then on; at least TIMEOUT_SHARES times the leader's own share of the work
TIMEOUT_SHARES = 20
STOP_TIMEOUT = 10.0  # seconds, once a signal has asked the run to stop; at least twice the leader's own share
LEADER_TIMEOUT = 3600.0  # seconds that workers wait for the leader within a run, which also writes files
IDLE_TIMEOUT = 86400.0  # seconds that workers wait for the next run, while the leader prepares data
PR_SET_PDEATHSIG = 1  # of prctl(2)
WORKER_ENTRYPOINT = "import sys; sys.path[:] = {!r}; from metarun.cli.app import main; sys.exit(main())"

Workers = Sequence["subprocess.Popen[str]"]


class PeerLost(Exception):
    """Another process has ended, or does not answer."""


abandoned: list[bool] = []  # non-empty if torch's threads still wait for a process that does not answer


@contextmanager
def raise_peer_lost() -> Iterator[None]:
    """Raise PeerLost if a collective operation in the block fails because another process has ended."""
    try:
        yield
    except RuntimeError as error:  # gloo and NCCL raise no narrower type
        raise PeerLost(str(error).splitlines()[0]) from error


def wait(operation: Callable[[], Any], timeout: float, stop_timeout: float = math.inf) -> None:
    """Run a collective operation and wait for its end.

    Only time in which this process runs counts, so that a run whose processes are all suspended can continue.

    Args:
        operation: starts the operation with async_op=True and returns its handle.
        timeout: seconds to wait for the other processes.
        stop_timeout: the same once a signal has asked the run to stop, if it is shorter.

    Raises:
        PeerLost: another process has ended, or the time is over.
    """
    with raise_peer_lost():
        handle = operation()
    waited = 0.0
    while True:
        try:
            handle.wait(timedelta(seconds=POLL_SECONDS))
            return
        except RuntimeError as error:
            if handle.is_completed():
                raise PeerLost(str(error).splitlines()[0]) from error
        waited += POLL_SECONDS
        if waited >= (limit := min(timeout, stop_timeout) if asked_to_stop() else timeout):
            raise PeerLost(f"has not answered for {limit:.0f} s")


def init_process_group(process: Rank) -> None:
    """Join the default process group, with gloo as its backend."""
    dist.init_process_group(
        "gloo",
        init_method=os.environ.get(RENDEZVOUS_ENV, "env://"),
        rank=process.rank,
        world_size=process.world_size,
        timeout=GLOO_TIMEOUT,
    )


@contextmanager
def launch_workers(world_size: int) -> Iterator[tuple[Rank, Workers]]:
    """Start `world_size` - 1 workers, which end with the block; none where torchrun has started all processes.

    Yields this process's rank and the workers that it started.
    """
    process = rank_from_env()
    if process is not None or world_size == 1:
        yield process or SINGLE_PROCESS, ()
        return
    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="metarun-") as folder:
        os.environ[RENDEZVOUS_ENV] = (Path(folder) / "meet").as_uri()
        if any(name == "lo" for _, name in socket.if_nameindex()):  # all processes are on this machine
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        workers = [start_worker(rank, world_size) for rank in range(1, world_size)]
        try:
            yield Rank(0, world_size, 0, world_size), workers
        finally:
            stop_workers(workers)
            for name in (RENDEZVOUS_ENV, "GLOO_SOCKET_IFNAME"):
                if name not in before:
                    os.environ.pop(name, None)


def stop_workers(workers: Workers) -> None:
    """Kill the workers that this process started, which have nothing to save, and leave the process group.

    Processes of torchrun are not killed: they end once their leader has left.
    """
    for worker in workers:
        worker.kill()
        worker.wait()
        if worker.stdout is not None:
            worker.stdout.close()
    if dist.is_initialized() and not abandoned:
        if workers:  # while they live, torch would wait for operations that they have begun
            dist.destroy_process_group()
        else:
            abandoned.append(True)


def start_worker(rank: int, world_size: int) -> subprocess.Popen[str]:
    ranks = {"RANK": rank, "WORLD_SIZE": world_size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world_size}
    return subprocess.Popen(
        [sys.executable, "-c", WORKER_ENTRYPOINT.format(sys.path)],
        env={**os.environ, **{name: str(value) for name, value in ranks.items()}},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_until_ready(workers: Workers) -> None:
    """Wait until each worker can join the process group. Raises PeerLost if one ends before."""
    for worker in workers:
        assert worker.stdout is not None
        if not select.select([worker.stdout], [], [], STARTUP_TIMEOUT)[0]:
            raise PeerLost(f"has not answered for {STARTUP_TIMEOUT:.0f} s")
        if not worker.stdout.readline():
            raise PeerLost("has ended")


def peer_failure(workers: Workers, lost: PeerLost) -> RunFailure:
    """The error to raise after `lost`: names the worker that has ended or does not answer, if it is known."""
    time.sleep(0.5)  # the operating system may not have registered the end yet
    silent = str(lost) if str(lost).startswith("has not") else ""
    world_size = len(workers) + 1
    for rank, worker in enumerate(workers, 1):
        stopped = is_stopped(worker.pid)
        if (status := worker.poll()) is not None:
            problem = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        elif silent and (stopped or world_size == 2):
            problem = silent + (", it is stopped" if stopped else "")
        else:
            continue
        return RunFailure(f"process {rank} of {world_size} {problem} (engine.workers={world_size})")
    ended = "has ended, or its connection is lost; see torchrun's messages"
    return RunFailure(f"another process of this run {silent or ended}")


def is_stopped(pid: int) -> bool:
    """Whether a signal has suspended the process; False where /proc does not exist."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] in "Tt"
    except (OSError, IndexError):
        return False


def run_as_worker() -> None:
    """Set this process up as a worker: it ignores signals, which the leader handles, and ends with the leader."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if RENDEZVOUS_ENV in os.environ:
        end_with_parent(lambda: os._exit(1))
        if sys.platform == "linux":  # kills this process even if it is suspended then
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        print("ready", flush=True)
