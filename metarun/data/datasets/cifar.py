"""CIFAR-FS and FC100: the 100 classes of CIFAR-100 (Krizhevsky 2009), 600 pictures each, divided in two ways.

CIFAR-FS: Bertinetto et al. 2019, arXiv 1805.08136. FC100: Oreshkin et al. 2018, arXiv 1805.10123; its splits share no
superclass. Both use the training and the test pictures of CIFAR-100 together.
"""

from __future__ import annotations

import gzip
import tarfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from metarun.data.cache import Contents
from metarun.data.datasets.published import PublishedDataset
from metarun.data.datasets.published import load as load_known
from metarun.data.formats.archives import LastReadFile
from metarun.data.formats.arrays import (
    field,
    make_format,
    numbers,
    of_categories,
    raise_user_error,
    same_count,
    split_files,
    text,
)
from metarun.data.formats.detect import DataPaths, FormatDetector, FoundFormat
from metarun.data.formats.image_folders import listed_folders, split_folders
from metarun.data.formats.pickles import load_pickle, read_pickle, refuse_web_page
from metarun.data.formats.torchmeta import grouped_hdf5
from metarun.data.image_set import ImageSet
from metarun.data.image_spec import ImageSpec

LOOK = ImageSpec(size=32, channels=3)
FOLDER = "cifar-100-python"
ARCHIVE = f"{FOLDER}.tar.gz"
ADDRESS = f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}"
MD5 = "eb9058c3a382ffc7106e4002c42a8d85"
MOST = 2**28  # bytes of a pickle in the archive: the largest has 155 million
PARTS = ("train", "test", "meta")


def load_cifar_fs(places: DataPaths, split: str, look: ImageSpec | None = None) -> ImageSet:
    """CIFAR-FS, from any form below data_dir: uint8 [60000, 3, 32, 32].

    Raises:
        UserError: files are missing, damaged or not to be fetched; cache_dir cannot be written.
    """
    return load_known(CIFAR_FS, places, split, look)


def load_fc100(places: DataPaths, split: str, look: ImageSpec | None = None) -> ImageSet:
    """FC100, from any form below data_dir: uint8 [60000, 3, 32, 32]. Raises UserError as `load_cifar_fs`."""
    return load_known(FC100, places, split, look)


# --- CIFAR-100 itself --------------------------------------------------------------------------------------


def cifar_100(folder: Path) -> FoundFormat | None:
    """The pickles train, test and meta, as they are in the official archive."""
    files = [folder / part for part in PARTS]
    if not all(file.is_file() for file in files):
        return None

    def contents(_: ExitStack) -> Contents:
        return of_cifar_100(*((file, load_pickle(file)) for file in files))

    return FoundFormat("CIFAR-100's pickles", files, contents)


def cifar_archive(folder: Path) -> FoundFormat | None:
    """The official archive as it is: its three pickles are read in place, and nothing is unpacked."""
    path = folder / ARCHIVE
    if not path.is_file():
        return None

    def contents(_: ExitStack) -> Contents:
        with raise_user_error(path, "CIFAR-100's archive"):
            with path.open("rb") as file:
                refuse_web_page(file.read(512), path)
            with gzip.open(path) as file, tarfile.open(fileobj=LastReadFile(file, MOST), mode="r:") as archive:  # pyright: ignore
                return of_cifar_100(*(member(archive, path, part) for part in PARTS))

    return FoundFormat("CIFAR-100's archive", [path], contents)


def member(archive: tarfile.TarFile, path: Path, part: str) -> tuple[Path, Any]:
    info = archive.getmember(f"{FOLDER}/{part}")
    file = archive.extractfile(info) if info.isreg() and info.size <= MOST else None
    if file is None:
        raise ValueError(f"{FOLDER}/{part} is no file in it of up to {MOST} bytes")
    place = path / FOLDER / part
    return place, read_pickle(file, place)  # pyright: ignore[reportArgumentType]


def of_cifar_100(train: tuple[Path, Any], test: tuple[Path, Any], meta: tuple[Path, Any]) -> Contents:
    names = field(*meta, "fine_label_names", list)
    halves = []
    for path, content in (train, test):
        rows, labels = field(path, content, "data", np.ndarray), field(path, content, "fine_labels", list)
        with raise_user_error(path, "CIFAR-100's pickle"):
            images = np.asarray(rows).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            labels = numbers(path, "fine_labels", labels)
            if images.dtype != np.uint8 or not set(labels.tolist()) <= set(range(len(names))):
                raise ValueError(f"{images.dtype} pictures of the classes {labels.min()} to {labels.max()}")
        same_count(path, len(images), path, len(labels))
        halves.append((path, images, labels))
    images = ((f"{path}[{i}]", row) for path, rows, _ in halves for i, row in enumerate(rows))
    return Contents([text(name) for name in names], np.concatenate([labels for _, _, labels in halves]), images)


# --- the two divisions of it -------------------------------------------------------------------------------


def split_pickles(folder: Path, prefix: str) -> FoundFormat | None:
    """MetaOptNet's PREFIX_train.pickle, _val, _test, which know their classes by number only."""
    return make_format("a pickle for each split", split_files(folder, f"{prefix}_{{}}.pickle"), of_categories)


def known(dataset: str, prefix: str, folders: tuple[str, ...], *others: FormatDetector) -> PublishedDataset:
    return PublishedDataset(
        dataset=dataset,
        look=LOOK,
        folders=(FOLDER, *folders),
        finders=(cifar_100, cifar_archive, partial(split_pickles, prefix=prefix), grouped_hdf5, *others),
        remedy=f"{ARCHIVE} from {ADDRESS}, unpacked or not (download=true fetches it), or {prefix}_train.pickle, "
        f"{prefix}_val.pickle and {prefix}_test.pickle, or Torchmeta's cifar100/data.hdf5 with its lists",
        official=(ADDRESS, MD5),
        kept_as="cifar",
    )


CIFAR_FS = known(
    *(
        "cifar_fs",
        "CIFAR_FS",
        ("CIFAR_FS", "CIFAR-FS", "cifar_fs", "cifar100", "cifarfs/cifar100", "cifarfs/processed"),
    ),
    *(partial(listed_folders, images="data", lists="splits/bertinetto"), split_folders),
)
FC100 = known("fc100", "FC100", ("FC100", "fc100", "cifar100"))
