"""Data sets that a network did not learn: their pictures are made to look like those that it did."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from metarun.checkpointing.state import CheckpointState
from metarun.config.groups import Sinusoid
from metarun.data import preprocessing
from metarun.data.image_sampler import ImageTaskSampler
from metarun.data.task_sampler import TaskSampler
from metarun.errors import UserError


def preprocessing_from_checkpoint(state: CheckpointState, path: str, device: torch.device) -> ImageTaskSampler:
    """What brings pictures into the form of those that a checkpoint learned. Raises UserError where it learned none."""
    if state.pictures is None:
        raise UserError(f"checkpoint {path}: does not say what its pictures look like; train it again")
    return preprocessing.empty_sampler(state.pictures, device)


def preprocessing_for_eval_dataset(
    dataset: Any, state: CheckpointState, path: str, device: torch.device
) -> ImageTaskSampler | None:
    """The form that `dataset`, a choice with its keys, is brought into; None where the checkpoint learned it.

    Raises:
        UserError: one of the two has pictures and the other curves, or as `form_learned`.
    """
    learned = state.settings.dataset
    if all(getattr(learned, key, None) == getattr(dataset, key, None) for key in ("name", "root")):
        return None
    if Sinusoid.name in (learned.name, dataset.name):
        raise UserError(f"dataset={dataset.name}: checkpoint {path} learned {learned.name}; one has no pictures")
    return preprocessing_from_checkpoint(state, path, device)


def require_same_pictures(dataset: Any, source: TaskSampler, state: CheckpointState) -> None:
    """Raises UserError where `dataset.root` is another than the run's, and so are the training pictures in it."""
    root = getattr(dataset, "root", None)
    if root == getattr(state.settings.dataset, "root", None):
        return
    now, before = (asdict(one) if one else {} for one in (preprocessing.image_preprocessing(source), state.pictures))
    differ = [f"their {name} was {before.get(name)}, is {now[name]}" for name in now if now[name] != before.get(name)]
    if differ:
        raise UserError(
            f"dataset.root={root}: its training pictures are not those that the run learned ({'; '.join(differ)}); "
            "give the folder that it was trained on, where it is now, or start a new run"
        )
