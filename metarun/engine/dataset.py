"""The data set of a run, and the preprocessing of its images where a checkpoint prescribes it."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from metarun.checkpointing.state import CheckpointState
from metarun.config.groups import Sinusoid
from metarun.config.schema import Settings
from metarun.data import DataPaths, TaskSampler, load, preprocessing
from metarun.data.image_sampler import ImageTaskSampler
from metarun.errors import UserError


def load_dataset(settings: Settings, device: torch.device, like: ImageTaskSampler | None = None) -> TaskSampler:
    """Loads the data set of `settings`. Its images are preprocessed like those of `like`, if given."""
    options = asdict(settings.dataset)
    paths = DataPaths(Path(settings.data_dir).expanduser(), Path(settings.cache_dir).expanduser(), settings.download)
    return load(options.pop("name"), paths, device, like, **options)


def preprocessing_from_checkpoint(state: CheckpointState, path: str, device: torch.device) -> ImageTaskSampler:
    """A sampler without images that has a checkpoint's preprocessing. Raises UserError if the checkpoint has none."""
    if state.pictures is None:
        raise UserError(f"checkpoint {path}: does not say what its pictures look like; train it again")
    return preprocessing.empty_sampler(state.pictures, device)


def preprocessing_for_eval_dataset(
    dataset: Any, state: CheckpointState, path: str, device: torch.device
) -> ImageTaskSampler | None:
    """`preprocessing_from_checkpoint` for an evaluation on `dataset`; None if the checkpoint was trained on it.

    Raises:
        UserError: one of the two data sets has no images, or the checkpoint holds no preprocessing.
    """
    trained_on = state.settings.dataset
    if all(getattr(trained_on, key, None) == getattr(dataset, key, None) for key in ("name", "root")):
        return None
    if Sinusoid.name in (trained_on.name, dataset.name):
        raise UserError(
            f"dataset={dataset.name}: checkpoint {path} was trained on {trained_on.name}; one of them has no pictures"
        )
    return preprocessing_from_checkpoint(state, path, device)


def require_same_pictures(dataset: Any, source: TaskSampler, state: CheckpointState) -> None:
    """Raises UserError if `dataset.root` differs from the checkpoint's, and the training pictures in it as well."""
    root = getattr(dataset, "root", None)
    if root == getattr(state.settings.dataset, "root", None):
        return
    now, before = (asdict(one) if one else {} for one in (preprocessing.image_preprocessing(source), state.pictures))
    changes = [f"their {name} was {before.get(name)}, is {now[name]}" for name in now if now[name] != before.get(name)]
    if changes:
        raise UserError(
            f"dataset.root={root}: its training pictures are not those that the run was trained on "
            f"({'; '.join(changes)}); give the folder where they are now, or start a new run"
        )
