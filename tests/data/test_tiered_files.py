"""tieredImageNet's large files: read in little memory, in step with their labels, and not run."""

from __future__ import annotations

import pickle
import tracemalloc
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metarun.data.formats.arrays import PNG, iterate_pngs, npz_files
from metarun.data.task_sampler import SPLITS
from tests.helpers.image_forms import protocol2, protocol4, protocol5, put, python2
from tests.helpers.small_forms import LABELS, Exploit, folder_of, listed_pngs, npz, pictures, png, read, refusal

# --- pickles of PNG pictures -------------------------------------------------------------------------------


@pytest.mark.parametrize("dumps", [protocol2, protocol4, protocol5, python2])
def test_png_pickles(dumps: Callable[[Any], bytes], tmp_path: Path) -> None:
    """Whatever wrote them, and whether they are arrays, bytes, or an array of bytes."""
    wanted = [png(picture) for picture in pictures()]
    for listed in (listed_pngs(), wanted, np.array(wanted, object)):
        put(tmp_path / "images.pkl", dumps(listed))
        assert list(iterate_pngs(tmp_path / "images.pkl")) == wanted


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_png_pickles_are_streamed(protocol: int, tmp_path: Path) -> None:
    """32 MB in pictures of 64 KB take the memory of a few of them."""
    path, size = tmp_path / "images.pkl", 2**16
    random = np.random.default_rng(0)
    array = [np.frombuffer(PNG + random.bytes(size), np.uint8).reshape(-1, 1).copy() for _ in range(512)]
    with path.open("wb") as file:
        pickle.dump(array, file, protocol)
    lengths = []
    tracemalloc.start()
    for found in iterate_pngs(path):
        lengths.append(len(found))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert lengths == [size + len(PNG)] * len(array)
    assert peak < 2e6, peak


def test_a_picture_listed_twice(tmp_path: Path) -> None:
    """A pickle holds it once, with a reference to it: what was streamed would be one picture out of step."""
    path = folder_of("pngs", tmp_path)
    first, *others = listed_pngs()
    put(path, pickle.dumps([first, first, *others[1:]], 4))
    message = refusal("pngs", tmp_path)
    assert message.startswith(f"{path}: ") and "holds 3 images, but val_labels.pkl has 4 labels" in message


# --- tieredImageNet's labels -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content, names, labels",
    [
        ({"label_specific": np.array(LABELS), "label_specific_str": ["p", "q", "r"]}, ["p", "q", "r"], LABELS),
        ({b"label_specific": np.array(LABELS), b"label_specific_str": [b"p", b"q", b"r"]}, ["p", "q", "r"], LABELS),
        ({"label_specific": np.array(LABELS), "label_general": np.zeros(4, int)}, ["val/0", "val/1", "val/2"], LABELS),
        ({"label_specific": LABELS, "labels": [0, 0, 1, 1]}, ["val/0", "val/1", "val/2"], LABELS),
        ({"labels": [353, 351, 352, 351]}, ["val/351", "val/352", "val/353"], LABELS),
        ({"label_specific": LABELS, "label_specific_str": ["p", "p", "r"]}, ["val/0", "val/1", "val/2"], LABELS),
        ({"label_specific": LABELS, "label_specific_str": ["p", "q"]}, ["val/0", "val/1", "val/2"], LABELS),
    ],
)
def test_labels(content: dict[Any, Any], names: list[str], labels: list[int], tmp_path: Path) -> None:
    """The specific ones count, under their names where each has its own."""
    folder_of("pngs", tmp_path)
    put(tmp_path / "train_labels.pkl", pickle.dumps({"labels": LABELS}))
    put(tmp_path / "test_labels.pkl", pickle.dumps({"labels": LABELS}))
    put(tmp_path / "val_labels.pkl", protocol4(content))
    found, numbers, _ = read("pngs", tmp_path)
    assert found[3:6] == names
    assert [number - 3 for number in numbers[4:8]] == labels


@pytest.mark.parametrize(
    "content, reason",
    [
        ({"labels": [0, 1, 2, 3, 4, 5]}, "its 'labels' number 6 superclasses, not classes"),
        ({"label_general": LABELS}, "its 'label_general' number 3 superclasses, not classes"),
        ({"label": LABELS}, "holds no 'label_specific' and no 'labels'"),
        ([1, 2], "holds no 'label_specific' and no 'labels'"),
        ({"labels": [0.5, 1.5]}, "labels is not a list of whole numbers"),
        (
            {"labels": [[0], [1, 2]]},
            "val_labels.pkl: not a pickle of class labels, or damaged (labels is not a list",
        ),
    ],
)
def test_labels_that_are_none(content: Any, reason: str, tmp_path: Path) -> None:
    folder_of("pngs", tmp_path)
    put(tmp_path / "val_labels.pkl", python2(content))
    assert reason in refusal("pngs", tmp_path)


def test_one_name_in_two_splits(tmp_path: Path) -> None:
    """ "crane" is a bird and a machine: they stay two classes."""
    folder_of("pngs", tmp_path)
    assert read("pngs", tmp_path)[0] == [f"{split}/{name}" for split in SPLITS for name in "xyz"]


# --- NPZ ---------------------------------------------------------------------------------------------------


def test_npz_is_streamed(tmp_path: Path) -> None:
    """63 MB of pictures take the memory of 64 of them."""
    folder_of("npz", tmp_path)
    count = 3000
    np.savez_compressed(tmp_path / "train_images.npz", images=np.zeros((count, 84, 84, 3), np.uint8))
    put(tmp_path / "train_labels.pkl", pickle.dumps({"labels": np.arange(count) % 351}))
    found = npz_files(tmp_path)
    assert found is not None
    tracemalloc.start()
    with ExitStack() as stack:
        total = sum(1 for _ in found.read(stack).images)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == count + 2 * len(LABELS)
    assert peak < 8e6, peak


def test_npz_of_python_2(tmp_path: Path) -> None:
    """Its header spells numbers 4L, which NumPy reads with a warning."""
    path = folder_of("npz", tmp_path)
    words = b"{'descr': '|u1', 'fortran_order': False, 'shape': (4L, 6L, 5L, 3L), }"
    head = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + words.ljust(117) + b"\n"
    with zipfile.ZipFile(path, "w") as zipped:
        zipped.writestr("images.npy", head + pictures().tobytes())
    images = read("npz", tmp_path)[2][4:8]
    assert np.array_equal(np.stack([np.asarray(raw) for _, raw in images]), pictures()[..., ::-1])


@pytest.mark.parametrize(
    "content, reason",
    [
        (npz(pictures=pictures()), "There is no item named 'images.npy'"),
        (npz(images=pictures().astype(np.float32)), "its images are float32"),
        (npz(images=np.asfortranarray(pictures())), "its images are in Fortran order"),
        (npz(images=pictures()[:, :, :, 0]), "its images are uint8 (4, 6, 5)"),
        (npz(images=pictures()[:3]), "holds 3 images, but val_labels.pkl has 4 labels"),
    ],
)
def test_npz_of_something_else(content: bytes, reason: str, tmp_path: Path) -> None:
    path = folder_of("npz", tmp_path)
    path.write_bytes(content)
    message = refusal("npz", tmp_path)
    assert message.startswith(f"{path}: ") and reason in message


def test_npz_that_claims_more_than_it_holds(tmp_path: Path) -> None:
    path = folder_of("npz", tmp_path)
    put(tmp_path / "val_labels.pkl", pickle.dumps({"labels": np.arange(1000)}))
    with zipfile.ZipFile(path) as zipped:
        content = zipped.read("images.npy")
    with zipfile.ZipFile(path, "w") as zipped:
        zipped.writestr("images.npy", content.replace(b"(4, 6, 5, 3), }   ", b"(1000, 6, 5, 3), }"))
    assert "too small for images of the shape (1000, 6, 5, 3)" in refusal("npz", tmp_path)


def test_exploit_in_an_array_of_objects(tmp_path: Path) -> None:
    path, proof = folder_of("npz", tmp_path / "data"), tmp_path / "proof"
    path.write_bytes(npz(images=np.array([Exploit(proof), 1, 2, 3], object)))
    assert "its images are object (4,), not uint8" in refusal("npz", tmp_path / "data")
    assert not proof.exists()
    np.load(path, allow_pickle=True)["images"]
    assert proof.exists()
