"""How a run computes and why, as recorded in its checkpoints and result.json."""

import logging
import platform
from typing import Any

import numpy as np
import torch

from metarun import __version__
from metarun.distributed.task_parallel import TaskParallelGroup
from metarun.nn import fused

log = logging.getLogger(__name__)


def execution_config(group: TaskParallelGroup) -> dict[str, Any]:
    """What the rounding of results depends on besides the settings: device, threads, versions."""
    work, engine = group.work, group.work.settings.engine
    looped_norms = work.device.type == "cpu" and work.task_execution == "looped" and work.batch_norm != "none"
    return {
        "device": work.device.type,
        "tasks": "vectorised" if compiling_failed(group) else work.task_execution,
        "meta_gradient": engine.meta_gradient,
        "precision": engine.precision,
        "loops": fused.backend_name() if looped_norms else "torch",
        "processes": group.process.world_size,
        "threads": work.threads,
        "metarun": __version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def execution_reason(group: TaskParallelGroup) -> str:
    """Why the tasks of a meta-batch are looped, vectorised or compiled, in a few words."""
    return "it could not be compiled" if compiling_failed(group) else group.work.execution_reason


def execution_summary(group: TaskParallelGroup) -> dict[str, Any]:
    """The part of `execution_config` that result.json holds, and the reason."""
    config = execution_config(group) | {"reason": execution_reason(group)}
    return {name: config[name] for name in ("tasks", "reason", "processes", "threads", "precision")}


def compiling_failed(group: TaskParallelGroup) -> bool:
    return group.work.compiled is not None and group.work.compiled.failed


def warn_if_execution_changed(group: TaskParallelGroup, before: dict[str, str | int]) -> None:
    """Log how `execution_config` differs from the checkpoint's, since results are then no longer bit-identical."""
    now = execution_config(group)
    changes = [f"{name} was {before.get(name)}, is {value}" for name, value in now.items() if before.get(name) != value]
    if changes:
        same_precision = before.get("precision") == now["precision"]
        log.warning(
            "the run continues with other execution settings, so its results are no longer bit-identical to those of "
            "an uninterrupted run (%s): %s",
            "they differ within rounding" if same_precision else "they differ by more than rounding",
            "; ".join(changes),
        )
