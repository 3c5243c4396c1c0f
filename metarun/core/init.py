"""`metarun.Init`: the meta-learner as a class, for any model and loss functions."""

import math
from collections.abc import Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_leaves

from metarun.core.forward import MetaLearner, by_name, functional_forward, query_weights
from metarun.core.meta_learner import TaskLearner, autograd_gradient, meta_gradient, unbind_tasks
from metarun.core.objectives import Objective, State
from metarun.core.second_order import require_second_derivatives
from metarun.core.user_models import differentiating, explained, outside_inference, require_supported, vectorising
from metarun.errors import UserError
from metarun.methods import compose
from metarun.types import Parameters, Task, Tensors

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
        learn_lr: Meta-SGD, learned inner rates; options of `metarun.methods.msgd.learn_inner_rates`.
        use_t: MT-net, T layers and masks; options of `metarun.methods.mtnet.add_t_layers`.
        use_warp: WarpGrad, warp layers; options of `metarun.methods.warpgrad.warp`.
        use_forget: L2F, an attenuated initialisation.
        across: names of parameters, or of modules with all their parameters, that are learned across tasks and do not
            adapt: `across=["body"]` gives ANIL. Frozen parameters (requires_grad=False) are not learned.

    A switch is True or a dict of options. `learn_lr` can be combined with any one of the others. Parameters that a
    method adds are registered on `model`, which can be prepared once.

    Raises:
        UserError: an inner_loop that is not a whole number of 0 or more; two of use_t, use_warp and use_forget; a model
            without layers to act on, or of which nothing adapts; an unknown name in `across`.
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
        if not isinstance(inner_loop, Integral) or inner_loop < 0:
            raise UserError(f"inner_loop={inner_loop}: must be a whole number, 0 or more")
        require_supported(model)
        if use_second_order:
            require_second_derivatives(model)
        self.model = model
        self.tried_alone = False  # whether one task has been computed before tasks are vectorised
        switches = {"learn_lr": learn_lr, "use_t": use_t, "use_warp": use_warp, "use_forget": use_forget}
        method = compose(model, inner_learning_rate, across, **switches)
        self.learner = MetaLearner(model, method, inner_objective, outer_objective, inner_loop, use_second_order)

    @property
    def meta_parameters(self) -> Parameters:
        """All parameters that are learned, with their current values."""
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
            FloatingPointError: a loss or gradient that is not finite; names the task and the cause, `.grad` stays.
        """
        tasks = Task(train_data, train_target, validate_data, validate_target)
        count = number_of_tasks(tasks) if batched else 1
        with differentiating(self.model):
            tasks, learned = outside_inference((tasks, self.meta_parameters))
            noise, each = self.noise(count), list(unbind_tasks(tasks)) if batched else [tasks]
            if batched and vectorise:
                gradient, losses = self.vectorised_gradient(learned, tasks, each, noise)
            else:
                gradient, losses = self.looped_gradient(learned, each, noise)
            if not (losses.isfinite().all() and all_finite(gradient)):
                raise FloatingPointError(
                    f"optimize: {self.nonfinite_message(learned, each, noise)}; .grad is as it was"
                )
        for tensors, gradients in zip(self.meta_parameters, gradient, strict=True):
            for name, tensor in tensors.items():
                tensor.grad = gradients[name] if tensor.grad is None else tensor.grad + gradients[name]
        return losses.mean()

    def looped_gradient(self, learned: Parameters, tasks: list[Task], noise: Tensor) -> tuple[Parameters, Tensor]:
        """The mean gradient and each task's loss. Raises UserError for errors of torch's that have a cause here."""
        try:
            return meta_gradient(self.learner, learned, tasks, noise, vectorised=False)[:2]
        except RuntimeError as error:
            raise explained(error, self.model) or error from error

    def vectorised_gradient(
        self, learned: Parameters, tasks: Task, each: list[Task], noise: Tensor
    ) -> tuple[Parameters, Tensor]:
        """`looped_gradient`, vectorised over tasks.

        The first call also computes one task alone, since only autograd can tell whether an objective depends on the
        weights. Raises UserError if the model or an objective cannot be vectorised.
        """
        if not self.tried_alone:
            self.looped_gradient(learned, each[:1], noise[:1])
            self.tried_alone = True
        try:
            return meta_gradient(self.learner, learned, tasks, noise, vectorised=True)[:2]
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.looped_gradient(learned, each[:1], noise[:1])  # raises errors that vectorising does not cause
            raise vectorising(error, self.model) from error

    def nonfinite_message(self, learned: Parameters, tasks: list[Task], noise: Tensor) -> str:
        """A message that names the task whose outer loss or gradient is non-finite, and the cause."""
        for number, (task, own) in enumerate(zip(tasks, noise, strict=True)):
            gradient, loss = self.looped_gradient(learned, [task], own[None])
            if not loss.isfinite():
                return f"the outer loss of task {number} is {float(loss)}: {self.cause(learned, task, own)}"
            if not all_finite(gradient):
                at = f"the gradient of task {number} by {', '.join(not_finite(gradient))} is not finite"
                return f"{at}, its outer loss is {float(loss):.4g}: {NO_DERIVATIVE}"
        return (
            "the loss or the gradient is not finite for the tasks at once, though for each alone; try vectorise=False"
        )

    def cause(self, learned: Parameters, task: Task, noise: Tensor) -> str:
        """The cause of non-finite adapted weights or of a non-finite outer loss, as part of a message."""
        theta, phi = learned
        one = TaskLearner(replace(self.learner, use_second_order=False), task, noise, autograd_gradient)
        with torch.no_grad():
            inner = float(one.support_loss(theta, phi))
            if not math.isfinite(inner):
                return f"the inner objective is {inner} before the first inner step, look at the task's data"
            gradient = one.support_gradient(theta, phi, graph=False)
            if not all_finite(gradient):
                by = ", ".join(not_finite(gradient))
                return f"the inner objective is {inner:.4g}, but its gradient by {by} is not finite: {NO_DERIVATIVE}"
            if task.query_data is not None and not (outer := one.query_loss(theta, phi)).isfinite():
                return f"the outer objective is {float(outer)} before the first inner step, look at the task's data"
        return "the inner loop diverged, try a smaller inner_learning_rate"

    def adapt(self, data: Any, target: Any) -> list[Tensor]:
        """The weights after the inner loop on one task, in the order of `weight_names`, without a graph.

        Raises:
            UserError: an inner objective that returns no scalar, or does not depend on the weights.
            FloatingPointError: the weights are not finite; says why.
        """
        with differentiating(self.model), torch.no_grad():
            task, learned = outside_inference((Task(data, target, None, None), self.meta_parameters))
            one = TaskLearner(replace(self.learner, use_second_order=False), task, self.noise(1)[0], autograd_gradient)
            try:
                adapted = one.adapt(learned)[-1]
            except RuntimeError as error:
                raise explained(error, self.model) or error from error
            if not all_finite(adapted):
                raise FloatingPointError(f"adapt: the weights are not finite: {self.cause(learned, task, one.noise)}")
            return [weight.detach().clone() for weight in adapted.values()]

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
            used = query_weights(self.learner, theta, self.meta_parameters.phi, None, self.learner.inner_loop)
            return functional_forward(self.learner, used, *inputs, **keywords)

    def noise(self, tasks: int) -> Tensor:
        """The method's random numbers, [tasks, method.noise(inner_loop)], uniform in [0, 1), from torch's generator."""
        like = next(iter(self.meta_parameters.theta.values()))
        return torch.rand(tasks, self.learner.method.noise(self.learner.inner_loop), device=like.device)


NO_DERIVATIVE = "an operation has no finite derivative there, such as a root or a norm at 0"


def all_finite(tensors: Any) -> bool:
    """Whether every entry of every tensor in a tree is finite."""
    return all(bool(tensor.isfinite().all()) for tensor in tree_leaves(tensors))


def not_finite(tensors: Parameters | Tensors) -> list[str]:
    """The names of the tensors with a non-finite entry."""
    parts = tensors if isinstance(tensors, Parameters) else [tensors]
    return [name for part in parts for name, tensor in part.items() if not all_finite(tensor)]


SIDES = ("train_data", "train_target", "validate_data", "validate_target")  # as `Init.optimize` names them


def number_of_tasks(tasks: Task) -> int:
    """The number of tasks in a meta-batch, which is the length of the leading axis of every tensor.

    Raises:
        UserError: tensors of different lengths, no tensors, or leaves other than tensors and None.
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
