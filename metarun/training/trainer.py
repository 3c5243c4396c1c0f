"""The trainer: outer steps, validation, and saving and restoring the state of a training run."""

import copy
import dataclasses
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from metarun.checkpointing import ensemble, store
from metarun.checkpointing.state import CheckpointState, Validation
from metarun.config.schema import EvalConfig
from metarun.core import offline
from metarun.core.compiled import CompiledOuterStep
from metarun.core.meta_learner import Metrics
from metarun.core.outer_step import adam_state
from metarun.data import permutation_list, preprocessing
from metarun.distributed import execution_info
from metarun.distributed.task_parallel import TaskParallelGroup
from metarun.engine.dataset import require_same_pictures
from metarun.errors import RunFailure, UserError
from metarun.evaluation import summaries
from metarun.loggers.base import Logger
from metarun.methods import Parameters
from metarun.training import nonfinite
from metarun.training.optimizer import adam_state_by_name, learning_rate, load_adam_state, set_learning_rate
from metarun.training.prefetch import TaskPrefetcher
from metarun.utils import random_state

log = logging.getLogger(__name__)

TRAIN_LINE_EVERY = 20  # outer steps averaged in one training line of metrics.jsonl
SKIPPED_IN_A_ROW = 100  # consecutive non-finite steps that end a run with skip_not_finite=true


class Trainer:
    """Trains a run: holds everything that a checkpoint stores, and performs outer steps and validations."""

    def __init__(self, team: TaskParallelGroup, folder: Path) -> None:
        self.team = team
        self.work = team.work
        self.folder = folder
        self.loggers: Sequence[Logger] = ()
        self.num_lines = 0  # lines of metrics.jsonl that the loaded checkpoint counts
        self.step = 0  # outer steps done
        self.best: Validation | None = None
        self.top_validations: list[Validation] = []  # members of the ensemble, the best first
        self.last: Validation | None = None
        self.validation_pending = False  # whether the validation of this step is still to be done
        self.metric_sums: dict[str, float] = {}  # loss, metric and "steps", summed since the last training line
        self.skipped = 0  # non-finite outer steps
        self.skipped_in_a_row = 0
        self.seconds = 0.0  # training time up to this step, over all sessions of this run
        self.optimizer = torch.optim.Adam(self.work.tensors, lr=self.work.settings.outer_learning_rate, fused=True)
        self.prefetcher = TaskPrefetcher(self.work)  # used by compiled outer steps
        random_state.seed_everything(self.work.settings.seed)

    def state_dict(self) -> CheckpointState:
        """A copy of the training state, as a checkpoint stores it."""
        return CheckpointState(
            settings=self.work.settings,
            **self.work.state_dict()._asdict(),
            pictures=preprocessing.image_preprocessing(self.work.source),
            step=self.step,
            best=self.best,
            top=self.top_validations,
            last=self.last,
            validation_due=self.validation_pending,
            sums=self.metric_sums,
            lines=sum(logger.num_lines for logger in self.loggers),
            skipped=self.skipped,
            skipped_in_a_row=self.skipped_in_a_row,
            seconds=self.seconds,
            execution=execution_info.execution_config(self.team),
            execution_reason=execution_info.execution_reason(self.team),
            **adam_state_by_name(self.optimizer, self.work.parameters),
            generators=random_state.get_rng_state(),
        )

    @property
    def second_order(self) -> bool:
        """Whether the next outer step uses second-order gradients."""
        settings = self.work.settings
        return settings.use_second_order and self.step >= settings.first_order_steps

    def write_checkpoint(self, path: Path) -> None:
        for logger in self.loggers:
            logger.flush()  # after a power cut, no line that the checkpoint counts is missing
        store.save(path, self.state_dict())

    def save(self) -> None:
        """Write the checkpoint of this step, and delete those that `save.keep` and the ensemble no longer need."""
        self.write_checkpoint(store.step_checkpoint_path(self.folder, self.step))
        store.prune(self.folder, self.work.settings.save.keep)
        ensemble.prune(self.folder, self.top_validations)

    def load_state_dict(self, path: Path) -> None:
        """Restore the training state from a checkpoint of this run.

        Raises:
            UserError: the checkpoint is damaged or holds weights only, its network or training images are not those
                of this run, or it is beyond step `iterations`.
        """
        state = store.load(path)
        if not state.generators:
            raise UserError(f"checkpoint {path}: holds weights alone, a run cannot go on from it")
        self.work.load_state_dict(state.weights, str(path))
        require_same_pictures(self.work.settings.dataset, self.work.source, state)
        self.step, self.validation_pending, self.num_lines = state.step, state.validation_due, state.lines
        self.metric_sums, self.seconds = dict(state.sums), state.seconds
        self.skipped, self.skipped_in_a_row = state.skipped, state.skipped_in_a_row
        try:
            random_state.set_rng_state(state.generators)
        except ValueError as error:
            raise UserError(f"checkpoint {path}: a run cannot go on from it: {error}") from error
        load_adam_state(self.optimizer, self.work.parameters, state)
        execution_info.warn_if_execution_changed(self.team, state.execution)
        if self.step > self.work.settings.iterations:
            raise UserError(f"iterations={self.work.settings.iterations}: the run is at step {self.step} already")
        self.load_validations(state)

    def load_validations(self, state: CheckpointState) -> None:
        """Restore the best validations, or have this step validated again where they cannot be compared or are lost."""
        self.last = state.last
        comparable = validations_comparable(state.settings.eval, self.work.settings.eval)
        best_path = store.best_checkpoint_path(self.folder)
        if comparable and state.best is not None and (damage := store.quarantine_if_damaged(best_path)):
            log.warning("%s; the best checkpoint from step %d on is used instead", damage, self.step)
            comparable = False
        if not comparable:
            self.validation_pending = True
            return
        self.best = state.best
        self.top_validations, damaged = ensemble.split_intact(self.folder, state.top)
        for damage in damaged:
            log.warning("%s; the ensemble goes without it", damage)

    def outer_step(self) -> dict[str, float]:
        """Perform one outer step on the next meta-batch and return its mean query loss and metric, by name.

        Raises:
            FloatingPointError: the loss or a gradient is non-finite; the parameters are unchanged.
            RunFailure: another process of this run has ended.
        """
        settings = self.work.settings
        if self.work.learner.method.offline is not None:
            return self.offline_step()
        if self.work.compiled is not None and (means := self.compiled_step(self.work.compiled)):
            return means
        first = self.step * settings.meta_batch
        grads, losses, metrics = self.team.meta_gradient(first, settings.meta_batch, self.second_order)
        self.optimizer_step(grads, losses)
        self.step += 1
        return self.mean_scalars(losses, metrics)

    def compiled_step(self, compiled: CompiledOuterStep) -> dict[str, float]:
        """Compiled `outer_step`. Returns an empty dict, with the parameters unchanged, if it was non-finite."""
        rate = learning_rate(self.work.settings, self.step)
        set_learning_rate(self.optimizer, rate)
        state = self.work.parameters, adam_state(self.optimizer), torch.tensor(rate, device=self.work.device)
        weights = self.work.loss_weights(self.step)
        result = compiled(self.second_order, *self.prefetcher(self.step), *state, loss_weights=weights)
        finite, loss, metric = result.tolist()
        if not finite:
            return {}
        self.work.invalidate_batch_norm_stats()
        self.step += 1
        return {"loss": loss, self.work.source.metric: metric}

    def offline_step(self) -> dict[str, float]:
        """`outer_step` of WarpGrad's offline form (Flennerhag et al. 2020, arXiv 1909.00025, Algorithm 2).

        phi takes one optimizer step for each stored iterate of the inner loops, then theta takes one.
        """
        work, settings = self.work, self.work.settings
        before = work.state_dict(), copy.deepcopy(self.optimizer.state_dict())
        learner, phi = work.learner, work.parameters.phi
        batch = work.tasks(self.step * settings.meta_batch, settings.meta_batch)
        trajectories = offline.collect_trajectories(learner, work.parameters, *batch)
        losses, metrics = offline.final_query_loss(trajectories, phi)
        order = permutation_list(settings.seed, self.step, len(trajectories) * learner.inner_loop)
        try:
            for phi_grads in offline.lookahead_gradients(trajectories, phi, order):
                self.optimizer_step(Parameters({}, phi_grads), losses)
            if learner.method.leap:
                self.optimizer_step(Parameters(offline.leap_gradient(trajectories), {}), losses)
        except FloatingPointError:
            work.load_state_dict(before[0], "before the step")
            self.optimizer.load_state_dict(before[1])
            raise
        self.step += 1
        return self.mean_scalars(losses, metrics)

    def mean_scalars(self, losses: Tensor, metrics: Metrics) -> dict[str, float]:
        """Mean loss and metric, by name, of a meta-batch's `losses` [tasks] and `metrics` (each [tasks])."""
        name = self.work.source.metric
        return {"loss": float(losses.mean()), name: float(metrics[name].mean())}

    def optimizer_step(self, grads: Parameters, losses: Tensor) -> None:
        """Update the parameters that have an entry in `grads`, clipped by `outer_clip`; losses: [tasks].

        Raises:
            FloatingPointError: the loss or a gradient is non-finite; the parameters are unchanged.
        """
        settings = self.work.settings
        if message := nonfinite.nonfinite_message(losses, grads, self.step * settings.meta_batch):
            raise FloatingPointError(f"outer step {self.step + 1}, {message}")
        self.optimizer.zero_grad()
        clip = settings.outer_clip
        for params, part in zip(self.work.parameters, grads, strict=True):
            for name, grad in part.items():
                params[name].grad = grad if clip is None else grad.clamp(-clip, clip)
        set_learning_rate(self.optimizer, learning_rate(settings, self.step))
        self.optimizer.step()
        self.work.invalidate_batch_norm_stats()

    def outer_step_or_save(self) -> dict[str, float]:
        """`outer_step`. If it fails, save the parameters before it, or skip it (`skip_not_finite`) and return {}."""
        try:
            scalars = self.outer_step()
        except FloatingPointError as error:
            if self.work.settings.skip_not_finite and self.skipped_in_a_row < SKIPPED_IN_A_ROW - 1:
                self.step += 1
                self.skipped += 1
                self.skipped_in_a_row += 1
                log.warning("%s; this step is skipped (%d skipped in this run)", error, self.skipped)
                return {}
            self.save()
            raise FloatingPointError(
                f"{error}; step {self.step} is saved; try a smaller inner_learning_rate, outer_clip=10, "
                "or skip_not_finite=true where it is rare"
            ) from error
        except RunFailure:
            self.save()
            raise
        self.skipped_in_a_row = 0
        return scalars

    def record(self, scalars: dict[str, float]) -> None:
        """Add a step's scalars to `metric_sums`; every `TRAIN_LINE_EVERY` steps, log their means as a training line."""
        for name, value in {**scalars, "steps": 1.0 if scalars else 0.0}.items():
            self.metric_sums[name] = self.metric_sums.get(name, 0.0) + value
        if self.step % TRAIN_LINE_EVERY != 0:
            return
        settings, num_steps = self.work.settings, self.metric_sums.pop("steps")
        names = "loss", self.work.source.metric
        means = {name: self.metric_sums.get(name, math.nan) / (num_steps or 1) for name in names}
        means["outer_learning_rate"] = learning_rate(settings, self.step - 1)
        if settings.skip_not_finite:
            means["skipped"] = self.skipped
        self.log_scalars("train", means)
        self.metric_sums = {}

    def validate(self, progress: Callable[[int], object]) -> None:
        """Evaluate the validation tasks, log the result, and save the best checkpoint if it improved.

        Args:
            progress: called after each chunk of tasks with the number of its tasks.
        """
        settings = self.work.settings.eval
        result = self.team.evaluate("val", settings.validation_tasks, progress)
        self.validation_pending = False
        metric, finite = result.metric, math.isfinite(result.mean)
        self.log_scalars("val", {"loss": result.loss, metric: result.mean, "ci95": result.ci95})
        if result.nonfinite_message:
            log.warning("step %d: in validation %s", self.step, result.nonfinite_message)
        if not finite:
            log.warning("step %d: the validation %s is not finite; such a step is never the best", self.step, metric)
        improved = finite and (self.best is None or result.better_than(self.best.mean))
        log.info("step %d: validation %s%s", self.step, result, ", the best so far" if improved else "")
        self.last = Validation(self.step, result.mean, result.ci95)
        if improved:
            self.best = self.last
            self.write_checkpoint(store.best_checkpoint_path(self.folder))
        if settings.ensemble > 1 and finite:
            self.top_validations = ensemble.top_k([*self.top_validations, self.last], settings.ensemble, metric)
            if self.last in self.top_validations:
                self.write_checkpoint(ensemble.member_path(self.folder, self.step))
        summaries.validation_summaries(self.work, self.step, result).log(self.loggers, self.step)

    def log_scalars(self, split: str, scalars: dict[str, float]) -> None:
        for logger in self.loggers:
            logger.log_scalars(self.step, scalars, split, self.seconds)


def validations_comparable(before: EvalConfig, now: EvalConfig) -> bool:
    """Whether validations with these `eval.*` settings evaluate the same tasks in the same way."""
    final_test_keys = {"tasks", "every", "ways", "split", "dataset", "details", "ensemble"}
    names = {field.name for field in dataclasses.fields(EvalConfig)} - final_test_keys
    return all(getattr(before, name) == getattr(now, name) for name in names)
