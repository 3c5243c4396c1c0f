"""Episodic training: outer steps, validation, checkpoints, and stopping where nothing is lost."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from metarun import __version__, checkpoint, offline
from metarun.data import likeness, noise, order
from metarun.errors import UserError, nearby, pasteable
from metarun.interrupt import noted_signals
from metarun.meta import Measures, MetaLearner, meta_gradient
from metarun.methods import Parameters
from metarun.records import Records
from metarun.schema import Settings
from metarun.task import Task
from metarun.work import Work

log = logging.getLogger(__name__)

TRAIN_LINE_EVERY = 20  # outer steps that one training line of metrics.jsonl averages over


class Training:
    """A run being trained: everything that a checkpoint holds, and the outer step that moves it on."""

    def __init__(self, work: Work, folder: Path) -> None:
        self.work = work
        self.folder = folder
        self.step = 0
        self.best: dict[str, float] | None = None  # step, mean and ci95 of the best validation
        self.due = False  # whether this step's validation is still to come
        self.running: dict[str, float] = {}  # sums since the last training line
        self.seconds = 0.0  # spent up to this step, over all sittings of this run
        self.optimizer = torch.optim.Adam(work.tensors, lr=work.settings.outer_learning_rate)

    def content(self) -> dict[str, Any]:
        return {
            "metarun": __version__,
            "torch": str(torch.__version__),
            "config": dataclasses.asdict(self.work.settings),
            "pictures": likeness.of(self.work.source),
            "vectorised": self.work.vectorised,
            "step": self.step,
            "best": self.best,
            "due": self.due,
            "running": self.running,
            "seconds": self.seconds,
            **self.work.snapshot(),
            "optimizer": self.optimizer.state_dict(),
        }

    def save(self) -> None:
        checkpoint.save(checkpoint.step_path(self.folder, self.step), self.content())
        checkpoint.prune(self.folder, self.work.settings.save.keep)

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint of the same run."""
        content = checkpoint.load(path)
        self.work.restore(content, str(path))
        self.optimizer.load_state_dict(content["optimizer"])
        self.step, self.due = content["step"], content["due"]
        self.running, self.seconds = content["running"], content["seconds"]
        if self.step > self.work.settings.iterations:
            raise UserError(f"iterations={self.work.settings.iterations}: the run is at step {self.step} already")
        if judged_alike(content["config"]["eval"], dataclasses.asdict(self.work.settings.eval)):
            self.best = content["best"]
        else:
            self.due = True  # judged anew, since what was found before cannot be compared

    def outer_step(self) -> dict[str, float]:
        """One step of Adam on a meta-batch's gradient; returns the meta-batch's mean loss and metric.

        Raises:
            FloatingPointError: loss or gradient is not finite; the parameters are as before.
        """
        work, settings, learner = self.work, self.work.settings, self.work.learner
        if self.step < settings.first_order_steps:
            learner = dataclasses.replace(learner, use_second_order=False)
        first = self.step * settings.meta_batch
        tasks = work.source.draw(settings.seed, "train", first, settings.meta_batch, work.train_shape)
        own = noise(settings.seed, "train", first, settings.meta_batch, learner.method.noise(learner.inner_loop))
        own = own.to(tasks.query_data.device)
        if learner.method.offline is not None:
            return self.offline_step(learner, tasks, own)
        gradient, losses, measures = meta_gradient(learner, work.parameters, tasks, own, work.vectorised)
        self.apply(gradient, float(losses.mean()))
        self.step += 1
        return self.means(losses, measures)

    def offline_step(self, learner: MetaLearner, tasks: Task, own: Tensor) -> dict[str, float]:
        """The same for a method that learns from stored iterates: a step of phi for each, then one of theta."""
        phi = self.work.parameters.phi
        paths = offline.follow(learner, self.work.parameters, tasks, own)
        losses, measures = offline.judge(paths, phi)
        loss = float(losses.mean())
        shuffled = order(self.work.settings.seed, self.step, len(paths) * learner.inner_loop)
        for gradient in offline.phi_gradients(paths, phi, shuffled):
            self.apply(Parameters({}, gradient), loss)
        if learner.method.leap:
            self.apply(Parameters(offline.leap_gradient(paths), {}), loss)
        self.step += 1
        return self.means(losses, measures)

    def means(self, losses: Tensor, measures: Measures) -> dict[str, float]:
        metric = self.work.source.metric
        return {"loss": float(losses.mean()), metric: float(measures[metric].mean())}

    def apply(self, gradient: Parameters, loss: float) -> None:
        """A step of the outer optimiser on what `gradient` holds.

        Raises:
            FloatingPointError: loss or gradient is not finite; the parameters are as before.
        """
        settings = self.work.settings
        clip = settings.outer_clip
        tensors, entries = [], []
        for held, part in zip(self.work.parameters, gradient, strict=True):
            tensors += [held[name] for name in part]
            entries += [entry if clip is None else entry.clamp(-clip, clip) for entry in part.values()]
        if not math.isfinite(loss) or not all(bool(entry.isfinite().all()) for entry in entries):
            first = self.step * settings.meta_batch
            raise FloatingPointError(
                f"outer step {self.step + 1}, training tasks {first} to {first + settings.meta_batch - 1}: the loss is "
                f"{loss} or its gradient is not finite; try a smaller inner_learning_rate, or outer_clip=10"
            )
        self.optimizer.zero_grad()
        for tensor, entry in zip(tensors, entries, strict=True):
            tensor.grad = entry
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(settings, self.step)
        self.optimizer.step()

    def outer_step_or_save(self) -> dict[str, float]:
        """The outer step; where it is not finite, the parameters before it are kept in a checkpoint."""
        try:
            return self.outer_step()
        except FloatingPointError:
            self.save()
            raise

    def record(self, records: Records, scalars: dict[str, float]) -> None:
        """Add to the running sums; every so many steps their means become a training line."""
        for name, value in scalars.items():
            self.running[name] = self.running.get(name, 0.0) + value
        if self.step % TRAIN_LINE_EVERY == 0:
            means = {name: total / TRAIN_LINE_EVERY for name, total in self.running.items()}
            records.write(self.step, "train", self.seconds, **means)
            self.running = {}

    def validate(self, records: Records, progress: Callable[[int], object]) -> None:
        """Judge on the validation tasks; the best so far becomes best.pt."""
        found = self.work.evaluate("val", self.work.settings.eval.validation_tasks, progress)
        self.due = False
        records.write(self.step, "val", self.seconds, loss=found.loss, **{found.metric: found.mean}, ci95=found.ci95)
        if not math.isfinite(found.mean):
            log.warning(
                "step %d: the validation %s is not finite; such a step is never the best", self.step, found.metric
            )
        improved = math.isfinite(found.mean) and (self.best is None or found.better_than(self.best["mean"]))
        log.info("step %d: validation %s%s", self.step, found, ", the best so far" if improved else "")
        if improved:
            self.best = {"step": self.step, "mean": found.mean, "ci95": found.ci95}
            checkpoint.save(checkpoint.best_path(self.folder), self.content())


def judged_alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether validations with these `eval.*` settings can be compared."""
    free = ("tasks", "every")
    return {k: v for k, v in one.items() if k not in free} == {k: v for k, v in other.items() if k not in free}


def learning_rate(settings: Settings, step: int) -> float:
    """Of the outer optimiser before its step number `step` (from 0); cosine falls to 0 at the end."""
    if settings.outer_schedule == "constant":
        return settings.outer_learning_rate
    return settings.outer_learning_rate * 0.5 * (1 + math.cos(math.pi * step / settings.iterations))


def train(work: Work, folder: Path, resume_from: Path | None = None) -> float | None:
    """Train to `iterations`, validating and saving on the way; SIGINT, SIGTERM and SIGUSR1 save and stop.

    Returns:
        The best validation metric.

    Raises:
        Stopped: a signal asked for it; the newest checkpoint is of this step.
    """
    settings = work.settings
    training = Training(work, folder)
    if resume_from is not None:
        training.restore(resume_from)
        log.info("going on from %s", nearby(resume_from))
    sitting, before = time.perf_counter(), training.seconds
    bar = tqdm(total=settings.iterations, initial=training.step, desc="training", unit="step", disable=None)
    go_on = f"which is saved; go on with {pasteable('resume', nearby(folder))}"
    with Records(folder, training.step, training.due) as records, noted_signals() as stop, logging_redirect_tqdm(), bar:

        def validate() -> None:
            where = f"in the validation of step {training.step}, {go_on}"
            training.validate(records, lambda done: stop.raise_if_asked(where))

        if training.due:
            validate()
        while training.step < settings.iterations:
            scalars = training.outer_step_or_save()
            training.seconds = before + time.perf_counter() - sitting
            training.record(records, scalars)
            bar.update()
            bar.set_postfix({name: f"{value:.3f}" for name, value in scalars.items()}, refresh=False)
            last = training.step == settings.iterations
            training.due = last or training.step % settings.eval.every == 0
            save = last or training.step % (settings.save.every or settings.eval.every) == 0
            if training.due or stop.number:
                training.save()  # before the validation, so that nothing is lost if it is cut short
            stop.raise_if_asked(f"after step {training.step}, {go_on}")
            if training.due:
                validate()
            if save:
                training.save()
    return training.best["mean"] if training.best else None
