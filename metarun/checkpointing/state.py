"""What a checkpoint holds: one documented dataclass, validated when it is saved and when it is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metarun.checkpointing import plain
from metarun.config.schema import Settings
from metarun.data.preprocessing import ImagePreprocessing
from metarun.errors import UserError
from metarun.utils import random_state as generators

Tensors = dict[str, Tensor]
PARTS = ("theta", "phi", "statistics", "exp_avg", "exp_avg_sq", "adam_steps", "generators")  # those that are tensors
COUNTS = ("step", "lines", "skipped", "skipped_in_a_row")


@dataclass(frozen=True)
class Validation:
    """The metric over the validation tasks at an outer step: its mean, and half of the 95 % interval."""

    step: int
    mean: float
    ci95: float


class Weights(NamedTuple):
    """A network's parameters by their names, and what its norms have found; shapes are those of the network."""

    theta: Tensors  # what adapts to a task
    phi: Tensors  # what is learned across tasks only
    statistics: Tensors = {}  # noqa: RUF012  # batch_norm=per_step: [inner steps + 1, channels] by buffer; or none


@dataclass
class CheckpointState:
    """A run at an outer step. A run goes on from it; an evaluation or a prediction takes its settings and weights."""

    settings: Settings
    theta: Tensors  # by parameter name, what adapts to a task; floating point, shapes of the network's
    phi: Tensors  # likewise, what is learned across tasks only
    statistics: Tensors = field(default_factory=dict)  # batch_norm=per_step: [inner steps + 1, channels] by buffer
    pictures: ImagePreprocessing | None = None  # the form of the pictures that it learned; None: they are none

    step: int = 0  # outer steps done
    best: Validation | None = None
    top: list[Validation] = field(default_factory=list)  # of an ensemble's members, the best first
    last: Validation | None = None
    validation_due: bool = False  # this step's validation is still to come
    sums: dict[str, float] = field(default_factory=dict)  # loss, metric, steps since the last line of training
    lines: int = 0  # of metrics.jsonl
    skipped: int = 0  # outer steps that were not finite
    skipped_in_a_row: int = 0
    seconds: float = 0.0  # of training, over all sittings
    execution: dict[str, str | int] = field(default_factory=dict)  # what the last bits depend on: device, threads, ...
    execution_reason: str = ""  # for people

    exp_avg: Tensors = field(default_factory=dict)  # Adam's moments, by "theta/NAME" and "phi/NAME"; parameters' shapes
    exp_avg_sq: Tensors = field(default_factory=dict)
    adam_steps: Tensors = field(default_factory=dict)  # each float32 []
    generators: Tensors = field(default_factory=dict)  # as `generators.states` gives them

    @property
    def weights(self) -> Weights:
        return Weights(self.theta, self.phi, self.statistics)

    def validate(self) -> None:
        """Raises ValueError where a field is not what is documented above."""
        for part in PARTS:
            for name, tensor in getattr(self, part).items():
                if part != "generators" and not tensor.is_floating_point():
                    raise ValueError(f"its {part} {name!r} is of type {tensor.dtype}, must be floating point")
        for name in COUNTS:
            if getattr(self, name) < 0:
                raise ValueError(f"its {name} is {getattr(self, name)}, must be 0 or more")
        parameters = {f"{part}/{name}": t for part in ("theta", "phi") for name, t in getattr(self, part).items()}
        if not self.exp_avg.keys() == self.exp_avg_sq.keys() == self.adam_steps.keys() <= parameters.keys():
            raise ValueError("its optimiser's moments are of other parameters than it has")
        for name, steps in self.adam_steps.items():
            shapes = {self.exp_avg[name].shape, self.exp_avg_sq[name].shape, parameters[name].shape}
            if len(shapes) > 1 or steps.shape or steps.dtype != torch.float32:
                raise ValueError(f"its optimiser's moments of {name!r} are of another shape than the parameter")
        if self.pictures is not None:
            self.pictures.validate()
        if self.generators:
            generators.check(self.generators)

    def parts(self) -> tuple[dict[str, Any], Tensors]:
        """All that is no tensor as what JSON holds, and the tensors by PART/NAME. Raises ValueError as `validate`."""
        content = {
            item.name: plain.to_json(getattr(self, item.name)) for item in fields(self) if item.name not in PARTS
        }
        tensors = {f"{part}/{name}": tensor for part in PARTS for name, tensor in getattr(self, part).items()}
        of_parts(content, tensors)
        return content, tensors


def of_parts(content: Any, tensors: Tensors) -> CheckpointState:
    """The inverse of `CheckpointState.parts`. Raises ValueError where it is none."""
    divided: dict[str, Any] = {part: {} for part in PARTS}
    for name, tensor in tensors.items():
        part, _, own = name.partition("/")
        if part not in divided or not own:
            raise ValueError(f"it holds a tensor that this version does not know, {name[:40]!r}")
        divided[part][own] = tensor
    values = plain.fields_from_json(CheckpointState, content, "content", leaving=PARTS)
    state = CheckpointState(**values, **divided)
    state.validate()
    return state


def require_same_shapes(tensors: Tensors, saved: Tensors, what: str) -> None:
    """Whether the model's tensors, which may be without memory ("meta"), could take the saved ones.

    Raises:
        UserError: names or shapes differ, as they do for another architecture; names the first few.
    """
    if mismatch := describe_state_mismatch(tensors, saved):
        raise UserError(
            f"checkpoint {what}: of another architecture: {mismatch}; "
            "leave out the keys that change backbone, method, ways or data set"
        )


def describe_state_mismatch(tensors: Tensors, saved: Tensors) -> str:
    """How the names and shapes of saved tensors differ from what is wanted, in words; nothing where they do not."""
    differ = [f"{name} is missing" for name in tensors if name not in saved]
    differ += [f"{ascii(name)[1:-1]} is unknown" for name in saved if name not in tensors]
    differ += [
        f"{name} is {list(saved[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in tensors.items()
        if name in saved and saved[name].shape != tensor.shape
    ]
    more = f" and {len(differ) - 3} more" if len(differ) > 3 else ""
    return f"{'; '.join(differ[:3])}{more}"


def copy_state_(tensors: Tensors, saved: Tensors, what: str) -> None:
    """Copy saved tensors into those of the model, in place.

    Raises:
        UserError: they are of another architecture.
    """
    require_same_shapes(tensors, saved, what)
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(saved[name])
