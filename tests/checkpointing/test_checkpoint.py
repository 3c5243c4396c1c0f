from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from metarun.checkpointing import store
from metarun.checkpointing.state import CheckpointState, copy_state_
from metarun.config.groups import Mlp, Sinusoid
from metarun.config.methods import Maml
from metarun.config.schema import Settings
from metarun.errors import RunFailure, UserError


def state(step: int, **changes: Any) -> CheckpointState:
    settings = Settings(dataset=Sinusoid(), backbone=Mlp(), method=Maml())
    return replace(CheckpointState(settings, {"w": torch.full((3,), float(step))}, {}, step=step), **changes)


def a_run(folder: Path, *steps: int) -> Path:
    for step in steps:
        store.save(store.step_checkpoint_path(folder, step), state(step))
    return folder


def test_what_is_saved_is_loaded_and_nothing_else_is_left(tmp_path: Path) -> None:
    a_run(tmp_path, 20)
    found = store.load(tmp_path)
    assert found.step == 20 and torch.equal(found.theta["w"], torch.full((3,), 20.0))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000020.safetensors"]


def test_a_folder_means_its_best_then_its_newest(tmp_path: Path) -> None:
    a_run(tmp_path, 5, 100, 20)
    assert store.resolve_checkpoint(tmp_path).name == "step-00000100.safetensors"
    store.save(store.best_checkpoint_path(tmp_path), state(20))
    assert store.resolve_checkpoint(tmp_path).name == "best.safetensors"
    assert store.latest_intact_checkpoint(tmp_path).name == "step-00000100.safetensors"
    assert (
        store.resolve_checkpoint(tmp_path / "checkpoints" / "step-00000005.safetensors").name
        == "step-00000005.safetensors"
    )


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    a_run(tmp_path, 1, 2, 3, 4)
    store.prune(tmp_path, 2)
    assert [path.name for path in store.list_step_checkpoints(tmp_path)] == [
        "step-00000003.safetensors",
        "step-00000004.safetensors",
    ]


def test_a_failed_write_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = store.step_checkpoint_path(a_run(tmp_path, 7), 7)

    def disk_full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(
        RunFailure, match=r"step-00000007\.safetensors could not be written \(No space left on device\)"
    ):
        store.save(path, state(8))
    assert store.load(path).step == 7
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("size", [0, 10, 500, -1])
def test_a_truncated_checkpoint_is_named(tmp_path: Path, size: int) -> None:
    path = store.step_checkpoint_path(a_run(tmp_path, 7), 7)
    path.write_bytes(path.read_bytes()[:size])
    for place in (tmp_path, path):
        with pytest.raises(UserError, match=r"step-00000007\.safetensors:? is (cut short|damaged)"):
            store.load(place)


@pytest.mark.parametrize("size", [0, 10, 500, -1])
def test_the_checkpoint_before_a_damaged_one_is_taken(tmp_path: Path, size: int) -> None:
    a_run(tmp_path, 1, 2, 3)
    path = store.step_checkpoint_path(tmp_path, 3)
    path.write_bytes(path.read_bytes()[:size])
    assert store.latest_intact_checkpoint(tmp_path) == store.step_checkpoint_path(tmp_path, 2)
    (aside,) = store.quarantine_newer_damaged(tmp_path, store.latest_intact_checkpoint(tmp_path))
    assert aside.name == "step-00000003.safetensors.damaged"
    assert store.list_step_checkpoints(tmp_path)[-1].name == "step-00000002.safetensors"
    for other in store.list_step_checkpoints(tmp_path):
        other.write_bytes(b"")
    with pytest.raises(UserError, match=r"none of its checkpoints is whole: step-00000002\.safetensors is cut short"):
        store.latest_intact_checkpoint(tmp_path)


def test_what_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such run folder"):
        store.load(tmp_path / "missing")
    with pytest.raises(UserError, match="not a run folder"):
        store.load(tmp_path)
    torch.save({"weights": torch.ones(2)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"other\.pt: is a file of torch.save, as earlier versions .*: go on with"):
        store.load(tmp_path / "other.pt")


def test_another_architecture_is_told_by_its_tensors() -> None:
    here = {"a": torch.zeros(2), "b": torch.zeros(3)}
    with pytest.raises(UserError, match=r"a is \[4\] instead of \[2\]"):
        copy_state_(here, {"a": torch.ones(4), "b": torch.ones(3)}, "x.pt")
    with pytest.raises(UserError, match=r"b is missing; c is unknown"):
        copy_state_(here, {"a": torch.ones(2), "c": torch.ones(3)}, "x.pt")
    assert not here["a"].any()
    copy_state_(here, {"a": torch.ones(2), "b": torch.ones(3)}, "x.pt")
    assert here["a"].all() and here["b"].all()
