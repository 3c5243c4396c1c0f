"""Files written whole, files that grow, and what is said where the disk fails."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from metarun.checkpointing import store
from metarun.errors import RunFailure
from metarun.utils import files
from metarun.utils.files import AppendOnlyFile
from tests.helpers.faults import content as state
from tests.helpers.faults import cut, failing, flip, inject


def test_every_call_that_fails_leaves_a_good_checkpoint(tmp_path: Path) -> None:
    found = list(inject(tmp_path, errors=(errno.ENOSPC, errno.EIO)))
    assert [kind for kind, well in found if not well] == []
    assert {kind for kind, _ in found} == {
        f"{what} {kind}"
        for what in ("ENOSPC", "EIO", "killed before")
        for kind in ("open", "write", "fsync", "rename", "folder fsync")
    }
    assert sum(kind == "ENOSPC write" for kind, _ in found) >= 8


def test_a_file_cut_at_any_byte_leaves_the_checkpoint_before_it(tmp_path: Path) -> None:
    found = list(cut(tmp_path / "run", stride=5))
    assert [kind for kind, well in found if not well] == [] and len(found) > 600


def test_a_flipped_bit_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    found = list(flip(tmp_path / "run", stride=5))
    assert [kind for kind, well in found if not well] == [] and len(found) > 200


def test_text_and_bytes_are_written(tmp_path: Path) -> None:
    for content in ("ä\n", b"\0" * 10**6, memoryview(b"abc"), ""):
        files.atomic_write(tmp_path / "a", content)
        assert (tmp_path / "a").read_bytes() == (content.encode() if isinstance(content, str) else bytes(content))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_system_that_takes_a_part_at_a_time_gets_all(tmp_path: Path) -> None:
    content = os.urandom(5000)
    with failing("write", -1, OSError()) as calls:
        files.atomic_write(tmp_path / "a", content)
        grown = AppendOnlyFile(tmp_path / "b")
        grown.write(content)
        grown.write(content)
        grown.close()
    assert calls["write"] > 30
    assert (tmp_path / "a").read_bytes() == content and (tmp_path / "b").read_bytes() == content * 2


def test_a_file_system_without_fsync_of_folders_will_do(tmp_path: Path) -> None:
    with failing("folder fsync", 1, OSError(errno.EINVAL, "Invalid argument")) as calls:
        files.atomic_write(tmp_path / "a", b"a")
    assert calls["folder fsync"] == 1 and (tmp_path / "a").read_bytes() == b"a"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no /dev/full")
def test_a_growing_file_on_a_full_disk_is_told(tmp_path: Path) -> None:
    file = AppendOnlyFile(tmp_path / "full")
    file.close()
    file.file = Path("/dev/full").open("ab", buffering=0)  # noqa: SIM115, closed below
    with pytest.raises(
        RunFailure, match=r"full could not be written \(No space left on device\): make room on its disk"
    ):
        file.write(b"a")
    file.close()


def test_neither_a_whole_nor_a_growing_file_is_written_through_a_link(tmp_path: Path) -> None:
    outside, part = tmp_path / "outside", tmp_path / f".a.{os.getpid()}.part"
    for name in (tmp_path / "a", part, tmp_path / "log"):
        name.symlink_to(outside)
    files.atomic_write(tmp_path / "a", b"own")
    with pytest.raises(OSError, match="symbolic links"):
        AppendOnlyFile(tmp_path / "log")
    assert (tmp_path / "a").read_bytes() == b"own" and not (tmp_path / "a").is_symlink() and not outside.exists()


def test_another_error_names_the_file_and_not_its_unfinished_one(tmp_path: Path) -> None:
    with (
        failing("rename", 1, OSError(errno.EACCES, "Permission denied", "part")),
        pytest.raises(OSError, match=r"Permission denied: .*/a'"),
    ):
        files.atomic_write(tmp_path / "a", b"a")


def test_a_deleted_folder_is_told_and_not_made_again(tmp_path: Path) -> None:
    gone = tmp_path / "run"
    for write in (
        lambda: files.atomic_write(gone / "result.json", ""),
        lambda: store.save(store.step_checkpoint_path(gone, 1), state(1)),
    ):
        with pytest.raises(RunFailure, match="run was deleted or moved while the run wrote to it"):
            write()
    assert not gone.exists()


def test_unfinished_files_are_removed_and_no_others(tmp_path: Path) -> None:
    for folder in ("checkpoints", "other"):  # the other is of a run of its own
        (tmp_path / folder).mkdir()
    for name in (
        ".result.json.7.part",
        "checkpoints/.best.safetensors.8.part",
        "checkpoints/best.safetensors",
        "a.part",
        ".a.part",
        ".lock",
        "other/.b.9.part",
    ):
        (tmp_path / name).touch()
    files.remove_partial_files(tmp_path)
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert left == [".a.part", ".lock", "a.part", "checkpoints/best.safetensors", "other/.b.9.part"]
