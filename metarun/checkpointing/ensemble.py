"""The best checkpoints by validation, kept for an ensemble of their networks at test (`eval.ensemble`).

As in MAML++'s code (Antoniou, Edwards, Storkey 2019, arXiv 1810.09502), each network adapts to the task by itself, and
the mean of their logits is what labels a query; where a network's output is no logit, the mean of the outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from torch.func import vmap

from metarun.checkpointing import store
from metarun.checkpointing.state import CheckpointState, Validation
from metarun.core.objectives import Objective, State
from metarun.errors import UserError, relative_to_cwd
from metarun.metrics import METRIC_BY_NAME


def path(folder: Path, step: int) -> Path:
    return store.best_checkpoint_path(folder).with_name(f"top-{step:08d}{store.SUFFIX}")


def paths(folder: Path) -> list[Path]:
    return sorted(store.best_checkpoint_path(folder).parent.glob(f"top-*{store.SUFFIX}"))


def top_k(validations: Sequence[Validation], size: int, metric: str) -> list[Validation]:
    """The best of them, the best first; of equal ones the earlier."""
    return sorted(validations, key=lambda one: (METRIC_BY_NAME[metric].sort_key(one.mean), one.step))[:size]


def prune(folder: Path, top: Sequence[Validation]) -> None:
    """Take away what is no longer among the best; to be called once a checkpoint that says so is on the disk."""
    kept = {path(folder, one.step) for one in top}
    for other in paths(folder):
        if other not in kept:
            other.unlink()


def split_intact(folder: Path, top: Sequence[Validation]) -> tuple[list[Validation], list[str]]:
    """Those whose checkpoint can be read, and what is wrong with the others, which are set aside."""
    faults = [store.quarantine_if_damaged(path(folder, one.step)) for one in top]
    return [one for one, fault in zip(top, faults, strict=True) if not fault], [fault for fault in faults if fault]


def load_ensemble_members(folder: Path, size: int, metric: str) -> list[CheckpointState]:
    """What the best checkpoints of a run folder hold, at the most `size`, the best first.

    Raises:
        UserError: one is damaged, or the run kept none.
    """
    states: dict[Validation, CheckpointState] = {}
    for place in paths(folder):
        state = store.load(place)
        if state.last is None:
            raise UserError(f"checkpoint {place}: holds no validation, and so is none of an ensemble; take it away")
        states[state.last] = state
    if not states:
        raise UserError(
            f"eval.ensemble={size}: {relative_to_cwd(folder)} keeps its best checkpoint alone; "
            f"train with eval.ensemble={size}"
        )
    return [states[one] for one in top_k(list(states), size, metric)]


# --- judging the mean of several networks ------------------------------------------------------------------


def logits_objective(state: State) -> Tensor:
    """An objective that keeps what the network says."""
    found = state.model(state.data, state.updated_weights)
    state.measures["output"] = found.detach()
    return found.sum()


def score_logits(objective: Objective, metric: str, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and metric, each [tasks, steps], of outputs [tasks, steps, queries, width]; targets: [tasks, queries]."""

    def one(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        state = State(None, target, lambda data, weights: output, [])
        return objective(state), state.measures[metric]

    tasks, steps = outputs.shape[:2]
    losses, values = vmap(one)(outputs.flatten(0, 1), targets.repeat_interleave(steps, 0))
    return losses.view(tasks, steps), values.view(tasks, steps)
