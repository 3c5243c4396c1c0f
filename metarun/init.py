"""The class interface: the command line's meta-learner for a person's own model and losses."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from metarun.errors import UserError
from metarun.meta import MetaLearner, OneTask, meta_gradient, tape_gradient
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

    A switch is True, or a dict of options. `learn_lr` goes with any one of the others. What a method learns besides
    is added to `model`, which can be prepared once.

    Raises:
        UserError: a negative inner_loop; two of use_t, use_warp and use_forget; a model without layers to act on.
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
    ) -> None:
        super().__init__()
        if inner_loop < 0:
            raise UserError(f"inner_loop={inner_loop}: must be 0 or more")
        self.model = model
        method = compose(model, inner_learning_rate, learn_lr, use_t, use_warp, use_forget)
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

        With `batched` every argument holds tasks along a leading axis; gradient and loss are means over them.
        `vectorise` computes those tasks at once, for objectives without `.item()` or branches on values.

        Raises:
            UserError: an objective that returns no scalar, or (task by task) does not depend on the weights.
            FloatingPointError: a loss that is not finite; names the task and the cause.
        """
        tasks = Task(train_data, train_target, validate_data, validate_target)
        if not batched:
            tasks = Task(*([side] for side in tasks))
        counts = [len(side) for side in tasks]
        if len(set(counts)) > 1 or counts[0] == 0:
            raise UserError(f"batched=True: every argument holds the same number of tasks, one or more; found {counts}")
        noise = self.noise(len(tasks.support_data))
        gradient, losses, _ = meta_gradient(self.learner, self.learned, tasks, noise, vectorised=batched and vectorise)
        if not losses.isfinite().all():
            raise FloatingPointError(self.why_not_finite(tasks, noise, losses))
        for tensors, gradients in zip(self.learned, gradient, strict=True):
            for name, tensor in tensors.items():
                tensor.grad = gradients[name] if tensor.grad is None else tensor.grad + gradients[name]
        return losses.mean()

    def why_not_finite(self, tasks: Task, noise: Tensor, losses: Tensor) -> str:
        """Which task's outer loss is not finite, and whether the inner loss was so to begin with."""
        number = int((~losses.isfinite()).nonzero()[0])
        learned = self.learned
        one = OneTask(self.learner, Task(*(side[number] for side in tasks)), noise[number], tape_gradient)
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

    def noise(self, tasks: int) -> Tensor:
        """What the method draws for each task, from torch's generator."""
        like = next(iter(self.learned.theta.values()))
        return torch.rand(tasks, self.learner.method.noise(self.learner.inner_loop), device=like.device)
