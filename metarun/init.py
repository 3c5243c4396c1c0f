"""The class interface: the command line's meta-learner for a person's own model and losses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import keystr, tree_flatten_with_path

from metarun.errors import UserError
from metarun.forward import MetaLearner, by_name, query_weights, run_model
from metarun.meta import OneTask, meta_gradient, one_by_one, tape_gradient
from metarun.methods import Parameters, compose
from metarun.objective import Objective, State
from metarun.task import Task

__all__ = ["Init", "State"]


class Init(nn.Module):
    """Learns an initialisation from which a few gradient steps solve a new task (MAML, arXiv 1703.03400).

        meta = Init(model, inner_objective, outer_objective)
        optimizer = torch.optim.Adam(meta.parameters(), 1e-3)
        loss = meta.optimize(train_data, train_target, validate_data, validate_target)
        optimizer.step(); optimizer.zero_grad()

    An objective takes a `State` and returns a scalar loss; `state.model(state.data, state.updated_weights)`
    runs the network with the adapted weights.

    Args:
        model: any module; its norm layers' affine is learned across tasks and does not adapt.
        inner_objective: loss on a task's training data, which the inner loop descends.
        outer_objective: loss on its validation data with the adapted weights.
        inner_learning_rate: step size of the inner loop.
        inner_loop: number of inner steps.
        use_second_order: exact gradients through the inner loop, or first-order ones.
        learn_lr: Meta-SGD, learned inner rates; options of `metarun.methods.msgd.learn_rates`.
        use_t: MT-net, T layers and masks; options of `metarun.methods.mtnet.transform`.
        use_warp: WarpGrad, warp layers; options of `metarun.methods.warpgrad.warp`.
        use_forget: L2F, an attenuated initialisation.
        across: names of parameters, or of modules with all that they hold, which are learned across tasks and do not
            adapt, as the body with `across=["body"]` (ANIL). What is frozen (requires_grad=False) is not learned.

    A switch is True, or a dict of options. `learn_lr` goes with any one of the others. What a method learns besides
    is added to `model`, which can be prepared once.

    Raises:
        UserError: a negative inner_loop; two of use_t, use_warp and use_forget; a model without layers to act on, or of
            which nothing adapts; an unknown name in `across`.
    """

    def __init__(
        self,
        model: nn.Module,
        inner_objective: Objective,
        outer_objective: Objective,
        inner_learning_rate: float = 0.01,
        inner_loop: int = 5,
        use_second_order: bool = True,
        learn_lr: bool | dict[str, Any] = False,
        use_t: bool | dict[str, Any] = False,
        use_warp: bool | dict[str, Any] = False,
        use_forget: bool | dict[str, Any] = False,
        across: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if inner_loop < 0:
            raise UserError(f"inner_loop={inner_loop}: must be 0 or more")
        self.model = model
        method = compose(model, inner_learning_rate, learn_lr, use_t, use_warp, use_forget, across)
        self.learner = MetaLearner(model, method, inner_objective, outer_objective, inner_loop, use_second_order)

    @property
    def learned(self) -> Parameters:
        """All that is learned, as the model holds it now."""
        held = dict(self.model.named_parameters())
        theta, phi = self.learner.method.parameters
        return Parameters({name: held[name] for name in theta}, {name: held[name] for name in phi})

    @property
    def weight_names(self) -> tuple[str, ...]:
        """Names of the weights that adapt, in the order of `State.updated_weights`."""
        return tuple(self.learner.method.parameters.theta)

    def optimize(
        self,
        train_data: Any,
        train_target: Any,
        validate_data: Any,
        validate_target: Any,
        *,
        batched: bool = False,
        vectorise: bool = False,
    ) -> Tensor:
        """Adds the meta-gradient of one task to `.grad` and returns its outer loss, a scalar without a graph.

        Data and targets are what the objectives take: tensors, or trees of them (tuple, list, dict, namedtuple).
        With `batched` every tensor in them holds tasks along its leading axis, and a None is the same for all tasks;
        gradient and loss are means over the tasks. `vectorise` computes those tasks at once, for objectives without
        `.item()` or branches on values.

        Raises:
            UserError: an objective that returns no scalar, or (task by task) does not depend on the weights; batched
                arguments that hold unlike numbers of tasks, or leaves other than tensors and None.
            FloatingPointError: a loss that is not finite; names the task and the cause.
        """
        tasks = Task(train_data, train_target, validate_data, validate_target)
        noise = self.noise(number_of_tasks(tasks) if batched else 1)
        given = tasks if batched else [tasks]
        gradient, losses, _ = meta_gradient(self.learner, self.learned, given, noise, vectorised=batched and vectorise)
        if not losses.isfinite().all():
            each = list(one_by_one(tasks)) if batched else [tasks]
            raise FloatingPointError(self.why_not_finite(each, noise, losses))
        for tensors, gradients in zip(self.learned, gradient, strict=True):
            for name, tensor in tensors.items():
                tensor.grad = gradients[name] if tensor.grad is None else tensor.grad + gradients[name]
        return losses.mean()

    def why_not_finite(self, tasks: list[Task], noise: Tensor, losses: Tensor) -> str:
        """Which task's outer loss is not finite, and whether the inner loss was so to begin with."""
        number = int((~losses.isfinite()).nonzero()[0])
        learned = self.learned
        one = OneTask(self.learner, tasks[number], noise[number], tape_gradient)
        inner = float(one.support_loss(learned.theta, learned.phi).detach())
        cause = "the inner loop diverged, try a smaller inner_learning_rate"
        if not math.isfinite(inner):
            cause = f"the inner objective is {inner} before the first inner step, look at the task's data"
        return f"optimize: the outer loss of task {number} is {float(losses[number])}: {cause}; .grad is as it was"

    def adapt(self, data: Any, target: Any) -> list[Tensor]:
        """The weights after the inner loop on one task, in the order of `weight_names`, without a graph."""
        learner = replace(self.learner, use_second_order=False)
        with torch.no_grad():
            task = Task(data, target, None, None)
            one = OneTask(learner, task, self.noise(1)[0], tape_gradient)
            return [weight.detach().clone() for weight in one.adapt(self.learned)[-1].values()]

    def predict(self, weights: list[Tensor], *inputs: Any, **keywords: Any) -> Any:
        """The network's output with the weights of one task, without a graph.

            weights = meta.adapt(train_data, train_target)
            logits = meta.predict(weights, new_data)

        It computes what an outer objective's `state.model` does: with T and warp layers, the layers learned across
        tasks as they are now, and norm layers by the batch's statistics in train mode, their running ones in eval
        mode (`meta.model.eval()`), where dropout is off as well.

        Args:
            weights: what `adapt` returned, in the order of `weight_names`.
            inputs, keywords: what the network's forward takes.

        Raises:
            UserError: the weights are not a list of as many tensors as adapt.
        """
        theta = by_name(self.weight_names, weights)
        with torch.no_grad():
            used = query_weights(self.learner, theta, self.learned.phi, None, self.learner.inner_loop)
            return run_model(self.learner, used, *inputs, **keywords)

    def noise(self, tasks: int) -> Tensor:
        """What the method draws for each task, from torch's generator."""
        like = next(iter(self.learned.theta.values()))
        return torch.rand(tasks, self.learner.method.noise(self.learner.inner_loop), device=like.device)


SIDES = ("train_data", "train_target", "validate_data", "validate_target")  # as `Init.optimize` names them


def number_of_tasks(tasks: Task) -> int:
    """Of a batch: the length of the leading axis of every tensor.

    Raises:
        UserError: tensors of unlike lengths, none at all, or leaves other than tensors and None.
    """
    counts: dict[str, int] = {}
    for name, side in zip(SIDES, tasks, strict=True):
        for path, leaf in tree_flatten_with_path(side)[0]:
            place = name + keystr(path)
            if isinstance(leaf, Tensor) and leaf.dim():
                counts[place] = len(leaf)
            elif leaf is not None:
                found = "a tensor without axes" if isinstance(leaf, Tensor) else f"a {type(leaf).__name__}"
                raise UserError(
                    f"batched=True: {place} is {found}; every leaf is a tensor with tasks along its leading axis, or "
                    "None; give one task a call without batched, or put constants into the objective"
                )
    if len(set(counts.values())) != 1 or 0 in counts.values():
        found = ", ".join(f"{count} in {place}" for place, count in counts.items()) or "no tensor"
        raise UserError(
            "batched=True: every tensor holds the same number of tasks along its leading axis, one or more; "
            f"found {found}"
        )
    return next(iter(counts.values()))
