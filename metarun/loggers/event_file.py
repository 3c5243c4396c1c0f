"""TensorBoard's file: scalars, distributions and pictures over steps."""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[attr-defined]
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[attr-defined]
from torch.utils.tensorboard import RecordWriter
from torch.utils.tensorboard.summary import make_histogram

from metarun.utils.files import AppendOnlyFile, translate_os_errors

FILE_VERSION = "brain.Event:2"
BINS = 40  # of a distribution
numbers = itertools.count()  # two files of one process and second have their own names


class EncodedImage(NamedTuple):
    png: bytes


SummaryValue = float | np.ndarray | EncodedImage  # a point of a curve, what makes a distribution, or a picture


class EventFileWriter:
    """Curves in TensorBoard's form, which hides those of earlier files of the folder from step `first` on.

    `first`: None hides nothing.

    Each is in the file when `add` returns. TensorBoard's own writer leaves that to a thread: where the disk is full,
    it prints a traceback, and what it learns while it closes is lost.
    """

    def __init__(self, folder: Path, first: int | None) -> None:
        with translate_os_errors(folder):
            folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(numbers)}"
        self.file = AppendOnlyFile(folder / name)
        self.records = RecordWriter(self.file)
        try:
            self.write(Event(file_version=FILE_VERSION))
            if first is not None:
                self.write(Event(step=first, session_log=SessionLog(status=SessionLog.START)))
        except BaseException:
            self.close()
            raise

    def add(self, shown: Mapping[str, SummaryValue], step: int) -> None:
        """All in one record, by their names, whose first part up to a `/` is the group that they stand in."""
        values = [entry for name, value in shown.items() for entry in to_summary_values(name, value)]
        self.write(Event(step=step, summary=Summary(value=values)))

    def write(self, event: Event) -> None:
        event.wall_time = time.time()
        self.records.write(event.SerializeToString())

    def sync(self) -> None:
        self.file.sync()

    def close(self) -> None:
        self.file.close()


def to_summary_values(name: str, value: SummaryValue) -> Sequence[Summary.Value]:
    """A value in TensorBoard's form; a distribution leaves out what is not finite."""
    if isinstance(value, EncodedImage):
        return [Summary.Value(tag=name, image=Summary.Image(colorspace=3, encoded_image_string=value.png))]
    if isinstance(value, np.ndarray):
        finite = value[np.isfinite(value)].astype(float).ravel()
        return [Summary.Value(tag=name, histo=make_histogram(finite, BINS))] if len(finite) else []
    return [Summary.Value(tag=name, simple_value=value)]
