"""TensorBoard's file: scalars over steps."""

from __future__ import annotations

import itertools
import os
import socket
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[attr-defined]
from torch.utils.tensorboard import RecordWriter
from torch.utils.tensorboard.summary import scalar

from metarun.whole_files import Growing, told

FILE_VERSION = "brain.Event:2"
numbers = itertools.count()  # two files of one process and second have their own names


class Curves:
    """Scalars in TensorBoard's form, which hides those of earlier files of the folder from step `first` on.

    Each is in the file when `add` returns. TensorBoard's own writer leaves that to a thread: where the disk is full,
    it prints a traceback, and what it learns while it closes is lost.
    """

    def __init__(self, folder: Path, first: int) -> None:
        with told(folder):
            folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(numbers)}"
        self.file = Growing(folder / name)
        self.records = RecordWriter(self.file)
        try:
            self.write(Event(file_version=FILE_VERSION))
            self.write(Event(step=first, session_log=SessionLog(status=SessionLog.START)))
        except BaseException:
            self.close()
            raise

    def add(self, name: str, value: float, step: int) -> None:
        self.write(Event(step=step, summary=scalar(name, value)))

    def write(self, event: Event) -> None:
        event.wall_time = time.time()
        self.records.write(event.SerializeToString())

    def sync(self) -> None:
        self.file.sync()

    def close(self) -> None:
        self.file.close()
