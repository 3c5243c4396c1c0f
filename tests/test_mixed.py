"""engine.meta_gradient=mixed: the unrolled gradient, for every method, in memory that does not grow."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
from laws import CASES, NETWORKS, Problem, largest_tensor_error, problem

from metarun import meta
from metarun.mixed import MixedTask

both_ways = pytest.mark.parametrize("vectorised", [False, True], ids=["looped", "vectorised"])


def judged(one: Problem, vectorised: bool, segment: int | None = None) -> tuple:
    kind = partial(MixedTask, segment=segment)
    return meta.meta_gradient(one.learner, one.parameters, one.tasks, one.noise, vectorised, kind)


@both_ways
@pytest.mark.parametrize("steps", [0, 1, 5])
@pytest.mark.parametrize("order", [True, False], ids=["second order", "first order"])
@pytest.mark.parametrize("name", CASES)
def test_mixed_is_unrolled(name: str, order: bool, steps: int, vectorised: bool) -> None:
    one = problem(name, steps=steps)
    one = one._replace(learner=replace(one.learner, use_second_order=order))
    assert largest_tensor_error(judged(one, vectorised), one.judged(vectorised)) < 1e-10
