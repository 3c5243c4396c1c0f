"""Task parallelism: the processes of a run share the tasks of each meta-batch and evaluation by task index.

Rank 0, the leader, alone holds the optimizer, validates and writes files. For a meta-batch it broadcasts the
parameters; each process computes its share of the tasks, and the sums of their gradients are reduced to the leader, by
gloo on CPUs and NCCL on GPUs. The result is that of one process up to rounding, whatever the number of processes.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from metarun.checkpointing.state import Weights
from metarun.core.batch_norm_stats import TASKS as RUNNING_TASKS
from metarun.core.meta_learner import Metrics
from metarun.data.task_sampler import SPLITS
from metarun.distributed import launch
from metarun.distributed.launch import PeerLost, Workers, raise_peer_lost
from metarun.engine.context import RunContext
from metarun.engine.eval_result import EvalResult
from metarun.engine.rank import SINGLE_PROCESS, Rank
from metarun.methods import Parameters

END, GRADIENT, EVALUATE, LOGITS, BATCH_NORM, RUN = range(6)  # requests of the leader to its workers
NCCL_TIMEOUT = timedelta(seconds=45)  # short, as all processes have met at a gloo barrier right before


class TaskParallelGroup:
    """The processes that share a run's tasks: the leader's requests, and the share of each process."""

    def __init__(self, work: RunContext, process: Rank = SINGLE_PROCESS, workers: Workers = ()) -> None:
        self.work, self.process, self.workers = work, process, workers
        on_gpu = process.world_size > 1 and work.device.type == "cuda"
        self.in_step = False  # whether the processes are in the middle of a shared step
        self.longest_share = 0.0  # seconds that this process's longest share of a step has taken
        self.first_step_done = False
        self.nccl_group: Any = dist.new_group(backend="nccl", timeout=NCCL_TIMEOUT) if on_gpu else None

    def compiles(self, step: int, second_order: bool) -> bool:
        """Whether outer step `step` has to be compiled first."""
        compiled = self.work.compiled
        return compiled is not None and compiled.needs_compilation(
            second_order, self.work.loss_weights(step) is not None
        )

    # --- called in the leader ---

    def meta_gradient(self, first: int, count: int, second_order: bool) -> tuple[Parameters, Tensor, Metrics]:
        """Meta-gradient of training tasks first .. first + count - 1.

        Returns:
            The mean gradient over tasks, each task's query loss [count], and its metric [count] by name.

        Raises:
            RunFailure: another process has ended.
        """
        if self.process.world_size == 1:
            return self.work.meta_gradient(first, count, second_order)
        with self.shared_step():
            self.send(GRADIENT, first, count, second_order)
            self.broadcast_parameters()
            total = self.reduce_to_leader(lambda: self.gradient_share(first, count, second_order))
        params = self.work.tensors
        *sums, scalars = total.split([*(param.numel() for param in params), 2 * count])
        means = iter([entry.view_as(param) / count for entry, param in zip(sums, params, strict=True)])
        grads = Parameters(*({name: next(means) for name in part} for part in self.work.parameters))
        losses, values = scalars.view(2, count)
        return grads, losses, {self.work.source.metric: values}

    def evaluate(
        self,
        split: str,
        num_tasks: int,
        progress: Callable[[int], object] = lambda done: None,
        on_predictions: Callable[[int, Tensor], object] = lambda first, predictions: None,
        members: Sequence[Weights] = (),
    ) -> EvalResult:
        """Evaluate the first `num_tasks` tasks of a split with the current parameters.

        Args:
            progress: called after each chunk with the number of its tasks.
            on_predictions: called with each chunk's first task index and its confidences and predicted classes
                [2, tasks, queries], if `eval.details` is set.
            members: the weights of an ensemble's members, whose mean logits are evaluated instead. The parameters are
                the last member's afterwards.

        Raises:
            RunFailure: another process has ended.
        """
        work, chunks = self.work, []
        chunk_size, num_steps = work.tasks_at_once * self.process.world_size, work.eval_inner_loop + 1
        for first in range(0, num_tasks, chunk_size):
            count = min(chunk_size, num_tasks - first)
            if members:
                total = torch.zeros(())
                for weights in members:
                    work.load_state_dict(weights, "of the ensemble")
                    total = total + self.shared_evaluation(LOGITS, split, first, count)
                chunks.append(work.score_logits(split, first, count, total / len(members)))
            else:
                entries = self.shared_evaluation(EVALUATE, split, first, count)
                if entries.shape[2] > num_steps:
                    on_predictions(first, entries[:, :, num_steps:])
                chunks.append(entries[:, :, :num_steps])
            progress(count)
        losses, values = torch.cat(chunks, dim=1)
        return EvalResult(work.source.metric, values, losses, work.settings.inner_loop)

    def shared_evaluation(self, request: int, split: str, first: int, count: int) -> Tensor:
        """`evaluation_share` of tasks first .. first + count - 1, summed over all processes."""
        if new_parameters := request == LOGITS or first == 0:
            self.update_batch_norm_stats()
        arguments = first, count, SPLITS.index(split)
        if self.process.world_size == 1:
            return self.evaluation_share(request, *arguments)
        with self.shared_step():
            self.send(request, *arguments)
            if new_parameters:
                self.broadcast_parameters()
            return self.reduce_to_leader(lambda: self.evaluation_share(request, *arguments))

    def update_batch_norm_stats(self) -> None:
        """Compute the statistics of batch_norm=per_step for the current parameters, unless they are up to date."""
        stats = self.work.running
        if stats is None or stats.current:
            return
        if self.process.world_size == 1:
            total = self.batch_norm_share(0, RUNNING_TASKS)
        else:
            with self.shared_step():
                self.send(BATCH_NORM, 0, RUNNING_TASKS)
                self.broadcast_parameters()
                total = self.reduce_to_leader(lambda: self.batch_norm_share(0, RUNNING_TASKS))
        stats.take(total / RUNNING_TASKS)

    @contextmanager
    def shared_step(self) -> Iterator[None]:
        """Raise RunFailure if another process ends during the block, in which all processes take part."""
        self.in_step = True
        try:
            yield
        except PeerLost as error:
            raise launch.peer_failure(self.workers, error) from error
        self.in_step = False

    def release_workers(self) -> None:
        """End this run in the workers, which then wait for the next one; kill them if it failed in a shared step."""
        if self.in_step:
            launch.stop_workers(self.workers)
        else:
            with self.shared_step():
                self.send(END)

    # --- called in a worker ---

    def worker_loop(self) -> None:
        """Serve the leader's requests until it ends the run. Raises PeerLost if the leader itself has ended."""
        while True:
            request, *arguments = receive(launch.LEADER_TIMEOUT)
            if request == END:
                return
            if request in (GRADIENT, BATCH_NORM, LOGITS) or arguments[0] == 0:
                self.broadcast_parameters()
            if request == GRADIENT:
                self.reduce_to_leader(partial(self.gradient_share, *arguments))
            elif request == BATCH_NORM:
                self.reduce_to_leader(partial(self.batch_norm_share, *arguments[:2]))
            else:
                self.reduce_to_leader(partial(self.evaluation_share, request, *arguments))

    # --- called in every process ---

    def local_task_range(self, count: int) -> range:
        """The tasks of this process among `count`."""
        rank, world_size = self.process.rank, self.process.world_size
        return range(rank * count // world_size, (rank + 1) * count // world_size)

    def gradient_share(self, first: int, count: int, second_order: int) -> Tensor:
        """The sum of the gradients of this process's tasks, then losses and metric of all tasks, flattened.

        Losses and metric are [2, count], zero for the tasks of other processes.
        """
        share = self.local_task_range(count)
        grads, losses, metrics = self.work.meta_gradient(first + share.start, len(share), bool(second_order))
        scalars = losses.new_zeros(2, count)
        scalars[:, share.start : share.stop] = torch.stack([losses, metrics[self.work.source.metric]])
        sums = [grad.flatten() * len(share) for part in grads for grad in part.values()]
        return torch.cat([*sums, scalars.flatten()])

    def batch_norm_share(self, first: int, count: int) -> Tensor:
        """The sums of the batch-norm statistics over this process's tasks, flattened."""
        share, stats = self.local_task_range(count), self.work.running
        assert stats is not None
        sums = self.work.running_sums(first + share.start, len(share))
        return torch.cat([sums.get(name, torch.zeros_like(t)).flatten() for name, t in stats.tensors.items()])

    def evaluation_share(self, request: int, first: int, count: int, split: int) -> Tensor:
        """Evaluation of `count` tasks, zero for the tasks of other processes.

        For EVALUATE as `RunContext.evaluate_chunk` returns, [2, count, entries]; for LOGITS the logits of the queries,
        [count, inner steps + 1, queries, outputs].
        """
        share, work = self.local_task_range(count), self.work
        if request == LOGITS:
            logits = torch.zeros(count, *work.logits_shape)
            if share:
                logits[share.start : share.stop] = work.query_logits(SPLITS[split], first + share.start, len(share))
            return logits
        values = torch.zeros(2, count, work.entries_per_task, dtype=torch.float64)
        if share:
            values[:, share.start : share.stop] = work.evaluate_chunk(SPLITS[split], first + share.start, len(share))
        return values

    def send(self, *message: int) -> None:
        """Broadcast a request and its arguments, up to three, to the workers."""
        self.wait_for_all(lambda: dist.broadcast(torch.tensor([*message, 0, 0, 0][:4]), 0, async_op=True))

    def wait_for_all(self, operation: Callable[[], Any]) -> None:
        """Run a collective operation. Raises PeerLost if a process has ended or keeps the others waiting too long."""
        if self.process.rank:
            launch.wait(operation, launch.LEADER_TIMEOUT)
            return
        least = launch.STEP_TIMEOUT if self.first_step_done else launch.STARTUP_TIMEOUT
        timeout = max(least, launch.TIMEOUT_SHARES * self.longest_share)
        launch.wait(operation, timeout, max(launch.STOP_TIMEOUT, 2 * self.longest_share))

    def broadcast_parameters(self) -> None:
        """Copy the leader's parameters, and the statistics of batch_norm=per_step, to all processes."""
        tensors = [*self.work.tensors, *(self.work.running.tensors.values() if self.work.running else ())]
        flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
        if self.nccl_group is None:
            self.wait_for_all(lambda: dist.broadcast(flat, 0, async_op=True))
        else:
            self.wait_for_all(lambda: dist.barrier(async_op=True))  # gloo notices a lost process, NCCL would hang
            with raise_peer_lost():
                dist.broadcast(flat, 0, group=self.nccl_group)
        if self.process.rank:
            with torch.no_grad():
                for tensor, entry in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
                    tensor.copy_(entry.view_as(tensor))

    def reduce_to_leader(self, compute_share: Callable[[], Tensor]) -> Tensor:
        """The sum over processes of what `compute_share` returns; complete in the leader only."""
        started = time.perf_counter()
        share = compute_share()
        self.longest_share = max(self.longest_share, time.perf_counter() - started)
        if self.nccl_group is not None and share.is_cuda:
            self.wait_for_all(lambda: dist.barrier(async_op=True))
            with raise_peer_lost():
                dist.reduce(share, 0, group=self.nccl_group)
        else:
            self.wait_for_all(lambda: dist.reduce(share, 0, async_op=True))
        self.first_step_done = True
        return share


def receive(timeout: float) -> list[int]:
    """The leader's next request and its three arguments. Raises PeerLost if none arrives in `timeout` seconds."""
    message = torch.zeros(4, dtype=torch.int64)
    launch.wait(lambda: dist.broadcast(message, 0, async_op=True), timeout)
    return message.tolist()
