"""Every key of a run with its type, default, range and help text; `groups` has the keys of a group's choices.

The dataclasses are Hydra's typed schema, the settings that the runner takes, and the source of `--help` and
docs/keys.md.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, dataclass, field, fields
from typing import Any

from metarun.config import hints
from metarun.config.groups import CONFIG_GROUPS, Sinusoid, choice_name
from metarun.config.options import option
from metarun.errors import UserError, did_you_mean

LARGEST = 10**9  # upper bound of numbers without `most`
PREDICT_KEYS = ("support", "query", "adapted_weights")
INVOCATION_KEYS = ("mode", "resume", "checkpoint", "runs", *PREDICT_KEYS)  # never taken from a checkpoint
MACHINE_KEYS = (*INVOCATION_KEYS, "device", "data_dir", "cache_dir", "download")  # keys that change no result


@dataclass
class EvalConfig:
    tasks: int = option(600, "test tasks of the final evaluation", least=2)
    validation_tasks: int = option(200, "validation tasks, whose metric selects the best checkpoint", least=2)
    every: int = option(200, "outer steps between validations", least=1)
    inner_loop: Any = option(None, "inner steps in evaluation; null: as in training", least=0, most=10**4, several=int)
    shots: Any = option(None, "shots in evaluation; null: as in training", least=1, most=10**5, several=int)
    queries: int | None = option(None, "queries in evaluation; null: as in training", least=1, most=10**5)
    ways: Any = option(None, "mode=evaluate: classes per task; null: as in training", least=2, most=10**5, several=int)
    split: Any = option(
        "test", "mode=evaluate: split whose classes the tasks are sampled from", choices=("test", "val"), several=str
    )
    dataset: Any = option(
        None,
        "mode=evaluate: data sets to evaluate on; null: the data set of training",
        choices=tuple(CONFIG_GROUPS["dataset"]),
        several=str,
    )
    details: bool = option(False, "also report the most confused classes and the expected calibration error")
    ensemble: int = option(1, "number of best checkpoints whose logits are averaged in the test", least=1, most=100)


@dataclass
class Save:
    every: int | None = option(None, "outer steps between checkpoints; null: at every validation", least=1)
    keep: int = option(2, "number of latest checkpoints to keep, besides the best", least=1)


@dataclass
class Engine:
    tasks: str = option(
        "auto", "how the tasks of a meta-batch are computed", choices=("auto", "compiled", "vectorised", "looped")
    )
    meta_gradient: str = option(
        "unrolled",
        "differentiate through the unrolled inner loop (unrolled), or recompute it step by step in less memory (mixed)",
        choices=("unrolled", "mixed"),
    )
    segment: int | None = option(
        None,
        "mixed: inner steps between stored parameters; null: parameters are stored at every step",
        least=1,
        most=10**4,
    )
    workers: int | None = option(
        None,
        "processes that share the tasks of a meta-batch; null: chosen automatically; torchrun sets its own number",
        least=1,
        most=1024,
    )
    precision: str = option(
        "float32",
        "precision of the network's layers; tf32 (GPUs only) and bfloat16 change results by more than rounding",
        choices=("float32", "tf32", "bfloat16"),
    )


@dataclass
class Settings:
    mode: str = option(
        "train",
        "train: meta-train and test; evaluate: test a checkpoint; predict: label your own images; report: compare runs",
        choices=("train", "evaluate", "predict", "report"),
    )
    dataset: Any = None
    backbone: Any = None
    method: Any = None

    ways: int = option(5, "classes per task", least=2, most=10**5)
    shots: int = option(1, "support images per class; dataset=sinusoid: support points per task", least=1, most=10**5)
    queries: int = option(15, "query images per class; dataset=sinusoid: query points per task", least=1, most=10**5)
    inner_loop: int = option(5, "inner-loop steps per task", least=0, most=10**4)
    inner_learning_rate: float = option(0.01, "learning rate of the inner loop", least=0)
    learn_lr: str | None = option(
        None,
        "learn inner learning rates, with any method, one for each of these; null: inner_learning_rate is fixed",
        choices=("element", "tensor", "tensor_step", "scalar"),
    )
    use_second_order: bool = option(True, "second-order meta-gradient; false: first-order")
    first_order_steps: int = option(
        0, "number of first outer steps with a first-order meta-gradient, as in L2F's code", least=0
    )
    multi_step_loss: int = option(
        0,
        "number of first outer steps with the multi-step loss of MAML++, annealed to the loss of the last inner step",
        least=0,
    )
    batch_norm: str = option(
        "transductive",
        "batch-norm statistics for the query set: of the query set itself (transductive), of the support set "
        "(support), or running statistics and an affine for each inner step, as in MAML++ (per_step)",
        choices=("transductive", "support", "per_step"),
    )

    meta_batch: int = option(4, "tasks per outer step", least=1, most=10**5)
    iterations: int = option(1000, "outer steps", least=1)
    outer_learning_rate: float = option(0.001, "learning rate of Adam, the outer optimiser", least=0)
    outer_schedule: str = option("constant", "schedule of the outer learning rate", choices=("constant", "cosine"))
    outer_learning_rate_end: float = option(0.0, "cosine: final outer learning rate", least=0)
    outer_clip: float | None = option(
        None, "clamp each entry of the meta-gradient to [-value, value]; null: no clamping", above=0
    )
    skip_not_finite: bool = option(
        False, "skip and count outer steps with a non-finite loss or gradient; false: such a step ends the run"
    )
    seed: int = option(
        0,
        "random seed of the initial weights and training tasks; test tasks are the same for every seed",
        least=0,
        most=2**63 - 1,
    )
    device: str = option("auto", "auto, cpu, cuda or cuda:N", pattern=r"auto|cpu|cuda(:\d+)?")

    data_dir: str = option(
        "${oc.env:METARUN_DATA,'~/.cache/metarun/data'}", "folder of the data sets; written to by download=true only"
    )
    cache_dir: str = option("~/.cache/metarun", "folder for prepared images")
    download: bool = option(False, "download missing official archives to data_dir")
    resume: str | None = option(
        None,
        "run folder of a training run to continue; auto: continue the run in this command's folder, if there is one",
    )
    checkpoint: str | None = option(None, "mode=evaluate and mode=predict: run folder or checkpoint file")

    start: str | None = option(
        None, "run folder, checkpoint or weights file that the backbone is initialised from; the head starts untrained"
    )

    support: str | None = option(None, "mode=predict: folder with a folder of labelled images for each class")
    query: Any = option(None, "mode=predict: folder or list of files with the images to label")
    adapted_weights: bool = option(False, "mode=predict: save the adapted weights to adapted.safetensors")
    runs: Any = option(None, "mode=report: folder of runs, such as that of a sweep, or a list of folders")

    eval: EvalConfig = field(default_factory=EvalConfig)
    save: Save = field(default_factory=Save)
    engine: Engine = field(default_factory=Engine)


def iter_options(node: Any, prefix: str = "") -> Iterator[tuple[str, Field, Any]]:
    """Yield (dotted name, field, value) of every key in the dataclass `node`; the default as value if it is a class."""
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
    """Values of all keys by dotted name, and the chosen dataset, backbone and method by the name of their group."""
    chosen = {group: choice_name(getattr(settings, group)) for group in CONFIG_GROUPS}
    return {**chosen, **{name: value for name, _, value in iter_options(settings)}}


def check(settings: Settings) -> None:
    """Check each value against the range and choices of its key; `conflicts` checks combinations of keys.

    Raises:
        UserError: a value is not allowed; names the key, the value and what is allowed.
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
    """Raise UserError if a key is set that the mode does not read, or one is missing that it needs."""
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
    check_path_list("query", settings.query, "a folder, a file or a list of them, [FILE,FILE]")


def check_runs(settings: Settings) -> None:
    if settings.runs is None:
        raise UserError("mode=report needs runs=DIR or runs=[DIR,DIR], folders of runs or of sweeps")
    check_path_list("runs", settings.runs, "a folder or a list of them, [DIR,DIR]")


def check_path_list(name: str, value: Any, wanted: str) -> None:
    paths = value if isinstance(value, list) else [value]
    if not paths or not all(isinstance(path, str) for path in paths):
        raise UserError(f"{name}={value}: must be {wanted}; a number as a name needs quotes, as in \"{name}='7'\"")


def is_range(values: list[float]) -> bool:
    return len(values) == 2 and values[0] <= values[1]


def check_list_option(name: str, value: Any, item: Field, mode: str) -> None:
    """Check a key that takes a value or, with mode=evaluate, a list of distinct values. Raises UserError."""
    entry_type = item.metadata["several"]
    shown = str(value).replace(" ", "").replace("'", "")
    wanted = "whole number" if entry_type is int else "name"
    if value is None and item.default is not None:
        raise UserError(f"{name}=null: needs a value, {item.metadata['help']}")
    for entry in value if isinstance(value, list) else [value]:
        if entry is not None and type(entry) is not entry_type:
            raise UserError(f"{name}={shown}: must be a {wanted}, or a list of them as [A,B]")
    if isinstance(value, list):
        if mode != "evaluate":
            raise UserError(f"{name}={shown}: a list is read by mode=evaluate only; give one value")
        if not value or len(set(value)) < len(value):
            what = "is empty" if not value else "has a value twice"
            raise UserError(f"{name}={shown}: {what}; give different ones, as [A,B]")


def check_value(name: str, value: Any, item: Field) -> None:
    allowed = item.metadata
    if allowed["choices"] is not None and value not in allowed["choices"]:
        choices = ", ".join(allowed["choices"])
        synonym = hints.VALUES.get(name, {}).get(str(value))
        hint = f"; did you mean {synonym!r}?" if synonym else did_you_mean(str(value), allowed["choices"])
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
    """A value as it is written on the command line."""
    if isinstance(value, (list, tuple)):
        return f"[{','.join(format_value(entry) for entry in value)}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
