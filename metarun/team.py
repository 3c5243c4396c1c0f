"""The tasks of a run, shared out among its processes by task index.

Rank 0 leads: it alone keeps the optimiser, draws conclusions and writes. For a meta-batch it sends the parameters to
all, each takes its share of the tasks, and the sums of their gradients are added up at rank 0: by gloo on CPUs, by
NCCL on GPUs. Whatever their number, the result is that of one process but for rounding.
"""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from metarun import processes
from metarun.data import likeness
from metarun.data.source import SPLITS
from metarun.engine import choose_device, choose_workers
from metarun.errors import RunFailure, UserError
from metarun.evaluation import Evaluation, evaluate
from metarun.groups import Mlp
from metarun.meta import Measures
from metarun.methods import Parameters
from metarun.processes import Lost, connection
from metarun.schema import Settings
from metarun.seat import ALONE, Seat, given_seat
from metarun.work import Work, build

END, GRADIENT, EVALUATE = range(3)  # what the leader asks for
NCCL_PATIENCE = timedelta(seconds=45)  # all have met by gloo before, so that none is late by more


class Team:
    """The processes that share a run's tasks; of one process as well."""

    def __init__(self, work: Work, seat: Seat = ALONE, others: Sequence[subprocess.Popen[str]] = ()) -> None:
        self.work, self.seat, self.others = work, seat, others
        on_gpu = seat.size > 1 and work.device.type == "cuda"
        self.midway = False  # in a step that all share
        self.group: Any = dist.new_group(backend="nccl", timeout=NCCL_PATIENCE) if on_gpu else None

    def compiles(self, second_order: bool) -> bool:
        """Whether the next meta-batch of that order is compiled first."""
        return self.work.compiled is not None and self.work.compiled.compiles(second_order)

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
            total = self.add_up(self.gradient_share(first, count, second_order))
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
    ) -> Evaluation:
        """The first `tasks` tasks of a split with the present parameters; `progress` is told of each lot.

        With `eval.details`, `details` is given the number of a lot's first task and its answers, [2, tasks, queries].

        Raises:
            RunFailure: another process has ended.
        """

        def judge(first: int, count: int) -> Tensor:
            judged, steps = judge_all(first, count), self.work.eval_inner_loop + 1
            if judged.shape[2] > steps:
                details(first, judged[:, :, steps:])
            return judged[:, :, :steps]

        def judge_all(first: int, count: int) -> Tensor:
            if self.seat.size == 1:
                return self.work.judge(split, first, count)
            with self.told():
                self.send(EVALUATE, first, count, SPLITS.index(split))
                if first == 0:
                    self.share_parameters()
                return self.add_up(self.evaluation_share(first, count, SPLITS.index(split)))

        return evaluate(judge, self.work.source.metric, tasks, self.work.tasks_at_once * self.seat.size, progress)

    @contextmanager
    def told(self) -> Iterator[None]:
        self.midway = True
        try:
            yield
        except Lost as error:
            raise processes.failure(self.others) from error
        self.midway = False

    def dismiss(self) -> None:
        """The others are free for another run, unless this one failed while they shared a step."""
        if self.midway:
            dist.destroy_process_group()
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
                self.add_up(self.gradient_share(*request))
            else:
                if request[0] == 0:
                    self.share_parameters()
                self.add_up(self.evaluation_share(*request))

    # --- both ---

    def gradient_share(self, first: int, count: int, second_order: int) -> Tensor:
        """The sum of the gradients of this process's tasks, then losses and metric of all, zero but for its own."""
        share = self.share(count)
        gradient, losses, measures = self.work.meta_gradient(first + share.start, len(share), bool(second_order))
        judged = losses.new_zeros(2, count)
        judged[:, share.start : share.stop] = torch.stack([losses, measures[self.work.source.metric]])
        sums = [entry.flatten() * len(share) for part in gradient for entry in part.values()]
        return torch.cat([*sums, judged.flatten()])

    def evaluation_share(self, first: int, count: int, split: int) -> Tensor:
        """What `Work.judge` gives of all tasks, [2, count, entries], zero but for this process's."""
        share = self.share(count)
        judged = torch.zeros(2, count, self.work.judged_entries, dtype=torch.float64)
        if share:
            own = self.work.judge(SPLITS[split], first + share.start, len(share))
            judged[:, share.start : share.stop] = own
        return judged

    def share(self, count: int) -> range:
        rank, size = self.seat.rank, self.seat.size
        return range(rank * count // size, (rank + 1) * count // size)

    def send(self, *message: int) -> None:
        with connection():
            dist.broadcast(torch.tensor([*message, 0, 0, 0][:4]), 0)

    def receive(self) -> list[int]:
        message = torch.zeros(4, dtype=torch.int64)
        with connection():
            dist.broadcast(message, 0)
        return message.tolist()

    def share_parameters(self) -> None:
        """Everyone's become the leader's."""
        tensors = self.work.tensors
        flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
        with connection():
            dist.broadcast(flat, 0, group=self.group)
        if self.seat.rank:
            with torch.no_grad():
                for tensor, entry in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
                    tensor.copy_(entry.view_as(tensor))

    def add_up(self, own: Tensor) -> Tensor:
        """The sum over processes, at the leader."""
        with connection():
            if self.group is not None and own.is_cuda:
                dist.barrier()
                dist.reduce(own, 0, group=self.group)
            else:
                dist.reduce(own, 0)
        return own


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
    if not others and not dist.is_initialized():
        raise RunFailure("the job before failed in the middle of a shared step: start again with resume=auto")
    try:
        if others and not dist.is_initialized():
            processes.await_ready(others)
            processes.join(seat)
        with connection():
            dist.broadcast_object_list([(work.settings, likeness.of(work.source))], 0)
            dist.barrier()  # they have built theirs
    except Lost as error:
        raise processes.failure(others) from error
    team = Team(work, seat, others)
    try:
        yield team
    finally:
        team.dismiss()


def workers(settings: Settings) -> int:
    """Processes of a run, where torchrun has not started them."""
    trajectory = getattr(settings.method, "objective", "") == "trajectory"
    shared = settings.mode == "train" and settings.engine.tasks in ("auto", "looped") and not trajectory
    steps, convolutional = settings.iterations if shared else 0, not isinstance(settings.backbone, Mlp)
    device = choose_device(settings.device)
    return choose_workers(settings.engine.workers, convolutional, device, steps, settings.meta_batch)


def require_shares(work: Work, seat: Seat) -> None:
    """Raises UserError where the processes cannot share the run's tasks."""
    if work.settings.mode != "train":
        return
    given = f"torchrun's {seat.size} processes" if given_seat() else f"engine.workers={seat.size}"
    if seat.size > work.settings.meta_batch:
        raise UserError(
            f"{given}: a meta-batch of {work.settings.meta_batch} tasks has work for as many; "
            "raise meta_batch or take fewer"
        )
    if work.compiled is not None:
        raise UserError(
            f"{given}: engine.tasks=compiled holds the optimiser, which one process keeps; take one process, or "
            "engine.tasks=vectorised"
        )
    if work.learner.method.offline is not None:
        raise UserError(
            f"{given}: method.objective=trajectory learns from one stored iterate after another, which cannot be "
            "shared out; take one process"
        )


def follow() -> NoReturn:
    """A process of rank 1 and above, from beginning to end: run after run, until the leader has ended."""
    logging.disable(logging.WARNING)  # the leader tells
    seat = given_seat()
    assert seat is not None
    processes.attend()
    processes.join(seat)
    try:
        while True:
            job: list[Any] = [None]
            with connection():
                dist.broadcast_object_list(job, 0)
            settings, form = job[0]
            team = Team(build(settings, seat, form=form), seat)
            with connection():
                dist.barrier()
            team.follow()
    except Lost:
        os._exit(0)  # at a usual end, gloo's threads would abort the process
