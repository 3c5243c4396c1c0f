"""What a run records, one logger a module. To add one, list its class in `LOGGERS`."""

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from metarun.loggers.base import Logger, ResumePoint
from metarun.loggers.json_lines import JsonLinesLogger
from metarun.loggers.tensorboard import TensorBoardLogger

LOGGERS: list[type[Logger]] = [JsonLinesLogger, TensorBoardLogger]


@contextmanager
def open_loggers(folder: Path, start: ResumePoint | None = None) -> Iterator[list[Logger]]:
    """Open all loggers of a run folder, for training from `start` on or for the final test; close them at the end.

    Raises:
        RunFailure: the disk is full or fails, or the folder is gone.
        UserError: metrics.jsonl cannot be continued.
    """
    with ExitStack() as stack:
        yield [stack.enter_context(closing(logger(folder, start))) for logger in LOGGERS]
