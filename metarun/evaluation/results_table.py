"""A table of several evaluations: results.csv, and aligned text for the log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from metarun.metrics import METRIC_BY_NAME
from metarun.utils.text import csv_table

VARIED = ("dataset", "split", "ways", "shots", "inner_loop")
COLUMNS = (
    *VARIED,
    *("queries", "metric", "mean", "ci95", "tasks", "loss", "calibration_error"),
    *("untrained_mean", "untrained_ci95", "head"),
)


def as_csv(results: Sequence[dict[str, Any]]) -> bytes:
    """The content of results.csv: a line for each evaluation, with empty cells for values that it does not have."""
    rows = []
    for result in results:
        untrained = {f"untrained_{name}": value for name, value in (result["untrained"] or {}).items()}
        rows.append([{**result, **untrained}.get(name) for name in COLUMNS])
    return csv_table(COLUMNS, rows)


def as_text(results: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each evaluation in aligned columns, below a line that names the columns."""
    metric = METRIC_BY_NAME[results[0]["metric"]]
    varied = [name for name in VARIED if results[0][name] is not None]
    rows = [[*varied, metric.name, "untrained"]]
    for result in results:
        parts = (result, result["untrained"])
        means = (metric.format_interval(part["mean"], part["ci95"]) if part else "not known" for part in parts)
        rows.append([*(str(result[name]) for name in varied), *means])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(entry.ljust(width) for entry, width in zip(row, widths, strict=True)).rstrip() for row in rows]
