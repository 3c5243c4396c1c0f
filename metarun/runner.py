"""The job behind a command: train and test, evaluate, or predict; leaves a run folder that explains itself."""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from metarun import __version__, checkpoint, heads, hparams, processes, results_table, shown, whole_files
from metarun.curves import Curves
from metarun.data import Shape, Source
from metarun.data.sampler import ImageSource
from metarun.details import Details
from metarun.errors import RunFailure, UserError, nearby, pasteable
from metarun.evaluation import Evaluation
from metarun.groups import Sinusoid
from metarun.interrupt import noted_signals
from metarun.paired import DRAWN, TASKS, write_tasks
from metarun.predict import predict
from metarun.records import read_result, write_result
from metarun.run_files import RESULT
from metarun.schema import AUTO, Settings, flat
from metarun.several import expanded
from metarun.team import Team, assembled, sharing, workers
from metarun.train import train
from metarun.whole_files import plain, remove_parts
from metarun.work import Work, build

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
            evaluate(settings, folder, began)
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
        hparams.write(folder, settings)
        best = train(team, folder, resume_from)
        if best is None:
            raise FloatingPointError(
                f"no validation was finite, so there is nothing to test; {nearby(folder)} has the checkpoints"
            )
        again = f"; go on with {pasteable('resume', nearby(folder))}"
        with testing(settings.eval.tasks, lambda: again) as progress:
            found = test(team, folder, checkpoint.best_path(folder), untrained, progress)
    finish(folder, settings, found, began)
    place = nearby(folder)
    log.info("everything is in %s; look at it with: tensorboard --logdir %s", place, shlex.quote(str(place)))
    return best


def finish(folder: Path, settings: Settings, found: dict[str, Any], began: float) -> dict[str, Any]:
    """Write what was found, with the time that it took; returns both."""
    seconds = time.perf_counter() - began
    hparams.write(folder, settings, seconds)
    result = {**found, "seconds": round(seconds, 3)}
    write_result(folder, result)
    return result


def evaluate(settings: Settings, folder: Path, began: float) -> None:
    """Every combination of what `eval.*` lists, one after another; all of them are looked at before the first."""
    path = checkpoint.find(Path(str(settings.checkpoint)).expanduser())
    sources: dict[str, Source] = {}
    results: list[dict[str, Any]] = []
    with processes.started(workers(settings)) as (seat, others):
        works = [
            build(one, seat, path, sources=sources, tell=number == 0) for number, one in enumerate(expanded(settings))
        ]
        content = checkpoint.load(path)
        for work in works:
            work.fitting(content, str(path))
        with testing(len(works) * settings.eval.tasks, lambda: kept(results, folder)) as progress:
            for work in works:
                place = folder if len(works) == 1 else own_folder(folder, work)
                with sharing(work, seat, others) as team:
                    found = test(team, place, path, work.snapshot(), progress)
                results.append(finish(place, work.settings, found, began))
                whole_files.write(folder / results_table.TABLE, results_table.as_csv(results))
    if len(works) > 1:
        write_result(folder, {"checkpoint": str(path.resolve()), "results": results})
        for line in results_table.as_text(results):
            log.info("%s", line)
    log.info("everything is in %s", nearby(folder))


def own_folder(folder: Path, work: Work) -> Path:
    """Of one evaluation among several: it holds what a run folder does that has been evaluated once."""
    ways = f"{work.eval_shape.ways}-way-" if work.source.metric == "accuracy" else ""
    task = f"{ways}{work.eval_shape.shots}-shot-{work.eval_inner_loop}-steps"
    place = folder / f"{work.settings.dataset.name}-{work.settings.eval.split}-{task}"
    place.mkdir(exist_ok=True)
    remove_parts(place)
    return place


def kept(results: list[dict[str, Any]], folder: Path) -> str:
    return f", {len(results)} finished ones are in {nearby(folder / results_table.TABLE)}" if results else ""


@contextmanager
def testing(tasks: int, where: Callable[[], str]) -> Iterator[Callable[[int], None]]:
    """What is to be told of each lot of tasks, of which there are `tasks`, trained and untrained.

    It raises Stopped where a signal asks for it, with what `where` adds.
    """
    with noted_signals() as stop, tqdm(total=2 * tasks, desc="testing", unit="task", disable=None) as bar:

        def progress(done: int) -> None:
            bar.update(done)
            stop.raise_if_asked(f"in the final test{where()}")

        yield progress


def test(
    team: Team, folder: Path, path: Path, untrained: dict[str, Any], progress: Callable[[int], None]
) -> dict[str, Any]:
    """The test tasks with a checkpoint's parameters and with untrained ones: what result.json holds, and tables."""
    content = checkpoint.load(path)
    work = team.work
    split, tasks = work.settings.eval.split, work.settings.eval.tasks
    details = None
    if work.settings.eval.details and isinstance(work.source, ImageSource):
        details = Details(work.source, split, work.eval_shape)
    work.restore(work.fitting(content, str(path)), str(path))
    tested = team.evaluate(split, tasks, progress, *([details.add] if details else []))
    work.restore(untrained, "untrained")
    baseline = team.evaluate(split, tasks, progress)
    write_tasks(folder / TASKS, tested.metric, tested.values[:, -1].tolist())
    found = result(work, content, path, tested, baseline)
    with closing(Curves(folder / "tensorboard", first=None)) as curves:
        curves.add(shown.of_test(tested, baseline, content["best"]), int(content["step"]))
        curves.sync()
    if details:
        details.write(folder)
        found |= details.summary()
    log.info("%s by inner step: %s", tested.metric, "  ".join(f"{value:.4f}" for value in tested.by_step))
    what = "test" if split == "test" else "validation"
    log.info("%s: %s %s on %d tasks (untrained: %s)", title(work, work.eval_shape), what, tested, tasks, baseline)
    return found


def title(work: Work, shape: Shape) -> str:
    """What is learned, in words."""
    s = work.settings
    task = f"{shape.ways}-way {shape.shots}-shot" if work.source.metric == "accuracy" else f"{shape.shots}-shot"
    order = "" if s.use_second_order else "first-order "
    norm = "" if work.batch_norm == "none" else f", {work.batch_norm} batch norm"
    return f"{order}{s.method.name} on {s.dataset.name}, {task}, {s.backbone.name}{norm}"


def drawn_from(work: Work) -> str:
    """What the test tasks are a function of, besides their number: where it is the same, so are they."""
    shape, s = work.eval_shape, work.settings
    classes = f"{work.source.class_split}, {shape.ways}-way " if work.source.class_split else ""
    curves = f"frequency {s.dataset.frequency}, " if isinstance(s.dataset, Sinusoid) else ""
    return f"{s.dataset.name} {classes}{curves}{shape.shots}-shot, {shape.queries} queries, {s.eval.split}"


def result(
    work: Work, content: dict[str, Any], path: Path, tested: Evaluation, untrained: Evaluation
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
        "split": s.eval.split,
        "class_split": work.source.class_split,
        "inner_loop": work.eval_inner_loop,
        "inner_learning_rate": s.inner_learning_rate,
        "use_second_order": s.use_second_order,
        "metric": tested.metric,
        **tested.summary(),
        "loss": tested.loss,
        "untrained": untrained.summary(),
        "validation": content["best"],
        "trained_on": content["config"]["dataset"]["name"],
        "trained_ways": s.ways if classes else None,
        "head": heads.said(s) if classes else "as trained",
        DRAWN: drawn_from(work),
        "batch_norm": work.batch_norm,
        "seed": s.seed,
        "iterations": content["step"],
        "skipped_steps": content["skipped"],
        "checkpoint": str(path.resolve()),
        "seconds": 0.0,
        "metarun": __version__,
        "torch": str(torch.__version__),
        "settings": flat(s),
    }
