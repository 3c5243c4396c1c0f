"""WarpGrad's offline form: what is stored, what phi and theta descend, and that it learns."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from metarun import Init
from metarun.config.methods import Warpgrad
from metarun.core import offline
from metarun.core.meta_learner import MetaLearner
from metarun.core.objectives import regression
from metarun.data import permutation_list
from metarun.errors import UserError
from metarun.methods import METHODS, Tensors
from metarun.runner import run
from tests.helpers.laws import largest_relative_error
from tests.helpers.problems import Tanh, regression_tasks
from tests.helpers.small_runs import small, tensors

STEPS, TASKS = 4, 3


def a_learner(**options: object) -> MetaLearner:
    model = Tanh()
    method = METHODS["warpgrad"](model, 0.1, objective="trajectory", **options)
    with torch.no_grad():
        for tensor in method.parameters.phi.values():
            tensor.add_(0.3 * torch.randn_like(tensor))
    return MetaLearner(model, method, regression, regression, STEPS)


def paths_of(learner: MetaLearner) -> list[offline.Trajectory]:
    return offline.collect_trajectories(
        learner, learner.method.parameters, regression_tasks(TASKS), torch.empty(TASKS, 0)
    )


def test_iterates_are_stored_without_a_graph() -> None:
    learner = a_learner()
    for path in paths_of(learner):
        assert len(path.iterates) == STEPS + 1
        assert not any(tensor.requires_grad for theta in path.iterates for tensor in theta.values())
        moved = [
            (a["second.bias"] - b["second.bias"]).abs().max()
            for a, b in zip(path.iterates, path.iterates[1:], strict=False)
        ]
        assert min(moved) > 0


@pytest.mark.parametrize("approximate", [False, True])
def test_phi_descends_the_look_ahead_loss_at_each_stored_iterate(approximate: bool) -> None:
    """Against central differences; approximate: the look-ahead step is held fixed."""
    learner = a_learner(approximate=approximate)
    paths, phi = paths_of(learner), learner.method.parameters.phi
    places = [5, 0, 11]
    for place, gradient in zip(places, offline.lookahead_gradients(paths, phi, places), strict=True):
        loss = partial(look_ahead_loss, paths[place // STEPS], place % STEPS, phi if approximate else None)
        assert largest_relative_error(gradient, {name: differences(loss, phi, name) for name in phi}) < 1e-7


def look_ahead_loss(path: offline.Trajectory, number: int, held: Tensors | None, phi: Tensors) -> float:
    """L_query one step from an iterate; where phi is `held`, the step does not see it change."""
    ahead = path.task.inner_step(path.iterates[number], phi if held is None else held, number)
    return float(path.task.query_loss(ahead, phi).detach())


def differences(loss: Callable[[Tensors], float], phi: Tensors, name: str, width: float = 1e-5) -> Tensor:
    def at(change: Tensor) -> float:
        return loss({**phi, name: phi[name].detach() + change})

    unit = torch.eye(phi[name].numel(), dtype=torch.float64).view(-1, *phi[name].shape) * width
    return torch.tensor([(at(u) - at(-u)) / (2 * width) for u in unit], dtype=torch.float64).view_as(phi[name])


def test_the_initialisation_follows_the_paths() -> None:
    """The mean over tasks of the sum of unit segments theta_k - theta_{k+1}."""
    paths = paths_of(a_learner())
    found = torch.cat([tensor.flatten() for tensor in offline.leap_gradient(paths).values()])
    flat = torch.stack(
        [torch.stack([torch.cat([t.flatten() for t in theta.values()]) for theta in p.iterates]) for p in paths]
    )
    segments = flat[:, :-1] - flat[:, 1:]
    expected = (segments / segments.norm(dim=2, keepdim=True)).sum(1).mean(0)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_the_order_is_a_permutation_that_seed_and_step_decide() -> None:
    assert sorted(permutation_list(0, 3, 50)) == list(range(50))
    assert permutation_list(0, 3, 50) == permutation_list(0, 3, 50)
    assert len({tuple(permutation_list(seed, step, 50)) for seed in (0, 1) for step in (0, 1)}) == 4


@pytest.mark.parametrize("initialisation", ["leap", "frozen"])
def test_it_learns_from_the_command_s_settings(tmp_path: Path, initialisation: str) -> None:
    method = Warpgrad(objective="trajectory", initialisation=initialisation)
    settings = replace(small(tmp_path, method=method, iterations=40), inner_loop=8, meta_batch=3)
    run(settings, tmp_path / "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["mean"] < result["untrained"]["mean"]
    run(replace(settings, iterations=1), tmp_path / "start")
    before, after = tensors(tmp_path / "start"), tensors(tmp_path / "run")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    warps = {name for name in before if name.startswith("warp_layers.")}
    assert moved == (warps if initialisation == "frozen" else set(before))


def test_the_class_interface_refuses_it() -> None:
    with pytest.raises(UserError, match="use_warp objective='trajectory'"):
        Init(Tanh(), regression, regression, use_warp={"objective": "trajectory"})
