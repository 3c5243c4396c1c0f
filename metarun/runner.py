"""Runs one job from its `Settings`: train and test, evaluate, or predict. Writes everything into its run folder."""

import logging
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from metarun.checkpointing import store
from metarun.config.eval_grid import expand_eval_grid
from metarun.config.schema import Settings
from metarun.data import TaskSampler
from metarun.distributed import launch
from metarun.distributed.group import build_group, launch_group, num_workers
from metarun.engine import warm_start
from metarun.engine.context import RunContext, build_context
from metarun.errors import RunFailure, UserError, quote_override, relative_to_cwd
from metarun.evaluation.evaluator import run_final_test, test_progress
from metarun.evaluation.results import results_csv, results_text, run_description, save_result, trained_on
from metarun.predict.predictor import predict
from metarun.training.loop import train
from metarun.utils import files, run_dir_lock
from metarun.utils.files import as_run_failure
from metarun.utils.run_dir_lock import AUTO
from metarun.utils.run_outputs import RESULT, RESULTS, read_result, write_result

log = logging.getLogger(__name__)


def run(settings: Settings, folder: Path, record: Callable[[], object] = lambda: None) -> float | None:
    """Train and test, evaluate, or predict, as `settings.mode` says; all output goes into `folder`.

    Args:
        record: writes the command into `folder`; called once the command can no longer be refused.

    Returns:
        The best validation metric of a training run, for a sweeper (accuracy: higher is better; mse: lower).

    Raises:
        UserError: a setting cannot be carried out, or a file is missing or damaged.
        FloatingPointError: a loss, gradient or result is not finite.
        RunFailure: the disk is full or fails, the folder was deleted, or another process of the run has ended.
        RunInterrupted: a SIGINT or SIGTERM asked for it.
    """
    began = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    timeout = run_dir_lock.LOCK_TIMEOUT if settings.resume == AUTO else 0
    with run_dir_lock.exclusive_run_dir(folder, record, timeout) as begin, report_disk_failure(folder, settings.mode):
        if settings.mode == "train":
            return train_and_test(settings, folder, began, begin)
        if settings.mode == "predict":
            predict(settings, folder, begin)
        else:
            evaluate(settings, folder, began, begin)
    return None


@contextmanager
def report_disk_failure(folder: Path, mode: str) -> Iterator[None]:
    """Turn errors of a full or failing disk into RunFailure, whose message says how to resume."""
    try:
        yield
    except (OSError, RunFailure) as error:
        failure = error if isinstance(error, RunFailure) else as_run_failure(error)
        if failure is None:
            raise
        how = store.recovery_hint(folder) if mode == "train" else "type the same again"
        raise RunFailure(f"{failure}; {how}") from error


def train_and_test(settings: Settings, folder: Path, began: float, begin: Callable[[], object]) -> float:
    """Train from scratch or the newest intact checkpoint, then test. Returns the best validation metric."""
    resume_from = None
    if settings.resume == AUTO and (folder / RESULT).exists():
        log.info("%s is finished already and skipped", relative_to_cwd(folder))
        return best_validation(folder)
    if settings.resume and (settings.resume != AUTO or store.list_step_checkpoints(folder)):
        resume_from = store.latest_intact_checkpoint(folder)
        for damaged in store.quarantine_newer_damaged(folder, resume_from):
            log.warning(
                "a checkpoint was damaged: it is kept as %s, and the one before it is used", relative_to_cwd(damaged)
            )
    with launch_group(settings, resume_from) as team:
        work = team.work
        untrained = warm_start.initial_parameters(work, folder / "checkpoints", begins=resume_from is None)
        what = run_description(work, trained_on(work))
        log.info("training %s for %d iterations in %s", what, settings.iterations, relative_to_cwd(folder))
        best = train(team, folder, resume_from, begin)
        if best is None:
            raise FloatingPointError(
                f"no validation was finite, so there is nothing to test; {relative_to_cwd(folder)} has the checkpoints"
            )
        again = f"; go on with {quote_override('resume', relative_to_cwd(folder))}"
        with test_progress(settings.eval.tasks, lambda: again) as progress:
            found = run_final_test(team, folder, store.best_checkpoint_path(folder), untrained, progress)
    save_result(folder, found, began)
    place = relative_to_cwd(folder)
    log.info("everything is in %s; look at it with: tensorboard --logdir %s", place, shlex.quote(str(place)))
    return best


def best_validation(folder: Path) -> float:
    """The best validation metric of a finished run. Raises UserError if its result.json cannot be read."""
    try:
        return float(read_result(folder)["validation"]["mean"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise UserError(
            f"{relative_to_cwd(folder / RESULT)}: is damaged ({type(error).__name__}); "
            "take it away, and resume=auto tests again"
        ) from error


def evaluate(settings: Settings, folder: Path, began: float, begin: Callable[[], object]) -> None:
    """Evaluate a checkpoint for every combination of the lists in `eval.*`; all are checked before the first runs."""
    path = store.resolve_checkpoint(Path(str(settings.checkpoint)).expanduser())
    sources: dict[str, TaskSampler] = {}
    results: list[dict[str, Any]] = []
    with launch.launch_workers(num_workers(settings)) as (process, workers):
        works = [
            build_context(one, process, path, sources=sources, verbose=number == 0)
            for number, one in enumerate(expand_eval_grid(settings))
        ]
        weights = store.load(path).weights
        for work in works:
            work.match_head(weights)
            if len(works) > 1:
                run_dir_lock.require_free(evaluation_dir(folder, work), settings.mode, None)
        begin()
        with test_progress(len(works) * settings.eval.tasks, lambda: finished_message(results, folder)) as progress:
            for work in works:
                place = folder if len(works) == 1 else evaluation_dir(folder, work)
                place.mkdir(exist_ok=True)
                with build_group(work, process, workers) as team:
                    untrained = warm_start.initial_parameters(work, path.parent, begins=False)
                    found = run_final_test(team, place, path, untrained, progress)
                results.append(save_result(place, found, began))
                files.atomic_write(folder / RESULTS, results_csv(results))
    if len(works) > 1:
        write_result(folder, {"checkpoint": str(path.resolve()), "results": results})
        for line in results_text(results):
            log.info("%s", line)
    log.info("everything is in %s", relative_to_cwd(folder))


def evaluation_dir(folder: Path, work: RunContext) -> Path:
    """The subfolder of one evaluation among several; its content is that of a folder with a single evaluation."""
    ways = f"{work.eval_shape.ways}-way-" if work.source.is_classification else ""
    task = f"{ways}{work.eval_shape.shots}-shot-{work.eval_inner_loop}-steps"
    return folder / f"{work.settings.dataset.name}-{work.settings.eval.split}-{task}"


def finished_message(results: list[dict[str, Any]], folder: Path) -> str:
    """The end of the message of an interrupted evaluation: where the finished ones are; empty if there are none."""
    return f", {len(results)} finished ones are in {relative_to_cwd(folder / RESULTS)}" if results else ""
