"""The files of a run folder that programs read, and what a line of metrics.jsonl says; without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"
PREDICTIONS = "predictions.csv"
RESULTS = "results.csv"  # of several evaluations
RESULT = "result.json"  # written last: a folder that has it holds a finished run


def parsed(line: bytes) -> dict[str, Any] | None:
    """What a line of metrics.jsonl says, or None where it is cut short or damaged."""
    try:
        entry = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    known = isinstance(entry, dict) and type(entry.get("step")) is int and entry.get("split") in ("train", "val")
    return entry if known else None


def read_result(folder: Path) -> dict[str, Any]:
    """Raises OSError or ValueError where it is missing or damaged."""
    return json.loads((folder / RESULT).read_text(encoding="utf-8"))
