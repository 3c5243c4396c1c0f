"""metrics.jsonl: the loss and metric of training and validation, one JSON object a line."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metarun.errors import UserError, relative_to_cwd
from metarun.loggers.base import Logger, ResumePoint
from metarun.utils.files import AppendOnlyFile, atomic_write
from metarun.utils.run_outputs import METRICS, nan_to_none, parse_metrics_line
from metarun.utils.safe_files import LIST_BYTES, read_bytes

log = logging.getLogger(__name__)


class JsonLinesLogger(Logger):
    """Appends a line for each training and validation record.

    A resumed run drops the lines beyond its step, and the unreadable end that a kill or power cut may leave.

    Raises:
        UserError: metrics.jsonl has fewer lines than the checkpoint counts, or an unreadable line before readable ones.
    """

    def __init__(self, folder: Path, start: ResumePoint | None) -> None:
        self.file: AppendOnlyFile | None = None
        if start is None:
            return
        path = folder / METRICS
        if path.exists():
            lines = [(line, entry) for line, entry in read_metrics(path) if entry["step"] <= start.step]
            if len(lines) < start.num_lines:
                raise UserError(
                    f"{relative_to_cwd(path)}: has {len(lines)} lines up to step {start.step} of {start.num_lines} "
                    "that were written; it was cut short: bring it back, or take the file away, "
                    "and new lines begin another"
                )
            pending = start.step if start.validation_pending else None
            kept = [line for line, entry in lines if (entry["step"], entry["split"]) != (pending, "val")]
            atomic_write(path, b"".join(kept))
            self.num_lines = len(kept)
        else:
            if start.num_lines:
                log.warning("%s: was taken away; new lines begin another", relative_to_cwd(path))
            atomic_write(path, b"")  # unlike opening it, syncs the folder
        self.file = AppendOnlyFile(path)

    def log_scalars(
        self, step: int, scalars: Mapping[str, float], split: str | None = None, seconds: float = 0.0
    ) -> None:
        if self.file is None or split is None:
            return
        line = {"step": step, "split": split, **scalars, "seconds": round(seconds, 3)}
        self.file.write(json.dumps(nan_to_none(line), allow_nan=False).encode() + b"\n")
        self.num_lines += 1

    def flush(self) -> None:
        if self.file is not None:
            self.file.sync()

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


def read_metrics(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Read the raw and the parsed lines of metrics.jsonl, up to an unreadable end.

    Raises:
        UserError: an unreadable line stands before readable ones.
    """
    try:
        lines = read_bytes(path, LIST_BYTES, links=False).splitlines(keepends=True)
    except ValueError as error:
        raise UserError(f"{relative_to_cwd(path)}: {error}; take the file away, and new lines begin another") from error
    entries = [parse_metrics_line(line) for line in lines]
    readable = [(line, entry) for line, entry in zip(lines, entries, strict=True) if entry is not None]
    if None in entries[: len(readable)]:
        raise UserError(
            f"{relative_to_cwd(path)}: line {entries.index(None) + 1} is damaged; take the file away, "
            "and new lines begin another"
        )
    return readable
