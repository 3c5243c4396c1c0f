"""The files of a run folder that programs read, and what a line of metrics.jsonl says; without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metarun.utils.safe_files import RECORD_BYTES, parse_json, read_json

METRICS = "metrics.jsonl"
PREDICTIONS = "predictions.csv"
RESULTS = "results.csv"  # of several evaluations
RESULT = "result.json"  # written last: a folder that has it holds a finished run


def parse_metrics_line(line: bytes) -> dict[str, Any] | None:
    """What a line of metrics.jsonl says, or None where it is cut short or damaged."""
    try:
        entry = parse_json(line) if line.endswith(b"\n") and len(line) <= RECORD_BYTES else None
    except ValueError:
        return None
    if not isinstance(entry, dict) or type(entry.get("step")) is not int or entry.get("split") not in ("train", "val"):
        return None
    return entry if all(isinstance(entry[name], int | float | None) for name in entry if name != "split") else None


def read_result(folder: Path) -> dict[str, Any]:
    """Raises OSError or ValueError where it is missing or damaged."""
    return read_json(folder / RESULT, RECORD_BYTES, links=False)
