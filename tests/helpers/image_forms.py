"""mini-ImageNet, tieredImageNet and CUB in miniature: all classes, two pictures each, in every form on disk."""

from __future__ import annotations

import csv
import io
import json
import pickle
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np
from PIL import Image

from metarun.data.splits import ClassSplits, published_splits
from metarun.data.task_sampler import SPLITS

DIVISION = {"miniimagenet": "ravi", "tieredimagenet": "ren", "cub": "closerlook"}
MARKED = 70  # the class whose second picture is of four colours
Write = Callable[[Path, ClassSplits], object]


def colour(number: int) -> tuple[int, int, int]:
    """Of all other pictures of the class, which no two classes share."""
    return number % 26 * 10, number // 26 * 10, 200


def picture(number: int, index: int, size: int) -> np.ndarray:
    found = np.full((size, size, 3), colour(number), np.uint8)
    if (number, index) == (MARKED, 1):
        half = size // 2
        found[:half, :half], found[:half, half:], found[half:, :half] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    return found


def names_of(dataset: str) -> ClassSplits:
    return published_splits(dataset)[DIVISION[dataset]]


def classes(names: ClassSplits) -> Iterator[tuple[str, int, int, str]]:
    """Split, the class's number in it, its number in all, name."""
    number = 0
    for split in SPLITS:
        for i, name in enumerate(names[split]):
            yield split, i, number, name
            number += 1


def encoded(number: int, index: int, kind: str) -> bytes:
    file = io.BytesIO()
    array = picture(number, index, 84 if (number, index) == (MARKED, 1) else 4)
    Image.fromarray(array).save(file, kind, **({"quality": 95, "subsampling": 0} if kind == "JPEG" else {}))
    return file.getvalue()


def put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


# --- pickles, as several writers make them -----------------------------------------------------------------


class Python2(pickle._Pickler):  # the C pickler's types cannot be replaced
    """Writes text and bytes alike as Python 2's str."""

    dispatch: ClassVar[dict[Any, Any]] = dict(pickle._Pickler.dispatch)  # pyright: ignore[reportAttributeAccessIssue]

    def save_string(self, obj: bytes | str) -> None:
        content = obj if isinstance(obj, bytes) else obj.encode("latin1")
        self.write(b"T" + struct.pack("<i", len(content)) + content)  # pyright: ignore[reportAttributeAccessIssue]
        self.memoize(obj)  # pyright: ignore[reportAttributeAccessIssue]

    dispatch[bytes] = dispatch[str] = save_string


def python2(content: Any) -> bytes:
    file = io.BytesIO()
    Python2(file, 2).dump(content)
    return file.getvalue().replace(b"numpy._core", b"numpy.core")


def protocol2(content: Any) -> bytes:
    return pickle.dumps(content, 2)


def protocol4(content: Any) -> bytes:
    return pickle.dumps(content, 4)


def protocol5(content: Any) -> bytes:
    return pickle.dumps(content, 5)


def part(names: ClassSplits, split: str, size: int = 84) -> tuple[np.ndarray, list[int]]:
    """uint8 [2 a class, size, size, 3] and the class's number in its split of each; first pictures come first."""
    own = [(i, number) for s, i, number, _ in classes(names) if s == split]
    pictures = [picture(number, index, size) for index in range(2) for _, number in own]
    return np.stack(pictures), [i for _ in range(2) for i, _ in own]


# --- the forms of mini-ImageNet ----------------------------------------------------------------------------


def write_cache(folder: Path, names: ClassSplits, val: str = "val", dumps: Callable[[Any], bytes] = protocol2) -> None:
    for split in SPLITS:
        images, labels = part(names, split)
        indices = {name: [n for n, label in enumerate(labels) if label == i] for i, name in enumerate(names[split])}
        content = {"image_data": images, "class_dict": indices}
        put(folder / f"mini-imagenet-cache-{val if split == 'val' else split}.pkl", dumps(content))


def write_categories(
    folder: Path, names: ClassSplits, words: bool = True, dumps: Callable[[Any], bytes] = protocol2
) -> None:
    before = 0
    for split, stem in zip(SPLITS, ("train_phase_train", "val", "test"), strict=True):
        images, labels = part(names, split)
        content: dict[str, Any] = {"data": images, "labels": [before + label for label in labels]}
        if words:  # in an order of its own
            content["catname2label"] = {name: before + i for i, name in reversed(list(enumerate(names[split])))}
            before += len(names[split])
        put(folder / f"miniImageNet_category_split_{stem}.pickle", dumps(content))


def write_hdf5(folder: Path, names: ClassSplits, kind: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        with h5py.File(folder / f"{split}_data.hdf5", "w") as file:
            group = file.create_group("datasets")
            for whose, _, number, name in classes(names):
                if whose == split and kind:
                    data = group.create_dataset(name, (2,), dtype=h5py.vlen_dtype(np.uint8))
                    for index in range(2):
                        data[index] = np.frombuffer(encoded(number, index, kind), np.uint8)
                elif whose == split:
                    group.create_dataset(name, data=np.stack([picture(number, index, 84) for index in range(2)]))
        (folder / f"{split}_labels.json").write_text(json.dumps(sorted(names[split])))


def write_csv(folder: Path, names: ClassSplits, columns: tuple[str, str]) -> None:
    for split in SPLITS:
        rows = [columns]
        for whose, _, number, name in classes(names):
            for index in range(2) if whose == split else ():
                file = f"{name}{index:08}.jpg"
                put(folder / "images" / file, encoded(number, index, "JPEG"))
                rows.append((file, name) if columns[0] == "filename" else (name, file))
        with (folder / f"{split}.csv").open("w", newline="") as listed:
            csv.writer(listed).writerows(rows)


def write_folders(folder: Path, names: ClassSplits, splits: bool = True, kind: str = "JPEG") -> None:
    for split, _, number, name in classes(names):
        for index in range(2):
            place = folder / split / name if splits else folder / name
            put(place / f"{name}_{index}.jpg", encoded(number, index, kind))


# --- the forms of tieredImageNet ---------------------------------------------------------------------------


def write_labels(folder: Path, names: ClassSplits, words: bool, dumps: Callable[[Any], bytes] = protocol2) -> None:
    for split in SPLITS:
        count = len(names[split])
        general = {"label_general": np.arange(2 * count) % 5, "label_general_str": list("abcde")}
        specific = {
            "label_specific": np.tile(np.arange(count), 2),
            "label_specific_str": names[split] if words else ["crane"] * count,
        }
        put(folder / f"{split}_labels.pkl", dumps(general | specific))


def write_pngs(
    folder: Path, names: ClassSplits, dumps: Callable[[Any], bytes], arrays: bool = True, words: bool = True
) -> None:
    write_labels(folder, names, words, dumps)
    for split in SPLITS:
        own = [number for whose, _, number, _ in classes(names) if whose == split]
        pngs = [encoded(number, index, "PNG") for index in range(2) for number in own]
        listed = [np.frombuffer(png, np.uint8).reshape(-1, 1).copy() for png in pngs] if arrays else pngs
        put(folder / f"{split}_images_png.pkl", dumps(listed))


def write_npz(folder: Path, names: ClassSplits, save: Callable[..., None], labels: str = "labels") -> None:
    write_labels(folder, names, words=True)
    for split in SPLITS:
        images, own = part(names, split, 84 if len(names[split]) > MARKED else 8)
        save(folder / f"{split}_images.npz", images=images[:, :, :, ::-1])  # as OpenCV has it
        if labels == "labels":
            put(folder / f"{split}_labels.pkl", pickle.dumps({"labels": own}, 2))


# --- the forms of CUB, and archives ------------------------------------------------------------------------


def write_birds(folder: Path, names: ClassSplits) -> None:
    write_folders(folder / "images", names, splits=False)
    put(folder / "images.txt", b"1 001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.jpg")


def write_lists(folder: Path, names: ClassSplits) -> None:
    """CloserLook's, which hold the paths of the machine that they were written on."""
    birds = folder.parent / "elsewhere" / "CUB_200_2011"
    write_birds(birds, names)
    listed = [name for part in names.values() for name in part]
    for split, stem in zip(SPLITS, ("base", "val", "novel"), strict=True):
        own = [(name, i) for name in names[split] for i in range(2)]
        lists = {
            "label_names": listed,
            "image_names": [str(birds / "images" / name / f"{name}_{i}.jpg") for name, i in own],
            "image_labels": [listed.index(name) for name, _ in own],
        }
        put(folder / f"{stem}.json", json.dumps(lists).encode())


def pack(write: Write, archive: str, inside: str = "") -> Write:
    """What `write` writes, in an archive, with `inside` in front of each name."""

    def packed(folder: Path, names: ClassSplits) -> None:
        whole = folder.parent / "whole"
        write(whole / inside, names)
        folder.mkdir(parents=True)
        if archive.endswith(".zip"):
            with zipfile.ZipFile(folder / archive, "w") as zipped:
                for path in sorted(whole.rglob("*")):
                    zipped.write(path, path.relative_to(whole))
        else:
            with tarfile.open(folder / archive, "w" if archive.endswith(".tar") else "w:gz") as tarred:
                tarred.add(whole, ".")
        shutil.rmtree(whole)

    return packed
