"""A run being trained: its outer step, what its checkpoints hold, its validation."""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from metarun.checkpointing import ensemble, store
from metarun.checkpointing.state import CheckpointState, Tensors, Validation
from metarun.config.schema import EvalConfig
from metarun.core import offline
from metarun.core.compiled import CompiledOuterStep
from metarun.core.meta_learner import Metrics
from metarun.core.outer_step import adam_state
from metarun.data import permutation_list, preprocessing
from metarun.distributed import execution_info
from metarun.distributed.task_parallel import TaskParallelGroup
from metarun.engine import eval_preprocessing
from metarun.errors import RunFailure, UserError
from metarun.evaluation import summaries
from metarun.loggers.run_logger import RunLogger
from metarun.methods import Parameters
from metarun.training import nonfinite
from metarun.training.prefetch import TaskPrefetcher
from metarun.training.schedule import learning_rate
from metarun.utils import random_state

log = logging.getLogger(__name__)

TRAIN_LINE_EVERY = 20  # outer steps that one training line of metrics.jsonl averages over
SKIPPED_IN_A_ROW = 100  # with skip_not_finite, so many end the run: it no longer learns


class Trainer:
    """A run being trained: everything that a checkpoint holds, and the outer step that moves it on."""

    def __init__(self, team: TaskParallelGroup, folder: Path) -> None:
        self.team = team
        self.work = team.work
        self.folder = folder
        self.records: RunLogger | None = None
        self.lines = 0  # of metrics.jsonl, that the checkpoint before knows of
        self.step = 0
        self.best: Validation | None = None
        self.top_validations: list[Validation] = []  # the best few, for an ensemble
        self.last: Validation | None = None
        self.validation_pending = False  # whether this step's validation is still to come
        self.metric_sums: dict[str, float] = {}  # sums since the last training line, and the steps in them
        self.skipped = 0  # steps that were not finite
        self.skipped_in_a_row = 0
        self.seconds = 0.0  # spent up to this step, over all sittings of this run
        self.optimizer = torch.optim.Adam(self.work.tensors, lr=self.work.settings.outer_learning_rate, fused=True)
        self.ahead = TaskPrefetcher(self.work)  # the tasks of compiled steps
        random_state.seed_everything(self.work.settings.seed)

    def state(self) -> CheckpointState:
        """What a checkpoint of this moment holds, as a copy."""
        return CheckpointState(
            settings=self.work.settings,
            **self.work.state_dict()._asdict(),
            pictures=preprocessing.image_spec(self.work.source),
            step=self.step,
            best=self.best,
            top=self.top_validations,
            last=self.last,
            validation_due=self.validation_pending,
            sums=self.metric_sums,
            lines=self.records.count if self.records else 0,
            skipped=self.skipped,
            skipped_in_a_row=self.skipped_in_a_row,
            seconds=self.seconds,
            execution=execution_info.execution_config(self.team),
            execution_reason=execution_info.execution_reason(self.team),
            **self.moments(),
            generators=random_state.get_rng_state(),
        )

    def moments(self) -> dict[str, Tensors]:
        """Adam's state by the fields of `CheckpointState` that hold it; without parameters that were never updated."""
        held = {name: self.optimizer.state[tensor] for name, tensor in self.named_tensors().items()}
        fields = {"exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq", "adam_steps": "step"}
        return {
            field: {name: state[own].detach().clone() for name, state in held.items() if state}
            for field, own in fields.items()
        }

    def named_tensors(self) -> Tensors:
        """What the optimiser updates, in its order, by "theta/NAME" and "phi/NAME"."""
        parts = self.work.parameters._asdict()
        return {f"{part}/{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}

    @property
    def second_order(self) -> bool:
        """Of the next outer step."""
        settings = self.work.settings
        return settings.use_second_order and self.step >= settings.first_order_steps

    def write(self, path: Path) -> None:
        if self.records:
            self.records.sync()  # after a power cut no line is missing that a checkpoint knows of
        store.save(path, self.state())

    def save(self) -> None:
        self.write(store.step_checkpoint_path(self.folder, self.step))
        store.prune(self.folder, self.work.settings.save.keep)
        ensemble.prune(self.folder, self.top_validations)

    def load_state_dict(self, path: Path) -> None:
        """Go on from a checkpoint of the same run. Raises UserError where it is none."""
        state = store.load(path)
        if not state.generators:
            raise UserError(f"checkpoint {path}: holds weights alone, a run cannot go on from it")
        self.work.load_state_dict(state.weights, str(path))
        eval_preprocessing.require_same_pictures(self.work.settings.dataset, self.work.source, state)
        self.step, self.validation_pending, self.lines = state.step, state.validation_due, state.lines
        self.metric_sums, self.seconds = dict(state.sums), state.seconds
        self.skipped, self.skipped_in_a_row = state.skipped, state.skipped_in_a_row
        try:
            random_state.set_rng_state(state.generators)
        except ValueError as error:
            raise UserError(f"checkpoint {path}: a run cannot go on from it: {error}") from error
        self.restore_optimizer(state)
        self.warn_if_execution_changed(state.execution)
        alike = validations_comparable(state.settings.eval, self.work.settings.eval)
        best, self.last = state.best, state.last
        if self.step > self.work.settings.iterations:
            raise UserError(f"iterations={self.work.settings.iterations}: the run is at step {self.step} already")
        if (
            alike
            and best is not None
            and (lost := store.quarantine_if_damaged(store.best_checkpoint_path(self.folder)))
        ):
            log.warning("%s; the best from step %d on is used instead", lost, self.step)
            alike = False
        if alike:
            self.best = best
            self.top_validations, lost_few = ensemble.split_intact(self.folder, state.top)
            for lost in lost_few:
                log.warning("%s; the ensemble goes without it", lost)
        else:
            self.validation_pending = True  # judged anew, since what was found before cannot be compared

    def restore_optimizer(self, state: CheckpointState) -> None:
        """Take Adam's moments, whose names and shapes are the parameters', as `CheckpointState.validate` saw to."""
        moments = {
            number: {"step": steps, "exp_avg": state.exp_avg[name], "exp_avg_sq": state.exp_avg_sq[name]}
            for number, name in enumerate(self.named_tensors())
            if (steps := state.adam_steps.get(name)) is not None
        }
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})

    def warn_if_execution_changed(self, before: dict[str, str | int]) -> None:
        """Say where the run computes otherwise than it did, so that it does not end equal to the last bit."""
        now = execution_info.execution_config(self.team)
        differ = [
            f"{name} was {before.get(name)}, is {value}" for name, value in now.items() if before.get(name) != value
        ]
        if differ:
            alike = before.get("precision") == now["precision"]
            within = "only within rounding" if alike else "and not within rounding"
            log.warning(
                "from here on the run is not exactly what it would have been, %s: %s",
                *(within, "; ".join(differ)),
            )

    def outer_step(self) -> dict[str, float]:
        """One step of Adam on a meta-batch's gradient; returns the meta-batch's mean loss and metric.

        Raises:
            FloatingPointError: loss or gradient is not finite; the parameters are as before.
            RunFailure: another process has ended.
        """
        settings = self.work.settings
        if self.work.learner.method.offline is not None:
            return self.offline_step()
        if self.work.compiled is not None and (means := self.compiled_step(self.work.compiled)):
            return means
        first = self.step * settings.meta_batch
        gradient, losses, measures = self.team.meta_gradient(first, settings.meta_batch, self.second_order)
        self.optimizer_step(gradient, losses)
        self.step += 1
        return self.means(losses, measures)

    def compiled_step(self, compiled: CompiledOuterStep) -> dict[str, float]:
        """The same in one call; nothing where loss or gradient is not finite, with the parameters as before."""
        rate = self.set_learning_rate()
        state = self.work.parameters, adam_state(self.optimizer), torch.tensor(rate, device=self.work.device)
        weights = self.work.loss_weights(self.step)
        told = compiled(self.second_order, *self.ahead(self.step), *state, loss_weights=weights)
        finite, loss, value = told.tolist()
        if not finite:
            return {}
        self.work.invalidate_batch_norm_stats()
        self.step += 1
        return {"loss": loss, self.work.source.metric: value}

    def offline_step(self) -> dict[str, float]:
        """The same for a method that learns from stored iterates: a step of phi for each, then one of theta."""
        work, settings = self.work, self.work.settings
        before = work.state_dict(), copy.deepcopy(self.optimizer.state_dict())
        learner, phi = work.learner, work.parameters.phi
        tasks, own = work.tasks(self.step * settings.meta_batch, settings.meta_batch)
        paths = offline.collect_trajectories(learner, work.parameters, tasks, own)
        losses, measures = offline.final_query_loss(paths, phi)
        shuffled = permutation_list(settings.seed, self.step, len(paths) * learner.inner_loop)
        try:
            for gradient in offline.lookahead_gradients(paths, phi, shuffled):
                self.optimizer_step(Parameters({}, gradient), losses)
            if learner.method.leap:
                self.optimizer_step(Parameters(offline.leap_gradient(paths), {}), losses)
        except FloatingPointError:
            work.load_state_dict(before[0], "before the step")
            self.optimizer.load_state_dict(before[1])
            raise
        self.step += 1
        return self.means(losses, measures)

    def means(self, losses: Tensor, measures: Metrics) -> dict[str, float]:
        metric = self.work.source.metric
        return {"loss": float(losses.mean()), metric: float(measures[metric].mean())}

    def optimizer_step(self, gradient: Parameters, losses: Tensor) -> None:
        """A step of the outer optimiser on what `gradient` holds.

        Raises:
            FloatingPointError: loss or gradient is not finite; the parameters are as before.
        """
        settings = self.work.settings
        if fault := nonfinite.nonfinite_message(losses, gradient, self.step * settings.meta_batch):
            raise FloatingPointError(f"outer step {self.step + 1}, {fault}")
        self.optimizer.zero_grad()
        clip = settings.outer_clip
        for held, part in zip(self.work.parameters, gradient, strict=True):
            for name, entry in part.items():
                held[name].grad = entry if clip is None else entry.clamp(-clip, clip)
        self.set_learning_rate()
        self.optimizer.step()
        self.work.invalidate_batch_norm_stats()

    def set_learning_rate(self) -> float:
        """The optimiser's, of the next outer step."""
        rate = learning_rate(self.work.settings, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def outer_step_or_save(self) -> dict[str, float]:
        """The outer step; where it fails, the parameters before it are kept in a checkpoint, or it is skipped."""
        try:
            scalars = self.outer_step()
        except FloatingPointError as error:
            if self.work.settings.skip_not_finite and self.skipped_in_a_row < SKIPPED_IN_A_ROW - 1:
                return self.skip(error)
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

    def skip(self, error: FloatingPointError) -> dict[str, float]:
        """Leave this step's update out; it counts as a step and as a skipped one."""
        self.step += 1
        self.skipped += 1
        self.skipped_in_a_row += 1
        log.warning("%s; skipped, the %d. of this run", error, self.skipped)
        return {}

    def record(self, records: RunLogger, scalars: dict[str, float]) -> None:
        """Add to the running sums; every so many steps their means become a training line."""
        for name, value in {**scalars, "steps": 1.0 if scalars else 0.0}.items():
            self.metric_sums[name] = self.metric_sums.get(name, 0.0) + value
        if self.step % TRAIN_LINE_EVERY == 0:
            steps = self.metric_sums.pop("steps")
            means = {
                name: self.metric_sums.get(name, math.nan) / (steps or 1) for name in ("loss", self.work.source.metric)
            }
            means["outer_learning_rate"] = learning_rate(self.work.settings, self.step - 1)
            if self.work.settings.skip_not_finite:
                means["skipped"] = self.skipped
            records.write(self.step, "train", self.seconds, **means)
            self.metric_sums = {}

    def validate(self, records: RunLogger, progress: Callable[[int], object]) -> None:
        """Judge on the validation tasks; the best so far becomes best.safetensors."""
        found = self.team.evaluate("val", self.work.settings.eval.validation_tasks, progress)
        self.validation_pending = False
        records.write(self.step, "val", self.seconds, loss=found.loss, **{found.metric: found.mean}, ci95=found.ci95)
        if found.fault:
            log.warning("step %d: in validation %s", self.step, found.fault)
        if not math.isfinite(found.mean):
            log.warning(
                "step %d: the validation %s is not finite; such a step is never the best", self.step, found.metric
            )
        improved = math.isfinite(found.mean) and (self.best is None or found.better_than(self.best.mean))
        log.info("step %d: validation %s%s", self.step, found, ", the best so far" if improved else "")
        self.last = Validation(self.step, found.mean, found.ci95)
        if improved:
            self.best = self.last
            self.write(store.best_checkpoint_path(self.folder))
        if self.work.settings.eval.ensemble > 1 and math.isfinite(found.mean):
            self.top_validations = ensemble.top_k(
                [*self.top_validations, self.last], self.work.settings.eval.ensemble, found.metric
            )
            if self.last in self.top_validations:
                self.write(ensemble.path(self.folder, self.step))
        records.show(self.step, summaries.validation_summaries(self.work, self.step, found))


def validations_comparable(one: EvalConfig, other: EvalConfig) -> bool:
    """Whether validations with these `eval.*` settings can be compared."""
    free = ("tasks", "every", "ways", "split", "dataset", "details", "ensemble")  # of the final test, or mode=evaluate
    compared = [{k: v for k, v in dataclasses.asdict(each).items() if k not in free} for each in (one, other)]
    return compared[0] == compared[1]
