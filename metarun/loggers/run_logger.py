"""Writes what a run records: metrics.jsonl, TensorBoard event files, result.json."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from metarun.errors import UserError, relative_to_cwd
from metarun.loggers.event_file import EventFileWriter, SummaryValue
from metarun.utils import files as whole_files
from metarun.utils.files import AppendOnlyFile, sync_folder, translate_os_errors
from metarun.utils.run_outputs import METRICS, RESULT, parse_metrics_line
from metarun.utils.safe_files import LIST_BYTES, read_bytes

log = logging.getLogger(__name__)

NON_METRIC_KEYS = ("step", "split", "seconds")


class RunLogger:
    """Writes scalars as lines of metrics.jsonl and as TensorBoard curves, and other summaries to TensorBoard only.

    A resumed run drops the lines after `step`, which it wrote before it was killed, and an unreadable end of the file,
    which a kill or a power cut leaves after the last `sync`.
    """

    def __init__(self, folder: Path, step: int, due: bool, lines: int = 0) -> None:
        """Open the files of `folder` to append to.

        Args:
            step: the outer step that the run resumes from; 0 for a new run.
            due: the validation of `step` has not been done yet.
            lines: number of lines of metrics.jsonl that the checkpoint counts.

        Raises:
            RunFailure: here and in every method: the disk is full or fails, or the folder is gone.
            UserError: metrics.jsonl has fewer than `lines` lines, or an unreadable line before readable ones.
        """
        path = folder / METRICS
        kept: list[tuple[bytes, dict[str, Any]]] = []
        if path.exists():
            found = [(line, entry) for line, entry in read_metrics(path) if entry["step"] <= step]
            if len(found) < lines:
                raise UserError(
                    f"{relative_to_cwd(path)}: has {len(found)} lines up to step {step} of {lines} that were "
                    "written; it was cut short: bring it back, or take the file away, and new lines begin another"
                )
            kept = [(line, entry) for line, entry in found if not (due and is_validation_of(step, entry))]
            whole_files.atomic_write(path, b"".join(line for line, _ in kept))
        elif lines:
            log.warning("%s: was taken away; new lines begin another", relative_to_cwd(path))
        self.count = len(kept)
        with ExitStack() as files:
            self.lines = files.enter_context(closing(AppendOnlyFile(path)))
            first, place = step + (not due), folder / "tensorboard"
            self.curves = files.enter_context(closing(EventFileWriter(place, first)))
            self.validation = files.enter_context(closing(EventFileWriter(place / "validation", first)))
            for _, entry in kept if due else ():  # purging from `step` on hides its training line too
                if entry["step"] == step:
                    self.draw(
                        step,
                        entry["split"],
                        {name: value for name, value in entry.items() if name not in NON_METRIC_KEYS},
                    )
            with translate_os_errors(path):
                sync_folder(folder)
            self.files = files.pop_all()

    def write(self, step: int, split: str, seconds: float, **scalars: float) -> None:
        """Append a line with the scalars of outer step `step`, and add them to TensorBoard's curves."""
        line = {"step": step, "split": split, **scalars, "seconds": round(seconds, 3)}
        self.lines.write(json.dumps(nan_to_none(line), allow_nan=False).encode() + b"\n")
        self.count += 1
        self.draw(step, split, scalars)

    def draw(self, step: int, split: str, scalars: dict[str, float]) -> None:
        """Add scalars to the split's curves. Each split has a folder, so that TensorBoard overlays the tags."""
        curves = self.validation if split == "val" else self.curves
        curves.add({name: math.nan if value is None else value for name, value in scalars.items()}, step)

    def show(self, step: int, shown: Mapping[str, SummaryValue]) -> None:
        """Add scalars, histograms or images to TensorBoard only, by their tags."""
        self.curves.add(shown, step)

    def sync(self) -> None:
        """Flush everything to the disk. Called before a checkpoint, whose lines then survive a power cut."""
        self.lines.sync()
        self.curves.sync()
        self.validation.sync()

    def __enter__(self) -> RunLogger:
        return self

    def __exit__(self, *error: object) -> None:
        self.files.close()


def is_validation_of(step: int, entry: dict[str, Any]) -> bool:
    return entry["split"] == "val" and entry["step"] == step


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
    found = [(line, entry) for line, entry in zip(lines, entries, strict=True) if entry is not None]
    if any(entry is None for entry in entries[: len(found)]):
        number = entries.index(None) + 1
        raise UserError(
            f"{relative_to_cwd(path)}: line {number} is damaged; take the file away, and new lines begin another"
        )
    return found


def write_result(folder: Path, result: dict[str, Any]) -> None:
    """Write result.json atomically, with null for non-finite numbers. Raises RunFailure if the disk fails."""
    whole_files.atomic_write(folder / RESULT, json.dumps(nan_to_none(result), indent=2, allow_nan=False) + "\n")


def nan_to_none(value: Any) -> Any:
    """A copy of a JSON value with None for every non-finite number, which JSON cannot express."""
    if isinstance(value, dict):
        return {key: nan_to_none(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [nan_to_none(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
