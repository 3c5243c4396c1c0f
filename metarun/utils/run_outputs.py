"""Names of the result files in a run folder, and readers for metrics.jsonl and result.json. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metarun.utils.safe_files import RECORD_BYTES, parse_json, read_json

METRICS = "metrics.jsonl"
PREDICTIONS = "predictions.csv"
RESULTS = "results.csv"  # written instead of result.json by an evaluation over lists of values
RESULT = "result.json"  # written last, so that its presence marks a finished run


def parse_metrics_line(line: bytes) -> dict[str, Any] | None:
    """Parse one line of metrics.jsonl: `step`, `split` ("train" or "val") and numbers. None if it is cut or damaged."""
    try:
        entry = parse_json(line) if line.endswith(b"\n") and len(line) <= RECORD_BYTES else None
    except ValueError:
        return None
    if not isinstance(entry, dict) or type(entry.get("step")) is not int or entry.get("split") not in ("train", "val"):
        return None
    return entry if all(isinstance(entry[name], int | float | None) for name in entry if name != "split") else None


def read_result(folder: Path) -> dict[str, Any]:
    """Read result.json of a run folder. Raises OSError or ValueError if it is missing or damaged."""
    return read_json(folder / RESULT, RECORD_BYTES, links=False)
