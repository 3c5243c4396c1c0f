from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from metarun.data import cache, decoding
from metarun.data.cache import CachedDataset, RawDataset, load_or_build_cache
from metarun.data.image_set import image_set
from metarun.data.image_spec import ImageSpec
from metarun.errors import UserError

LOOK = ImageSpec(4, 1)
LABELS = [1, 0, 1, 2, 0, 1]
NAMES = ["b", "a", "c"]


def picture(number: int) -> np.ndarray:
    return np.full((4, 4), 10 * number, np.uint8)


def contents(_: ExitStack) -> RawDataset:
    return RawDataset(NAMES, LABELS, ((f"picture {i}", picture(i)) for i in range(6)))


def never(_: ExitStack) -> RawDataset:
    raise AssertionError("prepared although the cache holds it")


def load(folder: Path, what=contents, **options) -> CachedDataset:
    return load_or_build_cache(folder, "a", LOOK, "here", what, **options)


def check(found: CachedDataset) -> None:
    assert found.images[:, 0, 0, 0].tolist() == [10, 40, 0, 20, 50, 30]  # class after class, each in its order
    assert found.manifest.first == [0, 2, 5] and found.manifest.count == [2, 3, 1] and found.manifest.names == NAMES


def left(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_prepares_once_and_says_what_of(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    check(load(folder))
    check(load(folder, never))
    assert left(folder) == ["a-v1.json", "a-v1.lock", "a-v1.npy"]
    manifest = json.loads((folder / "a-v1.json").read_text())
    assert manifest["source"] == "here" and manifest["shape"] == [6, 1, 4, 4]
    assert manifest["sha256"] == hashlib.sha256((folder / "a-v1.npy").read_bytes()).hexdigest()


def test_the_images_cannot_be_written_to(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="read-only"):
        load(tmp_path).images[:] = 7


def test_mean_and_deviation_are_those_of_the_training_classes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
    look = ImageSpec(4, 3)
    found = load_or_build_cache(
        tmp_path, "a", look, "", lambda _: RawDataset(NAMES, LABELS, (("", row) for row in rows))
    )
    made = image_set(found, look, {"train": ["b", "c"], "val": ["a"], "test": []}, "mine")
    training = rows[[1, 4, 3]].reshape(-1, 3) / 255
    np.testing.assert_allclose(made.mean, training.mean(0), rtol=1e-6)
    np.testing.assert_allclose(made.std, training.std(0), rtol=1e-6)


@pytest.mark.parametrize("file", ["a-v1.npy", "a-v1.json"])
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
def test_damaged_files_are_made_again_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage, file: str
) -> None:
    load(tmp_path)
    path = tmp_path / file
    path.write_bytes(damage(path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        check(load(tmp_path))
    assert "a-v1.npy" in caplog.text and "damaged" in caplog.text
    check(load(tmp_path, never))


def zero_the_middle(path: Path, keep_time: bool = False) -> None:
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(status.st_size - 60)  # of 96 bytes of pixels
        file.write(bytes(30))
    if keep_time:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("keep_time", [False, True])
def test_a_zeroed_middle_is_found_and_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture, keep_time) -> None:
    load(tmp_path)
    zero_the_middle(tmp_path / "a-v1.npy", keep_time)
    with caplog.at_level(logging.WARNING):
        check(load(tmp_path))
    (line,) = caplog.messages
    assert line.endswith(
        "a-v1.npy is damaged (it does not have the SHA-256 that was written with it); it is made again"
    )
    check(load(tmp_path, never))


def test_a_changed_number_in_the_manifest_is_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = load(tmp_path).path
    path.write_text(path.read_text().replace('"count": [2, 3, 1]', '"count": [3, 2, 1]'))
    check(load(tmp_path))
    assert "a-v1.json does not have the SHA-256 that stands in it" in caplog.text


def test_a_large_file_is_compared_where_it_may_have_changed(tmp_path: Path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(cache, "ALWAYS_CHECKED", 0)
    load(tmp_path)
    path, read = tmp_path / "a-v1.npy", []
    monkeypatch.setattr(cache, "sha256_of_file", lambda file: read.append(1) or decoding.sha256_of_file(file))
    with caplog.at_level(logging.INFO):
        check(load(tmp_path, never))
        assert not read
        os.utime(path)  # as a copy or a backup does
        check(load(tmp_path, never))
        check(load(tmp_path, never))
        assert read == [1] and "comparing" in caplog.text  # noted in the manifest
        zero_the_middle(path)
        check(load(tmp_path))
    assert "does not have the SHA-256" in caplog.text


def test_a_large_changed_file_in_a_cache_that_may_not_be_written_is_compared(tmp_path: Path, monkeypatch) -> None:
    load(tmp_path)
    monkeypatch.setattr(cache, "ALWAYS_CHECKED", 0)
    os.utime(tmp_path / "a-v1.npy")
    before = (tmp_path / "a-v1.json").read_bytes()

    def refuse(path: Path, content: str) -> None:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(cache.whole_files, "atomic_write", refuse)
    check(load(tmp_path, never))
    assert (tmp_path / "a-v1.json").read_bytes() == before


def test_images_without_their_manifest_are_not_believed(tmp_path: Path) -> None:
    load(tmp_path)
    (tmp_path / "a-v1.json").unlink()
    with pytest.raises(AssertionError, match="prepared although"):
        load(tmp_path, never)
    check(load(tmp_path))


def test_an_array_of_another_kind_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load(tmp_path)
    np.save(tmp_path / "a-v1.npy", np.zeros((6, 1, 4, 4), np.float32))
    check(load(tmp_path))
    assert "not uint8 (6, 1, 4, 4)" in caplog.text


def test_those_that_start_together_prepare_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made, together = [], threading.Barrier(4, timeout=20)

    def once(stack: ExitStack) -> RawDataset:
        made.append(1)
        time.sleep(0.2)
        return contents(stack)

    def start(_: int) -> CachedDataset:
        together.wait()
        return load(tmp_path, once)

    with caplog.at_level(logging.INFO), ThreadPoolExecutor(4) as pool:
        for found in pool.map(start, range(4)):
            check(found)
    assert made == [1]
    assert "another run is preparing a-v1; waiting for it" in caplog.text


KILLED = """
import os, sys, time
from pathlib import Path
from types import SimpleNamespace
from metarun.data.cache import RawDataset, load_or_build_cache
from metarun.data.image_spec import ImageSpec
import numpy as np

def images():
    yield "picture 0", np.zeros((4, 4), np.uint8)
    print("begun", flush=True)
    time.sleep(60)

load_or_build_cache(Path(sys.argv[1]), "a", ImageSpec(4, 1), "here", lambda _: RawDataset(["b"], [0, 0], images()))
"""


@pytest.mark.slow
def test_a_killed_preparation_neither_blocks_nor_leaves_half_a_file(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGKILL)
    assert "a-v1.npy" not in left(tmp_path) and "a-v1.json" not in left(tmp_path)
    check(load(tmp_path))
    assert left(tmp_path) == ["a-v1.json", "a-v1.lock", "a-v1.npy"]


def test_a_folder_that_cannot_be_made_is_told_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^cache_dir: cannot write .*/file/sub/a-v1\.npy \(Not a directory\)"):
        load(tmp_path / "file" / "sub", never)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_that_may_not_be_written_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(UserError, match=r"^cache_dir: cannot write .*\(Permission denied\); choose another folder"):
        load(tmp_path, never)


def test_a_prepared_set_is_read_from_a_cache_that_may_not_be_written(tmp_path: Path) -> None:
    load(tmp_path)
    (tmp_path / "a-v1.lock").unlink()
    for path in (*tmp_path.iterdir(), tmp_path):
        path.chmod(0o555 if path.is_dir() else 0o444)
    check(load(tmp_path, never))
    assert left(tmp_path) == ["a-v1.json", "a-v1.npy"]
    tmp_path.chmod(0o755)


@pytest.mark.parametrize("free", [0, 10, 2**40])
def test_a_full_disk_is_told_and_nothing_is_left(tmp_path: Path, monkeypatch, free: int) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"^cache_dir: cannot write .*\.npy \(No space left on device\); .*cache_dir="):
        load(tmp_path)
    assert left(tmp_path) == ["a-v1.lock"]


def test_a_failed_listing_leaves_nothing_and_keeps_its_own_error(tmp_path: Path) -> None:
    def broken(_: ExitStack) -> RawDataset:
        raise ZeroDivisionError("a listing")

    with pytest.raises(ZeroDivisionError, match="a listing"):
        load(tmp_path, broken)
    assert left(tmp_path) == ["a-v1.lock"]


def test_a_picture_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    def damaged(_: ExitStack) -> RawDataset:
        return RawDataset(["a"], [0, 0], [("first", picture(1)), ("second", b"no picture")])

    with pytest.raises(UserError, match=r"^second: cannot be read as an image .not a picture of a known format"):
        load(tmp_path, damaged)
    assert left(tmp_path) == ["a-v1.lock"]


def test_pictures_that_cannot_be_read_are_left_out_on_request(tmp_path: Path, caplog) -> None:
    def damaged(_: ExitStack) -> RawDataset:
        images = [(f"file {i}", b"no picture" if i in (1, 2) else picture(i)) for i in range(6)]
        return RawDataset(NAMES, LABELS, images)

    for what in (damaged, never):  # told at every start
        caplog.clear()
        found = load(tmp_path, what, skip_unreadable=True)
        assert found.manifest.count == [1, 2, 1]
        assert found.images[found.manifest.first, 0, 0, 0].tolist() == [40, 0, 30]
        assert found.images[found.manifest.first[1] + 1, 0, 0, 0] == 50
        assert "2 files or folders are left out" in caplog.text
        assert "first file 1 (not a picture of a known format)" in caplog.text
    assert [name for name, _ in found.manifest.left_out] == ["file 1", "file 2"]


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "a-v1.json").mkdir()
    with pytest.raises(UserError, match=r"^cache_dir: cannot read .*a-v1\.json \(Is a directory\)"):
        load(tmp_path, never)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads its memory from /proc")
def test_memory_does_not_grow_with_the_set(tmp_path: Path) -> None:
    """A set of 512 MiB is prepared and drawn from by a process that may take only 300 MiB more of its own."""
    program = f"""
import resource
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from metarun.data.cache import RawDataset, load_or_build_cache
from metarun.data.image_spec import ImageSpec

one = np.zeros((512, 512), np.uint8)
spec = ImageSpec(512, 1)
held = next(int(line.split()[1]) for line in Path("/proc/self/status").open() if line.startswith("VmData"))
limit = held * 2**10 + 300 * 2**20
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
images = (("", one + i % 200) for i in range(2048))
found = load_or_build_cache(Path({str(tmp_path)!r}), "a", spec, "", lambda _: RawDataset(["b"], [0] * 2048, images))
assert found.images.nbytes == 2**29
assert found.images[::100, 0, 5, 5].tolist() == [i % 200 for i in range(0, 2048, 100)]
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_pictures_are_decoded_from_files(tmp_path: Path) -> None:
    for i in range(6):
        Image.fromarray(picture(i)).save(tmp_path / f"{i}.png")
    files = [tmp_path / f"{i}.png" for i in range(6)]
    check(load(tmp_path / "cache", lambda _: RawDataset(NAMES, LABELS, ((str(file), file) for file in files))))
