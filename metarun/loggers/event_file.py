"""TensorBoard event files: scalars, histograms and images over steps."""

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
BINS = 40  # bins of a histogram
numbers = itertools.count()  # two files of one process and second have their own names


class EncodedImage(NamedTuple):
    png: bytes


SummaryValue = float | np.ndarray | EncodedImage  # a scalar, the values of a histogram, or an image


class EventFileWriter:
    """Writes an event file. TensorBoard hides what earlier files of the folder have from step `first` on.

    Values are in the file when `add` returns, and a full disk raises RunFailure there. TensorBoard's SummaryWriter
    writes in a thread: on a full disk it prints a traceback, and an error on closing is lost.

    Args:
        first: None hides nothing.
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
        """Write values by tag as one record; the part of a tag before the first `/` is its group in TensorBoard."""
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
    """Convert a value to TensorBoard's protobuf; a histogram leaves out non-finite values, and is omitted if empty."""
    if isinstance(value, EncodedImage):
        return [Summary.Value(tag=name, image=Summary.Image(colorspace=3, encoded_image_string=value.png))]
    if isinstance(value, np.ndarray):
        finite = value[np.isfinite(value)].astype(float).ravel()
        return [Summary.Value(tag=name, histo=make_histogram(finite, BINS))] if len(finite) else []
    return [Summary.Value(tag=name, simple_value=value)]
