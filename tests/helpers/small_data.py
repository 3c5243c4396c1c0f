"""Every data set that cannot be made or downloaded in a test, in miniature: all its classes, two tiny pictures each."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from metarun.data.splits import published_splits
from metarun.data.task_sampler import SPLITS

EACH = 2  # pictures of a class
SHAPE = ["queries=1", "eval.queries=1"]  # of tasks that they are enough for


def write(data_dir: Path) -> None:
    """CUB and mini- and tieredImageNet as image files, CIFAR-100 as its pickles, and `pictures` of one's own."""
    for dataset, split in (("miniimagenet", "ravi"), ("tieredimagenet", "ren")):
        for part, names in published_splits(dataset)[split].items():
            pictures(data_dir / dataset / part, names)
    birds = published_splits("cub")["closerlook"]
    pictures(data_dir / "CUB_200_2011" / "images", [name for part in SPLITS for name in birds[part]])
    pictures(data_dir / "pictures", [f"class {i}" for i in range(25)], each=5)
    cifar(data_dir / "cifar-100-python")


def pictures(folder: Path, names: Sequence[str], each: int = EACH) -> None:
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for i in range(each):
            Image.new("RGB", (20, 16), (number % 256, 50 * i, 90)).save(folder / name / f"{i}.png")


def cifar(folder: Path) -> None:
    names = sorted(name for part in published_splits("fc100")["oreshkin"].values() for name in part)
    rows = np.random.default_rng(0).integers(0, 256, (100, 3072), dtype=np.uint8)
    half = {"data": rows, "fine_labels": list(range(100))}
    folder.mkdir(parents=True)
    for part, content in (("train", half), ("test", half), ("meta", {"fine_label_names": names})):
        (folder / part).write_bytes(pickle.dumps(content, protocol=2))
