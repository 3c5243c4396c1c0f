"""Signals: which are noted, by whom, and what a second one does."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

import pytest

from metarun.interrupt import STOPPING, Stopped, noted_signals


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_is_noted_and_the_handler_before_comes_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with noted_signals() as stop:
        stop.raise_if_asked("at once")
        os.kill(os.getpid(), number)
        assert stop.number == number
        with pytest.raises(Stopped, match=f"{number.name}: stopped after step 3") as raised:
            stop.raise_if_asked("after step 3")
        assert raised.value.number == number
    assert signal.getsignal(number) is before


def test_a_second_interrupt_stops_at_once() -> None:
    with noted_signals(), pytest.raises(Stopped, match="at once"):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)


def test_a_handler_of_another_program_stays() -> None:
    """submitit requeues a job at SIGUSR1."""
    seen: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        seen.append(number)

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with noted_signals() as stop:
            os.kill(os.getpid(), signal.SIGUSR1)
            assert seen == [signal.SIGUSR1] and stop.number == 0
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.number == signal.SIGTERM
        assert signal.getsignal(signal.SIGUSR1) is handler
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_run_in_a_thread_leaves_signals_alone() -> None:
    handlers = [signal.getsignal(number) for number in STOPPING]
    found: list[int] = []

    def body() -> None:
        with noted_signals() as stop:
            assert [signal.getsignal(number) for number in STOPPING] == handlers
            found.append(stop.number)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert found == [0]
