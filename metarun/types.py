"""A few-shot task, the unit that samplers draw and the meta-learner adapts to."""

from __future__ import annotations

from typing import Any, NamedTuple


class Task(NamedTuple):
    """Support set to adapt on, query set to judge by; a meta-batch of tasks has one more leading axis.

    The samplers give tensors; a person's own objectives may take anything.
    """

    support_data: Any  # [ways * shots, ...]
    support_target: Any  # [ways * shots] int64 labels 0..ways-1, or [shots, 1] for regression
    query_data: Any  # [ways * queries, ...]
    query_target: Any  # [ways * queries], or [queries, 1]
