"""What a run leaves for people and programs: metrics.jsonl, TensorBoard scalars, result.json."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from torch.utils.tensorboard.writer import SummaryWriter

RESULT = "result.json"  # written last: a folder that has it holds a finished run


class Records:
    """One line of metrics.jsonl and the same scalars in TensorBoard for each call.

    Whatever stands behind `step`, written by a run that went further before it was killed, is dropped, and so is a
    last line that was cut short.
    """

    def __init__(self, folder: Path, step: int, due: bool) -> None:
        """Go on behind `step`; `due` says that its validation is still to come."""
        path = folder / "metrics.jsonl"
        if path.exists():
            whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
            kept = {"train": step, "val": step - due}  # the last step of each
            found = [(line, json.loads(line)) for line in whole]
            write_whole(path, "".join(line for line, entry in found if entry["step"] <= kept[entry["split"]]))
        self.lines = path.open("a")
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, split: str, seconds: float, **scalars: float) -> None:
        line = {"step": step, "split": split, **scalars, "seconds": round(seconds, 3)}
        self.lines.write(json.dumps(finite(line), allow_nan=False) + "\n")
        self.lines.flush()
        for name, value in scalars.items():
            self.board.add_scalar(f"{name}/{split}", value, step)

    def __enter__(self) -> Records:
        return self

    def __exit__(self, *error: object) -> None:
        self.lines.close()
        self.board.close()


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file under another name and rename it, so that nobody reads half of it; text as UTF-8."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_bytes(content if isinstance(content, bytes) else content.encode())
    part.replace(path)


def read_result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / RESULT).read_text(encoding="utf-8"))


def write_result(folder: Path, result: dict[str, Any]) -> None:
    write_whole(folder / RESULT, json.dumps(finite(result), indent=2, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """The same with null for numbers that are not finite, which JSON has no word for."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
