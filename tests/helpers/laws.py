"""The laws of the methods, measured: derivatives from values alone, and a method prepared with random parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vmap
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from metarun.core import meta_learner
from metarun.core.forward import evaluate_objective, query_weights, support_weights
from metarun.core.meta_learner import MetaLearner, TaskLearner, autograd_gradient, unbind_tasks
from metarun.core.objectives import regression
from metarun.methods import METHODS, Method, Parameters, Tensors, compose, prepare
from metarun.nn.norm import Norm
from metarun.types import Task
from tests.helpers.problems import Tanh, regression_tasks

Record = Callable[[str, object], None]  # pytest's record_property
Masks = list[Tensors]  # one at each draw


def check(record: Record, law: str, method: str, error: float, bound: float) -> None:
    """Notes an error for scripts/laws.py, and refuses one that is too large."""
    for name, value in {"law": law, "method": method, "error": error}.items():
        record(name, value)
    assert error < bound, f"{law}, {method}: {error:.1e}"


def largest_relative_error(found: object, expected: object) -> float:
    """The largest difference, in units of the largest entry that was expected."""
    pairs = list(zip(tree_leaves(found), tree_leaves(expected), strict=True))
    scale = max(float(e.abs().max()) for _, e in pairs)
    return max(float((f - e).abs().max()) for f, e in pairs) / scale


def largest_tensor_error(found: object, expected: object) -> float:
    """Each tensor's largest difference in its own units; a tensor that is zero takes a thousandth of the largest."""
    pairs = list(zip(tree_leaves(found), tree_leaves(expected), strict=True))
    floor = 1e-3 * max(float(e.abs().max()) for _, e in pairs)
    return max(float((f - e).abs().max()) / max(float(e.abs().max()), floor) for f, e in pairs)


# --- derivatives from values -------------------------------------------------------------------------------


def derivatives(value: Callable[[Any], Tensor], point: Any, width: float = 5e-4, vectorised: bool = True) -> Any:
    """Eighth-order central differences of a scalar by every entry of a tree of tensors."""
    leaves, spec = tree_flatten(point)
    flat = torch.cat([leaf.detach().reshape(-1) for leaf in leaves])

    def at(entries: Tensor) -> Tensor:
        parts = entries.split([leaf.numel() for leaf in leaves])
        return value(tree_unflatten([p.view_as(leaf) for p, leaf in zip(parts, leaves, strict=True)], spec))

    weights = {1: 4 / 5, 2: -1 / 5, 3: 4 / 105, 4: -1 / 280}
    weights.update({-distance: -weight for distance, weight in weights.items()})
    directions = torch.eye(len(flat), dtype=flat.dtype)
    points = torch.cat([flat + distance * width * directions for distance in weights])
    values = vmap(at, chunk_size=1024)(points) if vectorised else torch.stack([at(entries) for entries in points])
    values = values.view(len(weights), -1)
    slope = torch.tensor(list(weights.values()), dtype=flat.dtype) @ values / width
    parts = slope.split([leaf.numel() for leaf in leaves])
    return tree_unflatten([p.view_as(leaf) for p, leaf in zip(parts, leaves, strict=True)], spec)


class Held(dict[str, Any]):
    """What a method stops: it keeps the value that it had when it was first asked for."""

    def __call__(self, name: str, compute: Callable[[], Any]) -> Any:
        if name not in self:
            self[name] = tree_map(torch.clone, tree_map(torch.detach, compute()))
        return self[name]


def value_of_task(
    learner: MetaLearner,
    point: tuple[Parameters, Masks],
    task: Task,
    noise: Tensor,
    held: Held,
    objective: str = "query",
) -> Tensor:
    """One task's contribution to the meta-objective as the papers state it, by values alone.

    objective: "query", or WarpGrad's "trajectory" and "approximate" (equations 11 and 12, with MAML's for theta).
    """
    (theta, phi), masks = point
    method = learner.method
    support, query = (task.support_data, task.support_target), (task.query_data, task.query_target)

    def gradient(theta: Tensors, phi: Tensors, taken: int = 0) -> Tensors:
        def loss(theta: Tensors) -> Tensor:
            weights = partial(support_weights, learner, phi=phi, taken=taken)
            return evaluate_objective(learner, learner.inner_objective, theta, weights, *support)[0]

        return torch.func.grad(loss)(theta)

    def query_loss(theta: Tensors, phi: Tensors) -> Tensor:
        def weights(theta: Tensors) -> Tensors:
            return query_weights(learner, theta, phi, task.support_data, learner.inner_loop)

        return evaluate_objective(learner, learner.outer_objective, theta, weights, *query)[0]

    def start(theta: Tensors, phi: Tensors) -> tuple[Tensors, Any]:
        theta, fixed = method.begin(theta, phi, lambda t: held("embedding", lambda: gradient(t, phi)), noise)
        return theta, (fixed[0], masks) if masks else fixed

    def step(theta: Tensors, phi: Tensors, fixed: Any, number: int) -> Tensors:
        def here() -> Tensors:
            return gradient(theta, phi, number)

        slope = here() if learner.use_second_order else held(f"gradient {number}", here)
        return method.update(theta, slope, phi, fixed, number)

    def adapt(theta: Tensors, phi: Tensors) -> list[Tensors]:
        theta, fixed = start(theta, phi)
        iterates = [theta]
        for number in range(learner.inner_loop):
            iterates.append(step(iterates[-1], phi, fixed, number))
        return iterates

    if objective == "query":
        return query_loss(adapt(theta, phi)[-1], phi)
    still = held("phi", lambda: phi)
    iterates = adapt(theta, still)
    total = query_loss(iterates[-1], still)
    for number, iterate in enumerate(held("iterates", lambda: iterates[:-1])):

        def ahead(iterate: Tensors = iterate, number: int = number) -> Tensors:
            return step(iterate, phi, None, number)

        there = held(f"ahead {number}", ahead) if objective == "approximate" else ahead()
        total = total + query_loss(there, phi)
    return total


def finite_differences(
    learner: MetaLearner,
    parameters: Parameters,
    tasks: Task,
    noise: Tensor | None = None,
    objective: str = "query",
) -> Parameters:
    """The mean task gradient from values alone, with all that the method stops held fixed.

    A mask's value is a step function of its logit: dL/dm at the hard mask, times the soft draw's derivative.
    """
    parameters = tree_map(torch.detach, parameters)
    results = []
    for task, own in zip(unbind_tasks(tasks), no_noise(tasks) if noise is None else noise, strict=True):
        held = Held()
        masks, slopes = hard_masks(parameters.phi, own)

        def value(point: tuple[Parameters, Masks], task: Task = task, own: Tensor = own, held: Held = held) -> Tensor:
            return value_of_task(learner, point, task, own, held, objective)

        point = (parameters, masks)
        value(point)  # fills `held` at the point itself
        found, by_mask = derivatives(value, point)
        for draw, slope in zip(by_mask, slopes, strict=True):
            for name, tensor in draw.items():
                found.phi[f"mask_logits.{name.replace('.', '/')}"] += tensor * slope[name]
        results.append(found)
    return tree_map(lambda *each: torch.stack(each).mean(0), *results)


def along_directions(one: Problem, objective: str, count: int = 4) -> tuple[Tensor, Tensor]:
    """The first task's gradient along random directions of all that is learned, and the same from values alone.

    Of a network that torch cannot map over points, for which `finite_differences` takes long.
    """
    one = one.chosen([0])
    task, noise, parameters = next(unbind_tasks(one.tasks)), one.noise[0], tree_map(torch.detach, one.parameters)
    masks, slopes = hard_masks(parameters.phi, noise)
    directions = [tree_map(lambda t: 0.1 * torch.randn_like(t), parameters) for _ in range(count)]
    moved = [
        (each, [{n: s * each.phi[f"mask_logits.{n.replace('.', '/')}"] for n, s in draw.items()} for draw in slopes])
        for each in directions
    ]
    held = Held()

    def value(steps: Tensor) -> Tensor:
        def move(start: Tensor, *ways: Tensor) -> Tensor:
            return start + sum(step * way for step, way in zip(steps, ways, strict=True))

        point = tree_map(move, (parameters, masks), *moved)
        return value_of_task(one.learner, point, task, noise, held, objective)

    still = torch.zeros(count, dtype=torch.float64)
    value(still)  # fills `held` at the point itself
    gradient = tree_leaves(one.gradient())
    found = [sum((g * d).sum() for g, d in zip(gradient, tree_leaves(each), strict=True)) for each in directions]
    return torch.stack([torch.as_tensor(each) for each in found]), derivatives(value, still, vectorised=False)


def hard_masks(phi: Tensors, noise: Tensor) -> tuple[Masks, Masks]:
    """MT-net's masks at each draw, 1 where u > 1 - sigmoid(zeta), and the derivatives of the soft draws."""
    prefix = "mask_logits."
    logits = {name.removeprefix(prefix).replace("/", "."): t for name, t in phi.items() if name.startswith(prefix)}
    sizes = [logit.numel() for logit in logits.values()]
    masks, slopes = [], []
    for draw in noise.view(-1, sum(sizes)) if logits else ():
        uniform = {n: u.view_as(t) for (n, t), u in zip(logits.items(), draw.split(sizes), strict=True)}
        masks.append({name: (uniform[name] > 1 - logits[name].sigmoid()).to(noise.dtype) for name in logits})
        soft = {name: (logits[name] + uniform[name].logit()).sigmoid() for name in logits}
        slopes.append({name: s * (1 - s) for name, s in soft.items()})
    return masks, slopes


# --- methods on small problems -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A method, by a function of a model and the inner rate."""

    make: Callable[[nn.Module, float], Method]
    order: bool = True
    objective: str = "query"  # of `value_of_task`


def method_case(method: str, order: bool = True, objective: str = "query", **options: Any) -> Case:
    return Case(lambda model, rate: METHODS[method](model, rate, **options), order, objective)


def rates_case(method: str, learn_lr: str, steps: int, objective: str = "query", **options: Any) -> Case:
    return Case(lambda model, rate: prepare(method, model, rate, learn_lr, steps, **options), True, objective)


def switches_case(objective: str = "query", **switches: Any) -> Case:
    return Case(lambda model, rate: compose(model, rate, **switches), True, objective)


CASES = {
    "maml": method_case("maml"),
    "fomaml": method_case("fomaml", order=False),
    "msgd": method_case("msgd"),
    "T-net": method_case("mtnet", mask=False),
    "mtnet": method_case("mtnet"),
    "mtnet full": method_case("mtnet", full=True),
    "warpgrad": method_case("warpgrad", objective="trajectory"),
    "warpgrad approximate": method_case("warpgrad", objective="approximate", approximate=True),
    "warpgrad unrolled": switches_case(use_warp={"objective": "unrolled"}),
    "l2f": method_case("l2f"),
    "anil": method_case("anil"),
    "boil": method_case("boil"),
    "learn_lr + use_t": switches_case(learn_lr=True, use_t=True),
    "learn_lr + use_warp": switches_case("trajectory", learn_lr=True, use_warp=True),
    "learn_lr + use_forget": switches_case(learn_lr=True, use_forget=True),
}


class TwoConvolutions(nn.Module):
    """Two convolutions with norms and a linear head; smooth."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.first_norm = nn.Conv2d(1, 2, 3, padding=1), Norm("batch", 2)
        self.second, self.second_norm = nn.Conv2d(2, 3, 3, padding=1, bias=False), Norm("batch", 3)
        self.head = nn.Linear(3, 2)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first_norm(self.first(x)).tanh()
        return self.head(self.second_norm(self.second(x)).tanh().mean((2, 3)))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "layers": (Tanh, (3,)),
    "convolutions": (TwoConvolutions, (1, 4, 4)),
}


class Sequences(nn.Module):
    """Linear maps around a layer of sequences, [batch, length, 2] -> [batch, 2]; smooth."""

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.first, self.layer, self.head = nn.Linear(2, width), layer, nn.Linear(width, 2)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        found = self.layer(self.first(x))
        return self.head((found[0] if isinstance(found, tuple) else found).mean(1))


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, 3, dropout=0.0, activation=F.gelu, layer_norm_eps=0.1, batch_first=True)
    return Sequences(layer, 4)


SEQUENCES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "attention": (transformer, (3, 2)),
    "GRU": (lambda: Sequences(nn.GRU(3, 3, batch_first=True), 3), (3, 2)),
    "LSTM": (lambda: Sequences(nn.LSTM(3, 3, batch_first=True), 3), (3, 2)),
}


RATE = 0.125  # exact in single precision, in which a learned rate begins


class Problem(NamedTuple):
    """A meta-learner with its tasks and their noise."""

    learner: MetaLearner
    tasks: Task
    noise: Tensor

    @property
    def parameters(self) -> Parameters:
        return self.learner.method.parameters

    def gradient(self, vectorised: bool = False) -> Parameters:
        return self.judged(vectorised)[0]

    def judged(self, vectorised: bool = False) -> tuple[Parameters, Tensor, dict[str, Tensor]]:
        return meta_learner.meta_gradient(self.learner, self.parameters, self.tasks, self.noise, vectorised)

    def trajectory(self, index: int = 0) -> list[Tensors]:
        """theta_0 .. theta_K on one of the tasks."""
        task = list(unbind_tasks(self.tasks))[index]
        iterates = TaskLearner(self.learner, task, self.noise[index], autograd_gradient).adapt(self.parameters)
        return tree_map(torch.detach, iterates)

    def chosen(self, tasks: list[int]) -> Problem:
        return self._replace(tasks=tree_map(lambda side: side[tasks], self.tasks), noise=self.noise[tasks])


def problem(
    case: str | Case, network: str = "layers", steps: int = 2, rate: float = RATE, tasks: int = 2, shaken: bool = True
) -> Problem:
    """A method on a small network with tasks of its own; the same ones for every method under one seed."""
    case = CASES[case] if isinstance(case, str) else case
    make, shape = {**NETWORKS, **SEQUENCES}[network]
    torch.manual_seed(1)
    model, drawn = make(), regression_tasks(tasks, shape, each=4)
    method = case.make(model, rate)
    if shaken:
        shake(method.parameters.phi)
    return learning(model, method, drawn, steps, case.order)


def learning(model: nn.Module, method: Method, tasks: Task, steps: int, order: bool = True) -> Problem:
    noise = torch.rand(len(tasks.support_data), method.noise(steps), dtype=torch.float64)
    return Problem(MetaLearner(model, method, regression, regression, steps, order), tasks, noise)


def no_noise(tasks: Task) -> Tensor:
    return torch.empty(len(tasks.support_data), 0)


def shake(phi: Tensors) -> None:
    """Away from the initial values, where T is the identity, every rate the same and every mask a toss."""
    sizes = {"inner_rates": 0.03, "mask_logits": 1.0}
    with torch.no_grad():
        for name, tensor in phi.items():
            tensor += sizes.get(name.split(".")[0], 0.3) * torch.randn_like(tensor)


def fill(phi: Tensors, part: str, value: float | Tensor) -> None:
    """Set every tensor of what a method added, by the beginning of its name."""
    chosen = [tensor for name, tensor in phi.items() if name.startswith(part)]
    assert chosen
    with torch.no_grad():
        for tensor in chosen:
            tensor.copy_(torch.as_tensor(value))


def without(tensors: Tensors, parts: Iterable[str]) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if name.split(".")[0] not in set(parts)}
