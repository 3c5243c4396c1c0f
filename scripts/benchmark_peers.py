"""MAML as others write it in PyTorch: a plain loop over tasks, with higher, with learn2learn.

The affine of norm layers does not adapt, here as in metarun; all of it is learned by the outer Adam.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from importlib import import_module
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from scripts.benchmark_contender import Contender, read
from scripts.benchmark_networks import network

Task = tuple[Tensor, Tensor, Tensor, Tensor]  # support data and target, query data and target
Tensors = dict[str, Tensor]


# --- an outer step, made of what each peer does with a task ------------------------------------------------


class Setting:
    """What every peer has: the network, the tasks on the device, the loss, the outer optimiser."""

    def __init__(self, role: dict[str, Any]) -> None:
        problem = read(role["problem"])
        self.spec, self.device = problem.spec, role["device"]
        self.rate, self.inner_loop = self.spec["inner_learning_rate"], self.spec["inner_loop"]
        self.second_order: bool = self.spec["second_order"]
        self.network = network(problem, self.device)
        self.named: Tensors = dict(self.network.named_parameters())
        self.adapted: list[str] = self.spec["adapted"]
        self.optimizer = torch.optim.Adam(self.named.values(), lr=self.spec["outer_learning_rate"])
        sides = [torch.from_numpy(side).to(self.device) for side in problem.tasks]
        sides = [side.to(torch.get_default_dtype()) if side.is_floating_point() else side for side in sides]
        self.batches = [list(zip(*batch, strict=True)) for batch in zip(*sides, strict=True)]
        self.criterion = F.mse_loss if self.spec["backbone"]["name"] == "mlp" else F.cross_entropy

    def wait(self) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize()

    def training(self, backward: Callable[[Task, int], None]) -> Contender:
        """`backward(task, tasks)` adds a task's share of the mean meta-gradient to `.grad`."""

        def accumulate(number: int) -> None:
            self.optimizer.zero_grad()
            batch = self.batches[number % len(self.batches)]
            for task in batch:
                backward(task, len(batch))

        def first() -> dict[str, np.ndarray]:
            accumulate(0)
            return {name: entry.grad.cpu().numpy() for name, entry in self.named.items() if entry.grad is not None}

        def steps(count: int) -> int:
            for number in range(count):
                accumulate(number)
                self.optimizer.step()
            self.wait()
            return count

        return Contender(first, steps)

    def evaluating(self, judge: Callable[[Task], list[tuple[Tensor, Tensor]]]) -> Contender:
        """`judge(task)` is the query loss and accuracy after each inner step, from none on."""

        def lot(number: int) -> Tensor:
            judged = [judge(task) for task in self.batches[number % len(self.batches)]]
            return torch.stack([torch.stack([loss.detach() for loss, _ in one]) for one in judged]).cpu()

        def steps(count: int) -> int:
            for number in range(count):
                lot(number)
            return count

        return Contender(lambda: {"losses": lot(0).numpy()}, steps)

    def judged(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return self.criterion(output, target), (output.argmax(-1) == target).float().mean()


# --- a plain loop ------------------------------------------------------------------------------------------


def eager(role: dict[str, Any], stack: ExitStack) -> Contender:
    """torch.func.functional_call and torch.autograd.grad, task after task: the yardstick."""
    s = Setting(role)
    return s.evaluating(lambda task: judge(s, task)) if s.spec["kind"] == "evaluate" else s.training(backward_of(s))


def eager_in_float64(role: dict[str, Any], stack: ExitStack) -> Contender:
    """The same, to see what rounding does to the yardstick's own gradient."""
    torch.set_default_dtype(torch.float64)
    return eager(role, stack)


def backward_of(s: Setting) -> Callable[[Task, int], None]:
    def backward(task: Task, tasks: int) -> None:
        support, target, query, query_target = task
        weights: Tensors = s.named
        for _ in range(s.inner_loop):
            weights = step(s, weights, support, target, s.second_order)
        (s.criterion(functional_call(s.network, weights, (query,)), query_target) / tasks).backward()

    return backward


def step(s: Setting, weights: Tensors, support: Tensor, target: Tensor, graph: bool) -> Tensors:
    loss = s.criterion(functional_call(s.network, weights, (support,)), target)
    gradients = torch.autograd.grad(loss, [weights[name] for name in s.adapted], create_graph=graph)
    moved = {name: weights[name] - s.rate * gradient for name, gradient in zip(s.adapted, gradients, strict=True)}
    return {**weights, **moved}


def judge(s: Setting, task: Task) -> list[tuple[Tensor, Tensor]]:
    support, target, query, query_target = task
    weights, found = s.named, []
    for number in range(s.inner_loop + 1):
        with torch.no_grad():
            found.append(s.judged(functional_call(s.network, weights, (query,)), query_target))
        if number < s.inner_loop:
            moved = step(s, weights, support, target, graph=False)
            weights = {name: entry.detach().requires_grad_() for name, entry in moved.items()}
    return found


# --- libraries ---------------------------------------------------------------------------------------------


def with_higher(role: dict[str, Any], stack: ExitStack) -> Contender:
    """As in higher's README: SGD made differentiable on a patched copy of the network, task after task."""
    higher: Any = import_module("higher")
    s = Setting(role)
    inner = torch.optim.SGD([s.named[name] for name in s.adapted], lr=s.rate)

    def backward(task: Task, tasks: int) -> None:
        support, target, query, query_target = task
        options = {"copy_initial_weights": False, "track_higher_grads": s.second_order}
        with higher.innerloop_ctx(s.network, inner, **options) as (patched, optimizer):
            for _ in range(s.inner_loop):
                optimizer.step(s.criterion(patched(support), target))
            loss = s.criterion(patched(query), query_target) / tasks
            if s.second_order:
                return loss.backward()
            gradients = torch.autograd.grad(loss, list(patched.parameters()))  # at the last weights: first order
            for entry, gradient in zip(s.named.values(), gradients, strict=True):
                entry.grad = gradient if entry.grad is None else entry.grad + gradient

    def judge(task: Task) -> list[tuple[Tensor, Tensor]]:
        support, target, query, query_target = task
        found = []
        with higher.innerloop_ctx(s.network, inner, track_higher_grads=False) as (patched, optimizer):
            for number in range(s.inner_loop + 1):
                with torch.no_grad():
                    found.append(s.judged(patched(query), query_target))
                if number < s.inner_loop:
                    optimizer.step(s.criterion(patched(support), target))
        return found

    return s.evaluating(judge) if s.spec["kind"] == "evaluate" else s.training(backward)


def with_learn2learn(role: dict[str, Any], stack: ExitStack) -> Contender:
    """As in learn2learn's examples: a clone of the network for each task, which adapts."""
    maml: Any = import_module("learn2learn.algorithms.maml")
    s = Setting(role)
    for module in s.network.modules():
        if isinstance(module, nn.BatchNorm2d):  # its affine is shared by all clones, as what is no parameter is
            for name in ("weight", "bias"):
                module.__dict__[name] = module._parameters.pop(name)
    learner = maml.MAML(s.network, lr=s.rate, first_order=not s.second_order)

    def backward(task: Task, tasks: int) -> None:
        support, target, query, query_target = task
        clone = learner.clone()
        for _ in range(s.inner_loop):
            clone.adapt(s.criterion(clone(support), target))
        (s.criterion(clone(query), query_target) / tasks).backward()

    return s.training(backward)
