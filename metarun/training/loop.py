"""The training loop: outer steps, validations and checkpoints, until the last step or a signal."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from metarun.distributed.task_parallel import TaskParallelGroup
from metarun.errors import quote_override, relative_to_cwd
from metarun.loggers import open_loggers
from metarun.loggers.base import ResumePoint, hparam_dict
from metarun.training.trainer import Trainer
from metarun.utils.signals import StopRequest, defer_signals

log = logging.getLogger(__name__)


def train(
    team: TaskParallelGroup,
    folder: Path,
    resume_from: Path | None = None,
    on_begin: Callable[[], object] = lambda: None,
) -> float | None:
    """Train up to outer step `iterations`, validating and saving on the way, and return the best validation metric.

    SIGINT, SIGTERM and SIGUSR1 let the current step end, save a checkpoint and stop.

    Args:
        team: the processes that share the run's tasks.
        folder: of the run; metrics, TensorBoard files and checkpoints go there.
        resume_from: a checkpoint of this run to continue from.
        on_begin: called once the run can no longer be refused.

    Returns:
        The best validation metric, or None if no validation was finite.

    Raises:
        UserError: the checkpoint or metrics.jsonl does not belong to this run, or is damaged.
        FloatingPointError: the loss or a gradient is non-finite; the step before is saved.
        RunInterrupted: a signal asked the run to stop; the newest checkpoint is of this step.
    """
    settings = team.work.settings
    trainer = Trainer(team, folder)
    if resume_from is not None:
        trainer.load_state_dict(resume_from)
        log.info("going on from %s", relative_to_cwd(resume_from))
    bar = tqdm(total=settings.iterations, initial=trainer.step, desc="training", unit="step", disable=None)
    start = ResumePoint(trainer.step, trainer.validation_pending, trainer.num_lines)
    with open_loggers(folder, start) as loggers, defer_signals() as stop, logging_redirect_tqdm(), bar:
        on_begin()
        trainer.loggers = loggers
        for logger in loggers:
            logger.log_hparams(hparam_dict(settings), finished=False)
        run_steps(trainer, stop, bar)
    return trainer.best.mean if trainer.best else None


def run_steps(trainer: Trainer, stop: StopRequest, bar: tqdm) -> None:
    """Perform the outer steps, validations and saves that are left. Raises as `train` does."""
    settings, session_start, seconds_before = trainer.work.settings, time.perf_counter(), trainer.seconds
    how_to_resume = f"which is saved; go on with {quote_override('resume', relative_to_cwd(trainer.folder))}"

    def validate() -> None:
        where = f"in the validation of step {trainer.step}, {how_to_resume}"
        trainer.validate(lambda done: stop.raise_if_asked(where))

    if trainer.validation_pending:
        validate()
        trainer.save()
    while trainer.step < settings.iterations:
        compiling = trainer.team.compiles(trainer.step, trainer.second_order)
        if compiling:
            bar.set_description("compiling")
        scalars = trainer.outer_step_or_save()
        if compiling:
            bar.set_description("training")
        trainer.seconds = seconds_before + time.perf_counter() - session_start
        trainer.record(scalars)
        bar.update()
        bar.set_postfix({name: f"{value:.3f}" for name, value in scalars.items()}, refresh=False)
        last = trainer.step == settings.iterations
        trainer.validation_pending = last or trainer.step % settings.eval.every == 0
        save = last or trainer.step % (settings.save.every or settings.eval.every) == 0
        if trainer.validation_pending or stop.number:
            trainer.save()  # before the validation, so that an interrupted validation loses no step
        stop.raise_if_asked(f"after step {trainer.step}, {how_to_resume}")
        if trainer.validation_pending:
            validate()
        if save:
            trainer.save()
