"""The outer step size as a run goes on (`outer_schedule`)."""

from __future__ import annotations

import math

from metarun.config.schema import Settings


def learning_rate(settings: Settings, step: int) -> float:
    """Of the outer optimiser before its step number `step` (from 0); cosine falls to its end."""
    if settings.outer_schedule == "constant":
        return settings.outer_learning_rate
    end = settings.outer_learning_rate_end
    return end + (settings.outer_learning_rate - end) * 0.5 * (1 + math.cos(math.pi * step / settings.iterations))
