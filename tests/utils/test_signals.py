"""Signals: which are noted, by whom, and what a second one does."""

from __future__ import annotations

import os
import pickle
import signal
import threading
from types import FrameType

import pytest

from metarun.utils.signals import STOPPING, RunInterrupted, defer_signals


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_is_noted_and_the_handler_before_comes_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with defer_signals() as stop:
        stop.raise_if_asked("at once")
        os.kill(os.getpid(), number)
        assert stop.number == number
        with pytest.raises(RunInterrupted, match=f"{number.name}: stopped after step 3") as raised:
            stop.raise_if_asked("after step 3")
        assert raised.value.number == number
    assert signal.getsignal(number) is before


def test_a_second_interrupt_stops_at_once() -> None:
    with defer_signals(), pytest.raises(RunInterrupted, match="at once"):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("theirs", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM])
def test_a_handler_of_another_program_is_called_where_nothing_is_lost(theirs: signal.Signals) -> None:
    """submitit's for SIGUSR2 requeues the job, that for SIGTERM lets it go on."""
    seen: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        seen.append(number)

    before = signal.signal(theirs, handler)
    try:
        with defer_signals() as stop:
            os.kill(os.getpid(), theirs)
            assert seen == [] and stop.number == theirs
            stop.raise_if_asked("after step 3")
            assert seen == [theirs]
            stop.raise_if_asked("after step 4")
            os.kill(os.getpid(), signal.SIGINT)
            with pytest.raises(RunInterrupted, match="SIGINT: stopped after step 5"):
                stop.raise_if_asked("after step 5")
        assert signal.getsignal(theirs) is handler and seen == [theirs]
    finally:
        signal.signal(theirs, before)


def test_a_stopped_job_s_error_goes_from_process_to_process() -> None:
    stopped = pickle.loads(pickle.dumps(RunInterrupted("after step 3", signal.SIGTERM)))
    assert (str(stopped), stopped.number) == ("after step 3", signal.SIGTERM)


def test_a_run_in_a_thread_leaves_signals_alone() -> None:
    handlers = [signal.getsignal(number) for number in STOPPING]
    found: list[int] = []

    def body() -> None:
        with defer_signals() as stop:
            assert [signal.getsignal(number) for number in STOPPING] == handlers
            found.append(stop.number)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert found == [0]
