"""The final test: evaluates a checkpoint and the untrained weights on the test tasks, and builds result.json."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from metarun import __version__
from metarun.checkpointing import ensemble, store
from metarun.checkpointing.state import CheckpointState, Weights
from metarun.config.groups import Sinusoid, choice_name
from metarun.config.schema import INVOCATION_KEYS, flatten
from metarun.data import TaskShape
from metarun.data.image_sampler import ImageTaskSampler
from metarun.distributed import execution_info
from metarun.distributed.task_parallel import TaskParallelGroup
from metarun.engine.context import RunContext
from metarun.engine.eval_result import EvalResult
from metarun.engine.task_shapes import head_description
from metarun.errors import UserError, relative_to_cwd
from metarun.evaluation import summaries
from metarun.evaluation.confusion import ConfusionStats
from metarun.evaluation.paired import TASKS_CSV, TEST_TASKS_KEY, write_tasks
from metarun.loggers import open_loggers
from metarun.loggers.base import hparam_dict
from metarun.utils.run_outputs import write_result
from metarun.utils.signals import defer_signals

log = logging.getLogger(__name__)


@contextmanager
def test_progress(tasks: int, hint: Callable[[], str]) -> Iterator[Callable[[int], None]]:
    """A progress bar over `tasks` tasks, each tested with trained and with untrained weights.

    Yields a function to be called with the number of tasks done after each chunk. It raises RunInterrupted after a
    SIGINT or SIGTERM, with a message that ends in `hint()`.
    """
    with defer_signals() as stop, tqdm(total=2 * tasks, desc="testing", unit="task", disable=None) as bar:

        def progress(done: int) -> None:
            bar.update(done)
            stop.raise_if_asked(f"in the final test{hint()}")

        yield progress


def run_final_test(
    team: TaskParallelGroup, folder: Path, path: Path, untrained: Weights | None, progress: Callable[[int], None]
) -> dict[str, Any]:
    """Evaluate the checkpoint at `path` on the tasks of `eval.split`, and write its tables and plots into `folder`.

    Args:
        untrained: the initial weights, evaluated on the same tasks as a baseline; None: not known.
        progress: called with the number of tasks done; twice `eval.tasks` in all, if `untrained` is given.

    Returns:
        The content of result.json, see `build_result`.

    Raises:
        UserError: mode=evaluate asks for a larger ensemble than the run kept.
        FloatingPointError: the metric is not finite even before the first inner step, or a probability is not finite.
    """
    state = store.load(path)
    work = team.work
    options = work.settings.eval
    split, tasks, size = options.split, options.tasks, options.ensemble
    members = ensemble.load_ensemble_members(path.parent.parent, size, work.source.metric) if size > 1 else []
    if len(members) < size > 1:
        message = f"eval.ensemble={size}: {relative_to_cwd(path.parent.parent)} keeps {len(members)} checkpoints for it"
        if work.settings.mode == "evaluate":
            raise UserError(f"{message}; give eval.ensemble={len(members)}")
        log.warning("%s, and these are tested", message)
    details = None
    if options.details and isinstance(work.source, ImageTaskSampler):
        details = ConfusionStats(work.source, split, work.eval_shape)
    work.load_state_dict(work.match_head(state.weights), str(path))
    tested = team.evaluate(
        split, tasks, progress, *([details.add] if details else []), members=[member.weights for member in members]
    )
    if not tested.finite_steps:
        raise FloatingPointError(
            f"{relative_to_cwd(path)}: the {tested.metric} of {split} tasks is not finite before the first inner step; "
            "evaluate another checkpoint of the run"
        )
    if tested.nonfinite_message:
        log.warning("%s; choose the steps with eval.inner_loop=N", tested.nonfinite_message)
    baseline = None
    if untrained is not None:
        work.load_state_dict(untrained, "untrained")
        baseline = team.evaluate(split, tasks, progress)
    write_tasks(folder / TASKS_CSV, tested.metric, tested.values[:, tested.result_step].tolist())
    result = build_result(work, state, path, tested, baseline)
    result |= {"ensemble": len(members) or 1, "engine": execution_info.execution_summary(team)}
    with open_loggers(folder) as loggers:
        summaries.test_summaries(tested, baseline, state.best).log(loggers, state.step)
        for logger in loggers:
            logger.log_hparams(hparam_dict(work.settings), finished=True)
            logger.flush()
    if details:
        details.write(folder)
        result |= details.summary()
    log.info("%s by inner step: %s", tested.metric, "  ".join(f"{value:.4f}" for value in tested.by_step))
    what, which = run_description(work, task_name(work, work.eval_shape)), "test" if split == "test" else "validation"
    what += f", an ensemble of the best {len(members)} checkpoints" if members else ""
    log.info("%s: %s %s on %d tasks (untrained: %s)", what, which, tested, tasks, baseline or "not known")
    return result


def save_result(folder: Path, result: dict[str, Any], began: float) -> dict[str, Any]:
    """Write result.json, with the seconds since `began`, and return its content.

    Raises:
        RunFailure: the disk is full or fails, or the folder is gone.
    """
    result = {**result, "seconds": round(time.perf_counter() - began, 3)}
    write_result(folder, result)
    return result


def task_name(work: RunContext, shape: TaskShape) -> str:
    """`5-way 1-shot`, or `10-shot` for regression."""
    return f"{shape.ways}-way {shape.shots}-shot" if work.source.is_classification else f"{shape.shots}-shot"


def trained_on(work: RunContext) -> str:
    """What training draws: `5-way 1-shot` tasks, or for pretraining `64 classes`."""
    if not work.settings.method.episodic and isinstance(work.source, ImageTaskSampler):
        return f"{work.source.num_training_classes} classes"
    return task_name(work, work.train_shape)


def run_description(work: RunContext, task: str) -> str:
    """One line for the log: method, data set, `task`, network, and whatever differs from the usual."""
    s = work.settings
    order = "" if s.use_second_order else "first-order "
    norm = "" if work.batch_norm == "none" else f", {work.batch_norm} batch norm"
    network = getattr(s.backbone, "network", choice_name(s.backbone))
    rates = f" with learned rates ({s.learn_lr})" if s.learn_lr else ""
    precision = "" if s.engine.precision == "float32" else f", {s.engine.precision}"
    return f"{order}{s.method.name}{rates} on {s.dataset.name}, {task}, {network}{norm}{precision}"


def test_task_id(work: RunContext) -> str:
    """Identifies the test tasks: two runs with the same text were tested on the same tasks."""
    shape, s = work.eval_shape, work.settings
    classes = f"{work.source.class_split}, {shape.ways}-way " if work.source.class_split else ""
    curves = f"frequency {s.dataset.frequency}, " if isinstance(s.dataset, Sinusoid) else ""
    return f"{s.dataset.name} {classes}{curves}{shape.shots}-shot, {shape.queries} queries, {s.eval.split}"


def build_result(
    work: RunContext, state: CheckpointState, path: Path, tested: EvalResult, untrained: EvalResult | None
) -> dict[str, Any]:
    """The content of result.json; an accuracy is a fraction. `save_result` fills in the seconds."""
    s = work.settings
    classes = work.source.is_classification
    return {
        "mode": s.mode,
        "dataset": s.dataset.name,
        "method": s.method.name,
        "backbone": choice_name(s.backbone),
        "network": getattr(s.backbone, "network", None),
        "ways": work.eval_shape.ways if classes else None,
        "shots": work.eval_shape.shots,
        "queries": work.eval_shape.queries,
        "split": s.eval.split,
        "class_split": work.source.class_split,
        "inner_loop": work.eval_inner_loop,
        "inner_learning_rate": s.inner_learning_rate,
        "learn_lr": s.learn_lr,
        "use_second_order": s.use_second_order,
        "multi_step_loss": s.multi_step_loss,
        "metric": tested.metric,
        **tested.summary(),
        "loss": tested.loss,
        "untrained": untrained and untrained.summary(),
        "start": s.start,
        "validation": state.best and asdict(state.best),
        "trained_on": state.settings.dataset.name,
        "trained_ways": s.ways if classes else None,
        "head": head_description(s) if classes else "as trained",
        TEST_TASKS_KEY: test_task_id(work),
        "batch_norm": work.batch_norm,
        "seed": s.seed,
        "iterations": state.step,
        "skipped_steps": state.skipped,
        "checkpoint": str(path.resolve()),
        "seconds": 0.0,
        "metarun": __version__,
        "torch": str(torch.__version__),
        "settings": {name: value for name, value in flatten(s).items() if name not in INVOCATION_KEYS},
    }
