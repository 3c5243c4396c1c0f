"""Checks of a sweep, and the set-up of its jobs in the processes of Hydra's launchers."""

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

ALL_AT_ONCE = "submitit_local"  # launcher that starts all jobs of a sweep at once


class CheckpointChoices(metaclass=Singleton):
    """Group choices of a checkpoint that were added before the overrides of the command line.

    A singleton, since Hydra's launchers pass the state of its singletons to the processes of their jobs.
    """

    def __init__(self) -> None:
        self.choices: list[str] = []
        self.process: int | None = None  # process id of the command


orphaned: list[bool] = []  # not empty if the command has ended and this is a process of one of its jobs
watching: list[bool] = []  # not empty if this process watches for the end of the command


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
    """Name of the chosen `launcher` or `sweeper`; None if unknown."""
    return hydra.runtime.choices.get(f"hydra/{group}")


def set_omp_threads(hydra: Any) -> None:
    """Set OMP_NUM_THREADS to the number of cores of this job, if it is unset; called before torch is imported.

    joblib and Ray set OMP_NUM_THREADS for their jobs. Those of submitit's local executor run all at once and take
    hydra.launcher.cpus_per_task each, or one; a job of SLURM takes the cores that it was given.
    """
    cores = os.environ.get("SLURM_CPUS_PER_TASK")
    if choice(hydra, "launcher") == ALL_AT_ONCE:
        cores = OmegaConf.select(hydra, "launcher.cpus_per_task") or 1
    if cores:
        os.environ.setdefault("OMP_NUM_THREADS", str(cores))


def prepare_job_process(hydra: Any) -> None:
    """In a process of joblib: prefix log lines with the job's number, and stop the job when the command ends.

    A training run then finishes its outer step and saves a checkpoint.
    """
    if choice(hydra, "launcher") != "joblib" or CheckpointChoices().process in (None, os.getpid()):
        return
    console.prepare()
    for handler in logging.root.handlers:
        if not isinstance(handler, logging.FileHandler):
            handler.setFormatter(LogFormatter(f"job {hydra.job.num}: %(message)s"))
    if not watching:
        watching.append(True)
        end_with_parent(stop_orphaned_job)


def stop_orphaned_job() -> None:
    orphaned.append(True)
    os.kill(os.getpid(), signal.SIGTERM)


def tag_job_error(error: Exception, job: str) -> None:
    """Store in the error which job it ended, and whether it was printed; submitit's jobs print to files."""
    error.__dict__.update(metarun_job=job, metarun_printed="SUBMITIT_EXECUTOR" not in os.environ)


def was_printed(error: Exception) -> bool:
    return bool(error.__dict__.get("metarun_printed"))


def job_prefix(error: Exception) -> str:
    """`job 3 (seed=3): ` if the error ended a job of a sweep, else empty."""
    job = error.__dict__.get("metarun_job")
    return f"{job}: " if job else ""
