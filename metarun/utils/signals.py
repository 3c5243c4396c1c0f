"""Signals that ask a run to stop: they are noted, and the run stops where nothing is lost."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
HANDLED_SIGNALS = (*STOPPING, signal.SIGUSR2)  # that another program may handle: submitit takes SIGUSR2
DEFAULT_HANDLERS = (signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler)


class RunInterrupted(KeyboardInterrupt):
    """The run stopped because a signal asked for it; the exit status is 128 + its number."""

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:  # one argument is what pickle gives
        super().__init__(message)
        self.number = number


noting: list[StopRequest] = []  # of the blocks of `noted_signals` that last


def asked_to_stop() -> bool:
    """Whether a signal has asked the run to stop, and it has not yet."""
    return any(stop.number for stop in noting)


class StopRequest:
    """Remembers the first signal that asked to stop; 0 as long as none has."""

    def __init__(self) -> None:
        self.number = 0
        self.theirs: dict[int, Callable[[int, FrameType | None], object]] = {}  # handlers of other programs

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.number and number == signal.SIGINT:
            raise RunInterrupted("stopped at once by a second interrupt", number)
        self.number = number

    def raise_if_asked(self, where: str) -> None:
        """Raises Stopped where a signal has asked for it, or lets the program that handles it do what it would."""
        if handler := self.theirs.get(self.number):
            number, self.number = self.number, 0
            handler(number, None)
        elif self.number:
            raise RunInterrupted(f"{signal.Signals(self.number).name}: stopped {where}", self.number)


@contextmanager
def defer_signals() -> Iterator[StopRequest]:
    """While it lasts, SIGINT, SIGTERM and SIGUSR1 only set `number`; a second SIGINT stops at once.

    A handler that another program has installed for one of them, or for SIGUSR2, is called where nothing is lost:
    submitit's puts the job into the queue again and ends the process.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():  # where no handler can be installed
        yield stop
        return
    before = {number: signal.getsignal(number) for number in HANDLED_SIGNALS}
    stop.theirs = {n: handler for n, handler in before.items() if callable(handler) and handler not in DEFAULT_HANDLERS}
    ours = [
        number
        for number in HANDLED_SIGNALS
        if number in (STOPPING if before[number] in DEFAULT_HANDLERS else stop.theirs)
    ]
    for number in ours:
        signal.signal(number, stop)
    noting.append(stop)
    try:
        yield stop
    finally:
        noting.remove(stop)
        for number in ours:
            signal.signal(number, before[number])


def end_with_parent(end: Callable[[], object]) -> None:
    """Call `end` when the process that has started this one has ended."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        end()

    threading.Thread(target=watch, daemon=True).start()
