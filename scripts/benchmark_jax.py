"""MAML in JAX: one compiled function, tasks by vmap in a small network, one after another in a convolutional one.

Images and kernels are laid out as XLA's convolutions on a CPU want them, channels last.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

from scripts.benchmark_contender import Contender, Problem, read

jax: Any = import_module("jax")  # which the linters need not find
jnp, lax = jax.numpy, jax.lax
optax: Any = import_module("optax")

Weights = dict[str, Any]
BLOCKS = 4


def mlp(weights: Weights, x: Any) -> Any:
    layers = len(weights) // 2
    for layer in range(layers):
        x = x @ weights[f"layers.{layer}.weight"].T + weights[f"layers.{layer}.bias"]
        x = jax.nn.relu(x) if layer < layers - 1 else x
    return x


def conv4(weights: Weights, x: Any) -> Any:
    for block in range(BLOCKS):
        here = f"blocks.{block}"
        kernel, layout = weights[f"{here}.convolution.weight"], ("NHWC", "HWIO", "NHWC")
        x = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)
        x = x + weights[f"{here}.convolution.bias"]
        normal = (x - x.mean((0, 1, 2))) * lax.rsqrt(x.var((0, 1, 2)) + 1e-5)
        x = jax.nn.relu(normal * weights[f"{here}.norm.weight"] + weights[f"{here}.norm.bias"])
        x = pooled(x)
    features = x.transpose(0, 3, 1, 2).reshape(len(x), -1)
    return features @ weights["head.weight"].T + weights["head.bias"]


def pooled(x: Any) -> Any:
    """2x2 max-pool, which so takes XLA half the time of its reduce_window."""
    count, height, width, channels = x.shape
    windows = x[:, : height // 2 * 2, : width // 2 * 2].reshape(count, height // 2, 2, width // 2, 2, channels)
    return windows.max((2, 4))


class Setting:
    """The network, the losses, the outer optimiser, and the tasks on the device."""

    def __init__(self, role: dict[str, Any]) -> None:
        jax.config.update("jax_platforms", "cpu" if role["device"] == "cpu" else "cuda")
        problem = read(role["problem"])
        self.spec = problem.spec
        self.vectorised = self.spec["backbone"]["name"] == "mlp"
        self.network = mlp if self.vectorised else conv4
        self.parameters = {name: jnp.asarray(turned(value)) for name, value in problem.parameters.items()}
        self.optimizer = optax.adam(self.spec["outer_learning_rate"])
        self.tasks = tasks(problem)

    def loss(self, weights: Weights, data: Any, target: Any) -> Any:
        output = self.network(weights, data)
        if self.vectorised:
            return ((output - target) ** 2).mean()
        return optax.softmax_cross_entropy_with_integer_labels(output, target).mean()

    def adapt(self, weights: Weights, data: Any, target: Any) -> Weights:
        """One inner step; the affine of norm layers stays."""
        theta = {name: weights[name] for name in self.spec["adapted"]}
        gradient = jax.grad(lambda theta: self.loss({**weights, **theta}, data, target))(theta)
        if not self.spec["second_order"]:
            gradient = lax.stop_gradient(gradient)
        return {**weights, **{name: theta[name] - self.spec["inner_learning_rate"] * gradient[name] for name in theta}}

    def task_loss(self, weights: Weights, task: Any) -> Any:
        support, target, query, query_target = task
        for _ in range(self.spec["inner_loop"]):
            weights = self.adapt(weights, support, target)
        return self.loss(weights, query, query_target)

    def judge(self, weights: Weights, task: Any) -> tuple[Any, Any]:
        """Query loss and accuracy after each inner step, from none on."""
        support, target, query, query_target = task
        losses, accuracies = [], []
        for number in range(self.spec["inner_loop"] + 1):
            losses.append(self.loss(weights, query, query_target))
            accuracies.append((self.network(weights, query).argmax(-1) == query_target).mean())
            weights = self.adapt(weights, support, target) if number < self.spec["inner_loop"] else weights
        return jnp.stack(losses), jnp.stack(accuracies)

    def gradient(self, weights: Weights, batch: Any) -> Weights:
        """Mean over tasks, all at once."""
        each = jax.vmap(jax.grad(self.task_loss), (None, 0))(weights, batch)
        return jax.tree.map(lambda entry: entry.mean(0), each)

    def moved(self, weights: Weights, state: Any, gradient: Weights) -> tuple[Weights, Any]:
        updates, state = self.optimizer.update(gradient, state, weights)
        return optax.apply_updates(weights, updates), state

    def batch(self, number: int) -> tuple[Any, ...]:
        return tuple(side[number % len(side)] for side in self.tasks)


def turned(value: np.ndarray) -> np.ndarray:
    """A kernel [out, in, height, width] as [height, width, in, out]; anything else as it is."""
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value


def found(gradient: Weights) -> dict[str, np.ndarray]:
    back = {name: np.asarray(entry) for name, entry in gradient.items()}
    return {name: entry.transpose(3, 2, 0, 1) if entry.ndim == 4 else entry for name, entry in back.items()}


def tasks(problem: Problem) -> tuple[Any, ...]:
    """[meta-batches, tasks, images, ...], images with channels last."""
    sides = [side.astype(np.int32) if side.dtype == np.int64 else side for side in problem.tasks]
    return tuple(jnp.asarray(np.moveaxis(side, 3, -1) if side.ndim == 6 else side) for side in sides)


def start(role: dict[str, Any], stack: ExitStack) -> Contender:
    s = Setting(role)
    if s.spec["kind"] == "evaluate":
        return evaluating(s)
    return vectorised(s) if s.vectorised else looped(s)


def vectorised(s: Setting) -> Contender:
    """An outer step is one compiled call."""

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(weights: Weights, state: Any, batch: Any) -> tuple[Weights, Any]:
        return s.moved(weights, state, s.gradient(weights, batch))

    held: Any = jax.tree.map(jnp.copy, s.parameters), s.optimizer.init(s.parameters)
    batches = [s.batch(number) for number in range(len(s.tasks[0]))]

    def steps(count: int) -> int:
        nonlocal held
        for number in range(count):
            held = step(*held, batches[number % len(batches)])
        jax.block_until_ready(held)
        return count

    return Contender(lambda: found(jax.jit(s.gradient)(s.parameters, batches[0])), steps)


def scanned(role: dict[str, Any], stack: ExitStack) -> Contender:
    """As many outer steps as there are meta-batches in one compiled call."""
    s = Setting(role)

    def one(held: tuple[Weights, Any], batch: Any) -> tuple[Any, None]:
        weights, state = held
        return s.moved(weights, state, s.gradient(weights, batch)), None

    @partial(jax.jit, donate_argnums=(0,))
    def many(held: Any, batches: Any) -> Any:
        return lax.scan(one, held, batches)[0]

    held: Any = jax.tree.map(jnp.copy, s.parameters), s.optimizer.init(s.parameters)
    length = len(s.tasks[0])

    def steps(count: int) -> int:
        nonlocal held
        calls = -(-count // length)
        for _ in range(calls):
            held = many(held, s.tasks)
        jax.block_until_ready(held)
        return calls * length

    return Contender(lambda: found(jax.jit(s.gradient)(s.parameters, s.batch(0))), steps)


def looped(s: Setting) -> Contender:
    """A compiled call for each task, and one for Adam."""
    batches = [list(zip(*s.batch(number), strict=True)) for number in range(len(s.tasks[0]))]
    tasks = len(batches[0])

    @partial(jax.jit, donate_argnums=(0,))
    def add(total: Weights, weights: Weights, task: Any) -> Weights:
        return jax.tree.map(lambda sum, entry: sum + entry / tasks, total, jax.grad(s.task_loss)(weights, task))

    move = jax.jit(s.moved, donate_argnums=(0, 1))
    held: Any = jax.tree.map(jnp.copy, s.parameters), s.optimizer.init(s.parameters)

    def gradient(weights: Weights, number: int) -> Weights:
        total = jax.tree.map(jnp.zeros_like, weights)
        for task in batches[number % len(batches)]:
            total = add(total, weights, task)
        return total

    def steps(count: int) -> int:
        nonlocal held
        for number in range(count):
            held = move(*held, gradient(held[0], number))
        jax.block_until_ready(held)
        return count

    return Contender(lambda: found(gradient(s.parameters, 0)), steps)


def evaluating(s: Setting) -> Contender:
    judge = jax.jit(s.judge)
    batches = [list(zip(*s.batch(number), strict=True)) for number in range(len(s.tasks[0]))]

    def lot(number: int) -> np.ndarray:
        judged = [judge(s.parameters, task)[0] for task in batches[number % len(batches)]]
        return np.stack([np.asarray(losses) for losses in judged])

    def steps(count: int) -> int:
        for number in range(count):
            lot(number)
        return count

    return Contender(lambda: {"losses": lot(0)}, steps)
