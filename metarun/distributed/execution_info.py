"""How a run computes and why, as its checkpoints and result.json tell it."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import torch

from metarun import __version__
from metarun.distributed.task_parallel import TaskParallelGroup
from metarun.nn import fused


def execution_config(team: TaskParallelGroup) -> dict[str, Any]:
    """What the last bits of the result depend on."""
    work, engine = team.work, team.work.settings.engine
    looped_norms = work.device.type == "cpu" and work.how_tasks == "looped" and work.batch_norm != "none"
    return {
        "device": work.device.type,
        "tasks": "vectorised" if compiling_failed(team) else work.how_tasks,
        "meta_gradient": engine.meta_gradient,
        "precision": engine.precision,
        "loops": fused.backend_name() if looped_norms else "torch",
        "processes": team.seat.size,
        "threads": work.threads,
        "metarun": __version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def execution_reason(team: TaskParallelGroup) -> str:
    """The reason for how a meta-batch is computed."""
    return "it could not be compiled" if compiling_failed(team) else team.work.why_tasks


def execution_summary(team: TaskParallelGroup) -> dict[str, Any]:
    found = execution_config(team)
    return {
        "tasks": found["tasks"],
        "reason": execution_reason(team),
        **{name: found[name] for name in ("processes", "threads", "precision")},
    }


def compiling_failed(team: TaskParallelGroup) -> bool:
    return team.work.compiled is not None and team.work.compiled.failed
