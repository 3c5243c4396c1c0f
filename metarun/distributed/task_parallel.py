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

from metarun.checkpointing.state import Weights
from metarun.config.schema import Settings
from metarun.core.batch_norm_stats import TASKS as RUNNING_TASKS
from metarun.core.meta_learner import Metrics
from metarun.data import preprocessing
from metarun.data.task_sampler import SPLITS
from metarun.distributed import launch
from metarun.distributed.launch import PeerLost, raise_peer_lost
from metarun.distributed.num_workers import check_shardable, num_workers
from metarun.engine.context import RunContext, build_context
from metarun.engine.eval_result import EvalResult, evaluate_in_chunks
from metarun.engine.rank import SINGLE_PROCESS, Rank, rank_from_env
from metarun.errors import RunFailure
from metarun.methods import Parameters

END, GRADIENT, EVALUATE, OUTPUTS, RUNNING, RUN = range(6)  # what the leader asks for
NCCL_PATIENCE = timedelta(seconds=45)  # all have met by gloo before, so that none is late by more


class TaskParallelGroup:
    """The processes that share a run's tasks; of one process as well."""

    def __init__(
        self, work: RunContext, seat: Rank = SINGLE_PROCESS, others: Sequence[subprocess.Popen[str]] = ()
    ) -> None:
        self.work, self.seat, self.others = work, seat, others
        on_gpu = seat.size > 1 and work.device.type == "cuda"
        self.midway = False  # in a step that all share
        self.share_seconds = 0.0  # the longest that a share of this process has taken
        self.met = False  # all have ended a step that they share
        self.group: Any = dist.new_group(backend="nccl", timeout=NCCL_PATIENCE) if on_gpu else None

    def compiles(self, step: int, second_order: bool) -> bool:
        """Whether the meta-batch of that step and order is compiled first."""
        compiled = self.work.compiled
        return compiled is not None and compiled.needs_compilation(
            second_order, self.work.loss_weights(step) is not None
        )

    # --- the leader's side ---

    def meta_gradient(self, first: int, count: int, second_order: bool) -> tuple[Parameters, Tensor, Metrics]:
        """Mean over training tasks first .. first + count - 1, with each task's loss [count] and metric [count].

        Raises:
            RunFailure: another process has ended.
        """
        if self.seat.size == 1:
            return self.work.meta_gradient(first, count, second_order)
        with self.in_shared_step():
            self.send(GRADIENT, first, count, second_order)
            self.share_parameters()
            total = self.reduce_to_leader(lambda: self.gradient_share(first, count, second_order))
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
    ) -> EvalResult:
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
                self.work.load_state_dict(weights, "of the ensemble")
                total = total + self.evaluated(OUTPUTS, split, first, count)
            return self.work.judge_outputs(split, first, count, total / len(members))

        at_once, trained = self.work.tasks_at_once * self.seat.size, self.work.settings.inner_loop
        return evaluate_in_chunks(judge, self.work.source.metric, tasks, at_once, trained, progress)

    def evaluated(self, kind: int, split: str, first: int, count: int) -> Tensor:
        """What all processes find of tasks first .. first + count - 1."""
        if anew := kind == OUTPUTS or first == 0:  # the parameters
            self.find_running()
        request = first, count, SPLITS.index(split)
        if self.seat.size == 1:
            return self.evaluation_share(kind, *request)
        with self.in_shared_step():
            self.send(kind, *request)
            if anew:
                self.share_parameters()
            return self.reduce_to_leader(lambda: self.evaluation_share(kind, *request))

    def find_running(self) -> None:
        """The statistics of batch_norm=per_step, where those that are held are not of the present parameters."""
        running = self.work.running
        if running is None or running.current:
            return
        if self.seat.size == 1:
            total = self.running_share(0, RUNNING_TASKS)
        else:
            with self.in_shared_step():
                self.send(RUNNING, 0, RUNNING_TASKS)
                self.share_parameters()
                total = self.reduce_to_leader(lambda: self.running_share(0, RUNNING_TASKS))
        running.take(total / RUNNING_TASKS)

    @contextmanager
    def in_shared_step(self) -> Iterator[None]:
        self.midway = True
        try:
            yield
        except PeerLost as error:
            raise launch.failure(self.others, error) from error
        self.midway = False

    def release_workers(self) -> None:
        """The others are free for another run, unless this one failed while they shared a step."""
        if self.midway:
            launch.part(self.others)
        else:
            with self.in_shared_step():
                self.send(END)

    # --- what follows does what it is asked for ---

    def worker_loop(self) -> None:
        """Until the leader says that the run has ended. Raises Lost where it has ended itself."""
        while True:
            kind, *request = self.receive()
            if kind == END:
                return
            if kind == GRADIENT:
                self.share_parameters()
                self.reduce_to_leader(lambda: self.gradient_share(*request))  # noqa: B023, called at once
            elif kind == RUNNING:
                self.share_parameters()
                self.reduce_to_leader(lambda: self.running_share(*request[:2]))  # noqa: B023, called at once
            else:
                if kind == OUTPUTS or request[0] == 0:
                    self.share_parameters()
                self.reduce_to_leader(lambda: self.evaluation_share(kind, *request))  # noqa: B023, called at once

    # --- both ---

    def gradient_share(self, first: int, count: int, second_order: int) -> Tensor:
        """The sum of the gradients of this process's tasks, then losses and metric of all, zero but for its own."""
        share = self.local_task_range(count)
        gradient, losses, measures = self.work.meta_gradient(first + share.start, len(share), bool(second_order))
        judged = losses.new_zeros(2, count)
        judged[:, share.start : share.stop] = torch.stack([losses, measures[self.work.source.metric]])
        sums = [entry.flatten() * len(share) for part in gradient for entry in part.values()]
        return torch.cat([*sums, judged.flatten()])

    def running_share(self, first: int, count: int) -> Tensor:
        """The sums of the statistics of batch norm over this process's tasks."""
        share, running = self.local_task_range(count), self.work.running
        assert running is not None
        found = self.work.running_sums(first + share.start, len(share))
        return torch.cat([found.get(name, torch.zeros_like(t)).flatten() for name, t in running.tensors.items()])

    def evaluation_share(self, kind: int, first: int, count: int, split: int) -> Tensor:
        """What is found of all tasks, zero but for this process's.

        What `Work.judge` gives, [2, count, entries], or (OUTPUTS) [count, steps + 1, queries, outputs].
        """
        share, work = self.local_task_range(count), self.work
        if kind == OUTPUTS:
            said = torch.zeros(count, *work.outputs_shape)
            if share:
                said[share.start : share.stop] = work.ensemble_member_logits(
                    SPLITS[split], first + share.start, len(share)
                )
            return said
        judged = torch.zeros(2, count, work.judged_entries, dtype=torch.float64)
        if share:
            judged[:, share.start : share.stop] = work.evaluate_chunk(SPLITS[split], first + share.start, len(share))
        return judged

    def local_task_range(self, count: int) -> range:
        rank, size = self.seat.rank, self.seat.size
        return range(rank * count // size, (rank + 1) * count // size)

    def send(self, *message: int) -> None:
        self.do(lambda: dist.broadcast(torch.tensor([*message, 0, 0, 0][:4]), 0, async_op=True))

    def receive(self) -> list[int]:
        return receive(launch.LEADING)

    def do(self, operation: Callable[[], Any]) -> None:
        """What all processes share. Raises Lost where one has ended, or keeps the others waiting for too long."""
        least = launch.PATIENCE if self.met else launch.STARTING
        patience = max(least, launch.SHARES * self.share_seconds)
        asked = max(launch.ASKED, 2 * self.share_seconds)
        if self.seat.rank:  # the leader has more to do than its share
            patience = asked = launch.LEADING
        launch.wait(operation, patience, asked)

    def share_parameters(self) -> None:
        """Everyone's become the leader's, and so do the statistics of batch_norm=per_step."""
        tensors = [*self.work.tensors, *(self.work.running.tensors.values() if self.work.running else ())]
        flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
        if self.group is None:
            self.do(lambda: dist.broadcast(flat, 0, async_op=True))
        else:
            self.do(lambda: dist.barrier(async_op=True))  # NCCL would wait without an end
            with raise_peer_lost():
                dist.broadcast(flat, 0, group=self.group)
        if self.seat.rank:
            with torch.no_grad():
                for tensor, entry in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
                    tensor.copy_(entry.view_as(tensor))

    def reduce_to_leader(self, share: Callable[[], Tensor]) -> Tensor:
        """The sum over processes, at the leader, of what `share` finds."""
        began = time.perf_counter()
        own = share()
        self.share_seconds = max(self.share_seconds, time.perf_counter() - began)
        if self.group is not None and own.is_cuda:
            self.do(lambda: dist.barrier(async_op=True))
            with raise_peer_lost():
                dist.reduce(own, 0, group=self.group)
        else:
            self.do(lambda: dist.reduce(own, 0, async_op=True))
        self.met = True
        return own


def receive(patience: float) -> list[int]:
    """What the leader asks for."""
    message = torch.zeros(4, dtype=torch.int64)
    launch.wait(lambda: dist.broadcast(message, 0, async_op=True), patience)
    return message.tolist()


@contextmanager
def launch_group(settings: Settings, taking: Path | None) -> Iterator[TaskParallelGroup]:
    """The team of a run that is to take a checkpoint's parameters, or none's; it ends with the block.

    Raises:
        UserError: the device, the data or the shape of the tasks cannot be had, or more processes than tasks.
        RunFailure: another process has ended.
    """
    started = launch.launch_workers(num_workers(settings))
    with started as (seat, others), build_group(build_context(settings, seat, taking), seat, others) as team:
        yield team


@contextmanager
def build_group(work: RunContext, seat: Rank, others: Sequence[subprocess.Popen[str]]) -> Iterator[TaskParallelGroup]:
    """The team whose other processes, which have been started, build the same work; they are free after the block.

    Raises:
        UserError: there are more processes than tasks.
        RunFailure: another process has ended.
    """
    if seat.size == 1:
        yield TaskParallelGroup(work)
        return
    check_shardable(work, seat)
    if not others and (launch.abandoned or not dist.is_initialized()):
        raise RunFailure("the job before failed in the middle of a shared step: start again with resume=auto")
    try:
        if others and not dist.is_initialized():
            launch.wait_until_ready(others)
            launch.init_process_group(seat)
        launch.wait(lambda: dist.broadcast(torch.tensor([RUN, 0, 0, 0]), 0, async_op=True), launch.STARTING)
        with raise_peer_lost():
            dist.broadcast_object_list([(work.settings, preprocessing.image_preprocessing(work.source))], 0)
        team = TaskParallelGroup(work, seat, others)
        team.do(lambda: dist.barrier(async_op=True))  # they have built theirs
    except PeerLost as error:
        failure = launch.failure(others, error)
        launch.part(others)
        raise failure from error
    try:
        yield team
    finally:
        team.release_workers()


def worker_main() -> NoReturn:
    """A process of rank 1 and above, from beginning to end: run after run, until the leader has ended."""
    logging.disable(logging.WARNING)  # the leader tells
    seat = rank_from_env()
    assert seat is not None
    launch.run_as_worker()
    launch.init_process_group(seat)
    try:
        while True:
            receive(launch.READING)
            job: list[Any] = [None]
            with raise_peer_lost():
                dist.broadcast_object_list(job, 0)
            settings, form = job[0]
            team = TaskParallelGroup(build_context(settings, seat, form=form), seat)
            team.do(lambda: dist.barrier(async_op=True))
            team.worker_loop()
    except PeerLost:
        os._exit(0)  # at a usual end, gloo's threads would abort the process
