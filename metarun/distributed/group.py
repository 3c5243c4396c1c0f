"""Number of processes of a run, and its task-parallel group, built in the leader and in its workers."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from metarun.config.eval_grid import expand_eval_grid
from metarun.config.groups import Mlp
from metarun.config.schema import Settings
from metarun.data import preprocessing
from metarun.distributed import launch
from metarun.distributed.launch import PeerLost, Workers, raise_peer_lost
from metarun.distributed.task_parallel import RUN, TaskParallelGroup, receive
from metarun.engine import execution
from metarun.engine.context import RunContext, build_context
from metarun.engine.rank import Rank, rank_from_env
from metarun.engine.task_shapes import eval_inner_loop
from metarun.errors import RunFailure, UserError

MIN_STEPS_FOR_WORKERS = 200  # outer steps: a process takes 3 s to start
MIN_TEST_TASKS_FOR_WORKERS = 600  # times inner steps + 1: an inner step of a task takes conv4 some 16 ms


def num_workers(settings: Settings) -> int:
    """Number of processes that share the tasks of a meta-batch or an evaluation, if torchrun does not start them.

    `engine.workers`, if given. Otherwise, for looped convolutional networks on a CPU and enough work, one process with
    one thread for each core: two such processes are 1.3 times as fast as one with two threads, which wait for each
    other in every layer.
    """
    device = execution.choose_device(settings.device)
    if settings.engine.workers is not None:
        return settings.engine.workers
    looped = settings.engine.tasks in ("auto", "looped") and not isinstance(settings.backbone, Mlp)
    if settings.mode == "evaluate":
        num_tasks = settings.eval.tasks
        inner_loops = [eval_inner_loop(evaluation) for evaluation in expand_eval_grid(settings)]
        worthwhile = sum(num_tasks * (steps + 1) for steps in inner_loops) >= MIN_TEST_TASKS_FOR_WORKERS
    else:
        num_tasks = settings.meta_batch
        worthwhile = settings.iterations >= MIN_STEPS_FOR_WORKERS and settings.method.shares_tasks
    return min(execution.ALL_THREADS, num_tasks) if looped and worthwhile and device.type == "cpu" else 1


def check_shardable(work: RunContext, process: Rank) -> None:
    """Raise UserError if the processes cannot share the run's training tasks."""
    if work.settings.mode != "train":
        return
    size, meta_batch = process.world_size, work.settings.meta_batch
    reasons = {
        f"a meta-batch of {meta_batch} tasks has work for at most {meta_batch} processes; "
        "raise meta_batch or take fewer": size > meta_batch,
        "engine.tasks=compiled holds the optimiser, which one process keeps; take one process, or "
        "engine.tasks=vectorised": work.compiled is not None,
        "method.objective=trajectory learns from one stored iterate after another, which processes cannot share; "
        "take one process": not work.settings.method.shares_tasks,
    }
    for reason, applies in reasons.items():
        if applies:
            given = f"torchrun's {size} processes" if rank_from_env() else f"engine.workers={size}"
            raise UserError(f"{given}: {reason}")


@contextmanager
def launch_group(settings: Settings, checkpoint: Path | None) -> Iterator[TaskParallelGroup]:
    """Start a run's workers and build its group, which ends with the block.

    Args:
        checkpoint: the checkpoint whose parameters the run will load, or None.

    Raises:
        UserError: the device, the data or the task shapes are not available, or the processes cannot share the tasks.
        RunFailure: another process has ended.
    """
    with launch.launch_workers(num_workers(settings)) as (process, workers):
        work = build_context(settings, process, checkpoint)
        with build_group(work, process, workers) as group:
            yield group


@contextmanager
def build_group(work: RunContext, process: Rank, workers: Workers) -> Iterator[TaskParallelGroup]:
    """Yield the group of `work`, built in the leader and in the workers, which wait for the next run after the block.

    Raises:
        UserError: the processes cannot share the tasks.
        RunFailure: another process has ended.
    """
    if process.world_size == 1:
        yield TaskParallelGroup(work)
        return
    check_shardable(work, process)
    if not workers and (launch.abandoned or not dist.is_initialized()):
        raise RunFailure("the job before failed while its processes shared a step: start again with resume=auto")
    try:
        if workers and not dist.is_initialized():
            launch.wait_until_ready(workers)
            launch.init_process_group(process)
        launch.wait(lambda: dist.broadcast(torch.tensor([RUN, 0, 0, 0]), 0, async_op=True), launch.STARTUP_TIMEOUT)
        with raise_peer_lost():
            dist.broadcast_object_list([(work.settings, preprocessing.image_preprocessing(work.source))], 0)
        group = TaskParallelGroup(work, process, workers)
        group.wait_for_all(lambda: dist.barrier(async_op=True))  # until the workers have built theirs
    except PeerLost as error:
        failure = launch.peer_failure(workers, error)
        launch.stop_workers(workers)
        raise failure from error
    try:
        yield group
    finally:
        group.release_workers()


def worker_main() -> NoReturn:
    """Main function of a process of rank 1 and above: takes part in run after run until the leader has ended."""
    logging.disable(logging.WARNING)  # the leader logs
    process = rank_from_env()
    assert process is not None
    launch.run_as_worker()
    launch.init_process_group(process)
    try:
        while True:
            receive(launch.IDLE_TIMEOUT)
            job: list[Any] = [None]
            with raise_peer_lost():
                dist.broadcast_object_list(job, 0)
            settings, image_spec = job[0]
            group = TaskParallelGroup(build_context(settings, process, image_spec=image_spec), process)
            group.wait_for_all(lambda: dist.barrier(async_op=True))
            group.worker_loop()
    except PeerLost:
        os._exit(0)  # a regular exit would be aborted by gloo's threads
