"""The log file of a run: held back until the run begins to write, and an end of the run where it cannot be written."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from logging.handlers import MemoryHandler
from pathlib import Path

from metarun.utils.files import translate_os_errors

NEVER = 10**9  # records or levels: more than there are


@contextmanager
def held() -> Iterator[Callable[[], None]]:
    """Keep the lines of log files, which Hydra has configured, in memory, and drop them where the block ends.

    What is yielded lets them go to their files, which are opened then, not before. One that cannot be written ends
    the run.
    """
    memories = []
    for handler in logging.root.handlers[:]:
        if isinstance(handler, logging.FileHandler):
            end_run_where_it_fails(handler)
            memories.append(MemoryHandler(NEVER, flushLevel=NEVER, target=handler, flushOnClose=False))
            logging.root.removeHandler(handler)
            logging.root.addHandler(memories[-1])

    def let_go() -> None:
        while memories:
            memory = memories.pop()
            assert isinstance(memory.target, logging.Handler)
            logging.root.removeHandler(memory)
            logging.root.addHandler(memory.target)
            memory.flush()

    try:
        yield let_go
    finally:
        for memory in memories:
            logging.root.removeHandler(memory)
            memory.buffer.clear()  # which Hydra would flush


def end_run_where_it_fails(handler: logging.FileHandler) -> None:
    """A log file that cannot be written ends the run, instead of printing a traceback for each of its lines."""

    def refuse(record: logging.LogRecord) -> None:
        with translate_os_errors(Path(handler.baseFilename)):
            try:
                raise  # what logging is handling
            finally:
                with suppress(OSError):  # the same once more, for what is still in its buffer
                    handler.close()

    handler.handleError = refuse  # type: ignore[method-assign]
