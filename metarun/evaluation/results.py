"""What a test writes: result.json of one evaluation, and the table of several (results.csv, and text for the log)."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from metarun import __version__
from metarun.checkpointing.state import CheckpointState
from metarun.config.groups import Sinusoid, choice_name
from metarun.config.schema import INVOCATION_KEYS, flatten
from metarun.data import TaskShape
from metarun.data.image_sampler import ImageTaskSampler
from metarun.engine.context import RunContext
from metarun.engine.eval_result import EvalResult
from metarun.engine.task_shapes import head_description
from metarun.evaluation.paired import TEST_TASKS_KEY
from metarun.metrics import METRIC_BY_NAME
from metarun.utils.run_outputs import write_result
from metarun.utils.text import csv_table, pluralize

VARIED = ("dataset", "split", "ways", "shots", "inner_loop")
COLUMNS = (
    *VARIED,
    *("queries", "metric", "mean", "ci95", "tasks", "loss", "calibration_error"),
    *("untrained_mean", "untrained_ci95", "head"),
)


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
        return pluralize(work.source.num_training_classes, "class", "classes")
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


def results_csv(results: Sequence[dict[str, Any]]) -> bytes:
    """The content of results.csv: a line for each evaluation, with empty cells for values that it does not have."""
    rows = []
    for result in results:
        untrained = {f"untrained_{name}": value for name, value in (result["untrained"] or {}).items()}
        rows.append([{**result, **untrained}.get(name) for name in COLUMNS])
    return csv_table(COLUMNS, rows)


def results_text(results: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each evaluation in aligned columns, below a line that names the columns."""
    metric = METRIC_BY_NAME[results[0]["metric"]]
    varied = [name for name in VARIED if results[0][name] is not None]
    rows = [[*varied, metric.name, "untrained"]]
    for result in results:
        parts = (result, result["untrained"])
        means = (metric.format_interval(part["mean"], part["ci95"]) if part else "not known" for part in parts)
        rows.append([*(str(result[name]) for name in varied), *means])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(entry.ljust(width) for entry, width in zip(row, widths, strict=True)).rstrip() for row in rows]
