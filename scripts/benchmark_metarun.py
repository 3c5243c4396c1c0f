"""metarun as a contender of the benchmark: by its own settings, team and outer step, whatever engine they choose."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metarun.distributed.group import launch_group
from metarun.distributed.task_parallel import TaskParallelGroup
from metarun.training.trainer import Trainer
from scripts.benchmark_contender import Contender, read
from scripts.method_cost import composed


def start(role: dict[str, Any], stack: ExitStack) -> Contender:
    settings = composed([*role["words"], f"device={role['device']}"])
    team = stack.enter_context(launch_group(settings, None))
    kind = read(role["problem"]).spec["kind"]
    if kind == "train":
        return training(Trainer(team, Path(stack.enter_context(tempfile.TemporaryDirectory()))))
    return evaluating(team) if kind == "evaluate" else drawing(team)


def training(run: Trainer) -> Contender:
    team = run.team

    def first() -> dict[str, np.ndarray]:
        """The first gradient is ten times what Adam then holds of it, however it was computed."""
        run.outer_step()
        held = {name: tensor for part in run.work.parameters for name, tensor in part.items()}
        return {name: 10 * run.optimizer.state[tensor]["exp_avg"].cpu().numpy() for name, tensor in held.items()}

    def steps(count: int) -> int:
        for _ in range(count):
            run.outer_step()
        wait(team)
        return count

    return Contender(first, steps)


def evaluating(team: TaskParallelGroup) -> Contender:
    lot = team.work.settings.meta_batch

    def first() -> dict[str, np.ndarray]:
        return {"losses": team.evaluate("test", lot).losses.numpy()}

    def steps(count: int) -> int:
        team.evaluate("test", count * lot)
        return count

    return Contender(first, steps)


def drawing(team: TaskParallelGroup) -> Contender:
    lot = team.work.settings.meta_batch

    def steps(count: int) -> int:
        for number in range(count):
            team.work.tasks(number * lot, lot)
        wait(team)
        return count

    return Contender(dict, steps)


def wait(team: TaskParallelGroup) -> None:
    if team.work.device.type == "cuda":
        torch.cuda.synchronize(team.work.device)
