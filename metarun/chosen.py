"""How a run computes and why, as its checkpoints and result.json tell it."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import torch

from metarun import __version__, on_cpu
from metarun.team import Team


def how(team: Team) -> dict[str, Any]:
    """What the last bits of the result depend on."""
    work, engine = team.work, team.work.settings.engine
    looped_norms = work.device.type == "cpu" and work.how_tasks == "looped" and work.batch_norm != "none"
    return {
        "device": work.device.type,
        "tasks": "vectorised" if compiling_failed(team) else work.how_tasks,
        "meta_gradient": engine.meta_gradient,
        "precision": engine.precision,
        "loops": on_cpu.computed_by() if looped_norms else "torch",
        "processes": team.seat.size,
        "threads": work.threads,
        "metarun": __version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def why(team: Team) -> str:
    """The reason for how a meta-batch is computed."""
    return "it could not be compiled" if compiling_failed(team) else team.work.why_tasks


def in_short(team: Team) -> dict[str, Any]:
    found = how(team)
    return {
        "tasks": found["tasks"],
        "reason": why(team),
        **{name: found[name] for name in ("processes", "threads", "precision")},
    }


def compiling_failed(team: Team) -> bool:
    return team.work.compiled is not None and team.work.compiled.failed
