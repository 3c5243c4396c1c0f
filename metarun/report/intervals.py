"""95 % confidence interval of a mean over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from functools import cache


@cache
def student_t(freedom: int) -> float:
    """Two-sided 95 % quantile of Student's t distribution with `freedom` degrees of freedom."""
    low, high = 0.0, 13.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf_two_sided(middle, freedom) < 0.95 else (low, middle)
    return (low + high) / 2


def t_cdf_two_sided(t: float, freedom: int) -> float:
    """The probability that a Student variable lies between -t and t (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, square = math.sin(angle), math.cos(angle) ** 2
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= square * k / (k + 1)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def seed_ci95(values: Sequence[float]) -> float | None:
    """Half width of the 95 % interval of the mean, by Student's t; None for a single value."""
    if len(values) < 2:
        return None
    return student_t(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
