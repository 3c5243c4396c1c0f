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

from metarun.config import hints
from metarun.config.groups import CONFIG_GROUPS, Sinusoid, choice_name, option
from metarun.errors import UserError, did_you_mean

LARGEST = 10**9  # of any number that has no bound of its own
PREDICT_KEYS = ("support", "query", "adapted_weights")
INVOCATION_KEYS = (
    "mode",
    "resume",
    "checkpoint",
    "runs",
    *PREDICT_KEYS,
)  # asked for now, never taken from a checkpoint
MACHINE_KEYS = (*INVOCATION_KEYS, "device", "data_dir", "cache_dir", "download")  # where a run is, not what it is


@dataclass
class EvalConfig:
    tasks: int = option(600, "test tasks of the final accuracy", least=2)
    validation_tasks: int = option(200, "validation tasks that choose the best checkpoint", least=2)
    every: int = option(200, "iterations between validations", least=1)
    inner_loop: Any = option(
        None, "inner steps when evaluating; null: as in training", least=0, most=10**4, several=int
    )
    shots: Any = option(None, "shots when evaluating; null: as in training", least=1, most=10**5, several=int)
    queries: int | None = option(None, "queries when evaluating; null: as in training", least=1, most=10**5)
    ways: Any = option(None, "mode=evaluate: classes of a task; null: as in training", least=2, most=10**5, several=int)
    split: Any = option(
        "test", "mode=evaluate: classes that tasks are drawn from", choices=("test", "val"), several=str
    )
    dataset: Any = option(
        None,
        "mode=evaluate: data sets, by name; null: the run's own",
        choices=tuple(CONFIG_GROUPS["dataset"]),
        several=str,
    )
    details: bool = option(False, "which classes are taken for which, and how far the probabilities can be believed")
    ensemble: int = option(
        1, "networks that are tested together: of so many of the best checkpoints", least=1, most=100
    )


@dataclass
class Save:
    every: int | None = option(None, "iterations between checkpoints; null: at every validation", least=1)
    keep: int = option(2, "how many of the newest checkpoints stay, besides the best", least=1)


@dataclass
class Engine:
    tasks: str = option("auto", "how a meta-batch is computed", choices=("auto", "compiled", "vectorised", "looped"))
    meta_gradient: str = option(
        "unrolled",
        "what is kept of the inner steps to differentiate them: all, or a theta a step (mixed)",
        choices=("unrolled", "mixed"),
    )
    segment: int | None = option(
        None, "mixed: inner steps from one kept theta to the next; null: each is kept", least=1, most=10**4
    )
    workers: int | None = option(
        None, "processes that share the tasks; null: as many as pay; torchrun starts its own", least=1, most=1024
    )
    precision: str = option(
        "float32",
        "of the network's layers; all but float32 change the result beyond rounding, tf32 is for GPUs",
        choices=("float32", "tf32", "bfloat16"),
    )


@dataclass
class Settings:
    mode: str = option(
        "train",
        "train (then evaluates), evaluate, predict: label pictures of your own, or report: compare runs",
        choices=("train", "evaluate", "predict", "report"),
    )
    dataset: Any = None
    backbone: Any = None
    method: Any = None

    ways: int = option(5, "classes of a task", least=2, most=10**5)
    shots: int = option(1, "support images a class; points of a curve", least=1, most=10**5)
    queries: int = option(15, "query images a class; points of a curve", least=1, most=10**5)
    inner_loop: int = option(5, "inner steps", least=0, most=10**4)
    inner_learning_rate: float = option(0.01, "step size of the inner loop", least=0)
    learn_lr: str | None = option(
        None,
        "learned inner rates beside any method: for each of these; null: inner_learning_rate",
        choices=("element", "tensor", "tensor_step", "scalar"),
    )
    use_second_order: bool = option(True, "differentiate through the inner steps; false: first-order")
    first_order_steps: int = option(
        0, "outer steps in first order before second order begins, as L2F's code has", least=0
    )
    multi_step_loss: int = option(
        0, "outer steps in which the query loss after each inner step counts, the last one's more and more", least=0
    )
    batch_norm: str = option(
        "transductive",
        "statistics that normalise a query set: its own (transductive), the support set's, or those of each inner "
        "step over training tasks, with an affine for each (per_step)",
        choices=("transductive", "support", "per_step"),
    )

    meta_batch: int = option(4, "tasks of one outer step", least=1, most=10**5)
    iterations: int = option(1000, "outer steps", least=1)
    outer_learning_rate: float = option(0.001, "step size of Adam, the outer optimiser", least=0)
    outer_schedule: str = option("constant", "of the outer step size", choices=("constant", "cosine"))
    outer_learning_rate_end: float = option(0.0, "cosine: what outer_learning_rate falls to", least=0)
    outer_clip: float | None = option(
        None, "clamp each entry of the meta-gradient to this size; null: as it is", above=0
    )
    skip_not_finite: bool = option(
        False, "leave out, and count, outer steps whose loss or gradient is not finite; false: they end the run"
    )
    seed: int = option(
        0, "of the initial weights and the training tasks; test tasks are the same for all", least=0, most=2**63 - 1
    )
    device: str = option("auto", "auto, cpu, cuda or cuda:N", pattern=r"auto|cpu|cuda(:\d+)?")

    data_dir: str = option(
        "${oc.env:METARUN_DATA,'~/.cache/metarun/data'}", "where data sets lie; only read, except by a download"
    )
    cache_dir: str = option("~/.cache/metarun", "prepared images are kept here")
    download: bool = option(False, "fetch the official archives into data_dir if they are missing")
    resume: str | None = option(
        None, "a run folder to continue; auto: what is in this run's own folder, if anything is"
    )
    checkpoint: str | None = option(None, "run folder or checkpoint file that mode=evaluate and mode=predict read")

    start: str | None = option(
        None, "a run, checkpoint or file of weights whose body the network begins with; the head is fresh"
    )

    support: str | None = option(None, "mode=predict: a folder of class folders, the pictures to learn from")
    query: Any = option(None, "mode=predict: a folder or a list of files, the pictures to label")
    adapted_weights: bool = option(False, "mode=predict: keep the adapted network's weights, as adapted.safetensors")
    runs: Any = option(None, "mode=report: a folder that holds runs, one of a sweep for example, or a list of folders")

    eval: EvalConfig = field(default_factory=EvalConfig)
    save: Save = field(default_factory=Save)
    engine: Engine = field(default_factory=Engine)


def iter_options(node: Any, prefix: str = "") -> Iterator[tuple[str, Field, Any]]:
    """Every leaf key below `node` (a dataclass or an instance of one): dotted name, field, value or default."""
    for item in fields(node):
        if isinstance(node, type):
            factory = item.default_factory
            value = item.default if factory is NO_DEFAULT else factory()
        else:
            value = getattr(node, item.name)
        if hasattr(value, "__dataclass_fields__"):
            yield from iter_options(value, f"{prefix}{item.name}.")
        elif item.metadata:
            yield f"{prefix}{item.name}", item, value


def flatten(settings: Settings) -> dict[str, Any]:
    """Every value, and every group's choice, by its dotted name."""
    chosen = {group: choice_name(getattr(settings, group)) for group in CONFIG_GROUPS}
    return {**chosen, **{name: value for name, _, value in iter_options(settings)}}


def check(settings: Settings) -> None:
    """Refuse values outside of what a key admits; `combinations` looks at several keys together.

    Raises:
        UserError: names the key, what was found and what is allowed.
    """
    for name, item, value in iter_options(settings):
        if isinstance(value, list) and any(entry is None or isinstance(entry, (list, dict)) for entry in value):
            raise UserError(f"{name}={value}: must be a plain list, {item.metadata['help']}")
        if item.metadata["several"]:
            check_list_option(name, value, item, settings.mode)
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
    for name in PREDICT_KEYS:
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


def check_list_option(name: str, value: Any, item: Field, mode: str) -> None:
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
        hint = f"; did you mean {meant!r}?" if meant else did_you_mean(str(value), allowed["choices"])
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


def format_value(value: Any) -> str:
    """A value as it is typed on the command line."""
    if isinstance(value, (list, tuple)):
        return f"[{','.join(format_value(entry) for entry in value)}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
