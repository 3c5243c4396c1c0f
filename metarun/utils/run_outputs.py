"""Names of the result files in a run folder; reads metrics.jsonl, reads and writes result.json. Imports no torch."""

import json
import math
from pathlib import Path
from typing import Any

from metarun.utils.files import atomic_write
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


def write_result(folder: Path, result: dict[str, Any]) -> None:
    """Write result.json atomically, with null for non-finite numbers. Raises RunFailure if the disk fails."""
    atomic_write(folder / RESULT, json.dumps(nan_to_none(result), indent=2, allow_nan=False) + "\n")


def nan_to_none(value: Any) -> Any:
    """A copy of a JSON value with None for every non-finite number, which JSON cannot express."""
    if isinstance(value, dict):
        return {key: nan_to_none(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [nan_to_none(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
