"""The best checkpoints by validation, kept for an ensemble of their networks at test (`eval.ensemble`).

As in MAML++'s code (Antoniou, Edwards, Storkey 2019, arXiv 1810.09502), each network adapts to the task by itself, and
a query's prediction is the mean of their outputs: logits for classification, the value itself for regression.
"""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from torch.func import vmap

from metarun.checkpointing import store
from metarun.checkpointing.state import CheckpointState, Validation
from metarun.core.objectives import Objective, State
from metarun.errors import UserError, relative_to_cwd
from metarun.metrics import METRIC_BY_NAME


def member_path(folder: Path, step: int) -> Path:
    return store.best_checkpoint_path(folder).with_name(f"top-{step:08d}{store.SUFFIX}")


def member_paths(folder: Path) -> list[Path]:
    return sorted(store.best_checkpoint_path(folder).parent.glob(f"top-*{store.SUFFIX}"))


def top_k(validations: Sequence[Validation], size: int, metric: str) -> list[Validation]:
    """The `size` best validations by their mean metric, the best first; the earlier step wins a tie."""
    return sorted(validations, key=lambda v: (METRIC_BY_NAME[metric].sort_key(v.mean), v.step))[:size]


def prune(folder: Path, top: Sequence[Validation]) -> None:
    """Delete the members that are not in `top`. Call it after a checkpoint with this `top` is on the disk."""
    for path in set(member_paths(folder)) - {member_path(folder, validation.step) for validation in top}:
        path.unlink()


def split_intact(folder: Path, top: Sequence[Validation]) -> tuple[list[Validation], list[str]]:
    """The validations whose checkpoint is intact, and a message for each other one, which is renamed *.damaged."""
    errors = [store.quarantine_if_damaged(member_path(folder, validation.step)) for validation in top]
    return [v for v, error in zip(top, errors, strict=True) if not error], [error for error in errors if error]


def load_ensemble_members(folder: Path, size: int, metric: str) -> list[CheckpointState]:
    """Load the best checkpoints of a run folder, at most `size`, the best first.

    Raises:
        UserError: one is damaged or has no validation, or the run kept none.
    """
    states: dict[Validation, CheckpointState] = {}
    for path in member_paths(folder):
        state = store.load(path)
        if state.last is None:
            raise UserError(f"checkpoint {path}: has no validation to rank it by; remove it")
        states[state.last] = state
    if not states:
        raise UserError(
            f"eval.ensemble={size}: {relative_to_cwd(folder)} keeps its best checkpoint alone; "
            f"train with eval.ensemble={size}"
        )
    return [states[validation] for validation in top_k(list(states), size, metric)]


def logits_objective(state: State) -> Tensor:
    """Objective that records the network's outputs [queries, width] as the measure `output`."""
    logits = state.model(state.data, state.updated_weights)
    state.measures["output"] = logits.detach()
    return logits.sum()


def score_logits(objective: Objective, metric: str, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and metric of given outputs, each [tasks, steps].

    Args:
        outputs: [tasks, steps, queries, width].
        targets: [tasks, queries] labels, or [tasks, queries, 1] values.
    """

    def score(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        state = State(None, target, lambda data, weights: output, [])
        return objective(state), state.measures[metric]

    tasks, steps = outputs.shape[:2]
    losses, values = vmap(score)(outputs.flatten(0, 1), targets.repeat_interleave(steps, 0))
    return losses.view(tasks, steps), values.view(tasks, steps)
