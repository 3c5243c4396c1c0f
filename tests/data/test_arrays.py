"""Pickles, NPZ and HDF5 of other people's: what is damaged, hostile, or at odds with its labels is named, not run."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from metarun.data.formats.pickles import load_pickle
from metarun.errors import UserError
from tests.helpers.image_forms import put
from tests.helpers.small_forms import FINDERS, Exploit, folder_of, hdf5, listed_pngs, pictures, read, refusal, write

PAGE = b"<!DOCTYPE html><html><title>Google Drive - Quota exceeded</title></html>"
KINDS = pytest.mark.parametrize("kind", FINDERS)


@KINDS
def test_whole(kind: str, tmp_path: Path) -> None:
    """Three splits of three classes, four pictures each; without one of the files there is no data set."""
    path = folder_of(kind, tmp_path)
    names, labels, images = read(kind, tmp_path)
    assert (len(set(names)), len(labels), len(images)) == (9, 12, 12)
    path.unlink()
    assert FINDERS[kind](tmp_path) is None


@KINDS
def test_a_web_page(kind: str, tmp_path: Path) -> None:
    path = folder_of(kind, tmp_path)
    path.write_bytes(PAGE)
    assert refusal(kind, tmp_path).startswith(f"{path}: a web page, not data")


@KINDS
def test_cut_short(kind: str, tmp_path: Path) -> None:
    """Wherever a download broke off."""
    path = folder_of(kind, tmp_path)
    whole = path.read_bytes()
    for end in {0, 1, 10, *np.linspace(20, len(whole) - 1, 12).astype(int).tolist()}:
        path.write_bytes(whole[:end])
        assert refusal(kind, tmp_path).startswith(f"{path}: "), end


@pytest.mark.parametrize("kind", ["npz", "hdf5"])
def test_damaged_within(kind: str, tmp_path: Path) -> None:
    """Checksums find what is at fault in the middle of a file that opens well."""
    path = folder_of(kind, tmp_path)
    whole = bytearray(path.read_bytes())
    begin = whole.index(pictures().tobytes()[:20]) if kind == "npz" else whole.index(b"\x78\x5e")
    whole[begin : begin + 20] = bytes(20)
    path.write_bytes(whole)
    assert re.match(rf"{path}: not .*{kind.upper()} file.*, or damaged \(", refusal(kind, tmp_path))


@pytest.mark.parametrize("kind", ["categories", "pngs", "npz"])
@pytest.mark.parametrize("count", [3, 5])
@pytest.mark.parametrize("split", ["val", "test"])
def test_wrong_number_of_labels(kind: str, count: int, split: str, tmp_path: Path) -> None:
    folder_of(kind, tmp_path)
    path, labels = write(tmp_path, kind, split), [0, 1, 2, 0, 1][:count]
    if kind == "categories":
        put(path, pickle.dumps({"data": pictures(), "labels": labels}, 2))
    else:
        put(tmp_path / f"{split}_labels.pkl", pickle.dumps({"labels": labels}, 2))
    message = refusal(kind, tmp_path)
    assert message.startswith(f"{path}: not ") and "holds 4 images, but " in message and f"{count} labels" in message


@pytest.mark.parametrize("indices", [{"x": [0, 1]}, {"x": [0, 1, 2, 4]}, {"x": [0, 1, 2], "y": [2, 3]}, {"x": ["0"]}])
def test_class_dict_at_odds_with_the_images(indices: dict[str, list[Any]], tmp_path: Path) -> None:
    path = folder_of("cache", tmp_path)
    put(path, pickle.dumps({"image_data": pictures(), "class_dict": indices}, 2))
    assert refusal("cache", tmp_path).startswith(f"{path}: ") and "class_dict" in refusal("cache", tmp_path)


@pytest.mark.parametrize("kind, key", [("cache", "image_data"), ("categories", "data")])
def test_arrays_that_are_no_pictures(kind: str, key: str, tmp_path: Path) -> None:
    path = folder_of(kind, tmp_path)
    content = pickle.loads(path.read_bytes())
    uint8 = [np.zeros(shape, np.uint8) for shape in ((4, 90), (4, 6, 5, 4), (4, 0, 5, 3))]
    for array in (*uint8, np.zeros((4, 6, 5, 3)), np.array(["a", None, 1, 2], object)):
        put(path, pickle.dumps(content | {key: array}, 4))
        assert f"its {key!r} is {array.dtype} {array.shape}" in refusal(kind, tmp_path)
    put(path, pickle.dumps([1, 2], 2))
    assert f"holds no {key!r}" in refusal(kind, tmp_path)


# --- hostile pickles ---------------------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_exploit(kind: str, protocol: int, tmp_path: Path) -> None:
    """A payload that works, in the file of the pictures or of the labels: it is refused and does not run."""
    path, proof = folder_of(kind, tmp_path / "data"), tmp_path / "proof"
    payload = pickle.dumps([*listed_pngs(), Exploit(proof)], protocol)
    if kind in ("npz", "hdf5"):
        path = path.with_name("val_labels.pkl" if kind == "npz" else "val_labels.json")
    path.write_bytes(payload)
    assert refusal(kind, tmp_path / "data").startswith(f"{path}: not ")
    with pytest.raises(UserError):
        load_pickle(path)
    assert not proof.exists()
    pickle.loads(payload)
    assert proof.exists()


# --- HDF5 --------------------------------------------------------------------------------------------------


def linked(file: h5py.File, elsewhere: Path) -> None:
    file["datasets/b"] = h5py.ExternalLink(elsewhere, "datasets/b")


def external(file: h5py.File, elsewhere: Path) -> None:
    file.create_dataset("datasets/b", (1, 6, 5, 3), np.uint8, external=[(os.fspath(elsewhere), 0, 90)])


def virtual(file: h5py.File, elsewhere: Path) -> None:
    layout = h5py.VirtualLayout((1, 6, 5, 3), np.uint8)
    layout[:] = h5py.VirtualSource(elsewhere, "datasets/b", (1, 6, 5, 3))
    file.create_virtual_dataset("datasets/b", layout)


def soft(file: h5py.File, _: Path) -> None:
    file["datasets/b"] = h5py.SoftLink("/datasets/a")


def waiting(file: h5py.File, elsewhere: Path) -> None:
    """HDF5 would open the pipe and wait for its other end."""
    os.mkfifo(elsewhere.with_name("pipe"))
    file["datasets/b"] = h5py.ExternalLink(elsewhere.with_name("pipe"), "datasets/b")


@pytest.mark.parametrize("lead", [linked, external, virtual, soft, waiting])
def test_hdf5_that_leads_into_another_file(lead: Callable[[h5py.File, Path], None], tmp_path: Path) -> None:
    path = folder_of("hdf5", tmp_path)
    hdf5(tmp_path / "elsewhere.hdf5")
    with h5py.File(path, "a") as file:
        del file["datasets/b"]
        lead(file, tmp_path / "elsewhere.hdf5")
    assert re.search(r"'datasets/b' (is a link to|lies in) another .*file", refusal("hdf5", tmp_path))


@pytest.mark.parametrize("chunks", [None, (10**4, 6, 5, 3)])
def test_hdf5_of_huge_shapes_in_a_small_file(chunks: tuple[int, ...] | None, tmp_path: Path) -> None:
    path = folder_of("hdf5", tmp_path)
    with h5py.File(path, "a") as file:
        del file["datasets/b"]
        file.create_dataset("datasets/b", (10**9, 6, 5, 3), np.uint8, chunks=chunks)
    assert path.stat().st_size < 10**5 and "would unpack to 9000000" in refusal("hdf5", tmp_path)


def test_hdf5_with_a_filter_that_is_loaded(tmp_path: Path) -> None:
    path = folder_of("hdf5", tmp_path)
    with h5py.File(path, "a") as file:
        del file["datasets/b"]
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((1, 6, 5, 3))
        plist.set_filter(32008, h5py.h5z.FLAG_OPTIONAL, ())
        space = h5py.h5s.create_simple((2, 6, 5, 3))
        h5py.h5d.create(file["datasets"].id, b"b", h5py.h5t.STD_U8LE, space, plist)
    assert "needs a filter that HDF5 does not have" in refusal("hdf5", tmp_path)


@pytest.mark.parametrize(
    "names, reason",
    [
        (["a", "d"], "files', or damaged (it holds no pictures of the class 'd')"),
        (["a", "a"], "val_labels.json: not a JSON list of class names, or damaged (it has a class twice)"),
        ({"a": 0}, "val_labels.json: not a JSON list of class names, or damaged (it is no list of names)"),
    ],
)
def test_hdf5_labels(names: Any, reason: str, tmp_path: Path) -> None:
    folder_of("hdf5", tmp_path)
    put(tmp_path / "val_labels.json", json.dumps(names).encode())
    assert reason in refusal("hdf5", tmp_path)


@pytest.mark.parametrize("array", [["text", "more"], np.zeros((2, 5), np.uint8), np.zeros((2, 0, 5, 3), np.uint8)])
def test_hdf5_of_something_else(array: Any, tmp_path: Path) -> None:
    with h5py.File(folder_of("hdf5", tmp_path), "a") as file:
        del file["datasets/b"]
        file["datasets/b"] = array
        dtype, shape = file["datasets/b"].dtype, file["datasets/b"].shape  # pyright: ignore[reportAttributeAccessIssue]
    assert f"'datasets/b' is {dtype} {shape}, not uint8 [n, height, width, 3]" in refusal("hdf5", tmp_path)
