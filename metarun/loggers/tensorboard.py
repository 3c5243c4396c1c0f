"""TensorBoard event files in the run folder's tensorboard/: scalars, histograms, images and the HPARAMS table.

They are written synchronously: torch's SummaryWriter writes in a thread, which loses the error of a full disk.
"""

import io
import math
import os
import socket
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[attr-defined]
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[attr-defined]
from torch.utils.tensorboard import RecordWriter
from torch.utils.tensorboard.summary import hparams as hparams_summaries
from torch.utils.tensorboard.summary import make_histogram

from metarun.loggers.base import Logger, ResumePoint
from metarun.loggers.json_lines import read_metrics
from metarun.utils.files import AppendOnlyFile, atomic_write, translate_os_errors
from metarun.utils.run_outputs import METRICS

FILE_VERSION = "brain.Event:2"
HPARAMS_FILE = "events.out.tfevents.0.settings"  # replaced by each session: TensorBoard shows the first such record
BINS = 40  # of a histogram
NON_METRIC_KEYS = ("step", "split", "seconds")  # of a line of metrics.jsonl


class EventFile(AppendOnlyFile):
    """An event file, whose name sorts behind those that were written before it."""

    def __init__(self, folder: Path) -> None:
        with translate_os_errors(folder):
            folder.mkdir(exist_ok=True)
        super().__init__(folder / f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}")

    def write_event(self, **fields: Any) -> None:
        RecordWriter(self).write(Event(wall_time=time.time(), **fields).SerializeToString())


class TensorBoardLogger(Logger):
    """Writes validation scalars to tensorboard/validation, and the rest to tensorboard/.

    TensorBoard thus overlays a tag's training and validation curves.
    """

    def __init__(self, folder: Path, start: ResumePoint | None) -> None:
        self.folder = folder / "tensorboard"
        self.event_files: dict[str, EventFile] = {}
        with ExitStack() as stack:
            for split, subfolder in {"train": "", "val": "validation"}.items() if start else [("train", "")]:
                file = stack.enter_context(closing(EventFile(self.folder / subfolder)))
                file.write_event(file_version=FILE_VERSION)
                if start is not None:  # hides what earlier files hold from this step on
                    purge_step = start.step + (not start.validation_pending)
                    file.write_event(step=purge_step, session_log=SessionLog(status=SessionLog.START))
                self.event_files[split] = file
            if start is not None and start.validation_pending and (folder / METRICS).exists():
                for _, entry in read_metrics(folder / METRICS):  # purging from its step on hides its training line too
                    if (entry["step"], entry["split"]) == (start.step, "train"):
                        self.log_scalars(start.step, {k: v for k, v in entry.items() if k not in NON_METRIC_KEYS})
            self.stack = stack.pop_all()

    def log_scalars(
        self, step: int, scalars: Mapping[str, float], split: str | None = None, seconds: float = 0.0
    ) -> None:
        numbers = {tag: math.nan if value is None else value for tag, value in scalars.items()}
        self.write(step, [Summary.Value(tag=tag, simple_value=number) for tag, number in numbers.items()], split)

    def log_images(self, step: int, images: Mapping[str, bytes]) -> None:
        encoded = {tag: Summary.Image(colorspace=3, encoded_image_string=png) for tag, png in images.items()}
        self.write(step, [Summary.Value(tag=tag, image=image) for tag, image in encoded.items()])

    def log_histograms(self, step: int, histograms: Mapping[str, np.ndarray]) -> None:
        finite = {tag: values[np.isfinite(values)].astype(float) for tag, values in histograms.items()}
        self.write(step, [Summary.Value(tag=t, histo=make_histogram(v, BINS)) for t, v in finite.items() if len(v)])

    def write(self, step: int, values: list[Summary.Value], split: str | None = None) -> None:
        if values:
            self.event_files[split or "train"].write_event(step=step, summary=Summary(value=values))

    def log_hparams(self, hparams: Mapping[str, Any], finished: bool) -> None:
        values = {key: str(value).lower() if isinstance(value, bool) else value for key, value in hparams.items()}
        _, session_start, session_end = hparams_summaries(values, {})
        events = [Event(file_version=FILE_VERSION), Event(summary=session_start), Event(summary=session_end)]
        content = io.BytesIO()
        for event in events if finished else events[:2]:
            event.wall_time = time.time()
            RecordWriter(content).write(event.SerializeToString())
        atomic_write(self.folder / HPARAMS_FILE, content.getvalue())

    def flush(self) -> None:
        for file in self.event_files.values():
            file.sync()

    def close(self) -> None:
        self.stack.close()
