"""Every key of the command, its type, default, range and meaning: the single place where they stand.

The dataclasses are Hydra's typed schema, the plain settings that the runner takes, and the source of `--help`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, dataclass, field, fields
from typing import Any

from metarun.errors import UserError, nearest


def key(
    default: Any,
    help: str,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    choices: Any = None,
    pattern: str = "",
) -> Any:
    """A key, its meaning and what it admits: `least` <= value <= `most`, `above` < value, `choices`, a `pattern`."""
    metadata = {"help": help, "least": least, "above": above, "most": most, "choices": choices, "pattern": pattern}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


# --- groups: what `dataset=`, `backbone=` and `method=` choose between -------------------------------------


@dataclass
class Glyphs:
    name: str = "glyphs"
    seed: int = key(0, "which invented alphabets are drawn", least=0, most=2**63 - 1)


@dataclass
class Omniglot:
    name: str = "omniglot"
    split: str = key("vinyals", "division into classes", choices=("vinyals", "maml", "lake"))
    rotations: bool = key(True, "a character turned by 90, 180, 270 degrees counts as three more classes")


@dataclass
class Sinusoid:
    name: str = "sinusoid"
    frequency: list[float] = key([1.0, 1.0], "range of the frequency; Meta-SGD and MT-net use [0.8,1.2]", above=0)


@dataclass
class Mlp:
    name: str = "mlp"
    hidden: list[int] = key([40, 40], "widths of the hidden layers; [] is a linear model", least=1, most=10**5)


@dataclass
class Conv4:
    name: str = "conv4"
    filters: int = key(64, "channels of each convolution", least=1, most=10**5)
    bias: bool = key(True, "convolutions have a bias")
    norm: str = key("batch", "normalisation layer", choices=("batch", "layer", "instance", "group", "none"))
    downsample: str = key("pool", "2x2 max-pool, or stride-2 convolutions and a mean", choices=("pool", "stride"))


@dataclass
class Maml:
    name: str = "maml"


@dataclass
class Fomaml:
    name: str = "fomaml"


@dataclass
class Msgd:
    name: str = "msgd"
    alpha: str = key("element", "a learned rate for each of these", choices=("element", "tensor", "scalar"))
    start: str = key(
        "rate", "rates begin at inner_learning_rate, or at one draw of U[0.005, 0.1]", choices=("rate", "random")
    )


@dataclass
class Mtnet:
    name: str = "mtnet"
    mask: bool = key(True, "learned masks on the inner gradient; false: T-net")
    full: bool = key(False, "a mask for each weight, drawn afresh at each inner step, instead of each output unit")


@dataclass
class Warpgrad:
    name: str = "warpgrad"
    objective: str = key("warp_maml", "what the warp layers descend", choices=("warp_maml", "trajectory", "unrolled"))
    initialisation: str = key(
        "leap", "trajectory: theta follows the tasks' paths, or stays", choices=("leap", "frozen")
    )
    approximate: bool = key(False, "drop the derivative through the look-ahead step (equation 12)")
    start: str = key(
        "reference",
        "warp layers begin random as the reference's, or as the identity",
        choices=("reference", "identity"),
    )
    after: list[str] | None = key(None, "names of the modules that a warp layer follows; null: each block")
    depth: int = key(1, "layers of a warp", least=1)
    kernel: int = key(3, "width of its convolutions, an odd number", least=1)
    norm: bool = key(False, "batch norm behind a warp")
    activation: bool = key(False, "ReLU in a warp")
    residual: bool = key(False, "a warp adds to what it is given")


@dataclass
class L2f:
    name: str = "l2f"


@dataclass
class Anil:
    name: str = "anil"


@dataclass
class Boil:
    name: str = "boil"


LARGEST = 10**9  # of any number that has no bound of its own

GROUPS: dict[str, dict[str, type]] = {
    "dataset": {"glyphs": Glyphs, "sinusoid": Sinusoid, "omniglot": Omniglot},
    "backbone": {"mlp": Mlp, "conv4": Conv4},
    "method": {
        "maml": Maml,
        "fomaml": Fomaml,
        "msgd": Msgd,
        "mtnet": Mtnet,
        "warpgrad": Warpgrad,
        "l2f": L2f,
        "anil": Anil,
        "boil": Boil,
    },
}


# --- keys --------------------------------------------------------------------------------------------------


@dataclass
class Eval:
    tasks: int = key(600, "test tasks of the final accuracy", least=2)
    validation_tasks: int = key(200, "validation tasks that choose the best checkpoint", least=2)
    every: int = key(200, "iterations between validations", least=1)
    inner_loop: int | None = key(None, "inner steps when evaluating; null: as in training", least=0, most=10**4)
    shots: int | None = key(None, "shots when evaluating; null: as in training", least=1, most=10**5)
    queries: int | None = key(None, "queries when evaluating; null: as in training", least=1, most=10**5)


@dataclass
class Save:
    every: int | None = key(None, "iterations between checkpoints; null: at every validation", least=1)
    keep: int = key(2, "how many of the newest checkpoints stay, besides the best", least=1)


@dataclass
class Engine:
    tasks: str = key("auto", "how a meta-batch is computed", choices=("auto", "vectorised", "looped"))


@dataclass
class Settings:
    mode: str = key("train", "train (then evaluates) or evaluate", choices=("train", "evaluate"))
    dataset: Any = None
    backbone: Any = None
    method: Any = None

    ways: int = key(5, "classes of a task", least=2, most=10**5)
    shots: int = key(1, "support images a class; points of a curve", least=1, most=10**5)
    queries: int = key(15, "query images a class; points of a curve", least=1, most=10**5)
    inner_loop: int = key(5, "inner steps", least=0, most=10**4)
    inner_learning_rate: float = key(0.01, "step size of the inner loop", least=0)
    use_second_order: bool = key(True, "differentiate through the inner steps; false: first-order")
    first_order_steps: int = key(0, "outer steps in first order before second order begins, as L2F's code has", least=0)
    batch_norm: str = key("transductive", "statistics of batch norm: each batch's own", choices=("transductive",))

    meta_batch: int = key(4, "tasks of one outer step", least=1, most=10**5)
    iterations: int = key(1000, "outer steps", least=1)
    outer_learning_rate: float = key(0.001, "step size of Adam, the outer optimiser", least=0)
    outer_schedule: str = key("constant", "of the outer step size", choices=("constant", "cosine"))
    outer_clip: float | None = key(None, "clamp each entry of the meta-gradient to this size; null: as it is", above=0)
    seed: int = key(
        0, "of the initial weights and the training tasks; test tasks are the same for all", least=0, most=2**63 - 1
    )
    device: str = key("auto", "auto, cpu, cuda or cuda:N", pattern=r"auto|cpu|cuda(:\d+)?")

    data_dir: str = key(
        "${oc.env:METARUN_DATA,'~/.cache/metarun/data'}", "where data sets lie; only read, except by a download"
    )
    cache_dir: str = key("~/.cache/metarun", "prepared images are kept here")
    download: bool = key(False, "fetch the official archives into data_dir if they are missing")
    resume: str | None = key(None, "a run folder to continue")
    checkpoint: str | None = key(None, "run folder or checkpoint file that mode=evaluate reads")

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


def check(settings: Settings) -> None:
    """Refuse values outside of what a key admits.

    Raises:
        UserError: names the key, what was found and what is allowed.
    """
    for name, item, value in keys(settings):
        for entry in value if isinstance(value, list) else [value]:
            if entry is not None:
                check_value(name, entry, item)
    if isinstance(settings.dataset, Sinusoid) and not is_range(settings.dataset.frequency):
        raise UserError(f"dataset.frequency={settings.dataset.frequency}: must be two numbers, [LOWEST,HIGHEST]")
    if isinstance(settings.method, Fomaml) and settings.use_second_order:
        raise UserError("use_second_order=true: method=fomaml is first order; that would be method=maml")
    if settings.mode == "evaluate" and settings.checkpoint is None:
        raise UserError("mode=evaluate needs checkpoint=RUN, the run folder or checkpoint file to evaluate")
    if settings.mode == "train" and settings.checkpoint is not None:
        raise UserError("checkpoint= is read by mode=evaluate only; to continue a training run give resume=RUN")
    if settings.mode == "evaluate" and settings.resume is not None:
        raise UserError("resume= continues a training run; mode=evaluate reads checkpoint=RUN only")


def is_range(values: list[float]) -> bool:
    return len(values) == 2 and values[0] <= values[1]


def check_value(name: str, value: Any, item: Field) -> None:
    allowed = item.metadata
    if allowed["choices"] is not None and value not in allowed["choices"]:
        choices = ", ".join(allowed["choices"])
        raise UserError(f"{name}={value}: choose one of {choices}{nearest(str(value), allowed['choices'])}")
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
