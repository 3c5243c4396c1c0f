"""What a sweep's jobs need besides their settings, whichever sweeper and launcher of Hydra starts them."""

from __future__ import annotations

import logging
import os
import signal
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.singleton import Singleton
from omegaconf import DictConfig, OmegaConf

from metarun.cli.overrides import task_overrides
from metarun.config.groups import Sinusoid
from metarun.errors import UserError
from metarun.metrics import ACCURACY, MSE
from metarun.utils import console
from metarun.utils.signals import end_with_parent
from metarun.utils.text import LogFormatter

ALL_AT_ONCE = "submitit_local"  # a launcher that starts every job of a sweep together


class CheckpointChoices(metaclass=Singleton):
    """Choices of groups that a checkpoint brings, put before what is typed.

    Hydra's launchers hand the instances of its singletons to the processes of their jobs.
    """

    def __init__(self) -> None:
        self.choices: list[str] = []
        self.process: int | None = None  # the command's


left_alone: list[bool] = []  # not empty where the command has ended whose job this process computes
attending: list[bool] = []  # not empty where it is noticed


def check_sweep(config: DictConfig) -> None:
    """`check_sweeper` before any job begins, as far as the jobs are alike."""
    overrides = OverridesParser.create().parse_overrides(task_overrides(config.hydra))
    swept = {override.key_or_group for override in overrides if override.is_sweep_override()}
    dataset = None if swept & {"dataset", "experiment"} else OmegaConf.select(config, "dataset.name")
    check_sweeper(config.hydra, dataset, None if "mode" in swept else config.mode)


def check_sweeper(hydra: Any, dataset: str | None, mode: str | None) -> None:
    """Refuse a sweeper that would search for the worst value, or for one that there is not.

    A training run returns its best validation metric, never the test's. None: not the same for all jobs.

    Raises:
        UserError: the direction is not the metric's, or the mode has no validation.
    """
    direction = OmegaConf.select(hydra, "sweeper.direction")
    if direction is None:  # a sweeper that takes no notice of what jobs return
        return
    if mode not in (None, "train"):
        raise UserError(
            f"mode={mode}: hydra/sweeper={choice(hydra, 'sweeper')} searches by the validation metric, which only "
            "mode=train has; leave the sweeper out"
        )
    if dataset is None:
        return
    metric = MSE if dataset == Sinusoid.name else ACCURACY
    better = "higher" if metric.higher_is_better else "lower"
    found = str(getattr(direction, "name", direction)).replace(" ", "")
    if found != metric.direction:
        raise UserError(
            f"hydra.sweeper.direction={found}: a job on dataset={dataset} returns its best validation {metric.name}, "
            f"the {better} the better; give hydra.sweeper.direction={metric.direction}"
        )


def choice(hydra: Any, group: str) -> str | None:
    """Which launcher or sweeper is chosen."""
    return hydra.runtime.choices.get(f"hydra/{group}")


def set_omp_threads(hydra: Any) -> None:
    """Tell torch, before it is imported, how many of the machine's cores are this job's, where nobody has.

    joblib and Ray set OMP_NUM_THREADS for their jobs. Those of submitit's local executor run all at once and take
    hydra.launcher.cpus_per_task each, or one; a job of SLURM takes the cores that it was given.
    """
    cores = os.environ.get("SLURM_CPUS_PER_TASK")
    if choice(hydra, "launcher") == ALL_AT_ONCE:
        cores = OmegaConf.select(hydra, "launcher.cpus_per_task") or 1
    if cores:
        os.environ.setdefault("OMP_NUM_THREADS", str(cores))


def attend(hydra: Any) -> None:
    """What a process of joblib does for a job: its lines have the job's number, and it ends with the command.

    A run that is being trained ends its step and saves.
    """
    if choice(hydra, "launcher") != "joblib" or CheckpointChoices().process in (None, os.getpid()):
        return
    console.prepare()
    for handler in logging.root.handlers:
        if not isinstance(handler, logging.FileHandler):
            handler.setFormatter(LogFormatter(f"job {hydra.job.num}: %(message)s"))
    if not attending:
        attending.append(True)
        end_with_parent(stop_alone)


def stop_alone() -> None:
    left_alone.append(True)
    os.kill(os.getpid(), signal.SIGTERM)


def tag_job_error(error: Exception, job: str) -> None:
    """Note in an error which job it ended, and whether that was told where a person sees it: submitit's write files."""
    error.__dict__.update(metarun_job=job, metarun_told="SUBMITIT_EXECUTOR" not in os.environ)


def was_told(error: Exception) -> bool:
    return bool(error.__dict__.get("metarun_told"))


def job_prefix(error: Exception) -> str:
    """`job 3 (seed=3): ` where the error ended a sweep's job."""
    job = error.__dict__.get("metarun_job")
    return f"{job}: " if job else ""
