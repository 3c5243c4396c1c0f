"""CIFAR-FS and FC100 in miniature: every class, four tiny pictures each, in every form people have it."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from metarun.data.datasets import published
from metarun.data.datasets.cifar import ARCHIVE, CIFAR_FS, FC100, FOLDER
from metarun.data.formats.detect import DataPaths
from metarun.data.image_set import ImageSet
from metarun.data.splits import published_splits
from metarun.errors import UserError

NAMES = sorted(name for part in published_splits("cifar_fs")["bertinetto"].values() for name in part)
EACH = 2  # pictures of each class in train, and in test


def colour(number: int, which: int) -> tuple[int, int, int]:
    """Of a class's picture: tells both apart."""
    return number * 2, 255 - number, which * 60


def picture(number: int, which: int) -> np.ndarray:
    return np.broadcast_to(np.array(colour(number, which), np.uint8), (32, 32, 3))


def half(first: int, key: Callable[[str], Any] = str) -> dict:
    """CIFAR-100's train or test pickle, its pictures in an order of their own."""
    numbers = [n for which in range(EACH) for n in reversed(range(100))]
    pictures = [picture(n, first + i // 100) for i, n in enumerate(numbers)]
    rows = np.stack([p.transpose(2, 0, 1).ravel() for p in pictures])
    return {key("data"): rows, key("fine_labels"): numbers, key("coarse_labels"): [0] * len(numbers)}


def official(key: Callable[[str], Any] = str) -> dict[str, bytes]:
    parts = {"train": half(0, key), "test": half(EACH, key), "meta": {key("fine_label_names"): NAMES}}
    return {part: pickle.dumps(content, protocol=2) for part, content in parts.items()}


def pickles(folder: Path) -> None:
    (folder / FOLDER).mkdir(parents=True)
    for part, content in official().items():
        (folder / FOLDER / part).write_bytes(content)


def bytes_pickles(folder: Path) -> None:
    (folder / FOLDER).mkdir(parents=True)
    for part, content in official(str.encode).items():
        (folder / FOLDER / part).write_bytes(content)


def archive(folder: Path) -> None:
    with tarfile.open(folder / ARCHIVE, "w:gz") as file:
        for part, content in official().items():
            member = tarfile.TarInfo(f"{FOLDER}/{part}")
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))


def class_folders(folder: Path) -> None:
    for n, name in enumerate(NAMES):
        place = folder / "cifar100" / "data" / name
        place.mkdir(parents=True)
        for which in range(2 * EACH):
            Image.fromarray(picture(n, which)).save(place / f"{which}.png")
    lists = folder / "cifar100" / "splits" / "bertinetto"
    lists.mkdir(parents=True)
    for part, names in published_splits("cifar_fs")["bertinetto"].items():
        (lists / f"{part}.txt").write_text("\n".join(names) + "\n")


def split_pickles(folder: Path, dataset: str, prefix: str) -> None:
    for part, names in next(iter(published_splits(dataset).values())).items():
        order = [(NAMES.index(name), which) for which in range(2 * EACH) for name in names]
        content = {"data": np.stack([picture(n, which) for n, which in order]), "labels": [n for n, _ in order]}
        (folder / f"{prefix}_{part}.pickle").write_bytes(pickle.dumps(content, protocol=2))


def torchmeta(folder: Path) -> None:
    """As its CIFARFS and FC100 leave them: the archive is gone, the lists name superclasses and classes."""
    place = folder / "cifar100"
    place.mkdir()
    above = {name: f"superclass {n // 5}" for n, name in enumerate(NAMES)}
    with h5py.File(place / "data.hdf5", "w") as file:
        for n, name in enumerate(NAMES):
            file.create_dataset(
                f"{above[name]}/{name}", data=np.stack([picture(n, which) for which in range(2 * EACH)])
            )
    (place / "fine_names.json").write_text(json.dumps({a: [n for n in NAMES if above[n] == a] for a in above.values()}))
    for dataset, sub in (("cifar_fs", "cifar-fs"), ("fc100", "fc100")):
        (place / sub).mkdir()
        for part, names in next(iter(published_splits(dataset).values())).items():
            (place / sub / f"{part}_labels.json").write_text(json.dumps([[above[name], name] for name in names]))


def learn2learn(folder: Path, raw: bool = False) -> None:
    """cifarfs/cifar100/ as in its archive, of which only the copies in cifarfs/processed/ are left, or not."""
    class_folders(folder)
    (folder / "cifarfs" / "processed").mkdir(parents=True)
    if raw:
        (folder / "cifar100").rename(folder / "cifarfs" / "cifar100")
        return
    for part, names in published_splits("cifar_fs")["bertinetto"].items():
        for name in names:
            shutil.copytree(folder / "cifar100" / "data" / name, folder / "cifarfs" / "processed" / part / name)
    shutil.rmtree(folder / "cifar100")


FORMS = {
    "Torchmeta's HDF5": torchmeta,
    "learn2learn's folders": learn2learn,
    "learn2learn's unpacked archive": lambda folder: learn2learn(folder, raw=True),
    "cifar-100-python": pickles,
    "keys that are bytes": bytes_pickles,
    "archive": archive,
    "class folders and lists": class_folders,
    "a pickle for each split": lambda folder: split_pickles(folder, "cifar_fs", "CIFAR_FS"),
}


def check(found: ImageSet, dataset: str, named: bool = True) -> None:
    """Every class in its split, with its own pictures; where the files name them, by the published list."""
    division = next(iter(published_splits(dataset).values()))
    assert found.images.shape == (100 * 2 * EACH, 3, 32, 32) and (found.count == 2 * EACH).all()
    for part, names in division.items():
        seen = set()
        for number in found.splits[part]:
            pictures = found.images[found.first[number] : found.first[number] + found.count[number], :, 7, 9]
            label = pictures[0, 0] // 2
            assert sorted(map(tuple, pictures.tolist())) == sorted(colour(label, which) for which in range(2 * EACH))
            seen.add(NAMES[label])
        assert seen == set(names)
    sizes = "/".join(str(len(names)) for names in division.values())
    title = next(iter(published_splits(dataset))) + ("" if named else "-as-given")
    assert found.class_split == f"{dataset}-{title}-{sizes}"


@pytest.mark.parametrize("form", FORMS)
def test_cifar_fs_in_every_form(tmp_path: Path, form: str) -> None:
    data_dir, cache_dir = tmp_path / "data", tmp_path / "cache"
    data_dir.mkdir()
    FORMS[form](data_dir)
    for path in (*data_dir.rglob("*"), data_dir):
        path.chmod(0o555 if path.is_dir() else 0o444)  # it is only read
    found = published.load(CIFAR_FS, DataPaths(data_dir, cache_dir, False), "bertinetto")
    check(found, "cifar_fs", named=form != "a pickle for each split")
    for path in (data_dir, *data_dir.rglob("*")):
        if path.is_dir():
            path.chmod(0o755)


def test_fc100_in_every_form(tmp_path: Path) -> None:
    archive(tmp_path)
    places = DataPaths(tmp_path, tmp_path / "cache", False)
    check(published.load(FC100, places, "oreshkin"), "fc100")
    published.load(CIFAR_FS, places, "bertinetto")
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 1  # the same pictures are kept once
    (tmp_path / ARCHIVE).unlink()
    torchmeta(tmp_path)
    check(published.load(FC100, places, "oreshkin"), "fc100")
    published.load(CIFAR_FS, places, "bertinetto")
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 2
    split_pickles(tmp_path, "fc100", "FC100")
    shutil.rmtree(tmp_path / "cifar100")
    check(published.load(FC100, places, "oreshkin"), "fc100", named=False)


def refused(data_dir: Path, message: str, download: bool = False) -> None:
    with pytest.raises(UserError, match=message):
        published.load(CIFAR_FS, DataPaths(data_dir, data_dir.parent / "cache", download), "bertinetto")


def test_nothing_found_says_what_to_put_where(tmp_path: Path) -> None:
    refused(
        tmp_path, rf"{tmp_path}: cifar_fs not found \(looked in {tmp_path}/cifar-100-python, .*put there .*https://"
    )
    refused(tmp_path / "none", r"none: no such folder; make it")


def test_download_fetches_the_archive(tmp_path: Path, monkeypatch) -> None:
    asked = []

    def fetch(address: str, md5: str, folder: Path) -> None:
        asked.append((address, md5))
        archive(folder)

    monkeypatch.setattr(published, "fetch", fetch)
    check(published.load(CIFAR_FS, DataPaths(tmp_path, tmp_path / "cache", True), "bertinetto"), "cifar_fs")
    assert asked == [("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85")]


class Exploit:
    """Runs a command when it is unpickled by Python's own unpickler."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("place", ["alone", "archive"])
def test_a_malicious_pickle_is_refused_and_does_not_run(tmp_path: Path, monkeypatch, place: str) -> None:
    mark = tmp_path / "ran"
    harm = pickle.dumps({"data": Exploit(mark)})
    whole = {**official(), "test": harm}
    monkeypatch.setattr(f"{__name__}.official", lambda: whole)
    (pickles if place == "alone" else archive)(tmp_path)
    refused(tmp_path, r"test: not a pickle of arrays.*posix\.system|nt\.system")
    assert not mark.exists()
    pickle.loads(harm)
    assert mark.exists()  # Python's own unpickler does run it


@pytest.mark.parametrize(
    ("part", "content", "message"),
    [
        ("train", b"<!DOCTYPE html>", r"train: a web page, not data"),
        ("train", official()["train"][:-40], r"train: not a pickle of arrays, or damaged"),
        ("train", pickle.dumps([1, 2]), r"train: not CIFAR-100's pickle, or damaged .it holds no 'data'"),
        (
            "meta",
            pickle.dumps({"fine_label_names": 3}),
            r"meta: not CIFAR-100's pickle, or damaged .it holds no 'fine",
        ),
    ],
    ids=["a web page", "truncated", "another pickle", "another type"],
)
def test_damaged_pickles_are_named(tmp_path: Path, part: str, content: bytes, message: str) -> None:
    pickles(tmp_path)
    (tmp_path / FOLDER / part).write_bytes(content)
    refused(tmp_path, message)


@pytest.mark.parametrize("damage", [lambda whole: whole[:2000], lambda whole: b"<html>" + whole], ids=["cut", "page"])
def test_damaged_archives_are_named(tmp_path: Path, damage) -> None:
    archive(tmp_path)
    path = tmp_path / ARCHIVE
    path.write_bytes(damage(path.read_bytes()))
    refused(tmp_path, rf"{ARCHIVE}: (a web page|not CIFAR-100's archive, or damaged)")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda file: file.__delitem__("superclass 0/apple"), r"99 classes"),
        (lambda file: file.move("superclass 0/apple", "superclass 1/fig"), r"1 of its classes"),
        (lambda file: file.copy("superclass 0/apple", "superclass 1/apple"), r"it has a class twice"),
        (lambda file: file.__setitem__("superclass 0/x", h5py.ExternalLink("/dev/zero", "x")), r"is a link"),
        (lambda file: file.__setitem__("superclass 0/x", h5py.SoftLink("/superclass 0/apple")), r"is a link"),
        (lambda file: file.__setitem__("superclass 0/x", np.zeros(3)), r"is float64 \(3,\), not uint8 \[n, height"),
        (lambda file: file.__setitem__("x", np.zeros((1, 2, 2), np.uint8)), r"'x' is not an array of pictures in"),
        (lambda file: file.create_group("superclass 0/x"), r"'superclass 0/x' is not an array of pictures in"),
    ],
)
def test_another_hdf5_file_is_refused(tmp_path: Path, change, message: str) -> None:
    torchmeta(tmp_path)
    with h5py.File(tmp_path / "cifar100" / "data.hdf5", "r+") as file:
        change(file)
    refused(tmp_path, message)


def test_a_damaged_hdf5_file_is_named(tmp_path: Path) -> None:
    torchmeta(tmp_path)
    path = tmp_path / "cifar100" / "data.hdf5"
    path.write_bytes(path.read_bytes()[:9000])
    refused(tmp_path, r"data\.hdf5: not an HDF5 file of pictures, or damaged")


def test_a_class_list_without_its_folder_is_named(tmp_path: Path) -> None:
    class_folders(tmp_path)
    for file in (tmp_path / "cifar100" / "data" / "whale").iterdir():
        file.unlink()
    refused(tmp_path, r"test\.txt: lists 'whale', but .*/data/whale holds no pictures")


@pytest.mark.slow
def test_the_real_data(tmp_path: Path) -> None:
    place = os.environ.get("METARUN_TEST_DATA")
    if not place:
        pytest.skip("METARUN_TEST_DATA is not set: it names the folder that holds cifar-100-python/")
    found = published.load(CIFAR_FS, DataPaths(Path(place), tmp_path, False), "bertinetto")
    assert found.images.shape == (60000, 3, 32, 32) and (found.count == 600).all()
    np.testing.assert_allclose(found.mean, (0.507, 0.487, 0.441), atol=0.01)  # CIFAR-100's own, as everybody has them
    np.testing.assert_allclose(found.std, (0.267, 0.256, 0.276), atol=0.01)
