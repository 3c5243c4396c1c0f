"""What a run leaves for people and programs: metrics.jsonl, TensorBoard scalars, result.json."""

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
    """One line of metrics.jsonl and the same scalars in TensorBoard for each call.

    Whatever stands behind `step`, written by a run that went further before it was killed, is dropped, and so is an
    end that cannot be read, which a kill or a power cut leaves behind the last `sync`.
    """

    def __init__(self, folder: Path, step: int, due: bool, lines: int = 0) -> None:
        """Go on behind `step`; `due` says that its validation is still to come, `lines` how many there should be.

        Raises:
            RunFailure: here and in every method: the disk is full or fails, or the folder is gone.
            UserError: lines are missing, or one that cannot be read stands before others that can.
        """
        path = folder / METRICS
        kept: list[tuple[bytes, dict[str, Any]]] = []
        if path.exists():
            found = [(line, entry) for line, entry in read_metrics(path) if entry["step"] <= step]
            if len(found) < lines:
                raise UserError(
                    f"{relative_to_cwd(path)}: has {len(found)} lines up to step {step} of {lines} that were "
                    "written; it was "
                    "cut short: bring it back, or take the file away, and new lines begin another"
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
            self.files = files.pop_all()
        for _, entry in kept if due else ():  # which hides the training line of this step as well
            if entry["step"] == step:
                self.draw(
                    step, entry["split"], {name: value for name, value in entry.items() if name not in NON_METRIC_KEYS}
                )
        with translate_os_errors(path):
            sync_folder(folder)

    def write(self, step: int, split: str, seconds: float, **scalars: float) -> None:
        line = {"step": step, "split": split, **scalars, "seconds": round(seconds, 3)}
        self.lines.write(json.dumps(nan_to_none(line), allow_nan=False).encode() + b"\n")
        self.count += 1
        self.draw(step, split, scalars)

    def draw(self, step: int, split: str, scalars: dict[str, float]) -> None:
        """By the same name for each split, in a folder of its own: TensorBoard shows them as one card."""
        curves = self.validation if split == "val" else self.curves
        curves.add({name: math.nan if value is None else value for name, value in scalars.items()}, step)

    def show(self, step: int, shown: Mapping[str, SummaryValue]) -> None:
        """In TensorBoard only."""
        self.curves.add(shown, step)

    def sync(self) -> None:
        """Bring all lines to the disk: called before a checkpoint, none before it is missing after a power cut."""
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
    """The lines of metrics.jsonl and what they say, up to an end that cannot be read.

    Raises:
        UserError: a line that cannot be read stands before others that can.
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
    whole_files.atomic_write(folder / RESULT, json.dumps(nan_to_none(result), indent=2, allow_nan=False) + "\n")


def nan_to_none(value: Any) -> Any:
    """The same with null for numbers that are not finite, which JSON has no word for."""
    if isinstance(value, dict):
        return {key: nan_to_none(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [nan_to_none(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
