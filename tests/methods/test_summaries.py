"""What a method shows is what it computes with, and what it extends is shown as well."""

from __future__ import annotations

import pytest
import torch

from metarun.methods import Tensors
from tests.helpers.laws import problem


def shows(case: str) -> Tensors:
    one = problem(case)
    theta, phi = one.parameters

    def gradient(theta: Tensors) -> Tensors:
        return {name: torch.ones_like(tensor) for name, tensor in theta.items()}

    with torch.no_grad():
        return one.learner.method.summaries(theta, phi, gradient, torch.empty(0))


@pytest.mark.parametrize(
    ("case", "groups"),
    [
        ("maml", set()),
        ("msgd", {"inner_learning_rate"}),
        ("l2f", {"gamma"}),
        ("learn_lr + use_forget", {"inner_learning_rate", "gamma"}),
        ("mtnet", {"masked_units"}),
        ("warpgrad", {"warp_norm"}),
    ],
)
def test_a_method_shows_its_own_and_what_it_extends(case: str, groups: set[str]) -> None:
    found = shows(case)
    assert {name.split("/")[0] for name in found} == groups
    assert all(bool(value.isfinite().all()) for value in found.values())
