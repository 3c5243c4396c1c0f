"""Log files that are opened when the run begins to write, and whose write errors end the run."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from logging.handlers import MemoryHandler
from pathlib import Path

from metarun.utils.files import translate_os_errors

NEVER = 10**9  # capacity and level that are never reached


@contextmanager
def delayed_log_files() -> Iterator[Callable[[], None]]:
    """Keep records for the root logger's log files in memory until the yielded function is called.

    That function writes them to the files, which are opened then; later records are written at once. Records still
    in memory at the end of the block are dropped. A log file that cannot be written ends the run.
    """
    memories = []
    for handler in logging.root.handlers[:]:
        if isinstance(handler, logging.FileHandler):
            raise_on_write_error(handler)
            memories.append(MemoryHandler(NEVER, flushLevel=NEVER, target=handler, flushOnClose=False))
            logging.root.removeHandler(handler)
            logging.root.addHandler(memories[-1])

    def open_files() -> None:
        while memories:
            memory = memories.pop()
            assert isinstance(memory.target, logging.Handler)
            logging.root.removeHandler(memory)
            logging.root.addHandler(memory.target)
            memory.flush()

    try:
        yield open_files
    finally:
        for memory in memories:
            logging.root.removeHandler(memory)
            memory.buffer.clear()  # else Hydra flushes it


def raise_on_write_error(handler: logging.FileHandler) -> None:
    """Raise an error if the log file cannot be written, instead of printing a traceback for each record."""

    def refuse(record: logging.LogRecord) -> None:
        with translate_os_errors(Path(handler.baseFilename)):
            try:
                raise  # the OSError that logging is handling
            finally:
                with suppress(OSError):  # closing writes the rest of its buffer
                    handler.close()

    handler.handleError = refuse  # type: ignore[method-assign]
