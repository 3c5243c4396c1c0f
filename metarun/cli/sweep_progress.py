"""What a sweep tells: a line when a job ends, and its table when all have."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from metarun.errors import quote_override, relative_to_cwd
from metarun.metrics import METRIC_BY_NAME
from metarun.report import runs, text
from metarun.report.contents import contents
from metarun.report.formatting import duration, format_metric, plus_minus
from metarun.utils import files
from metarun.utils.run_outputs import RESULT

REPORT = "report.md"
sweep_configs: list[DictConfig] = []  # Hydra's config of the sweep that this command is


class SweepProgressCallback(Callback):
    """`hydra.callbacks.progress`: Hydra calls it when a sweep begins and around each job."""

    def __init__(self) -> None:
        self.jobs: int | None = None  # of the sweep, None where the sweeper alone knows
        self.ended = 0
        self.seconds: list[float] = []  # of the jobs that had work to do
        self.began = 0.0  # the present job, by the clock of files
        self.process = os.getpid()

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        self.jobs = job_count(config)
        sweep_configs[:] = [config]

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        self.began = time.time()

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if config.hydra.mode.name != "MULTIRUN":
            return
        now = time.time()
        folder = Path(config.hydra.runtime.output_dir)
        here = os.getpid() == self.process  # else a launcher's process, which knows of one job alone
        self.ended += 1
        result = folder / RESULT
        if job_return.status == JobStatus.COMPLETED and result.exists() and result.stat().st_mtime >= self.began:
            self.seconds.append(now - self.began)
        which = f"{self.ended} of {self.jobs}" if here and self.jobs else f"number {config.hydra.job.num}"
        came_to = "failed" if job_return.status == JobStatus.FAILED else f"done{outcome(result)}"
        print(f"job {which} {came_to}{self.left() if here else ''}", flush=True)

    def left(self) -> str:
        """How long the jobs to come take, if they take as long as those before."""
        if not self.jobs or not self.seconds or self.ended >= self.jobs:
            return ""
        return f", about {duration((self.jobs - self.ended) * sum(self.seconds) / len(self.seconds))} left"


def job_count(config: DictConfig) -> int | None:
    """Number of jobs of the sweep: the product of the swept values, or `n_trials`. None if unknown."""
    sweeper = config.hydra.sweeper
    if not str(sweeper.get("_target_", "")).endswith(".BasicSweeper"):
        return sweeper.get("n_trials")
    typed = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
    assert isinstance(typed, list)
    params = [f"{name}={value}" for name, value in (sweeper.get("params") or {}).items()]
    try:
        overrides = OverridesParser.create().parse_overrides([*params, *map(str, typed)])
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
    """What a finished job came to; nothing after one that tests nothing."""
    try:
        (run,) = runs.finished(result.parent)
    except ValueError:  # nothing to read, or the results of several evaluations
        return ""
    unit = METRIC_BY_NAME[run.metric].suffix
    return f": {run.metric} {format_metric(run.metric, run.mean)} {plus_minus(run.metric, run.ci95)}{unit}"


def print_sweep_table() -> None:
    """The table of the sweep that this command was, if it was one, on the terminal and as report.md in its folder.

    Raises:
        UserError, RunFailure, OSError: the folder cannot be read or written.
    """
    if not sweep_configs:
        return
    folder = Path(str(sweep_configs.pop().hydra.sweep.dir))
    places = runs.search(folder) if folder.is_dir() else ()
    read = runs.read(list(places))
    if not read.runs:
        return
    table = contents(read)
    files.atomic_write(folder / REPORT, text.markdown(table))
    place = relative_to_cwd(folder.resolve())
    print(f"\n{text.plain(table)}\n")
    print(
        f"the table is in {place / REPORT}; with plots: metarun mode=report {quote_override('runs', place)}", flush=True
    )
