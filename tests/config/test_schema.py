"""The schema: every key is explained, every default is allowed, and what is not allowed is told by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from metarun.config.groups import CONFIG_GROUPS, Mlp, Sinusoid
from metarun.config.schema import EvalConfig, Settings, check, iter_options
from metarun.errors import UserError

NODES = [Settings, *(node for nodes in CONFIG_GROUPS.values() for node in nodes.values())]


@pytest.mark.parametrize("node", NODES)
def test_every_key_is_explained(node: type) -> None:
    for name, item, _ in iter_options(node):
        assert item.metadata["help"], name


def test_keys_are_dotted_names_with_their_defaults() -> None:
    found = {name: value for name, _, value in iter_options(Settings)}
    assert found["ways"] == 5
    assert found["eval.tasks"] == 600
    assert not set(found) & {"eval", "dataset", "backbone", "method"}
    assert {name: value for name, _, value in iter_options(Mlp(hidden=[7]), "backbone.")} == {"backbone.hidden": [7]}


def test_a_choice_is_named_as_it_is_chosen() -> None:
    for nodes in CONFIG_GROUPS.values():
        for name, node in nodes.items():
            assert node().name == name


def test_defaults_are_allowed() -> None:
    for nodes in CONFIG_GROUPS.values():
        for node in nodes.values():
            check(Settings(dataset=node()))


def test_lists_are_not_shared() -> None:
    first = Mlp()
    first.hidden.append(3)
    assert Mlp().hidden == [40, 40]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"ways": 1}, ["ways=1", "2 or more"]),
        ({"inner_learning_rate": float("nan")}, ["inner_learning_rate=nan"]),
        ({"outer_clip": 0.0}, ["outer_clip=0.0", "greater than 0"]),
        ({"outer_schedule": "cosin"}, ["outer_schedule=cosin", "constant, cosine", "'cosine'"]),
        ({"eval": EvalConfig(tasks=1)}, ["eval.tasks=1"]),
        ({"dataset": Sinusoid(frequency=[1.0, 0.0])}, ["dataset.frequency=0.0"]),
        ({"mode": "evaluate"}, ["mode=evaluate", "checkpoint="]),
        ({"checkpoint": "run"}, ["checkpoint=", "resume="]),
        ({"mode": "evaluate", "checkpoint": "run", "resume": "run"}, ["resume="]),
    ],
)
def test_what_is_not_allowed_is_told(changed: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        check(replace(Settings(), **changed))
    for word in words:
        assert word in str(caught.value)
