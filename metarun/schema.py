"""Every key of the command, its type, default, range and meaning: here, and in `groups` those of a group's choices.

The dataclasses are Hydra's typed schema, the plain settings that the runner takes, and the source of `--help`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, dataclass, field, fields
from typing import Any

from metarun import hints
from metarun.errors import UserError, nearest
from metarun.groups import GROUPS, Sinusoid, choice_name, key

AUTO = "auto"  # of `resume`
LARGEST = 10**9  # of any number that has no bound of its own
PREDICTING = ("support", "query", "adapted_weights")
PRESENT = ("mode", "resume", "checkpoint", "runs", *PREDICTING)  # asked for now, never taken from a checkpoint
ELSEWHERE = (*PRESENT, "device", "data_dir", "cache_dir", "download")  # where a run is, not what it is


@dataclass
class Eval:
    tasks: int = key(600, "test tasks of the final accuracy", least=2)
    validation_tasks: int = key(200, "validation tasks that choose the best checkpoint", least=2)
    every: int = key(200, "iterations between validations", least=1)
    inner_loop: Any = key(None, "inner steps when evaluating; null: as in training", least=0, most=10**4, several=int)
    shots: Any = key(None, "shots when evaluating; null: as in training", least=1, most=10**5, several=int)
    queries: int | None = key(None, "queries when evaluating; null: as in training", least=1, most=10**5)
    ways: Any = key(None, "mode=evaluate: classes of a task; null: as in training", least=2, most=10**5, several=int)
    split: Any = key("test", "mode=evaluate: classes that tasks are drawn from", choices=("test", "val"), several=str)
    dataset: Any = key(
        None,
        "mode=evaluate: data sets, by name; null: the run's own",
        choices=tuple(GROUPS["dataset"]),
        several=str,
    )
    details: bool = key(False, "which classes are taken for which, and how far the probabilities can be believed")
    ensemble: int = key(1, "networks that are tested together: of so many of the best checkpoints", least=1, most=100)


@dataclass
class Save:
    every: int | None = key(None, "iterations between checkpoints; null: at every validation", least=1)
    keep: int = key(2, "how many of the newest checkpoints stay, besides the best", least=1)


@dataclass
class Engine:
    tasks: str = key("auto", "how a meta-batch is computed", choices=("auto", "compiled", "vectorised", "looped"))
    meta_gradient: str = key(
        "unrolled",
        "what is kept of the inner steps to differentiate them: all, or a theta a step (mixed)",
        choices=("unrolled", "mixed"),
    )
    segment: int | None = key(
        None, "mixed: inner steps from one kept theta to the next; null: each is kept", least=1, most=10**4
    )
    workers: int | None = key(
        None, "processes that share the tasks; null: as many as pay; torchrun starts its own", least=1, most=1024
    )
    precision: str = key(
        "float32",
        "of the network's layers; all but float32 change the result beyond rounding, tf32 is for GPUs",
        choices=("float32", "tf32", "bfloat16"),
    )


@dataclass
class Settings:
    mode: str = key(
        "train",
        "train (then evaluates), evaluate, predict: label pictures of your own, or report: compare runs",
        choices=("train", "evaluate", "predict", "report"),
    )
    dataset: Any = None
    backbone: Any = None
    method: Any = None

    ways: int = key(5, "classes of a task", least=2, most=10**5)
    shots: int = key(1, "support images a class; points of a curve", least=1, most=10**5)
    queries: int = key(15, "query images a class; points of a curve", least=1, most=10**5)
    inner_loop: int = key(5, "inner steps", least=0, most=10**4)
    inner_learning_rate: float = key(0.01, "step size of the inner loop", least=0)
    learn_lr: str | None = key(
        None,
        "learned inner rates beside any method: for each of these; null: inner_learning_rate",
        choices=("element", "tensor", "tensor_step", "scalar"),
    )
    use_second_order: bool = key(True, "differentiate through the inner steps; false: first-order")
    first_order_steps: int = key(0, "outer steps in first order before second order begins, as L2F's code has", least=0)
    multi_step_loss: int = key(
        0, "outer steps in which the query loss after each inner step counts, the last one's more and more", least=0
    )
    batch_norm: str = key(
        "transductive",
        "statistics that normalise a query set: its own (transductive), the support set's, or those of each inner "
        "step over training tasks, with an affine for each (per_step)",
        choices=("transductive", "support", "per_step"),
    )

    meta_batch: int = key(4, "tasks of one outer step", least=1, most=10**5)
    iterations: int = key(1000, "outer steps", least=1)
    outer_learning_rate: float = key(0.001, "step size of Adam, the outer optimiser", least=0)
    outer_schedule: str = key("constant", "of the outer step size", choices=("constant", "cosine"))
    outer_learning_rate_end: float = key(0.0, "cosine: what outer_learning_rate falls to", least=0)
    outer_clip: float | None = key(None, "clamp each entry of the meta-gradient to this size; null: as it is", above=0)
    skip_not_finite: bool = key(
        False, "leave out, and count, outer steps whose loss or gradient is not finite; false: they end the run"
    )
    seed: int = key(
        0, "of the initial weights and the training tasks; test tasks are the same for all", least=0, most=2**63 - 1
    )
    device: str = key("auto", "auto, cpu, cuda or cuda:N", pattern=r"auto|cpu|cuda(:\d+)?")

    data_dir: str = key(
        "${oc.env:METARUN_DATA,'~/.cache/metarun/data'}", "where data sets lie; only read, except by a download"
    )
    cache_dir: str = key("~/.cache/metarun", "prepared images are kept here")
    download: bool = key(False, "fetch the official archives into data_dir if they are missing")
    resume: str | None = key(None, "a run folder to continue; auto: what is in this run's own folder, if anything is")
    checkpoint: str | None = key(None, "run folder or checkpoint file that mode=evaluate and mode=predict read")

    start: str | None = key(
        None, "a run, checkpoint or file of weights whose body the network begins with; the head is fresh"
    )

    support: str | None = key(None, "mode=predict: a folder of class folders, the pictures to learn from")
    query: Any = key(None, "mode=predict: a folder or a list of files, the pictures to label")
    adapted_weights: bool = key(False, "mode=predict: keep the adapted network's weights, as adapted.safetensors")
    runs: Any = key(None, "mode=report: a folder that holds runs, one of a sweep for example, or a list of folders")

    eval: Eval = field(default_factory=Eval)
    save: Save = field(default_factory=Save)
    engine: Engine = field(default_factory=Engine)


def keys(node: Any, prefix: str = "") -> Iterator[tuple[str, Field, Any]]:
    """Every leaf key below `node` (a dataclass or an instance of one): dotted name, field, value or default."""
    for item in fields(node):
        if isinstance(node, type):
            factory = item.default_factory
            value = item.default if factory is NO_DEFAULT else factory()
        else:
            value = getattr(node, item.name)
        if hasattr(value, "__dataclass_fields__"):
            yield from keys(value, f"{prefix}{item.name}.")
        elif item.metadata:
            yield f"{prefix}{item.name}", item, value


def flat(settings: Settings) -> dict[str, Any]:
    """Every value, and every group's choice, by its dotted name."""
    chosen = {group: choice_name(getattr(settings, group)) for group in GROUPS}
    return {**chosen, **{name: value for name, _, value in keys(settings)}}


def check(settings: Settings) -> None:
    """Refuse values outside of what a key admits; `combinations` looks at several keys together.

    Raises:
        UserError: names the key, what was found and what is allowed.
    """
    for name, item, value in keys(settings):
        if isinstance(value, list) and any(entry is None or isinstance(entry, (list, dict)) for entry in value):
            raise UserError(f"{name}={value}: must be a plain list, {item.metadata['help']}")
        if item.metadata["several"]:
            check_several(name, value, item, settings.mode)
        for entry in value if isinstance(value, list) else [value]:
            if entry is not None:
                check_value(name, entry, item)
    if isinstance(settings.dataset, Sinusoid) and not is_range(settings.dataset.frequency):
        raise UserError(f"dataset.frequency={settings.dataset.frequency}: must be two numbers, [LOWEST,HIGHEST]")
    check_mode(settings)


def check_mode(settings: Settings) -> None:
    """Refuse keys that the mode does not read, and the lack of those that it needs."""
    mode = settings.mode
    if mode == "train" and settings.checkpoint is not None:
        raise UserError(
            "checkpoint= is read by mode=evaluate and mode=predict only; to continue a training run give resume=RUN"
        )
    if mode == "report":
        check_runs(settings)
        return
    if settings.runs is not None:
        raise UserError("runs= is read by mode=report only; leave it out, or give mode=report")
    if mode != "train" and settings.checkpoint is None:
        raise UserError(f"mode={mode} needs checkpoint=RUN, the run folder or checkpoint file to {mode} with")
    if mode != "train" and settings.resume is not None:
        raise UserError(f"resume= continues a training run; mode={mode} reads checkpoint=RUN only")
    for name, default in (("ways", None), ("split", "test"), ("dataset", None)):
        if mode != "evaluate" and getattr(settings.eval, name) != default:
            raise UserError(f"eval.{name}= is read by mode=evaluate only; leave it out, or give mode=evaluate")
    if mode == "predict":
        check_pictures(settings)
        return
    for name in PREDICTING:
        if getattr(settings, name) not in (None, False):
            raise UserError(f"{name}= is read by mode=predict only; leave it out, or give mode=predict")


def check_pictures(settings: Settings) -> None:
    if settings.support is None:
        raise UserError("mode=predict needs support=DIR, a folder with a folder of pictures for each class")
    if settings.query is None:
        raise UserError("mode=predict needs query=DIR or query=[FILE,FILE], the pictures to label")
    check_places("query", settings.query, "a folder, a file or a list of them, [FILE,FILE]")


def check_runs(settings: Settings) -> None:
    if settings.runs is None:
        raise UserError("mode=report needs runs=DIR or runs=[DIR,DIR], folders of runs or of sweeps")
    check_places("runs", settings.runs, "a folder or a list of them, [DIR,DIR]")


def check_places(name: str, value: Any, wanted: str) -> None:
    places = value if isinstance(value, list) else [value]
    if not places or not all(isinstance(place, str) for place in places):
        raise UserError(f"{name}={value}: must be {wanted}; a number as a name needs quotes, as in \"{name}='7'\"")


def is_range(values: list[float]) -> bool:
    return len(values) == 2 and values[0] <= values[1]


def check_several(name: str, value: Any, item: Field, mode: str) -> None:
    """Refuse what is neither a value nor a list of different ones, and lists where they are not read."""
    kind = item.metadata["several"]
    found = str(value).replace(" ", "").replace("'", "")
    wanted = "whole number" if kind is int else "name"
    if value is None and item.default is not None:
        raise UserError(f"{name}=null: needs a value, {item.metadata['help']}")
    for entry in value if isinstance(value, list) else [value]:
        if entry is not None and type(entry) is not kind:
            raise UserError(f"{name}={found}: must be a {wanted}, or a list of them as [A,B]")
    if isinstance(value, list):
        if mode != "evaluate":
            raise UserError(f"{name}={found}: a list is read by mode=evaluate only; give one value")
        if not value or len(set(value)) < len(value):
            what = "names none" if not value else "names one twice"
            raise UserError(f"{name}={found}: {what}; give different ones, as [A,B]")


def check_value(name: str, value: Any, item: Field) -> None:
    allowed = item.metadata
    if allowed["choices"] is not None and value not in allowed["choices"]:
        choices = ", ".join(allowed["choices"])
        meant = hints.VALUES.get(name, {}).get(str(value))
        hint = f"; did you mean {meant!r}?" if meant else nearest(str(value), allowed["choices"])
        raise UserError(f"{name}={value}: choose one of {choices}{hint}")
    if allowed["pattern"] and not re.fullmatch(allowed["pattern"], value):
        raise UserError(f"{name}={value}: must be {allowed['help']}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name}={value}: must be a finite number")
    if allowed["least"] is not None and value < allowed["least"]:
        raise UserError(f"{name}={value}: must be {allowed['least']} or more")
    if allowed["above"] is not None and value <= allowed["above"]:
        raise UserError(f"{name}={value}: must be greater than {allowed['above']}")
    most = LARGEST if allowed["most"] is None else allowed["most"]
    if isinstance(value, (int, float)) and value > most:
        raise UserError(f"{name}={value}: must be {most} or less")
