"""Builds the task-parallel group of a run, in the leader and in its workers."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from metarun.config.schema import Settings
from metarun.data import preprocessing
from metarun.distributed import launch
from metarun.distributed.launch import PeerLost, Workers, raise_peer_lost
from metarun.distributed.num_workers import check_shardable, num_workers
from metarun.distributed.task_parallel import RUN, TaskParallelGroup, receive
from metarun.engine.context import RunContext, build_context
from metarun.engine.rank import Rank, rank_from_env
from metarun.errors import RunFailure


@contextmanager
def launch_group(settings: Settings, checkpoint: Path | None) -> Iterator[TaskParallelGroup]:
    """Start a run's workers and build its group, which ends with the block.

    Args:
        checkpoint: whose parameters the run is going to load, or None.

    Raises:
        UserError: the device, the data or the task shapes are not available, or there are more processes than tasks.
        RunFailure: another process has ended.
    """
    launched = launch.launch_workers(num_workers(settings))
    with launched as (process, workers):
        work = build_context(settings, process, checkpoint)
        with build_group(work, process, workers) as team:
            yield team


@contextmanager
def build_group(work: RunContext, process: Rank, workers: Workers) -> Iterator[TaskParallelGroup]:
    """The group of `work` whose workers, already started, build the same; they wait for another run after the block.

    Raises:
        UserError: there are more processes than tasks.
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
        team = TaskParallelGroup(work, process, workers)
        team.wait_for_all(lambda: dist.barrier(async_op=True))  # until the workers have built theirs
    except PeerLost as error:
        failure = launch.peer_failure(workers, error)
        launch.stop_workers(workers)
        raise failure from error
    try:
        yield team
    finally:
        team.release_workers()


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
            team = TaskParallelGroup(build_context(settings, process, image_spec=image_spec), process)
            team.wait_for_all(lambda: dist.barrier(async_op=True))
            team.worker_loop()
    except PeerLost:
        os._exit(0)  # a regular exit would be aborted by gloo's threads
