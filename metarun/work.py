"""What a run computes with, built from its settings: data, network, meta-learner."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metarun import checkpoint
from metarun.backbones import BACKBONES
from metarun.compiled import Compiled
from metarun.data import Places, Shape, Source, load, noise
from metarun.engine import channels_last, choose_device, choose_tasks, choose_threads, keep_freed_memory
from metarun.errors import UserError
from metarun.evaluation import TASKS_AT_ONCE, evaluation_tasks
from metarun.meta import Kind, Measures, MetaLearner, OneTask, evaluate_tasks, meta_gradient
from metarun.methods import METHODS, Parameters
from metarun.mixed import MixedTask
from metarun.objective import classification, regression
from metarun.outer_step import outer_step
from metarun.precision import set_precision
from metarun.schema import Settings
from metarun.seat import ALONE, Seat
from metarun.task import Task

log = logging.getLogger(__name__)

OBJECTIVES = {"accuracy": classification, "mse": regression}


@dataclass(frozen=True)
class Work:
    settings: Settings
    source: Source
    learner: MetaLearner
    parameters: Parameters  # the model's own tensors, which training changes in place
    device: torch.device
    how_tasks: str  # "looped", "vectorised" or "compiled"
    why_tasks: str  # the reason, in a few words
    threads: int  # of each operation
    batch_norm: str  # what the norm layers' statistics are; stands beside every result
    compiled: Compiled | None  # the outer step

    @property
    def train_shape(self) -> Shape:
        return train_shape(self.settings)

    @property
    def eval_shape(self) -> Shape:
        return eval_shape(self.settings)

    @property
    def eval_inner_loop(self) -> int:
        return eval_inner_loop(self.settings)

    @property
    def tensors(self) -> list[Tensor]:
        return [tensor for part in self.parameters for tensor in part.values()]

    @property
    def tasks_at_once(self) -> int:
        """Of an evaluation."""
        return TASKS_AT_ONCE[self.vectorised]

    @property
    def vectorised(self) -> bool:
        return self.how_tasks != "looped"

    @property
    def kind(self) -> Kind:
        """What a training task keeps of its inner loop."""
        engine = self.settings.engine
        return partial(MixedTask, segment=engine.segment) if engine.meta_gradient == "mixed" else OneTask

    def tasks(self, first: int, count: int) -> tuple[Task, Tensor]:
        """Training tasks first .. first + count - 1, and what the method draws for each."""
        s = self.settings
        tasks = self.source.draw(s.seed, "train", first, count, self.train_shape)
        own = noise(s.seed, "train", first, count, self.learner.method.noise(s.inner_loop))
        return tasks, own.to(tasks.query_data.device)

    def meta_gradient(self, first: int, count: int, second_order: bool) -> tuple[Parameters, Tensor, Measures]:
        """Mean over training tasks first .. first + count - 1, with each task's loss [count] and measures [count]."""
        tasks, own = self.tasks(first, count)
        learner = dataclasses.replace(self.learner, use_second_order=second_order)
        return meta_gradient(learner, self.parameters, tasks, own, self.vectorised, self.kind)

    def judge(self, split: str, first: int, count: int) -> Tensor:
        """Loss and metric of tasks first .. first + count - 1 after each inner step, [2, count, steps + 1]."""
        learner = dataclasses.replace(self.learner, inner_loop=self.eval_inner_loop)
        tasks, own = evaluation_tasks(learner, self.source, split, first, count, self.eval_shape)
        if not self.vectorised and self.device.type == "cpu" and tasks.query_data.dim() == 5:
            tasks = tasks._replace(
                support_data=channels_last(tasks.support_data), query_data=channels_last(tasks.query_data)
            )
        losses, measures = evaluate_tasks(learner, self.parameters, tasks, own, self.vectorised)
        return torch.stack([losses, measures[self.source.metric]]).double().cpu()

    def snapshot(self) -> dict[str, Any]:
        """A copy of the present parameters, in the form that `restore` takes and checkpoints hold."""
        return {
            kind: {name: tensor.detach().clone() for name, tensor in part.items()}
            for kind, part in self.parameters._asdict().items()
        }

    def restore(self, content: dict[str, Any], name: str) -> None:
        """Take the parameters of a checkpoint. Raises UserError where it is of another architecture."""
        for kind, tensors in self.parameters._asdict().items():
            checkpoint.restore(tensors, checkpoint.tensors(content, kind, name), name)


def build(settings: Settings, seat: Seat = ALONE, taking: Path | None = None) -> Work:
    """Load the data and make the network with its initial weights, for one of a run's processes.

    Args:
        taking: a checkpoint whose parameters the network is going to take.

    Raises:
        UserError: the device, the data or the shape of the tasks cannot be had, or the checkpoint does not fit.
    """
    device = choose_device(settings.device, seat)
    set_precision(settings.engine.precision, device)
    keep_freed_memory()
    data = options(settings.dataset)
    places = Places(Path(settings.data_dir).expanduser(), Path(settings.cache_dir).expanduser(), settings.download)
    source = load(data.pop("name"), places, device, **data)
    source.check("train", train_shape(settings))
    for split in ("val", "test"):
        source.check(split, eval_shape(settings), eval_names(settings))
    if taking is not None:
        require_same_shapes(settings, source, checkpoint.load(taking), str(taking))
    learner = build_learner(settings, source, device)
    mixed = settings.engine.meta_gradient == "mixed"
    alone = not mixed and settings.engine.precision == "float32" and seat.size == 1
    compilable = settings.mode == "train" and learner.method.offline is None and alone
    tasks, reason = choose_tasks(settings.engine.tasks, learner.model, device, settings.iterations if compilable else 0)
    threads = choose_threads(tasks != "looped", device, seat)
    who = f"{seat.size} processes, each on {device}" if seat.size > 1 else str(device)
    how = f"{tasks}, meta-gradient mixed" if mixed else tasks
    how += "" if settings.engine.precision == "float32" else f", in {settings.engine.precision}"
    log.info("%s with %d thread%s, tasks %s: %s", who, threads, "s" if threads > 1 else "", how, reason)
    parameters, norm = learner.method.parameters, batch_norm(settings)
    step = partial(outer_step, metric=source.metric, clip=settings.outer_clip)
    compiled = Compiled(learner, step) if tasks == "compiled" else None
    return Work(settings, source, learner, parameters, device, tasks, reason, threads, norm, compiled)


def build_learner(settings: Settings, source: Source, device: torch.device) -> MetaLearner:
    """The network for a source's tasks, with its initial weights, and how it learns."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = build_model(settings, source).to(device)
        chosen = options(settings.method)
        method = METHODS[chosen.pop("name")](model, settings.inner_learning_rate, **chosen)
    objective = OBJECTIVES[source.metric]
    order, precision = settings.use_second_order, settings.engine.precision
    return MetaLearner(model, method, objective, objective, settings.inner_loop, order, precision)


def require_same_shapes(settings: Settings, source: Source, content: dict[str, Any], name: str) -> None:
    """Whether a checkpoint's parameters fit its settings, before a network is made: they may ask for any size.

    Raises:
        UserError: they do not.
    """
    saved = {kind: checkpoint.tensors(content, kind, name) for kind in Parameters._fields}
    layers = len(getattr(settings.backbone, "hidden", ()))
    if layers > len(saved["theta"]) + len(saved["phi"]):
        raise UserError(
            f"checkpoint {name}: of another architecture: backbone.hidden has {layers} layers, it has fewer"
        )
    with torch.device("meta"):  # shapes without memory
        learner = build_learner(settings, source, torch.device("meta"))
    for kind, tensors in learner.method.parameters._asdict().items():
        checkpoint.require_same_shapes(tensors, saved[kind], name)


def build_model(settings: Settings, source: Source) -> nn.Module:
    backbone = options(settings.backbone)
    return BACKBONES[backbone.pop("name")](source.input_shape, source.outputs(settings.ways), **backbone)


def batch_norm(settings: Settings) -> str:
    """What the norm layers' statistics are, or "none" where there is no batch norm."""
    return settings.batch_norm if getattr(settings.backbone, "norm", "none") == "batch" else "none"


def train_shape(settings: Settings) -> Shape:
    return Shape(settings.ways, settings.shots, settings.queries)


def eval_shape(settings: Settings) -> Shape:
    return Shape(settings.ways, settings.eval.shots or settings.shots, settings.eval.queries or settings.queries)


def eval_inner_loop(settings: Settings) -> int:
    chosen = settings.eval.inner_loop
    return settings.inner_loop if chosen is None else chosen


def eval_names(settings: Settings) -> list[str]:
    """The keys that the sizes of an evaluation's tasks come from."""
    return ["ways", *(f"eval.{name}" if getattr(settings.eval, name) else name for name in ("shots", "queries"))]


def options(group: Any) -> dict[str, Any]:
    """A group's keys as plain arguments."""
    return dataclasses.asdict(group)
