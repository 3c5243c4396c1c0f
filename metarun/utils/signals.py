"""Deferred handling of signals that stop a run: the run ends at the next point where its state is saved."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
HANDLED_SIGNALS = (*STOPPING, signal.SIGUSR2)  # submitit handles SIGUSR2
DEFAULT_HANDLERS = (signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler)


class RunInterrupted(KeyboardInterrupt):
    """The run stopped because a signal asked for it; the exit status is 128 + its number."""

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:  # unpickling passes the message only
        super().__init__(message)
        self.number = number


active_requests: list[StopRequest] = []  # one for each active block of `defer_signals`


def asked_to_stop() -> bool:
    """Whether a signal has asked the run to stop that has not been acted on."""
    return any(stop.number for stop in active_requests)


class StopRequest:
    """Signal handler that stores the number of the signal in `number`, which is 0 before."""

    def __init__(self) -> None:
        self.number = 0
        self.theirs: dict[int, Any] = {}  # handlers installed by other programs, such as submitit

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.number and number == signal.SIGINT:
            raise RunInterrupted("stopped at once by a second interrupt", number)
        self.number = number

    def raise_if_asked(self, where: str) -> None:
        """Raise RunInterrupted if a signal was received, or call the handler that another program installed for it."""
        if handler := self.theirs.get(self.number):
            number, self.number = self.number, 0
            handler(number, None)
        elif self.number:
            raise RunInterrupted(f"{signal.Signals(self.number).name}: stopped {where}", self.number)


@contextmanager
def defer_signals() -> Iterator[StopRequest]:
    """Within the block, SIGINT, SIGTERM and SIGUSR1 only set `number`; a second SIGINT stops at once.

    A handler that another program installed for one of them or SIGUSR2 is called by `raise_if_asked`; submitit's
    requeues the job and ends the process.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():  # handlers can be installed in the main thread only
        yield stop
        return
    before: dict[int, Any] = {number: signal.getsignal(number) for number in HANDLED_SIGNALS}
    stop.theirs = {n: handler for n, handler in before.items() if callable(handler) and handler not in DEFAULT_HANDLERS}
    ours = [number for number in STOPPING if before[number] in DEFAULT_HANDLERS] + list(stop.theirs)
    for number in ours:
        signal.signal(number, stop)
    active_requests.append(stop)
    try:
        yield stop
    finally:
        active_requests.remove(stop)
        for number in ours:
            signal.signal(number, before[number])


def end_with_parent(end: Callable[[], object]) -> None:
    """Call `end` from a thread once the parent process has ended."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        end()

    threading.Thread(target=watch, daemon=True).start()
