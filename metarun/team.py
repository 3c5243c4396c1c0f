"""The tasks of a run, shared out among its processes by task index.

Rank 0 leads: it alone keeps the optimiser, draws conclusions and writes. For a meta-batch it sends the parameters to
all, each takes its share of the tasks, and the sums of their gradients are added up at rank 0: by gloo on CPUs, by
NCCL on GPUs. Whatever their number, the result is that of one process but for rounding.
"""

from __future__ import annotations

import logging
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from metarun import processes
from metarun.checkpointing.state import Weights
from metarun.data import likeness
from metarun.data.source import SPLITS
from metarun.errors import RunFailure
from metarun.evaluation import Evaluation, evaluate
from metarun.meta import Measures
from metarun.methods import Parameters
from metarun.processes import Lost, connection
from metarun.running import TASKS as RUNNING_TASKS
from metarun.schema import Settings
from metarun.seat import ALONE, Seat, given_seat
from metarun.sharing import require_shares, workers
from metarun.work import Work, build

END, GRADIENT, EVALUATE, OUTPUTS, RUNNING, RUN = range(6)  # what the leader asks for
NCCL_PATIENCE = timedelta(seconds=45)  # all have met by gloo before, so that none is late by more


class Team:
    """The processes that share a run's tasks; of one process as well."""

    def __init__(self, work: Work, seat: Seat = ALONE, others: Sequence[subprocess.Popen[str]] = ()) -> None:
        self.work, self.seat, self.others = work, seat, others
        on_gpu = seat.size > 1 and work.device.type == "cuda"
        self.midway = False  # in a step that all share
        self.share_seconds = 0.0  # the longest that a share of this process has taken
        self.met = False  # all have ended a step that they share
        self.group: Any = dist.new_group(backend="nccl", timeout=NCCL_PATIENCE) if on_gpu else None

    def compiles(self, step: int, second_order: bool) -> bool:
        """Whether the meta-batch of that step and order is compiled first."""
        compiled = self.work.compiled
        return compiled is not None and compiled.compiles(second_order, self.work.loss_weights(step) is not None)

    # --- the leader's side ---

    def meta_gradient(self, first: int, count: int, second_order: bool) -> tuple[Parameters, Tensor, Measures]:
        """Mean over training tasks first .. first + count - 1, with each task's loss [count] and metric [count].

        Raises:
            RunFailure: another process has ended.
        """
        if self.seat.size == 1:
            return self.work.meta_gradient(first, count, second_order)
        with self.told():
            self.send(GRADIENT, first, count, second_order)
            self.share_parameters()
            total = self.add_up(lambda: self.gradient_share(first, count, second_order))
        tensors = self.work.tensors
        *entries, judged = total.split([*(tensor.numel() for tensor in tensors), 2 * count])
        mean = iter([entry.view_as(tensor) / count for entry, tensor in zip(entries, tensors, strict=True)])
        gradient = Parameters(*({name: next(mean) for name in part} for part in self.work.parameters))
        losses, values = judged.view(2, count)
        return gradient, losses, {self.work.source.metric: values}

    def evaluate(
        self,
        split: str,
        tasks: int,
        progress: Callable[[int], object] = lambda done: None,
        details: Callable[[int, Tensor], object] = lambda first, answers: None,
        members: Sequence[Weights] = (),
    ) -> Evaluation:
        """The first `tasks` tasks of a split with the present parameters; `progress` is told of each lot.

        details: with `eval.details`, is given the number of a lot's first task and its answers, [2, tasks, queries].
        members: the weights of several checkpoints, whose networks are judged together, by the mean of their outputs.

        Raises:
            RunFailure: another process has ended.
        """

        def judge(first: int, count: int) -> Tensor:
            if not members:
                judged, steps = self.evaluated(EVALUATE, split, first, count), self.work.eval_inner_loop + 1
                if judged.shape[2] > steps:
                    details(first, judged[:, :, steps:])
                return judged[:, :, :steps]
            total = torch.zeros(())
            for weights in members:
                self.work.restore(weights, "of the ensemble")
                total = total + self.evaluated(OUTPUTS, split, first, count)
            return self.work.judge_outputs(split, first, count, total / len(members))

        at_once, trained = self.work.tasks_at_once * self.seat.size, self.work.settings.inner_loop
        return evaluate(judge, self.work.source.metric, tasks, at_once, trained, progress)

    def evaluated(self, kind: int, split: str, first: int, count: int) -> Tensor:
        """What all processes find of tasks first .. first + count - 1."""
        if anew := kind == OUTPUTS or first == 0:  # the parameters
            self.find_running()
        request = first, count, SPLITS.index(split)
        if self.seat.size == 1:
            return self.evaluation_share(kind, *request)
        with self.told():
            self.send(kind, *request)
            if anew:
                self.share_parameters()
            return self.add_up(lambda: self.evaluation_share(kind, *request))

    def find_running(self) -> None:
        """The statistics of batch_norm=per_step, where those that are held are not of the present parameters."""
        running = self.work.running
        if running is None or running.current:
            return
        if self.seat.size == 1:
            total = self.running_share(0, RUNNING_TASKS)
        else:
            with self.told():
                self.send(RUNNING, 0, RUNNING_TASKS)
                self.share_parameters()
                total = self.add_up(lambda: self.running_share(0, RUNNING_TASKS))
        running.take(total / RUNNING_TASKS)

    @contextmanager
    def told(self) -> Iterator[None]:
        self.midway = True
        try:
            yield
        except Lost as error:
            raise processes.failure(self.others, error) from error
        self.midway = False

    def dismiss(self) -> None:
        """The others are free for another run, unless this one failed while they shared a step."""
        if self.midway:
            processes.part(self.others)
        else:
            with self.told():
                self.send(END)

    # --- what follows does what it is asked for ---

    def follow(self) -> None:
        """Until the leader says that the run has ended. Raises Lost where it has ended itself."""
        while True:
            kind, *request = self.receive()
            if kind == END:
                return
            if kind == GRADIENT:
                self.share_parameters()
                self.add_up(lambda: self.gradient_share(*request))  # noqa: B023, called at once
            elif kind == RUNNING:
                self.share_parameters()
                self.add_up(lambda: self.running_share(*request[:2]))  # noqa: B023, called at once
            else:
                if kind == OUTPUTS or request[0] == 0:
                    self.share_parameters()
                self.add_up(lambda: self.evaluation_share(kind, *request))  # noqa: B023, called at once

    # --- both ---

    def gradient_share(self, first: int, count: int, second_order: int) -> Tensor:
        """The sum of the gradients of this process's tasks, then losses and metric of all, zero but for its own."""
        share = self.share(count)
        gradient, losses, measures = self.work.meta_gradient(first + share.start, len(share), bool(second_order))
        judged = losses.new_zeros(2, count)
        judged[:, share.start : share.stop] = torch.stack([losses, measures[self.work.source.metric]])
        sums = [entry.flatten() * len(share) for part in gradient for entry in part.values()]
        return torch.cat([*sums, judged.flatten()])

    def running_share(self, first: int, count: int) -> Tensor:
        """The sums of the statistics of batch norm over this process's tasks."""
        share, running = self.share(count), self.work.running
        assert running is not None
        found = self.work.running_sums(first + share.start, len(share))
        return torch.cat([found.get(name, torch.zeros_like(t)).flatten() for name, t in running.tensors.items()])

    def evaluation_share(self, kind: int, first: int, count: int, split: int) -> Tensor:
        """What is found of all tasks, zero but for this process's.

        What `Work.judge` gives, [2, count, entries], or (OUTPUTS) [count, steps + 1, queries, outputs].
        """
        share, work = self.share(count), self.work
        if kind == OUTPUTS:
            said = torch.zeros(count, *work.outputs_shape)
            if share:
                said[share.start : share.stop] = work.outputs(SPLITS[split], first + share.start, len(share))
            return said
        judged = torch.zeros(2, count, work.judged_entries, dtype=torch.float64)
        if share:
            judged[:, share.start : share.stop] = work.judge(SPLITS[split], first + share.start, len(share))
        return judged

    def share(self, count: int) -> range:
        rank, size = self.seat.rank, self.seat.size
        return range(rank * count // size, (rank + 1) * count // size)

    def send(self, *message: int) -> None:
        self.do(lambda: dist.broadcast(torch.tensor([*message, 0, 0, 0][:4]), 0, async_op=True))

    def receive(self) -> list[int]:
        return receive(processes.LEADING)

    def do(self, operation: Callable[[], Any]) -> None:
        """What all processes share. Raises Lost where one has ended, or keeps the others waiting for too long."""
        least = processes.PATIENCE if self.met else processes.STARTING
        patience = max(least, processes.SHARES * self.share_seconds)
        asked = max(processes.ASKED, 2 * self.share_seconds)
        if self.seat.rank:  # the leader has more to do than its share
            patience = asked = processes.LEADING
        processes.wait(operation, patience, asked)

    def share_parameters(self) -> None:
        """Everyone's become the leader's, and so do the statistics of batch_norm=per_step."""
        tensors = [*self.work.tensors, *(self.work.running.tensors.values() if self.work.running else ())]
        flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
        if self.group is None:
            self.do(lambda: dist.broadcast(flat, 0, async_op=True))
        else:
            self.do(lambda: dist.barrier(async_op=True))  # NCCL would wait without an end
            with connection():
                dist.broadcast(flat, 0, group=self.group)
        if self.seat.rank:
            with torch.no_grad():
                for tensor, entry in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
                    tensor.copy_(entry.view_as(tensor))

    def add_up(self, share: Callable[[], Tensor]) -> Tensor:
        """The sum over processes, at the leader, of what `share` finds."""
        began = time.perf_counter()
        own = share()
        self.share_seconds = max(self.share_seconds, time.perf_counter() - began)
        if self.group is not None and own.is_cuda:
            self.do(lambda: dist.barrier(async_op=True))
            with connection():
                dist.reduce(own, 0, group=self.group)
        else:
            self.do(lambda: dist.reduce(own, 0, async_op=True))
        self.met = True
        return own


def receive(patience: float) -> list[int]:
    """What the leader asks for."""
    message = torch.zeros(4, dtype=torch.int64)
    processes.wait(lambda: dist.broadcast(message, 0, async_op=True), patience)
    return message.tolist()


@contextmanager
def assembled(settings: Settings, taking: Path | None) -> Iterator[Team]:
    """The team of a run that is to take a checkpoint's parameters, or none's; it ends with the block.

    Raises:
        UserError: the device, the data or the shape of the tasks cannot be had, or more processes than tasks.
        RunFailure: another process has ended.
    """
    started = processes.started(workers(settings))
    with started as (seat, others), sharing(build(settings, seat, taking), seat, others) as team:
        yield team


@contextmanager
def sharing(work: Work, seat: Seat, others: Sequence[subprocess.Popen[str]]) -> Iterator[Team]:
    """The team whose other processes, which have been started, build the same work; they are free after the block.

    Raises:
        UserError: there are more processes than tasks.
        RunFailure: another process has ended.
    """
    if seat.size == 1:
        yield Team(work)
        return
    require_shares(work, seat)
    if not others and (processes.abandoned or not dist.is_initialized()):
        raise RunFailure("the job before failed in the middle of a shared step: start again with resume=auto")
    try:
        if others and not dist.is_initialized():
            processes.await_ready(others)
            processes.join(seat)
        processes.wait(lambda: dist.broadcast(torch.tensor([RUN, 0, 0, 0]), 0, async_op=True), processes.STARTING)
        with connection():
            dist.broadcast_object_list([(work.settings, likeness.of(work.source))], 0)
        team = Team(work, seat, others)
        team.do(lambda: dist.barrier(async_op=True))  # they have built theirs
    except Lost as error:
        failure = processes.failure(others, error)
        processes.part(others)
        raise failure from error
    try:
        yield team
    finally:
        team.dismiss()


def follow() -> NoReturn:
    """A process of rank 1 and above, from beginning to end: run after run, until the leader has ended."""
    logging.disable(logging.WARNING)  # the leader tells
    seat = given_seat()
    assert seat is not None
    processes.attend()
    processes.join(seat)
    try:
        while True:
            receive(processes.READING)
            job: list[Any] = [None]
            with connection():
                dist.broadcast_object_list(job, 0)
            settings, form = job[0]
            team = Team(build(settings, seat, form=form), seat)
            team.do(lambda: dist.barrier(async_op=True))
            team.follow()
    except Lost:
        os._exit(0)  # at a usual end, gloo's threads would abort the process
