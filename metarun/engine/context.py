"""What a run computes with, built from its settings: data, network, meta-learner."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metarun.checkpointing import ensemble, store
from metarun.checkpointing.state import Weights, copy_state_
from metarun.config.groups import Pretrain
from metarun.config.schema import Settings
from metarun.core import batch_norm_stats as running
from metarun.core import multi_step_loss, nearest_centroid
from metarun.core.batch_norm_stats import BatchNormStatistics
from metarun.core.checkpointed import CheckpointedTaskLearner
from metarun.core.compiled import CompiledOuterStep
from metarun.core.meta_learner import (
    MetaLearner,
    Metrics,
    TaskLearner,
    TaskLearnerFactory,
    evaluate_tasks,
    meta_gradient,
)
from metarun.core.objectives import classification_by
from metarun.core.outer_step import make_outer_step
from metarun.data import DataPaths, TaskSampler, TaskShape, load, method_noise, preprocessing
from metarun.data.image_sampler import ImageTaskSampler
from metarun.data.minibatches import minibatches
from metarun.engine import heads
from metarun.engine.eval_preprocessing import preprocessing_for_eval_dataset
from metarun.engine.eval_result import CHUNK_SIZE, EVALUATION_SEED, evaluation_tasks
from metarun.engine.execution import choose_device, configure_malloc, select_task_execution, set_num_threads
from metarun.engine.network import as_kwargs, batch_norm, build_learner, build_model, check_state_shapes
from metarun.engine.rank import SINGLE_PROCESS, Rank
from metarun.methods import Parameters, Tensors
from metarun.nn.precision import set_precision
from metarun.types import Task

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunContext:
    settings: Settings
    source: TaskSampler
    learner: MetaLearner
    parameters: Parameters  # the model's own tensors, which training changes in place
    device: torch.device
    how_tasks: str  # "looped", "vectorised" or "compiled"
    why_tasks: str  # the reason, in a few words
    threads: int  # of each operation
    batch_norm: str  # what the norm layers' statistics are; stands beside every result
    compiled: CompiledOuterStep | None  # the outer step
    running: BatchNormStatistics | None = None  # the statistics of batch_norm=per_step

    @property
    def train_shape(self) -> TaskShape:
        return train_shape(self.settings)

    @property
    def eval_shape(self) -> TaskShape:
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
        return CHUNK_SIZE[self.vectorised]

    @property
    def vectorised(self) -> bool:
        return self.how_tasks != "looped"

    @property
    def task_learner_cls(self) -> TaskLearnerFactory:
        """What a training task keeps of its inner loop."""
        engine = self.settings.engine
        return (
            partial(CheckpointedTaskLearner, segment=engine.segment) if engine.meta_gradient == "mixed" else TaskLearner
        )

    def tasks(self, first: int, count: int) -> tuple[Task, Tensor]:
        """Training tasks first .. first + count - 1, and what the method draws for each."""
        s = self.settings
        if isinstance(s.method, Pretrain):
            return pretraining_tasks(self.source, s.seed, first, count, s.method.batch)
        tasks = self.source.draw(s.seed, "train", first, count, self.train_shape)
        own = method_noise(s.seed, "train", first, count, self.learner.method.noise(s.inner_loop))
        return tasks, own.to(tasks.query_data.device)

    def meta_gradient(self, first: int, count: int, second_order: bool) -> tuple[Parameters, Tensor, Metrics]:
        """Mean over training tasks first .. first + count - 1, with each task's loss [count] and measures [count]."""
        tasks, own = self.tasks(first, count)
        weights = self.loss_weights(first // self.settings.meta_batch)
        learner = dataclasses.replace(self.learner, use_second_order=second_order)
        return meta_gradient(learner, self.parameters, tasks, own, self.vectorised, self.task_learner_cls, weights)

    def loss_weights(self, step: int) -> Tensor | None:
        """Of the multi-step loss at that outer step, [inner_loop]; None where the last inner step alone counts."""
        weights = multi_step_loss.msl_weights(self.settings.inner_loop, self.settings.multi_step_loss, step)
        return None if weights is None else torch.tensor(weights, device=self.device)

    def evaluate_chunk(self, split: str, first: int, count: int) -> Tensor:
        """Loss and metric of tasks first .. first + count - 1 after each inner step, [2, count, steps + 1].

        With `eval.details`, each task has as many entries more as queries, after the last step: how sure the network
        is of its answer, and in the second row the answer.
        """
        learner, details = self.eval_learner
        losses, measures = self.evaluate_tasks(learner, split, first, count)
        judged = torch.stack([losses, measures[self.source.metric]]).double()
        if details:
            own = torch.stack([measures[name][:, -1] for name in ("confidence", "found")])
            judged = torch.cat([judged, own.double()], dim=2)
        return judged.cpu()

    @property
    def outputs_shape(self) -> tuple[int, int, int]:
        """Of what a task's queries are answered: inner steps + 1, queries, outputs."""
        shape = self.eval_shape
        queries = shape.queries * (shape.ways if self.source.is_classification else 1)
        return self.eval_inner_loop + 1, queries, self.source.num_outputs(shape.ways)

    def ensemble_member_logits(self, split: str, first: int, count: int) -> Tensor:
        """What the network says to their queries, [count, steps + 1, queries, outputs]."""
        learner = dataclasses.replace(self.learner, outer_objective=ensemble.logits_objective)
        return self.evaluate_tasks(learner, split, first, count)[1]["output"].cpu()

    def judge_outputs(self, split: str, first: int, count: int, outputs: Tensor) -> Tensor:
        """The same as `judge`, of given outputs."""
        targets = self.source.draw(EVALUATION_SEED, split, first, count, self.eval_shape).query_target
        metric = self.source.metric
        return torch.stack(ensemble.score_logits(self.learner.outer_objective, metric, outputs, targets.cpu())).double()

    def evaluate_tasks(self, learner: MetaLearner, split: str, first: int, count: int) -> tuple[Tensor, Metrics]:
        norm = dataclasses.replace(learner.norm, statistics=self.running.tensors if self.running else None)
        learner = dataclasses.replace(learner, inner_loop=self.eval_inner_loop, norm=norm)
        tasks, own = evaluation_tasks(learner, self.source, split, first, count, self.eval_shape)
        if isinstance(self.settings.method, Pretrain):
            return nearest_centroid.nearest_centroid_evaluate(learner, self.parameters, tasks, self.eval_shape.ways)
        return evaluate_tasks(learner, self.parameters, tasks, own, self.vectorised)

    @property
    def eval_learner(self) -> tuple[MetaLearner, bool]:
        """How the network learns where it is evaluated, and whether the answer to each query is kept."""
        s, learner = self.settings, self.learner
        if not self.source.is_classification or not (s.eval.details or heads.ways(s) < s.ways):
            return learner, False
        inner, outer = (classification_by(heads.ways(s), details) for details in (False, s.eval.details))
        return dataclasses.replace(learner, inner_objective=inner, outer_objective=outer), s.eval.details

    @property
    def judged_entries(self) -> int:
        """Of each task, in each of the two rows that `judge` gives."""
        queries = self.eval_shape.ways * self.eval_shape.queries
        return self.eval_inner_loop + 1 + queries * self.eval_learner[1]

    def running_sums(self, first: int, count: int) -> Tensors:
        """Statistics of batch norm after each inner step, added up over training tasks first .. first + count - 1."""
        total: Tensors = {}
        for start in range(first, first + count, self.tasks_at_once):
            tasks, own = self.tasks(start, min(self.tasks_at_once, first + count - start))
            found = running.accumulate_statistics(self.learner, self.parameters, tasks, own, self.vectorised)
            total = {name: total[name] + each if total else each for name, each in found.items()}
        return total

    def state_dict(self) -> Weights:
        """A copy of the present parameters, and of the statistics of batch_norm=per_step where they are of these."""
        statistics = self.running.tensors if self.running and self.running.current else {}
        parts = (*self.parameters, statistics)
        return Weights(*({name: tensor.detach().clone() for name, tensor in part.items()} for part in parts))

    def match_head(self, saved: Weights) -> Weights:
        """A checkpoint's weights for the head that the evaluation has. Raises UserError where the method ties it."""
        if not heads.needs_wider_head(self.settings):
            return saved
        with torch.device("meta"):  # its names alone
            network = dict(build_model(heads.with_max_ways(self.settings), self.source).named_parameters())
        return heads.adapt_head_to_ways(self.settings, saved, self.parameters, network)

    def load_state_dict(self, saved: Weights, name: str) -> None:
        """Take the weights of a checkpoint. Raises UserError where it is of another architecture."""
        for kind, tensors in self.parameters._asdict().items():
            copy_state_(tensors, getattr(saved, kind), name)
        if self.running:
            self.running.current = bool(saved.statistics)  # else they are found when they are needed
            if self.running.current:
                copy_state_(self.running.tensors, saved.statistics, name)

    def invalidate_batch_norm_stats(self) -> None:
        if self.running:
            self.running.current = False


def build_context(
    settings: Settings,
    seat: Rank = SINGLE_PROCESS,
    taking: Path | None = None,
    form: Any = None,
    sources: dict[str, TaskSampler] | None = None,
    tell: bool = True,
) -> RunContext:
    """Load the data and make the network with its initial weights, for one of a run's processes.

    Args:
        taking: a checkpoint whose parameters the network is going to take.
        form: a likeness that the data set's pictures are brought into, where another process says so.
        sources: data sets that are there already, by their settings; this one is added.
        tell: say how it is going to compute.

    Raises:
        UserError: the device, the data or the shape of the tasks cannot be had, or the checkpoint does not fit.
    """
    device = choose_device(settings.device, seat)
    set_precision(settings.engine.precision, device)
    configure_malloc()
    state = None if taking is None else store.load(taking)
    like = None if form is None else preprocessing.empty_sampler(form, device)
    if settings.mode == "evaluate" and state is not None:
        like = preprocessing_for_eval_dataset(settings.dataset, state, str(taking), device)
    sources = {} if sources is None else sources
    name = repr(settings.dataset)
    if name not in sources:
        sources[name] = load_source(settings, device, like)
    source = sources[name]
    require_tasks(settings, source)
    if state is not None:
        check_state_shapes(settings, source, state.weights, str(taking))
    learner = build_learner(heads.with_max_ways(settings), source, device)
    mixed = settings.engine.meta_gradient == "mixed"
    alone = not mixed and settings.engine.precision == "float32" and seat.size == 1
    compilable = settings.mode == "train" and learner.method.offline is None and alone
    tasks, reason = select_task_execution(
        settings.engine.tasks, learner.model, device, settings.iterations if compilable else 0
    )
    threads = set_num_threads(tasks != "looped", device, seat)
    who = f"{seat.size} processes, each on {device}" if seat.size > 1 else str(device)
    how = f"{tasks}, meta-gradient mixed" if mixed else tasks
    how += "" if settings.engine.precision == "float32" else f", in {settings.engine.precision}"
    if tell:
        log.info("%s with %d thread%s, tasks %s: %s", who, threads, "s" if threads > 1 else "", how, reason)
    parameters, norm = learner.method.parameters, batch_norm(settings, learner.model)
    step = partial(make_outer_step, metric=source.metric, clip=settings.outer_clip)
    compiled = CompiledOuterStep(learner, step) if tasks == "compiled" else None
    found = running.zero_statistics(learner) if learner.norm.rule == "per_step" else None
    return RunContext(settings, source, learner, parameters, device, tasks, reason, threads, norm, compiled, found)


def load_source(settings: Settings, device: torch.device, like: Any = None) -> TaskSampler:
    """The data set, as pictures that are like those of another source where one is given."""
    data = as_kwargs(settings.dataset)
    places = DataPaths(Path(settings.data_dir).expanduser(), Path(settings.cache_dir).expanduser(), settings.download)
    return load(data.pop("name"), places, device, like, **data)


def require_tasks(settings: Settings, source: TaskSampler) -> None:
    """Raises UserError where the data set cannot fill the tasks that are going to be drawn."""
    if settings.mode == "evaluate":
        source.check(settings.eval.split, eval_shape(settings), eval_names(settings))
        return
    source.check("train", train_shape(settings))
    for split in ("val", "test"):
        source.check(split, eval_shape(settings), eval_names(settings))


def pretraining_tasks(source: TaskSampler, seed: int, first: int, count: int, size: int) -> tuple[Task, Tensor]:
    """Mini-batches of all training classes as the query sets of tasks without support."""
    assert isinstance(source, ImageTaskSampler)
    images, labels = minibatches(source, seed, first, count, size)
    return Task(images[:, :0], labels[:, :0], images, labels), images.new_empty(count, 0)


def train_shape(settings: Settings) -> TaskShape:
    return TaskShape(settings.ways, settings.shots, settings.queries)


def eval_shape(settings: Settings) -> TaskShape:
    return TaskShape(
        heads.ways(settings), settings.eval.shots or settings.shots, settings.eval.queries or settings.queries
    )


def eval_inner_loop(settings: Settings) -> int:
    chosen = settings.eval.inner_loop
    if isinstance(settings.method, Pretrain):
        return 0
    return settings.inner_loop if chosen is None else chosen


def eval_names(settings: Settings) -> list[str]:
    """The keys that the sizes of an evaluation's tasks come from."""
    return [f"eval.{name}" if getattr(settings.eval, name) else name for name in ("ways", "shots", "queries")]
