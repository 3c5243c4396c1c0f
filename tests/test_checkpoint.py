from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch

from metarun import checkpoint
from metarun.errors import RunFailure, UserError


def a_run(folder: Path, *steps: int) -> Path:
    for step in steps:
        checkpoint.save(checkpoint.step_path(folder, step), {"step": step, "theta": {"w": torch.full((3,), step)}})
    return folder


def test_what_is_saved_is_loaded_and_nothing_else_is_left(tmp_path: Path) -> None:
    a_run(tmp_path, 20)
    found = checkpoint.load(tmp_path)
    assert found["step"] == 20 and torch.equal(found["theta"]["w"], torch.full((3,), 20))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000020.pt"]


def test_a_folder_means_its_best_then_its_newest(tmp_path: Path) -> None:
    a_run(tmp_path, 5, 100, 20)
    assert checkpoint.find(tmp_path).name == "step-00000100.pt"
    checkpoint.save(checkpoint.best_path(tmp_path), {"step": 20})
    assert checkpoint.find(tmp_path).name == "best.pt"
    assert checkpoint.newest(tmp_path).name == "step-00000100.pt"
    assert checkpoint.find(tmp_path / "checkpoints" / "step-00000005.pt").name == "step-00000005.pt"


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    a_run(tmp_path, 1, 2, 3, 4)
    checkpoint.prune(tmp_path, 2)
    assert [path.name for path in checkpoint.steps(tmp_path)] == ["step-00000003.pt", "step-00000004.pt"]


def test_a_failed_write_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkpoint.step_path(a_run(tmp_path, 7), 7)

    def disk_full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(RunFailure, match=r"step-00000007\.pt could not be written \(No space left on device\)"):
        checkpoint.save(path, {"step": 8})
    assert checkpoint.load(path)["step"] == 7
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("size", [0, 10, 500, -1])
def test_a_truncated_checkpoint_is_named(tmp_path: Path, size: int) -> None:
    path = checkpoint.step_path(a_run(tmp_path, 7), 7)
    path.write_bytes(path.read_bytes()[:size])
    for place in (tmp_path, path):
        with pytest.raises(UserError, match=r"step-00000007\.pt:? cannot be read"):
            checkpoint.load(place)


def test_a_flipped_byte_never_gives_other_content(tmp_path: Path) -> None:
    """Every byte that matters is under a checksum; the others are padding."""
    content = {"theta": {"w": torch.randn(300)}, "step": 7, "names": ["a", "b"]}
    checkpoint.save(tmp_path / "a.pt", content)
    whole = (tmp_path / "a.pt").read_bytes()
    refused = 0
    for place in torch.randperm(len(whole))[:300].tolist():
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        (tmp_path / "a.pt").write_bytes(damaged)
        try:
            found = checkpoint.load(tmp_path / "a.pt")
        except UserError as error:
            refused += 1
            assert "\n" not in str(error) and str(tmp_path / "a.pt") in str(error)
        else:
            assert found["step"] == 7 and found["names"] == ["a", "b"]
            assert torch.equal(found["theta"]["w"], content["theta"]["w"])
    assert refused > 100


@pytest.mark.parametrize("size", [0, 10, 500, -1])
def test_the_checkpoint_before_a_damaged_one_is_taken(tmp_path: Path, size: int) -> None:
    a_run(tmp_path, 1, 2, 3)
    path = checkpoint.step_path(tmp_path, 3)
    path.write_bytes(path.read_bytes()[:size])
    assert checkpoint.newest(tmp_path) == checkpoint.step_path(tmp_path, 2)
    (aside,) = checkpoint.set_damaged_aside(tmp_path, checkpoint.newest(tmp_path))
    assert aside.name == "step-00000003.pt.damaged" and checkpoint.steps(tmp_path)[-1].name == "step-00000002.pt"
    for other in checkpoint.steps(tmp_path):
        other.write_bytes(b"")
    with pytest.raises(UserError, match=r"none of its checkpoints is whole: step-00000002\.pt cannot be read"):
        checkpoint.newest(tmp_path)


def test_a_malicious_checkpoint_does_not_run(tmp_path: Path) -> None:
    class Exploit:
        def __reduce__(self) -> tuple[object, ...]:
            return (os.mkdir, (str(tmp_path / "ran"),))

    torch.save(Exploit(), tmp_path / "evil.pt")
    with pytest.raises(UserError, match=r"evil\.pt: cannot be read"):
        checkpoint.load(tmp_path / "evil.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Exploit()))
    with pytest.raises(UserError, match=r"plain\.pt: cannot be read"):
        checkpoint.load(tmp_path / "plain.pt")
    assert not (tmp_path / "ran").exists()


def test_what_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such run folder"):
        checkpoint.load(tmp_path / "missing")
    with pytest.raises(UserError, match="not a run folder"):
        checkpoint.load(tmp_path)
    torch.save({"weights": torch.ones(2)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"other\.pt: not a checkpoint of this version"):
        checkpoint.load(tmp_path / "other.pt")


def test_another_architecture_is_told_by_its_tensors() -> None:
    here = {"a": torch.zeros(2), "b": torch.zeros(3)}
    with pytest.raises(UserError, match=r"a is \[4\] instead of \[2\]"):
        checkpoint.restore(here, {"a": torch.ones(4), "b": torch.ones(3)}, "x.pt")
    with pytest.raises(UserError, match=r"b is missing; c is unknown"):
        checkpoint.restore(here, {"a": torch.ones(2), "c": torch.ones(3)}, "x.pt")
    assert not here["a"].any()
    checkpoint.restore(here, {"a": torch.ones(2), "b": torch.ones(3)}, "x.pt")
    assert here["a"].all() and here["b"].all()
