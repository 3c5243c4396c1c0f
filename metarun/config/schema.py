"""Every key of a run with its type, default, range and help text; `groups` has the keys of a group's choices.

The dataclasses are Hydra's typed schema, the settings that the runner takes, and the source of `--help` and
docs/keys.md.
"""

import math
import re
from collections.abc import Iterator, Mapping
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
READ_BY = {  # key -> modes that read it
    "checkpoint": ("evaluate", "predict"),
    "resume": ("train",),
    "runs": ("report",),
    **dict.fromkeys(("eval.ways", "eval.split", "eval.dataset"), ("evaluate",)),
    **dict.fromkeys(PREDICT_KEYS, ("predict",)),
}
REQUIRED_BY = {  # mode -> key that it needs, and what to give
    "evaluate": {"checkpoint": "checkpoint=RUN, the run folder or checkpoint file to evaluate"},
    "predict": {
        "checkpoint": "checkpoint=RUN, the run folder or checkpoint file to predict with",
        "support": "support=DIR, a folder with a folder of images for each class",
        "query": "query=DIR or query=[FILE,FILE], the images to label",
    },
    "report": {"runs": "runs=DIR or runs=[DIR,DIR], folders of runs or of sweeps"},
}


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
        entries = value if isinstance(value, list) else [value]
        if isinstance(value, list) and any(entry is None or isinstance(entry, (list, dict)) for entry in entries):
            raise UserError(f"{name}={value}: must be a plain list, {item.metadata['help']}")
        if item.metadata["several"]:
            check_list_option(name, value, item, settings.mode)
        for entry in entries:
            if entry is not None:
                check_value(name, entry, item.metadata)
    if isinstance(settings.dataset, Sinusoid):
        frequency = settings.dataset.frequency
        if len(frequency) != 2 or frequency[0] > frequency[1]:
            raise UserError(f"dataset.frequency={frequency}: must be two numbers, [LOWEST,HIGHEST]")
    check_mode(settings)


def check_list_option(name: str, value: Any, item: Field, mode: str) -> None:
    """Check a key that takes a value or, with mode=evaluate, a list of distinct values. Raises UserError."""
    entry_type = item.metadata["several"]
    given = f"{name}={value}".replace(" ", "").replace("'", "")
    entries = value if isinstance(value, list) else [value]
    if value is None and item.default is not None:
        raise UserError(f"{name}=null: needs a value, {item.metadata['help']}")
    if any(entry is not None and type(entry) is not entry_type for entry in entries):
        wanted = "whole number" if entry_type is int else "name"
        raise UserError(f"{given}: must be a {wanted}, or a list of them as [A,B]")
    if isinstance(value, list) and mode != "evaluate":
        raise UserError(f"{given}: a list is read by mode=evaluate only; give one value")
    if not entries or len(set(entries)) < len(entries):
        raise UserError(f"{given}: must be one value or more, all different, as [A,B]")


def check_value(name: str, value: Any, allowed: Mapping[str, Any]) -> None:
    """Check one value against the metadata of its key. Raises UserError."""
    message = ""
    if allowed["choices"] is not None and value not in allowed["choices"]:
        synonym = hints.VALUES.get(name, {}).get(str(value))
        hint = f"; did you mean {synonym!r}?" if synonym else did_you_mean(str(value), allowed["choices"])
        message = f"choose one of {', '.join(allowed['choices'])}{hint}"
    elif allowed["pattern"] and not re.fullmatch(allowed["pattern"], value):
        message = f"must be {allowed['help']}"
    elif isinstance(value, float) and not math.isfinite(value):
        message = "must be a finite number"
    elif allowed["least"] is not None and value < allowed["least"]:
        message = f"must be {allowed['least']} or more"
    elif allowed["above"] is not None and value <= allowed["above"]:
        message = f"must be greater than {allowed['above']}"
    elif isinstance(value, (int, float)) and value > (most := allowed["most"] or LARGEST):
        message = f"must be {most} or less"
    if message:
        raise UserError(f"{name}={value}: {message}")


def check_mode(settings: Settings) -> None:
    """Raise UserError if a key is set that the mode does not read, or one is missing that it needs."""
    mode = settings.mode
    values = {name: value for name, _, value in iter_options(settings)}
    defaults = {name: value for name, _, value in iter_options(Settings)}
    for name, modes in READ_BY.items():
        if mode not in (*modes, "report") and values[name] != defaults[name]:
            hint = "; to continue a training run give resume=RUN" if name == "checkpoint" else ""
            read_by = " and ".join(f"mode={each}" for each in modes)
            raise UserError(f"{name}= is read by {read_by} only, this is mode={mode}; leave it out{hint}")
    for name, wanted in REQUIRED_BY.get(mode, {}).items():
        if values[name] is None:
            raise UserError(f"mode={mode} needs {wanted}")
    for name in ("query", "runs"):
        paths = values[name] if isinstance(values[name], list) else [values[name]]
        if mode in READ_BY[name] and not (paths and all(isinstance(path, str) for path in paths)):
            example = f"a number as a name needs quotes, as in \"{name}='7'\""
            raise UserError(f"{name}={values[name]}: must be a file, a folder or a list of them, [A,B]; {example}")


def format_value(value: Any) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, (list, tuple)):
        return f"[{','.join(format_value(entry) for entry in value)}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
