"""The engine's choices: none changes what is computed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from metarun.backbones import BACKBONES
from metarun.config.groups import Conv4, Glyphs, Mlp
from metarun.config.methods import Maml, Pretrain, Warpgrad
from metarun.config.schema import Engine, EvalConfig, Settings
from metarun.core.meta_learner import MetaLearner, meta_gradient
from metarun.core.objectives import classification
from metarun.distributed.group import num_workers
from metarun.engine.execution import set_num_threads
from metarun.engine.rank import RENDEZVOUS_ENV, SINGLE_PROCESS, Rank
from metarun.methods import METHODS
from metarun.types import Task
from tests.helpers.laws import largest_relative_error

CPU = torch.device("cpu")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("norm", ["batch", "layer", "group", "none"])
def test_the_order_in_memory_changes_nothing(channels: int, norm: str) -> None:
    model = BACKBONES["conv4"]((channels, 20, 20), 3, filters=4, norm=norm).double()
    learner = MetaLearner(model, METHODS["maml"](model, 0.1), classification, classification, inner_loop=2)
    images = torch.rand(2, 2, 6, channels, 20, 20, dtype=torch.float64)
    labels = torch.arange(3).repeat(2).expand(2, 6)
    plain, other = (
        meta_gradient(learner, learner.method.parameters, Task(s, labels, q, labels), torch.rand(2, 0), False)
        for s, q in (images, (images[0], images[1].movedim(2, -1).contiguous().movedim(-1, 2)))
    )
    assert largest_relative_error(other[0], plain[0]) < 1e-9
    torch.testing.assert_close(other[1], plain[1], rtol=1e-12, atol=0)


def test_processes_are_taken_where_they_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metarun.engine.execution.ALL_THREADS", 2)

    def of(**changes: Any) -> int:
        judged = replace(
            EvalConfig(), **{name: changes.pop(name) for name in ("tasks", "inner_loop") if name in changes}
        )
        settings = Settings(mode="evaluate", dataset=Glyphs(), backbone=Conv4(), method=Maml(), inner_loop=1)
        return num_workers(replace(settings, eval=judged, device="cpu", **changes))

    assert (of(), of(tasks=200), of(tasks=200, inner_loop=5)) == (2, 1, 2)
    assert of(tasks=200, inner_loop=[1, 3]) == 2  # all of them together
    assert (of(backbone=Mlp()), of(method=Pretrain(), tasks=599), of(engine=Engine(tasks="vectorised"))) == (1, 1, 1)
    assert of(engine=Engine(workers=1)) == 1  # as asked for
    train = {"mode": "train", "meta_batch": 4}
    assert (of(iterations=200, **train), of(iterations=199, **train)) == (2, 1)
    monkeypatch.setattr("metarun.engine.execution.ALL_THREADS", 8)
    assert (of(**train), of(**{**train, "meta_batch": 32})) == (4, 8)  # one for each task, or for each core
    assert (of(**train, backbone=Mlp()), of(**train, method=Warpgrad(objective="trajectory"))) == (1, 1)
    monkeypatch.setattr("metarun.engine.execution.choose_device", lambda key: torch.device("cuda"))
    assert of(**train) == 1


@pytest.mark.parametrize(
    ("environment", "process", "threads"),
    [
        ({}, SINGLE_PROCESS, 8),
        ({}, Rank(0, 4, 0, 4), 2),
        ({"OMP_NUM_THREADS": "8"}, Rank(0, 4, 0, 4), 8),  # torchrun's processes: it says what each takes
        (
            {"OMP_NUM_THREADS": "8", RENDEZVOUS_ENV: "file:///meet"},
            Rank(0, 4, 0, 4),
            2,
        ),  # engine.workers': what the run takes
    ],
)
def test_processes_do_not_take_more_threads_than_the_run_has(
    environment: dict[str, str], process: Rank, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metarun.engine.execution.ALL_THREADS", 8)
    taken: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    for name in ("OMP_NUM_THREADS", RENDEZVOUS_ENV):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert set_num_threads(False, CPU, process) == threads and taken == [threads]
