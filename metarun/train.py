"""Episodic training: outer steps, validations, checkpoints, and stopping where nothing is lost."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from metarun import hparams
from metarun.errors import nearby, pasteable
from metarun.interrupt import noted_signals
from metarun.records import Records
from metarun.team import Team
from metarun.training import Training

log = logging.getLogger(__name__)


def train(
    team: Team, folder: Path, resume_from: Path | None = None, begin: Callable[[], object] = lambda: None
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
    training = Training(team, folder)
    if resume_from is not None:
        training.restore(resume_from)
        log.info("going on from %s", nearby(resume_from))
    sitting, before = time.perf_counter(), training.seconds
    bar = tqdm(total=settings.iterations, initial=training.step, desc="training", unit="step", disable=None)
    go_on = f"which is saved; go on with {pasteable('resume', nearby(folder))}"
    records = Records(folder, training.step, training.due, training.lines)
    begin()
    hparams.write(folder, settings)
    with records, noted_signals() as stop, logging_redirect_tqdm(), bar:
        training.records = records

        def validate() -> None:
            where = f"in the validation of step {training.step}, {go_on}"
            training.validate(records, lambda done: stop.raise_if_asked(where))

        if training.due:
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
            training.due = last or training.step % settings.eval.every == 0
            save = last or training.step % (settings.save.every or settings.eval.every) == 0
            if training.due or stop.number:
                training.save()  # before the validation, so that nothing is lost if it is cut short
            stop.raise_if_asked(f"after step {training.step}, {go_on}")
            if training.due:
                validate()
            if save:
                training.save()
    return training.best.mean if training.best else None
