"""Every form of a few large files, as small as can be: three classes and four pictures in each split."""

from __future__ import annotations

import io
import os
import pickle
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from metarun.data.formats.arrays import cache_pickles, category_pickles, npz_files, png_pickles
from metarun.data.formats.detect import FormatDetector
from metarun.data.formats.hdf5 import hdf5_files
from metarun.data.image_spec import Raw
from metarun.data.task_sampler import SPLITS
from metarun.errors import UserError
from tests.helpers.image_forms import put

LABELS = [2, 0, 1, 0]  # of each split's four pictures
STEMS = {"train": "train_phase_train", "val": "val", "test": "test"}


class Exploit:
    """What a pickle does that runs a command when it is read."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.proof}",)


def pictures() -> np.ndarray:
    """uint8 [4, 6, 5, 3], all different."""
    return np.random.default_rng(0).integers(0, 256, (len(LABELS), 6, 5, 3), np.uint8)


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def listed_pngs() -> list[np.ndarray]:
    """As OpenCV encodes pictures: uint8 [bytes, 1]."""
    return [np.frombuffer(png(picture), np.uint8).reshape(-1, 1).copy() for picture in pictures()]


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
    return file.getvalue()


def hdf5(path: Path, **options: Any) -> None:
    with h5py.File(path, "w") as file:
        for number, name in enumerate("abc"):
            own = [i for i, label in enumerate(LABELS) if label == number]
            file.create_dataset(f"datasets/{name}", data=pictures()[own], **options)


def write(folder: Path, kind: str, split: str) -> Path:
    """One split's files in one form; the path of the one with the pictures."""
    labels = pickle.dumps({"label_specific": np.array(LABELS), "label_specific_str": ["x", "y", "z"]}, 2)
    if kind == "cache":
        indices = {f"{split}-{name}": [i for i, n in enumerate(LABELS) if n == k] for k, name in enumerate("xyz")}
        path = folder / f"mini-imagenet-cache-{split}.pkl"
        put(path, pickle.dumps({"image_data": pictures(), "class_dict": indices}, 2))
    elif kind == "categories":
        path = folder / f"miniImageNet_category_split_{STEMS[split]}.pickle"
        put(path, pickle.dumps({"data": pictures(), "labels": LABELS}, 2))
    elif kind == "pngs":
        path = folder / f"{split}_images_png.pkl"
        put(path, pickle.dumps(listed_pngs(), 2))
        put(folder / f"{split}_labels.pkl", labels)
    elif kind == "npz":
        path = folder / f"{split}_images.npz"
        put(path, npz(images=pictures()))
        put(folder / f"{split}_labels.pkl", labels)
    else:
        path = folder / f"{split}_data.hdf5"
        folder.mkdir(exist_ok=True)
        hdf5(path, compression="gzip")
        put(folder / f"{split}_labels.json", b'["a", "b", "c"]')
    return path


FINDERS: dict[str, FormatDetector] = {
    "cache": cache_pickles,
    "categories": category_pickles,
    "pngs": png_pickles,
    "npz": npz_files,
    "hdf5": hdf5_files,
}


def folder_of(kind: str, folder: Path) -> Path:
    """All three splits; the path of the validation pictures."""
    return {split: write(folder, kind, split) for split in SPLITS}["val"]


def read(kind: str, folder: Path) -> tuple[list[str], list[int], list[tuple[str, Raw]]]:
    """Class names, labels and pictures, which are as many."""
    found = FINDERS[kind](folder)
    assert found is not None
    with ExitStack() as stack:
        contents = found.read(stack)
        pairs = list(zip(contents.labels, contents.images, strict=True))  # as they are prepared
        return list(contents.names), [int(label) for label, _ in pairs], [image for _, image in pairs]


def refusal(kind: str, folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        read(kind, folder)
    message = str(caught.value)
    assert "\n" not in message
    return message
