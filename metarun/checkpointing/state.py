"""What a checkpoint holds: one documented dataclass, validated when it is saved and when it is loaded."""

from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metarun.checkpointing import typed_json
from metarun.config.schema import Settings
from metarun.data.preprocessing import ImagePreprocessing
from metarun.errors import UserError
from metarun.utils import random_state as generators

Tensors = dict[str, Tensor]
TENSOR_FIELDS = ("theta", "phi", "statistics", "exp_avg", "exp_avg_sq", "adam_steps", "generators")  # dicts of tensors
COUNT_FIELDS = ("step", "lines", "skipped", "skipped_in_a_row")


@dataclass(frozen=True)
class Validation:
    """Mean metric over the validation tasks after outer step `step`, and half the width of its 95 % interval."""

    step: int
    mean: float
    ci95: float


class Weights(NamedTuple):
    """A network's parameters, in its own shapes, and its batch-norm statistics; each by name."""

    theta: Tensors  # adapted to each task by the inner loop
    phi: Tensors  # learned across tasks only
    statistics: Tensors = {}  # noqa: RUF012  # batch_norm=per_step: [inner steps + 1, channels] by buffer; else empty


@dataclass
class CheckpointState:
    """The state of a training run after an outer step.

    Training resumes from all of it; an evaluation or a prediction takes its settings and weights.
    """

    settings: Settings
    theta: Tensors  # parameters that the inner loop adapts, by name; floating point, in the network's shapes
    phi: Tensors  # parameters that are learned across tasks only; likewise
    statistics: Tensors = field(default_factory=dict)  # batch_norm=per_step: [inner steps + 1, channels] by buffer
    pictures: ImagePreprocessing | None = None  # size, channels, ... of the training images; None: regression

    step: int = 0  # outer steps done
    best: Validation | None = None
    top: list[Validation] = field(default_factory=list)  # of the ensemble's members, the best first
    last: Validation | None = None
    validation_due: bool = False  # this step's validation has not been done yet
    sums: dict[str, float] = field(default_factory=dict)  # loss, metric and steps, since the last training line
    lines: int = 0  # lines in metrics.jsonl
    skipped: int = 0  # outer steps without an update, since loss or gradient was not finite
    skipped_in_a_row: int = 0  # of these, the ones without a finite step since
    seconds: float = 0.0  # training time over all sittings
    execution: dict[str, str | int] = field(default_factory=dict)  # device, threads, ...: the last bits depend on them
    execution_reason: str = ""  # the reason for `execution`, as text

    exp_avg: Tensors = field(default_factory=dict)  # Adam's first moment by "theta/NAME", "phi/NAME"; parameter's shape
    exp_avg_sq: Tensors = field(default_factory=dict)  # Adam's second moment, likewise
    adam_steps: Tensors = field(default_factory=dict)  # Adam's step count, likewise; each float32 []
    generators: Tensors = field(default_factory=dict)  # random states, as `random_state` returns them

    @property
    def weights(self) -> Weights:
        return Weights(self.theta, self.phi, self.statistics)

    def validate(self) -> None:
        """Raise ValueError if a field is not as documented above."""
        for name, tensor in self.tensors().items():
            if not name.startswith("generators/") and not tensor.is_floating_point():
                raise ValueError(f"its tensor {name!r} is of type {tensor.dtype}, must be floating point")
        for name in COUNT_FIELDS:
            if getattr(self, name) < 0:
                raise ValueError(f"its {name} is {getattr(self, name)}, must be 0 or more")
        shapes = {f"{part}/{name}": t.shape for part in ("theta", "phi") for name, t in getattr(self, part).items()}
        if not self.exp_avg.keys() == self.exp_avg_sq.keys() == self.adam_steps.keys() <= shapes.keys():
            raise ValueError("its optimiser's moments are of other parameters than it has")
        for name, steps in self.adam_steps.items():
            same_shape = self.exp_avg[name].shape == self.exp_avg_sq[name].shape == shapes[name]
            if not same_shape or steps.shape or steps.dtype != torch.float32:
                raise ValueError(f"its optimiser's moments of {name!r} are of another shape than the parameter")
        if self.pictures is not None:
            self.pictures.validate()
        if self.generators:
            generators.check(self.generators)

    def tensors(self) -> Tensors:
        """All tensors by FIELD/NAME."""
        return {f"{part}/{name}": tensor for part in TENSOR_FIELDS for name, tensor in getattr(self, part).items()}

    def parts(self) -> tuple[dict[str, Any], Tensors]:
        """The fields without tensors as JSON values, and the tensors by FIELD/NAME. Raises ValueError as `validate`."""
        names = [item.name for item in fields(self) if item.name not in TENSOR_FIELDS]
        content = {name: typed_json.to_json(getattr(self, name)) for name in names}
        from_parts(content, self.tensors())
        return content, self.tensors()


def from_parts(content: Any, tensors: Tensors) -> CheckpointState:
    """The inverse of `CheckpointState.parts`. Raises ValueError if `content` and `tensors` are not such parts."""
    values = typed_json.fields_from_json(CheckpointState, content, "content", exclude=TENSOR_FIELDS)
    state = CheckpointState(**values, theta={}, phi={})
    for name, tensor in tensors.items():
        part, _, key = name.partition("/")
        if part not in TENSOR_FIELDS or not key:
            raise ValueError(f"it has a tensor that this version does not know, {typed_json.excerpt(name)}")
        getattr(state, part)[key] = tensor
    state.validate()
    return state


def require_same_shapes(params: Tensors, saved: Tensors, what: str) -> None:
    """Check that saved tensors have the names and shapes of the model's `params`, which may be on device "meta".

    Args:
        what: the checkpoint's name in the message.

    Raises:
        UserError: names or shapes differ, as they do for another architecture; the message names the first few.
    """
    if mismatch := describe_state_mismatch(params, saved):
        raise UserError(
            f"checkpoint {what}: of another architecture: {mismatch}; "
            "leave out the keys that change backbone, method, ways or data set"
        )


def describe_state_mismatch(params: Tensors, saved: Tensors) -> str:
    """How the names and shapes of saved tensors differ from those of `params`, in words; empty if they do not."""
    missing = [f"{name} is missing" for name in params if name not in saved]
    unknown = [f"{ascii(name)[1:-1]} is unknown" for name in saved if name not in params]
    reshaped = [
        f"{name} is {list(saved[name].shape)} instead of {list(param.shape)}"
        for name, param in params.items()
        if name in saved and saved[name].shape != param.shape
    ]
    differences = missing + unknown + reshaped
    more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
    return "; ".join(differences[:3]) + more


def copy_state_(params: Tensors, saved: Tensors, what: str) -> None:
    """Copy saved tensors into the model's `params`, in place. Raises UserError as `require_same_shapes`."""
    require_same_shapes(params, saved, what)
    with torch.no_grad():
        for name, param in params.items():
            param.copy_(saved[name])
