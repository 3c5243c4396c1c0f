"""Numbers as people read them: per cent for accuracy, minutes for seconds."""

from __future__ import annotations


def metric_name(metric: str) -> str:
    return {"accuracy": "accuracy in %", "mse": "mean squared error"}.get(metric, metric)


def scaled(metric: str, value: float) -> float:
    """Per cent for accuracy."""
    return 100 * value if metric == "accuracy" else value


def format_metric(metric: str, value: float | None) -> str:
    if value is None:
        return "-"
    if metric == "accuracy":
        return f"{100 * value:.2f}"
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.3g}"


def plus_minus(metric: str, value: float | None) -> str:
    return "-" if value is None else f"± {format_metric(metric, value)}"


def signed(metric: str, value: float) -> str:
    return f"{'+' if value >= 0 else '-'}{format_metric(metric, abs(value))}"


def duration(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def pluralize(count: int, what: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{count} {what}{'' if count == 1 else 's'}"
