"""The interface of a logger: what a run records, and when."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metarun.config.groups import CONFIG_GROUPS, choice_name
from metarun.config.schema import MACHINE_KEYS, Settings, iter_options

EXECUTION_KEYS = ("save.", "engine.", "eval.every", "eval.tasks", "eval.validation_tasks")  # prefixes


class ResumePoint(NamedTuple):
    """Where a training session begins. What a killed session logged beyond it is dropped or hidden."""

    step: int  # outer steps done; 0 for a new run
    validation_pending: bool  # whether the validation of `step` is still to be done
    num_lines: int = 0  # lines of metrics.jsonl that the checkpoint counts


class Logger:
    """Records a run. A subclass overrides the methods of what it records, and is listed in `metarun.loggers.LOGGERS`.

    Every method raises RunFailure if the disk is full or fails, or if the run folder is gone.
    """

    num_lines = 0  # lines of metrics.jsonl, which checkpoints count

    def __init__(self, folder: Path, start: ResumePoint | None) -> None:
        """Open the outputs of run folder `folder`, for training from `start` on; None: for the final test."""

    def log_scalars(
        self, step: int, scalars: Mapping[str, float], split: str | None = None, seconds: float = 0.0
    ) -> None:
        """Record scalars by tag; the part of a tag before the first `/` is its group.

        Args:
            split: "train" or "val" for the loss and metric of training and validation; None for other scalars.
            seconds: training time up to `step`.
        """

    def log_images(self, step: int, images: Mapping[str, bytes]) -> None:
        """Record PNG images by tag."""

    def log_histograms(self, step: int, histograms: Mapping[str, np.ndarray]) -> None:
        """Record the distribution of each array's values by tag."""

    def log_hparams(self, hparams: Mapping[str, Any], finished: bool) -> None:
        """Record the run's `hparam_dict`: when a session begins, and after the final test."""

    def flush(self) -> None:
        """Write everything to the disk. Called before each checkpoint."""

    def close(self) -> None:
        """Close the outputs."""


def hparam_dict(settings: Settings) -> dict[str, Any]:
    """The settings that define what a run computes, by dotted key; null ones are left out, lists are text."""
    choices = {group: choice_name(getattr(settings, group)) for group in CONFIG_GROUPS}
    options = {
        key: str(value) if isinstance(value, list) else value
        for key, _, value in iter_options(settings)
        if value is not None and key not in MACHINE_KEYS and not key.startswith(EXECUTION_KEYS)
    }
    return {**choices, **options}
