"""The run context: data, network, parameters, meta-learner and execution of a run, built from its settings."""

import dataclasses
import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from metarun.checkpointing import ensemble, store
from metarun.checkpointing.state import Weights, copy_state_
from metarun.config.schema import Settings
from metarun.core.batch_norm_stats import BatchNormStatistics, accumulate_statistics, zero_statistics
from metarun.core.checkpointed import CheckpointedTaskLearner
from metarun.core.compiled import CompiledOuterStep
from metarun.core.meta_learner import MetaLearner, Metrics, TaskLearner, evaluate_tasks, meta_gradient
from metarun.core.multi_step_loss import msl_weights
from metarun.core.nearest_centroid import nearest_centroid_evaluate
from metarun.core.objectives import classification_by
from metarun.core.outer_step import make_outer_step
from metarun.data import TaskSampler, TaskShape, method_noise
from metarun.data.image_sampler import ImageTaskSampler
from metarun.data.minibatches import minibatches
from metarun.data.preprocessing import ImagePreprocessing, empty_sampler
from metarun.engine import task_shapes
from metarun.engine.dataset import load_dataset, preprocessing_for_eval_dataset
from metarun.engine.eval_result import CHUNK_SIZE, EVALUATION_SEED, evaluation_tasks
from metarun.engine.execution import choose_device, configure_malloc, select_task_execution, set_num_threads
from metarun.engine.network import batch_norm, build_learner, check_state_shapes, widen_head
from metarun.engine.rank import SINGLE_PROCESS, Rank
from metarun.engine.task_shapes import eval_ways
from metarun.methods import Parameters, Tensors
from metarun.nn.precision import set_precision
from metarun.types import Task
from metarun.utils.text import pluralize

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
    execution_reason: str  # the reason for `task_execution`, for the log
    threads: int  # torch's threads in each operation
    batch_norm: str  # the rule for batch-norm statistics, or "none" without batch norm; stated in result.json
    compiled: CompiledOuterStep | None  # the outer step of task_execution="compiled"
    running: BatchNormStatistics | None = None  # the statistics of batch_norm=per_step

    @property
    def train_shape(self) -> TaskShape:
        return task_shapes.train_shape(self.settings)

    @property
    def eval_shape(self) -> TaskShape:
        return task_shapes.eval_shape(self.settings)

    @property
    def eval_inner_loop(self) -> int:
        return task_shapes.eval_inner_loop(self.settings)

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

    def tasks(self, first: int, count: int) -> tuple[Task, Tensor]:
        """Training tasks first .. first + count - 1, and the method's noise for each, [count, ...].

        For pretraining, they are mini-batches of all training classes: query sets without a support set.
        """
        s = self.settings
        if not s.method.episodic:
            assert isinstance(self.source, ImageTaskSampler)
            images, labels = minibatches(self.source, s.seed, first, count, s.method.batch)
            return Task(images[:, :0], labels[:, :0], images, labels), images.new_empty(count, 0)
        tasks = self.source.draw(s.seed, "train", first, count, self.train_shape)
        noise = method_noise(s.seed, "train", first, count, self.learner.method.noise(s.inner_loop))
        return tasks, noise.to(tasks.query_data.device)

    def meta_gradient(self, first: int, count: int, second_order: bool) -> tuple[Parameters, Tensor, Metrics]:
        """Meta-gradient of training tasks first .. first + count - 1.

        Returns the mean gradient over tasks, each task's query loss [count], and its metrics [count] by name.
        """
        tasks, noise = self.tasks(first, count)
        weights = self.loss_weights(first // self.settings.meta_batch)
        learner, engine = dataclasses.replace(self.learner, use_second_order=second_order), self.settings.engine
        mixed = engine.meta_gradient == "mixed"
        task_learner = partial(CheckpointedTaskLearner, segment=engine.segment) if mixed else TaskLearner
        return meta_gradient(learner, self.parameters, tasks, noise, self.vectorised, task_learner, weights)

    def loss_weights(self, step: int) -> Tensor | None:
        """Multi-step loss weights at an outer step, [inner_loop]; None if only the last inner step counts."""
        weights = msl_weights(self.settings.inner_loop, self.settings.multi_step_loss, step)
        return None if weights is None else torch.tensor(weights, device=self.device)

    def evaluate_chunk(self, split: str, first: int, count: int) -> Tensor:
        """Loss and metric of tasks first .. first + count - 1 after each inner step, [2, count, inner steps + 1].

        With `eval.details`, each task has one entry more for each query, after the last step: the confidence in the
        first row, the predicted class in the second.
        """
        losses, metrics = self.evaluate_tasks(self.eval_learner, split, first, count)
        values = torch.stack([losses, metrics[self.source.metric]]).double()
        if self.has_details:
            predictions = torch.stack([metrics[name][:, -1] for name in ("confidence", "found")])
            values = torch.cat([values, predictions.double()], dim=2)
        return values.cpu()

    @property
    def has_details(self) -> bool:
        """Whether `evaluate_chunk` returns the prediction for each query."""
        return self.source.is_classification and self.settings.eval.details

    @property
    def entries_per_task(self) -> int:
        """Length of the last dimension of what `evaluate_chunk` returns."""
        return self.eval_inner_loop + 1 + self.has_details * self.eval_shape.ways * self.eval_shape.queries

    @property
    def eval_learner(self) -> MetaLearner:
        """The meta-learner with the objectives of an evaluation, which may have fewer ways than the network outputs."""
        ways = eval_ways(self.settings)
        if not self.source.is_classification or not (self.has_details or ways < self.settings.ways):
            return self.learner
        inner, outer = classification_by(ways, False), classification_by(ways, self.has_details)
        return dataclasses.replace(self.learner, inner_objective=inner, outer_objective=outer)

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
            return nearest_centroid_evaluate(learner, self.parameters, tasks, self.eval_shape.ways)
        return evaluate_tasks(learner, self.parameters, tasks, noise, self.vectorised)

    def running_sums(self, first: int, count: int) -> Tensors:
        """Batch-norm statistics after each inner step, summed over training tasks first .. first + count - 1."""
        total: Tensors = {}
        for start in range(first, first + count, self.tasks_at_once):
            tasks, noise = self.tasks(start, min(self.tasks_at_once, first + count - start))
            sums = accumulate_statistics(self.learner, self.parameters, tasks, noise, self.vectorised)
            total = {name: total[name] + entry if total else entry for name, entry in sums.items()}
        return total

    def state_dict(self) -> Weights:
        """A copy of the parameters, and of the statistics of batch_norm=per_step if they are up to date."""
        statistics = self.running.tensors if self.running and self.running.current else {}
        parts = (*self.parameters, statistics)
        return Weights(*({name: tensor.detach().clone() for name, tensor in part.items()} for part in parts))

    def match_head(self, saved: Weights) -> Weights:
        """A checkpoint's weights, with the head widened to `eval.ways` if needed. Raises UserError if it cannot be."""
        return widen_head(self.settings, self.source, saved, self.parameters)

    def load_state_dict(self, saved: Weights, name: str) -> None:
        """Loads weights in place. Raises UserError, whose message has `name`, if they are of another architecture."""
        for part, tensors in self.parameters._asdict().items():
            copy_state_(tensors, getattr(saved, part), name)
        if self.running:
            self.running.current = bool(saved.statistics)  # outdated statistics are computed when they are needed
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
    image_spec: ImagePreprocessing | None = None,
    sources: dict[str, TaskSampler] | None = None,
    verbose: bool = True,
) -> RunContext:
    """Loads the data and builds the network with its initial weights, in one of a run's processes.

    Args:
        checkpoint: the file that the network is going to load; its shapes are checked here, before memory is taken.
        image_spec: the preprocessing of images, which the leader sends to its workers.
        sources: data sets already loaded, by the repr of their settings; this run's is added.
        verbose: log device, threads and task execution.

    Raises:
        UserError: the device, the data or the task shapes are not available, or the checkpoint does not fit.
    """
    engine, device = settings.engine, choose_device(settings.device, process)
    set_precision(engine.precision, device)
    configure_malloc()
    state = None if checkpoint is None else store.load(checkpoint)
    like = None if image_spec is None else empty_sampler(image_spec, device)
    if settings.mode == "evaluate" and state is not None:
        like = preprocessing_for_eval_dataset(settings.dataset, state, str(checkpoint), device)
    sources = {} if sources is None else sources
    key = repr(settings.dataset)
    if key not in sources:
        sources[key] = load_dataset(settings, device, like)
    source = sources[key]
    task_shapes.check_task_shapes(settings, source)
    if state is not None:
        check_state_shapes(settings, source, state.weights, str(checkpoint))
    learner = build_learner(task_shapes.with_max_ways(settings), source, device)
    plain = engine.meta_gradient != "mixed" and engine.precision == "float32"
    compilable = plain and settings.mode == "train" and learner.method.offline is None and process.world_size == 1
    steps = settings.iterations if compilable else 0
    execution, reason = select_task_execution(engine.tasks, learner.model, device, steps)
    threads = set_num_threads(execution != "looped", device, process)
    if verbose:
        where = f"{process.world_size} processes, each on {device}" if process.world_size > 1 else str(device)
        how = execution + (", meta-gradient mixed" if engine.meta_gradient == "mixed" else "")
        how += "" if engine.precision == "float32" else f", in {engine.precision}"
        log.info("%s with %s, tasks %s: %s", where, pluralize(threads, "thread"), how, reason)
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
        running=zero_statistics(learner) if learner.norm.rule == "per_step" else None,
    )
