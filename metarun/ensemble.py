"""The best checkpoints by validation, kept for an ensemble of their networks at test (`eval.ensemble`).

As in MAML++'s code (Antoniou, Edwards, Storkey 2019, arXiv 1810.09502), each network adapts to the task by itself, and
the mean of their logits is what labels a query; where a network's output is no logit, the mean of the outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.func import vmap

from metarun import checkpoint
from metarun.errors import UserError, nearby
from metarun.objective import Objective, State

Judged = dict[str, float]  # step, mean and ci95 of a validation


def path(folder: Path, step: int) -> Path:
    return checkpoint.best_path(folder).with_name(f"top-{step:08d}.pt")


def paths(folder: Path) -> list[Path]:
    return sorted(checkpoint.best_path(folder).parent.glob("top-*.pt"))


def ranked(validations: Sequence[Judged], size: int, metric: str) -> list[Judged]:
    """The best of them, the best first; of equal ones the earlier."""
    sign = -1 if metric == "accuracy" else 1
    return sorted(validations, key=lambda judged: (sign * judged["mean"], judged["step"]))[:size]


def prune(folder: Path, top: Sequence[Judged]) -> None:
    """Take away what is no longer among the best; to be called once a checkpoint that says so is on the disk."""
    kept = {path(folder, int(judged["step"])) for judged in top}
    for other in paths(folder):
        if other not in kept:
            other.unlink()


def whole(folder: Path, top: Sequence[Judged]) -> tuple[list[Judged], list[str]]:
    """Those whose checkpoint can be read, and what is wrong with the others, which are set aside."""
    faults = [checkpoint.set_aside_if_damaged(path(folder, int(judged["step"]))) for judged in top]
    return [judged for judged, fault in zip(top, faults, strict=True) if not fault], [
        fault for fault in faults if fault
    ]


def members(folder: Path, size: int, metric: str) -> list[dict[str, Any]]:
    """What the best checkpoints of a run folder hold, at the most `size`, the best first.

    Raises:
        UserError: one is damaged, or the run kept none.
    """
    contents = []
    for place in paths(folder):
        with checkpoint.readable(place):
            content = checkpoint.load(place)
            content["judged"] = {name: float(content["judged"][name]) for name in ("step", "mean", "ci95")}
        contents.append(content)
    if not contents:
        raise UserError(
            f"eval.ensemble={size}: {nearby(folder)} keeps its best checkpoint alone; train with eval.ensemble={size}"
        )
    best = ranked([content["judged"] for content in contents], size, metric)
    return [next(content for content in contents if content["judged"] is judged) for judged in best]


# --- judging the mean of several networks ------------------------------------------------------------------


def output(state: State) -> Tensor:
    """An objective that keeps what the network says."""
    found = state.model(state.data, state.updated_weights)
    state.measures["output"] = found.detach()
    return found.sum()


def judge(objective: Objective, metric: str, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and metric, each [tasks, steps], of outputs [tasks, steps, queries, width]; targets: [tasks, queries]."""

    def one(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        state = State(None, target, lambda data, weights: output, [])
        return objective(state), state.measures[metric]

    tasks, steps = outputs.shape[:2]
    losses, values = vmap(one)(outputs.flatten(0, 1), targets.repeat_interleave(steps, 0))
    return losses.view(tasks, steps), values.view(tasks, steps)
