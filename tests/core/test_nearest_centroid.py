from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.backbones import BACKBONES
from metarun.core import nearest_centroid
from metarun.core.meta_learner import MetaLearner
from metarun.core.objectives import classification
from metarun.methods import METHODS
from metarun.types import Task


class Embedding(nn.Module):
    """Features that are 3 x + 1, or those averaged over an image, and a head that nothing is asked of."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.scale, self.head = nn.Parameter(torch.tensor(3.0)), head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.scale * x + 1)


def learner_of(model: nn.Module) -> MetaLearner:
    method = METHODS["pretrain"](model, 0.1, batch=8)
    return MetaLearner(model, method, classification, classification, inner_loop=0)


@pytest.mark.parametrize("convolutional", [False, True])
def test_the_nearest_class_mean_is_chosen(convolutional: bool) -> None:
    model = Embedding(nn.Conv2d(4, 9, 1) if convolutional else nn.Linear(4, 9))
    shape = (4, 3, 2) if convolutional else (4,)
    support, query = torch.randn(2, 6, *shape), torch.randn(2, 15, *shape)
    labels = torch.tensor([2, 0, 1, 2, 1, 0]).expand(2, 6), torch.randint(3, (2, 15))
    learner = learner_of(model)
    losses, measures = nearest_centroid.nearest_centroid_evaluate(
        learner, learner.method.parameters, Task(support, labels[0], query, labels[1]), 3
    )
    assert losses.shape == measures["accuracy"].shape == (2, 1) and not losses.requires_grad
    for task in range(2):
        f, g = (3 * x[task] + 1 for x in (support, query))
        f, g = (x.mean((2, 3)) if convolutional else x for x in (f, g))
        means = torch.stack([f[labels[0][task] == c].mean(0) for c in range(3)])
        cosines = torch.stack([F.cosine_similarity(x[None], means) for x in g])
        assert measures["accuracy"][task] == (cosines.argmax(1) == labels[1][task]).float().mean()
        torch.testing.assert_close(losses[task, 0], F.cross_entropy(10 * cosines, labels[1][task]).detach())


@pytest.mark.parametrize(
    ("name", "options"), [("mlp", {}), ("conv4", {"filters": 6}), ("resnet12", {"filters": [6] * 4})]
)
def test_features_are_what_the_head_is_given(name: str, options: dict[str, object]) -> None:
    model = BACKBONES[name]((1, 16, 16), 7, **options)
    learner, x = learner_of(model), torch.randn(5, 1, 16, 16)
    head: Any = list(model.modules())[-1]
    found = nearest_centroid.penultimate_features(learner, learner.method.parameters, x)
    torch.testing.assert_close(head(found), model(x))
    assert not head._forward_pre_hooks
