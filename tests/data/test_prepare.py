from __future__ import annotations

import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from metarun.data.cache import cached
from metarun.errors import UserError

SHAPE = (6, 1, 4, 4)


def picture() -> np.ndarray:
    return np.arange(96, dtype=np.uint8).reshape(SHAPE)


def never() -> np.ndarray:
    raise AssertionError("built although the cache holds it")


def test_builds_once_and_leaves_one_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.npy"
    assert (cached(path, SHAPE, picture) == picture()).all()
    assert (cached(path, SHAPE, never) == picture()).all()
    assert [file.name for file in path.parent.iterdir()] == ["a.npy"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[:-7],
        lambda whole: whole[:20],
        lambda whole: b"",
        lambda whole: b"<html>no</html>",
        lambda whole: b"PK\x03\x04" + whole,
    ],
    ids=["truncated", "header truncated", "empty", "a web page", "a zip"],
)
def test_a_damaged_file_is_made_again_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage) -> None:
    path = tmp_path / "a.npy"
    cached(path, SHAPE, picture)
    path.write_bytes(damage(path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert (cached(path, SHAPE, picture) == picture()).all()
    assert str(path) in caplog.text and "damaged" in caplog.text
    assert (cached(path, SHAPE, never) == picture()).all()


@pytest.mark.parametrize("other", [np.zeros((5, 1, 4, 4), np.uint8), np.zeros(SHAPE, np.float32)])
def test_an_array_of_another_kind_is_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, other: np.ndarray
) -> None:
    np.save(tmp_path / "a.npy", other)
    assert (cached(tmp_path / "a.npy", SHAPE, picture) == picture()).all()
    assert "not uint8 (6, 1, 4, 4)" in caplog.text


def test_writers_at_the_same_time_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    together = threading.Barrier(4, timeout=20)

    def build() -> np.ndarray:
        together.wait()  # all four have found no file
        return picture()

    with ThreadPoolExecutor(4) as pool:
        arrays = list(pool.map(lambda _: cached(path, SHAPE, build), range(4)))
    assert all((array == picture()).all() for array in arrays)
    assert [file.name for file in tmp_path.iterdir()] == ["a.npy"]
    assert (cached(path, SHAPE, never) == picture()).all()


def test_nothing_stands_under_the_final_name_before_it_is_whole(tmp_path: Path, monkeypatch) -> None:
    path, seen = tmp_path / "a.npy", []
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        seen.append((path.exists(), os.fstat(descriptor).st_size))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    cached(path, SHAPE, picture)
    assert seen == [(False, path.stat().st_size)]


def test_a_folder_that_cannot_be_made_is_told_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "sub" / "a.npy"
    with pytest.raises(UserError, match=r"^cache_dir: cannot write .*/file/sub/a\.npy \(Not a directory\)"):
        cached(path, SHAPE, never)


def test_a_full_disk_is_told_and_nothing_is_left(tmp_path: Path, monkeypatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"^cache_dir: cannot write .*a\.npy \(No space left on device\); .*cache_dir="):
        cached(tmp_path / "a.npy", SHAPE, picture)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_build_leaves_nothing_and_keeps_its_own_error(tmp_path: Path) -> None:
    def build() -> np.ndarray:
        raise FileNotFoundError("an image")

    with pytest.raises(FileNotFoundError, match="an image"):
        cached(tmp_path / "a.npy", SHAPE, build)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.npy").mkdir()
    with pytest.raises(UserError, match=r"^cache_dir: cannot read .*a\.npy \(Is a directory\)"):
        cached(tmp_path / "a.npy", SHAPE, never)
