"""A few-shot task, the unit that samplers draw and the meta-learner adapts to."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Task(NamedTuple):
    """Support set to adapt on, query set to judge by; a meta-batch of tasks has one more leading axis."""

    support_data: Tensor  # [ways * shots, ...]
    support_target: Tensor  # [ways * shots] int64 labels 0..ways-1, or [shots, 1] for regression
    query_data: Tensor  # [ways * queries, ...]
    query_target: Tensor  # [ways * queries], or [queries, 1]
