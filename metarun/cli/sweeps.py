"""Sweeps: checks before them, set-up of their jobs in launchers' processes, progress lines and the table of results."""

import logging
import math
import os
import signal
import time
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from metarun.cli.overrides import task_overrides
from metarun.config.groups import Sinusoid
from metarun.errors import UserError, quote_override, relative_to_cwd
from metarun.metrics import ACCURACY, MSE
from metarun.report import runs, text
from metarun.report.contents import contents
from metarun.utils import console, files
from metarun.utils.run_outputs import RESULT
from metarun.utils.signals import end_with_parent
from metarun.utils.text import LogFormatter, duration

ALL_AT_ONCE = "submitit_local"  # launcher that starts all jobs of a sweep at once
REPORT = "report.md"
sweep_configs: list[DictConfig] = []  # Hydra's config of the sweep that this command runs


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
    """Check the sweeper before any job begins, by the dataset and mode that all jobs share."""
    overrides = OverridesParser.create().parse_overrides(task_overrides(config.hydra))
    swept = {override.key_or_group for override in overrides if override.is_sweep_override()}
    dataset = None if swept & {"dataset", "experiment"} else OmegaConf.select(config, "dataset.name")
    check_sweeper(config.hydra, dataset, None if "mode" in swept else config.mode)


def check_sweeper(hydra: Any, dataset: str | None, mode: str | None) -> None:
    """Check that a sweeper which optimizes does so in the direction of the validation metric that jobs return.

    Args:
        hydra: Hydra's config.
        dataset: name of the dataset; None if the jobs have different ones.
        mode: `mode=` of the jobs; None if they have different ones.

    Raises:
        UserError: the direction is not the metric's, or the mode has no validation.
    """
    direction = OmegaConf.select(hydra, "sweeper.direction")
    if direction is None:  # a sweeper that ignores what jobs return
        return
    if mode not in (None, "train"):
        raise UserError(
            f"mode={mode}: hydra/sweeper={choice(hydra, 'sweeper')} searches by the validation metric, which only "
            "mode=train has; leave the sweeper out"
        )
    if dataset is None:
        return
    metric = MSE if dataset == Sinusoid.name else ACCURACY
    given = str(getattr(direction, "name", direction)).replace(" ", "")
    if given != metric.direction:
        better = "higher" if metric.higher_is_better else "lower"
        raise UserError(
            f"hydra.sweeper.direction={given}: a job on dataset={dataset} returns its best validation {metric.name}, "
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


class SweepProgressCallback(Callback):
    """`hydra.callbacks.progress`: prints a line when a job of a sweep ends."""

    def __init__(self) -> None:
        self.jobs: int | None = None  # number of jobs; None if only the sweeper knows it
        self.ended = 0
        self.seconds: list[float] = []  # durations of the jobs that were not skipped
        self.began = 0.0  # start of the current job, in time.time()
        self.process = os.getpid()

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        self.jobs = job_count(config)
        sweep_configs[:] = [config]

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        self.began = time.time()

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if config.hydra.mode.name != "MULTIRUN":
            return
        self.ended += 1
        result = Path(config.hydra.runtime.output_dir) / RESULT
        if job_return.status == JobStatus.COMPLETED and result.exists() and result.stat().st_mtime >= self.began:
            self.seconds.append(time.time() - self.began)
        number, time_left = f"number {config.hydra.job.num}", ""
        if self.jobs and os.getpid() == self.process:  # else a launcher's process, which knows one job only
            number = f"{self.ended} of {self.jobs}"
            if self.seconds and self.ended < self.jobs:
                mean_seconds = sum(self.seconds) / len(self.seconds)
                time_left = f", about {duration((self.jobs - self.ended) * mean_seconds)} left"
        status = "failed" if job_return.status == JobStatus.FAILED else f"done{outcome(result)}"
        print(f"job {number} {status}{time_left}", flush=True)


def job_count(config: DictConfig) -> int | None:
    """Number of jobs of the sweep: the product of the swept values, or `n_trials`. None if unknown."""
    sweeper = config.hydra.sweeper
    if not str(sweeper.get("_target_", "")).endswith(".BasicSweeper"):
        return sweeper.get("n_trials")
    params = [f"{name}={value}" for name, value in (sweeper.get("params") or {}).items()]
    try:
        overrides = OverridesParser.create().parse_overrides([*params, *task_overrides(config.hydra)])
    except HydraException:  # reported by the sweeper
        return None
    if any(override.is_sweep_override() and not override.is_discrete_sweep() for override in overrides):
        return None  # an interval, which the sweeper refuses
    counts = {  # by key: a later override of a key replaces an earlier one
        override.get_key_element(): len(list(override.sweep_string_iterator())) if override.is_sweep_override() else 1
        for override in overrides
    }
    return math.prod(counts.values())


def outcome(result: Path) -> str:
    """`: METRIC MEAN ± CI` of the finished job whose result.json is `result`; empty if it has no single result."""
    try:
        (run,) = runs.finished(result.parent)
    except ValueError:  # nothing to read, or the results of several evaluations
        return ""
    metric = run.metric
    return f": {metric.name} {metric.format(run.mean)} {metric.format_ci95(run.ci95)}{metric.suffix}"


def print_sweep_table() -> None:
    """Print the table of results if this command was a sweep, and write it to report.md in the sweep's folder.

    Raises:
        UserError, RunFailure, OSError: the folder cannot be read or written.
    """
    if not sweep_configs:
        return
    folder = Path(str(sweep_configs.pop().hydra.sweep.dir))
    finished = runs.read(list(runs.search(folder)) if folder.is_dir() else [])
    if not finished.runs:
        return
    table = contents(finished)
    files.atomic_write(folder / REPORT, text.markdown(table))
    path = relative_to_cwd(folder.resolve())
    print(f"\n{text.plain(table)}\n")
    print(
        f"the table is in {path / REPORT}; with plots: metarun mode=report {quote_override('runs', path)}", flush=True
    )
