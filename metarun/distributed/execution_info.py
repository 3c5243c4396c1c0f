"""How a run computes and why, as recorded in its checkpoints and result.json."""

from __future__ import annotations

import logging
import platform
from typing import Any

import numpy as np
import torch

from metarun import __version__
from metarun.distributed.task_parallel import TaskParallelGroup
from metarun.nn import fused

log = logging.getLogger(__name__)


def execution_config(team: TaskParallelGroup) -> dict[str, Any]:
    """Everything besides the settings on which the rounding of the results depends: device, threads, versions."""
    work, engine = team.work, team.work.settings.engine
    looped_norms = work.device.type == "cpu" and work.task_execution == "looped" and work.batch_norm != "none"
    return {
        "device": work.device.type,
        "tasks": "vectorised" if compiling_failed(team) else work.task_execution,
        "meta_gradient": engine.meta_gradient,
        "precision": engine.precision,
        "loops": fused.backend_name() if looped_norms else "torch",
        "processes": team.process.world_size,
        "threads": work.threads,
        "metarun": __version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def execution_reason(team: TaskParallelGroup) -> str:
    """Why the tasks of a meta-batch are looped, vectorised or compiled, in a few words."""
    return "it could not be compiled" if compiling_failed(team) else team.work.execution_reason


def execution_summary(team: TaskParallelGroup) -> dict[str, Any]:
    """The part of `execution_config` that result.json states, with the reason."""
    config = execution_config(team)
    return {
        "tasks": config["tasks"],
        "reason": execution_reason(team),
        **{name: config[name] for name in ("processes", "threads", "precision")},
    }


def compiling_failed(team: TaskParallelGroup) -> bool:
    return team.work.compiled is not None and team.work.compiled.failed


def warn_if_execution_changed(team: TaskParallelGroup, before: dict[str, str | int]) -> None:
    """Log how `execution_config` differs from the checkpoint's, since results are then no longer bit-identical."""
    now = execution_config(team)
    changes = [f"{name} was {before.get(name)}, is {value}" for name, value in now.items() if before.get(name) != value]
    if changes:
        same_precision = before.get("precision") == now["precision"]
        log.warning(
            "the run continues with other execution settings, so its results are no longer bit-identical to those of "
            "an uninterrupted run (%s): %s",
            "they differ within rounding" if same_precision else "they differ by more than rounding",
            "; ".join(changes),
        )
