"""The run context: data, network, parameters and meta-learner of a run, built from its settings."""

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
from metarun.engine.task_shapes import check_task_shapes, eval_inner_loop, eval_shape, train_shape
from metarun.methods import Parameters, Tensors
from metarun.nn.precision import set_precision
from metarun.types import Task

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunContext:
    """Data, network and execution of a run; computes meta-gradients and evaluations of given tasks."""

    settings: Settings
    source: TaskSampler
    learner: MetaLearner
    parameters: Parameters  # the tensors of the model, which training updates in place
    device: torch.device
    task_execution: str  # "looped", "vectorised" or "compiled"
    execution_reason: str  # why, in a few words
    threads: int  # of each operation
    batch_norm: str  # the rule for batch-norm statistics, or "none" without batch norm; result.json states it
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
        """All meta-parameters, theta before phi."""
        return [tensor for part in self.parameters for tensor in part.values()]

    @property
    def tasks_at_once(self) -> int:
        """Tasks in one chunk of an evaluation."""
        return CHUNK_SIZE[self.vectorised]

    @property
    def vectorised(self) -> bool:
        return self.task_execution != "looped"

    @property
    def task_learner_cls(self) -> TaskLearnerFactory:
        """The class of a training task: with all of its inner loop in the graph, or with checkpoints of it."""
        engine = self.settings.engine
        return (
            partial(CheckpointedTaskLearner, segment=engine.segment) if engine.meta_gradient == "mixed" else TaskLearner
        )

    def tasks(self, first: int, count: int) -> tuple[Task, Tensor]:
        """Training tasks first .. first + count - 1, and the method's noise for each, [count, ...]."""
        s = self.settings
        if not s.method.episodic:
            return pretraining_tasks(self.source, s.seed, first, count, s.method.batch)
        tasks = self.source.draw(s.seed, "train", first, count, self.train_shape)
        noise = method_noise(s.seed, "train", first, count, self.learner.method.noise(s.inner_loop))
        return tasks, noise.to(tasks.query_data.device)

    def meta_gradient(self, first: int, count: int, second_order: bool) -> tuple[Parameters, Tensor, Metrics]:
        """Meta-gradient of training tasks first .. first + count - 1.

        Returns the mean gradient over tasks, each task's query loss [count], and its metrics [count] by name.
        """
        tasks, noise = self.tasks(first, count)
        weights = self.loss_weights(first // self.settings.meta_batch)
        learner = dataclasses.replace(self.learner, use_second_order=second_order)
        return meta_gradient(learner, self.parameters, tasks, noise, self.vectorised, self.task_learner_cls, weights)

    def loss_weights(self, step: int) -> Tensor | None:
        """Multi-step loss weights at an outer step, [inner_loop]; None if only the last inner step counts."""
        weights = multi_step_loss.msl_weights(self.settings.inner_loop, self.settings.multi_step_loss, step)
        return None if weights is None else torch.tensor(weights, device=self.device)

    def evaluate_chunk(self, split: str, first: int, count: int) -> Tensor:
        """Loss and metric of tasks first .. first + count - 1 after each inner step, [2, count, inner steps + 1].

        With `eval.details`, each task has one entry more for each query, after the last step: the confidence in the
        first row, the predicted class in the second.
        """
        learner, details = self.eval_learner
        losses, metrics = self.evaluate_tasks(learner, split, first, count)
        values = torch.stack([losses, metrics[self.source.metric]]).double()
        if details:
            predictions = torch.stack([metrics[name][:, -1] for name in ("confidence", "found")])
            values = torch.cat([values, predictions.double()], dim=2)
        return values.cpu()

    @property
    def entries_per_task(self) -> int:
        """Length of the last dimension of what `evaluate_chunk` returns."""
        queries = self.eval_shape.ways * self.eval_shape.queries
        return self.eval_inner_loop + 1 + queries * self.eval_learner[1]

    @property
    def logits_shape(self) -> tuple[int, int, int]:
        """Shape of a task's query logits: inner steps + 1, queries, outputs."""
        shape = self.eval_shape
        queries = shape.queries * (shape.ways if self.source.is_classification else 1)
        return self.eval_inner_loop + 1, queries, self.source.num_outputs(shape.ways)

    def query_logits(self, split: str, first: int, count: int) -> Tensor:
        """Logits of the tasks' queries after each inner step, [count, inner steps + 1, queries, outputs]."""
        learner = dataclasses.replace(self.learner, outer_objective=ensemble.logits_objective)
        return self.evaluate_tasks(learner, split, first, count)[1]["output"].cpu()

    def score_logits(self, split: str, first: int, count: int, logits: Tensor) -> Tensor:
        """`evaluate_chunk` of given logits, as `query_logits` returns them."""
        labels = self.source.draw(EVALUATION_SEED, split, first, count, self.eval_shape).query_target
        metric = self.source.metric
        return torch.stack(ensemble.score_logits(self.learner.outer_objective, metric, logits, labels.cpu())).double()

    def evaluate_tasks(self, learner: MetaLearner, split: str, first: int, count: int) -> tuple[Tensor, Metrics]:
        """Loss [count, inner steps + 1] and metrics by name, of tasks first .. first + count - 1 of a split."""
        norm = dataclasses.replace(learner.norm, statistics=self.running.tensors if self.running else None)
        learner = dataclasses.replace(learner, inner_loop=self.eval_inner_loop, norm=norm)
        tasks, noise = evaluation_tasks(learner, self.source, split, first, count, self.eval_shape)
        if not self.settings.method.episodic:
            return nearest_centroid.nearest_centroid_evaluate(learner, self.parameters, tasks, self.eval_shape.ways)
        return evaluate_tasks(learner, self.parameters, tasks, noise, self.vectorised)

    @property
    def eval_learner(self) -> tuple[MetaLearner, bool]:
        """The meta-learner for evaluation, and whether it keeps the prediction for each query."""
        s, learner = self.settings, self.learner
        if not self.source.is_classification or not (s.eval.details or heads.ways(s) < s.ways):
            return learner, False
        inner, outer = (classification_by(heads.ways(s), details) for details in (False, s.eval.details))
        return dataclasses.replace(learner, inner_objective=inner, outer_objective=outer), s.eval.details

    def running_sums(self, first: int, count: int) -> Tensors:
        """Sums over training tasks first .. first + count - 1 of the batch-norm statistics after each inner step."""
        total: Tensors = {}
        for start in range(first, first + count, self.tasks_at_once):
            tasks, noise = self.tasks(start, min(self.tasks_at_once, first + count - start))
            sums = running.accumulate_statistics(self.learner, self.parameters, tasks, noise, self.vectorised)
            total = {name: total[name] + entry if total else entry for name, entry in sums.items()}
        return total

    def state_dict(self) -> Weights:
        """A copy of the parameters, and of the statistics of batch_norm=per_step if they are up to date."""
        statistics = self.running.tensors if self.running and self.running.current else {}
        parts = (*self.parameters, statistics)
        return Weights(*({name: tensor.detach().clone() for name, tensor in part.items()} for part in parts))

    def match_head(self, saved: Weights) -> Weights:
        """A checkpoint's weights, with the head widened to `eval.ways` if needed. Raises UserError if it cannot be."""
        if not heads.needs_wider_head(self.settings):
            return saved
        with torch.device("meta"):  # parameter names without memory
            network = dict(build_model(heads.with_max_ways(self.settings), self.source).named_parameters())
        return heads.adapt_head_to_ways(self.settings, saved, self.parameters, network)

    def load_state_dict(self, saved: Weights, name: str) -> None:
        """Load weights in place. Raises UserError, which calls them `name`, if they are of another architecture."""
        for part, tensors in self.parameters._asdict().items():
            copy_state_(tensors, getattr(saved, part), name)
        if self.running:
            self.running.current = bool(saved.statistics)  # if not, they are computed when they are needed
            if self.running.current:
                copy_state_(self.running.tensors, saved.statistics, name)

    def invalidate_batch_norm_stats(self) -> None:
        """Mark the statistics of batch_norm=per_step as outdated; called after each update of the parameters."""
        if self.running:
            self.running.current = False


def build_context(
    settings: Settings,
    process: Rank = SINGLE_PROCESS,
    checkpoint: Path | None = None,
    image_spec: Any = None,
    sources: dict[str, TaskSampler] | None = None,
    verbose: bool = True,
) -> RunContext:
    """Load the data and build the network with its initial weights, in one of a run's processes.

    Args:
        checkpoint: whose parameters the network is going to load; it is checked here, but not loaded.
        image_spec: the form that images are brought into, where the leader sends it.
        sources: data sets already loaded, by the repr of their settings; this run's is added.
        verbose: log device, threads and task execution.

    Raises:
        UserError: the device, the data or the task shapes are not available, or the checkpoint does not fit.
    """
    device = choose_device(settings.device, process)
    set_precision(settings.engine.precision, device)
    configure_malloc()
    state = None if checkpoint is None else store.load(checkpoint)
    like = None if image_spec is None else preprocessing.empty_sampler(image_spec, device)
    if settings.mode == "evaluate" and state is not None:
        like = preprocessing_for_eval_dataset(settings.dataset, state, str(checkpoint), device)
    sources = {} if sources is None else sources
    key = repr(settings.dataset)
    if key not in sources:
        sources[key] = load_source(settings, device, like)
    source = sources[key]
    check_task_shapes(settings, source)
    if state is not None:
        check_state_shapes(settings, source, state.weights, str(checkpoint))
    learner = build_learner(heads.with_max_ways(settings), source, device)
    plain = settings.engine.meta_gradient != "mixed" and settings.engine.precision == "float32"
    compilable = plain and settings.mode == "train" and learner.method.offline is None and process.world_size == 1
    execution, reason = select_task_execution(
        settings.engine.tasks, learner.model, device, settings.iterations if compilable else 0
    )
    threads = set_num_threads(execution != "looped", device, process)
    if verbose:
        log_execution(settings, process, device, threads, execution, reason)
    step = partial(make_outer_step, metric=source.metric, clip=settings.outer_clip)
    return RunContext(
        settings=settings,
        source=source,
        learner=learner,
        parameters=learner.method.parameters,
        device=device,
        task_execution=execution,
        execution_reason=reason,
        threads=threads,
        batch_norm=batch_norm(settings, learner.model),
        compiled=CompiledOuterStep(learner, step) if execution == "compiled" else None,
        running=running.zero_statistics(learner) if learner.norm.rule == "per_step" else None,
    )


def log_execution(
    settings: Settings, process: Rank, device: torch.device, threads: int, execution: str, reason: str
) -> None:
    who = f"{process.world_size} processes, each on {device}" if process.world_size > 1 else str(device)
    how = execution + (", meta-gradient mixed" if settings.engine.meta_gradient == "mixed" else "")
    how += "" if settings.engine.precision == "float32" else f", in {settings.engine.precision}"
    log.info("%s with %d thread%s, tasks %s: %s", who, threads, "s" if threads > 1 else "", how, reason)


def load_source(settings: Settings, device: torch.device, like: Any = None) -> TaskSampler:
    """Load the data set; its images take the form of those of `like`, if given."""
    options = as_kwargs(settings.dataset)
    paths = DataPaths(Path(settings.data_dir).expanduser(), Path(settings.cache_dir).expanduser(), settings.download)
    return load(options.pop("name"), paths, device, like, **options)


def pretraining_tasks(source: TaskSampler, seed: int, first: int, count: int, size: int) -> tuple[Task, Tensor]:
    """Mini-batches of `size` images over all training classes, as the query sets of tasks without support."""
    assert isinstance(source, ImageTaskSampler)
    images, labels = minibatches(source, seed, first, count, size)
    return Task(images[:, :0], labels[:, :0], images, labels), images.new_empty(count, 0)
