"""Formats numbers for people: accuracies in per cent, durations in minutes."""

from __future__ import annotations

from metarun.metrics import METRIC_BY_NAME


def metric_name(metric: str) -> str:
    return METRIC_BY_NAME[metric].title


def scaled(metric: str, value: float) -> float:
    """Value in display units, per cent for accuracy."""
    return METRIC_BY_NAME[metric].scale * value


def format_metric(metric: str, value: float | None) -> str:
    return "-" if value is None else METRIC_BY_NAME[metric].format_value(value)


def plus_minus(metric: str, value: float | None) -> str:
    return "-" if value is None else f"± {METRIC_BY_NAME[metric].format_value(value)}"


def signed(metric: str, value: float) -> str:
    return f"{'+' if value >= 0 else '-'}{format_metric(metric, abs(value))}"


def duration(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def pluralize(count: int, what: str) -> str:
    """Count with its noun: `1 run`, `2 runs`."""
    return f"{count} {what}{'' if count == 1 else 's'}"
