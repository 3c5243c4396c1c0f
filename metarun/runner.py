"""The job behind a command: train and test, evaluate, or predict; leaves a run folder that explains itself."""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from metarun import __version__, checkpoint
from metarun.data import Shape
from metarun.errors import RunFailure, UserError, nearby, pasteable
from metarun.evaluation import Evaluation
from metarun.interrupt import noted_signals
from metarun.predict import predict
from metarun.records import RESULT, read_result, write_result
from metarun.schema import AUTO, Settings
from metarun.team import Team, assembled
from metarun.train import train
from metarun.whole_files import plain, remove_parts
from metarun.work import Work

log = logging.getLogger(__name__)


def run(settings: Settings, folder: Path) -> float | None:
    """Do what `mode` says; everything it leaves lies in `folder`.

    Returns:
        The best validation metric of a training run, for a sweeper (accuracy: higher is better; mse: lower).

    Raises:
        UserError: something that was asked for cannot be had.
        FloatingPointError: a loss is not finite.
        RunFailure: the disk is full or fails, the folder was deleted, or another process of the run has ended.
        Stopped: a signal asked for it.
    """
    began = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    with alone(folder), rescued(folder, settings.mode):
        if settings.mode == "train":
            return train_and_test(settings, folder, began)
        if settings.mode == "predict":
            predict(settings, folder)
        else:
            path = checkpoint.find(Path(str(settings.checkpoint)).expanduser())
            with assembled(settings, path) as team:
                test(team, folder, path, team.work.snapshot(), began)
    return None


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """No two processes write to one run folder. The lock dies with its process."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(
            f"{nearby(folder)}: another process is writing to this run folder; wait for it, stop it or give another"
        ) from error
    try:
        remove_parts(folder)
        yield
    finally:
        lock.release()


@contextmanager
def rescued(folder: Path, mode: str) -> Iterator[None]:
    """A failing disk ends the run with RunFailure, which says how to go on."""
    try:
        yield
    except (OSError, RunFailure) as error:
        failure = error if isinstance(error, RunFailure) else plain(error)
        if failure is None:
            raise
        how = checkpoint.rescue(folder) if mode == "train" else "type the same again"
        raise RunFailure(f"{failure}; {how}") from error


def train_and_test(settings: Settings, folder: Path, began: float) -> float:
    """Train, from the beginning or from what is in the folder, and test; returns the best validation metric."""
    resume_from = None
    if settings.resume == AUTO and (folder / RESULT).exists():
        log.info("%s is finished already and skipped", nearby(folder))
        return read_result(folder)["validation"]["mean"]
    if settings.resume and (settings.resume != AUTO or checkpoint.steps(folder)):
        resume_from = checkpoint.newest(folder)
        for damaged in checkpoint.set_damaged_aside(folder, resume_from):
            log.warning("a checkpoint was damaged: it is kept as %s, and the one before it is used", nearby(damaged))
    with assembled(settings, resume_from) as team:
        work, untrained = team.work, team.work.snapshot()
        what = title(work, work.train_shape)
        log.info("training %s for %d iterations in %s", what, settings.iterations, nearby(folder))
        best = train(team, folder, resume_from)
        if best is None:
            raise FloatingPointError(
                f"no validation was finite, so there is nothing to test; {nearby(folder)} has the checkpoints"
            )
        test(team, folder, checkpoint.best_path(folder), untrained, began)
    return best


def test(team: Team, folder: Path, path: Path, untrained: dict[str, Any], began: float) -> None:
    """The test tasks with a checkpoint's parameters and with untrained ones: result.json and the last lines."""
    content = checkpoint.load(path)
    work = team.work
    tasks = work.settings.eval.tasks
    with noted_signals() as stop, tqdm(total=2 * tasks, desc="testing", unit="task", disable=None) as bar:

        def progress(done: int) -> None:
            bar.update(done)
            again = f"; go on with {pasteable('resume', nearby(folder))}" if work.settings.mode == "train" else ""
            stop.raise_if_asked(f"in the final test{again}")

        work.restore(content, str(path))
        tested = team.evaluate("test", tasks, progress)
        work.restore(untrained, "untrained")
        baseline = team.evaluate("test", tasks, progress)
    seconds = time.perf_counter() - began
    write_result(folder, {**result(work, content, path, tested, baseline, seconds), "engine": team.engine()})
    log.info("%s by inner step: %s", tested.metric, "  ".join(f"{value:.4f}" for value in tested.by_step))
    log.info("%s: test %s on %d tasks (untrained: %s)", title(work, work.eval_shape), tested, tasks, baseline)
    place = nearby(folder)
    log.info("everything is in %s; look at it with: tensorboard --logdir %s", place, shlex.quote(str(place)))


def title(work: Work, shape: Shape) -> str:
    """What is learned, in words."""
    s = work.settings
    task = f"{shape.ways}-way {shape.shots}-shot" if work.source.metric == "accuracy" else f"{shape.shots}-shot"
    order = "" if s.use_second_order else "first-order "
    norm = "" if work.batch_norm == "none" else f", {work.batch_norm} batch norm"
    precision = "" if s.engine.precision == "float32" else f", {s.engine.precision}"
    return f"{order}{s.method.name} on {s.dataset.name}, {task}, {s.backbone.name}{norm}{precision}"


def result(
    work: Work, content: dict[str, Any], path: Path, tested: Evaluation, untrained: Evaluation, seconds: float
) -> dict[str, Any]:
    """What result.json holds; accuracy is a fraction."""
    s = work.settings
    classes = work.source.metric == "accuracy"
    return {
        "dataset": s.dataset.name,
        "method": s.method.name,
        "backbone": s.backbone.name,
        "ways": work.eval_shape.ways if classes else None,
        "shots": work.eval_shape.shots,
        "queries": work.eval_shape.queries,
        "split": "test",
        "class_split": work.source.class_split,
        "inner_loop": work.eval_inner_loop,
        "inner_learning_rate": s.inner_learning_rate,
        "use_second_order": s.use_second_order,
        "metric": tested.metric,
        **tested.summary(),
        "untrained": untrained.summary(),
        "validation": content["best"],
        "batch_norm": work.batch_norm,
        "seed": s.seed,
        "iterations": content["step"],
        "skipped_steps": content["skipped"],
        "checkpoint": str(path.resolve()),
        "seconds": round(seconds, 3),
        "metarun": __version__,
        "torch": str(torch.__version__),
    }
