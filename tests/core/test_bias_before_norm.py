"""A convolution's bias that batch norm takes out again: its gradient is 0, not rounding noise, whatever the engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metarun.backbones import BACKBONES
from metarun.backbones.torchvision_models import make_deterministic
from metarun.core.checkpointed import CheckpointedTaskLearner
from metarun.core.meta_learner import MetaLearner, meta_gradient
from metarun.core.objectives import classification
from metarun.methods import METHODS, Parameters
from metarun.nn.norm import BatchNormPolicy, Norm, conv_norm_act
from metarun.types import Task

ADAPTED = "blocks.{}.convolution.bias"


def learner_of(method: str, rule: str = "transductive", **options: Any) -> MetaLearner:
    model = BACKBONES["conv4"]((1, 20, 20), 3, filters=6, downsample="stride")
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    prepared = METHODS[method](model, 0.1, **options)
    return MetaLearner(model, prepared, classification, classification, inner_loop=2, norm=BatchNormPolicy(rule))


def gradient_of(learner: MetaLearner, vectorised: bool, kind: Any = None) -> Parameters:
    images, labels = torch.rand(2, 3, 6, 1, 20, 20), torch.arange(3).repeat(2).expand(3, 6)
    noise, more = torch.rand(3, learner.method.noise(2)), {} if kind is None else {"make_task_learner": kind}
    tasks = Task(images[0], labels, images[1], labels)
    return meta_gradient(learner, learner.method.parameters, tasks, noise, vectorised, **more)[0]


ENGINES: dict[str, Callable[[MetaLearner], Parameters]] = {
    "looped": lambda learner: gradient_of(learner, False),
    "vectorised": lambda learner: gradient_of(learner, True),
    "mixed, looped": lambda learner: gradient_of(learner, False, CheckpointedTaskLearner),
    "mixed, vectorised": lambda learner: gradient_of(learner, True, CheckpointedTaskLearner),
    "mixed, in segments": lambda learner: gradient_of(learner, True, partial(CheckpointedTaskLearner, segment=2)),
    "first order": lambda learner: gradient_of(replace(learner, use_second_order=False), True),
    "bfloat16": lambda learner: gradient_of(replace(learner, precision="bfloat16"), False),
}


def require_zero(gradient: Parameters) -> None:
    entries = {name: entry for part in gradient for name, entry in part.items()}
    for number in range(4):
        assert torch.count_nonzero(entries[ADAPTED.format(number)]) == 0, number
        assert entries[f"blocks.{number}.norm.bias"].any() and entries[f"blocks.{number}.convolution.weight"].any()
    assert entries["head.bias"].any()


@pytest.mark.parametrize("engine", ENGINES)
def test_the_gradient_is_zero_in_every_engine(engine: str) -> None:
    require_zero(ENGINES[engine](learner_of("maml")))


class Small(nn.Module):
    """One block and a head: compiled in less time."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm, self.head = nn.Conv2d(1, 3, 3), Norm("batch", 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(conv_norm_act(x, self.convolution, self.norm).mean((2, 3)))


@pytest.mark.slow
def test_the_gradient_is_zero_where_it_is_compiled() -> None:
    """As the C++ compiler is given it, which takes minutes."""
    model = Small()
    learner = MetaLearner(model, METHODS["maml"](model, 0.1), classification, classification, inner_loop=1)
    images, labels = torch.rand(2, 2, 3, 1, 5, 5), torch.arange(3).expand(2, 3)
    tasks, noise = Task(images[0], labels, images[1], labels), torch.rand(2, 0)

    def gradient(parameters: Parameters) -> Parameters:
        return meta_gradient(learner, parameters, tasks, noise, vectorised=True)[0]

    with torch.no_grad():
        found = torch.compile(gradient, backend="aot_eager", fullgraph=True)(learner.method.parameters)
    assert found.theta["convolution.weight"].any()
    assert torch.count_nonzero(found.theta["convolution.bias"]) == 0


@pytest.mark.parametrize("method", ["msgd", "mtnet", "l2f", "boil"])
def test_the_gradient_is_zero_with_every_method(method: str) -> None:
    require_zero(ENGINES["vectorised"](learner_of(method)))


@pytest.mark.parametrize("engine", ["looped", "vectorised"])
def test_the_gradient_is_zero_with_the_support_set_s_statistics(engine: str) -> None:
    require_zero(ENGINES[engine](learner_of("maml", "support")))


@pytest.mark.parametrize("vectorised", [False, True])
def test_a_warp_s_norm_takes_a_bias_out_too(vectorised: bool) -> None:
    found = gradient_of(learner_of("warpgrad", norm=True, residual=True), vectorised).phi
    biases = [entry for name, entry in found.items() if name.startswith("warp_layers") and "maps" in name]
    assert len(biases) == 8 and all(bool(entry.any()) == (entry.dim() > 1) for entry in biases)


def test_a_bias_in_torchvision_s_networks_has_the_gradient_zero() -> None:
    """VGG's: a convolution and a batch norm one after the other."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU())
    x = torch.randn(6, 3, 9, 9)
    plain = model(x)
    make_deterministic(model)
    torch.testing.assert_close(model(x), plain)
    kept: dict[str, Tensor] = dict(model.named_parameters())

    def loss(weights: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, weights, (x,)).square().sum()

    for weights in (kept, {name: 2 * tensor.detach() for name, tensor in kept.items()}):
        found = torch.func.grad(loss)(weights)
        assert torch.count_nonzero(found["0.bias"]) == 0 and found["3.bias"].any() and found["0.weight"].any()
