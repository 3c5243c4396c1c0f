"""The data types that the whole package shares: tasks and named parameters."""

from typing import Any, NamedTuple

from torch import Tensor

Tensors = dict[str, Tensor]  # parameter name -> tensor, as `nn.Module.named_parameters` names them


class Parameters(NamedTuple):
    """All that the outer optimizer learns."""

    theta: Tensors  # adapted to each task by the inner loop
    phi: Tensors  # learned across tasks only


class Task(NamedTuple):
    """One few-shot task: a support set to adapt to and a query set to evaluate on.

    A meta-batch is a `Task` whose tensors have one more leading axis, [tasks, ...]. Samplers give tensors; objectives
    passed to `metarun.Init` may take any tree of tensors.
    """

    support_data: Any  # [ways * shots, ...]
    support_target: Any  # [ways * shots] int64 labels 0..ways-1, or [shots, 1] for regression
    query_data: Any  # [ways * queries, ...]
    query_target: Any  # [ways * queries], or [queries, 1]
