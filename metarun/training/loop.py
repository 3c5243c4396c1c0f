"""Episodic training: outer steps, validations, checkpoints, and stopping where nothing is lost."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from metarun.distributed.task_parallel import TaskParallelGroup
from metarun.errors import quote_override, relative_to_cwd
from metarun.loggers import hparams
from metarun.loggers.run_logger import RunLogger
from metarun.training.trainer import Trainer
from metarun.utils.signals import defer_signals

log = logging.getLogger(__name__)


def train(
    team: TaskParallelGroup, folder: Path, resume_from: Path | None = None, begin: Callable[[], object] = lambda: None
) -> float | None:
    """Train to `iterations`, validating and saving on the way; SIGINT, SIGTERM and SIGUSR1 save and stop.

    Args:
        begin: is called when the run can no longer be refused.

    Returns:
        The best validation metric.

    Raises:
        Stopped: a signal asked for it; the newest checkpoint is of this step.
    """
    settings = team.work.settings
    training = Trainer(team, folder)
    if resume_from is not None:
        training.load_state_dict(resume_from)
        log.info("going on from %s", relative_to_cwd(resume_from))
    sitting, before = time.perf_counter(), training.seconds
    bar = tqdm(total=settings.iterations, initial=training.step, desc="training", unit="step", disable=None)
    go_on = f"which is saved; go on with {quote_override('resume', relative_to_cwd(folder))}"
    records = RunLogger(folder, training.step, training.validation_pending, training.lines)
    begin()
    hparams.write_hparams(folder, settings)
    with records, defer_signals() as stop, logging_redirect_tqdm(), bar:
        training.records = records

        def validate() -> None:
            where = f"in the validation of step {training.step}, {go_on}"
            training.validate(records, lambda done: stop.raise_if_asked(where))

        if training.validation_pending:
            validate()
            training.save()
        while training.step < settings.iterations:
            compiling = team.compiles(training.step, training.second_order)
            if compiling:
                bar.set_description("compiling")
            scalars = training.outer_step_or_save()
            if compiling:
                bar.set_description("training")
            training.seconds = before + time.perf_counter() - sitting
            training.record(records, scalars)
            bar.update()
            bar.set_postfix({name: f"{value:.3f}" for name, value in scalars.items()}, refresh=False)
            last = training.step == settings.iterations
            training.validation_pending = last or training.step % settings.eval.every == 0
            save = last or training.step % (settings.save.every or settings.eval.every) == 0
            if training.validation_pending or stop.number:
                training.save()  # before the validation, so that nothing is lost if it is cut short
            stop.raise_if_asked(f"after step {training.step}, {go_on}")
            if training.validation_pending:
                validate()
            if save:
                training.save()
    return training.best.mean if training.best else None
