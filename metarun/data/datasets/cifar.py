"""CIFAR-FS and FC100: the 100 classes of CIFAR-100 (Krizhevsky 2009), 600 pictures each, divided in two ways.

CIFAR-FS: Bertinetto et al. 2019, arXiv 1805.08136. FC100: Oreshkin et al. 2018, arXiv 1805.10123; its splits share no
superclass. Both use the training and the test pictures of CIFAR-100 together.
"""

import gzip
import tarfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from metarun.data.cache import RawDataset
from metarun.data.datasets.published import PublishedDataset
from metarun.data.formats.archives import LastReadFile
from metarun.data.formats.arrays import (
    check_same_count,
    class_name,
    detect_split_files,
    read_category_pickle,
    require_key,
    to_int64,
)
from metarun.data.formats.detect import FormatDetector, FoundFormat
from metarun.data.formats.hdf5 import cifar_hdf5
from metarun.data.formats.image_folders import listed_folders, split_folders
from metarun.data.formats.pickles import load_pickle, unpickle
from metarun.data.formats.reading import open_data_file, read_errors
from metarun.data.image_spec import ImageSpec

SPEC = ImageSpec(size=32, channels=3)
FOLDER = "cifar-100-python"
ARCHIVE = f"{FOLDER}.tar.gz"
ADDRESS = f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}"
MD5 = "eb9058c3a382ffc7106e4002c42a8d85"
MAX_PICKLE_BYTES = 2**28  # bytes of a pickle in the archive: the largest has 155 million
PICKLES = ("train", "test", "meta")


# --- CIFAR-100 itself --------------------------------------------------------------------------------------


def cifar_pickles(folder: Path) -> FoundFormat | None:
    """Format of the pickles train, test and meta of the official archive."""
    files = [folder / part for part in PICKLES]
    if not all(file.is_file() for file in files):
        return None

    def contents(_: ExitStack) -> RawDataset:
        return read_cifar_100(*((file, load_pickle(file)) for file in files))

    return FoundFormat("CIFAR-100's pickles", files, contents)


def cifar_archive(folder: Path) -> FoundFormat | None:
    """Format of the official archive, whose three pickles are read without unpacking it."""
    path = folder / ARCHIVE
    if not path.is_file():
        return None

    def contents(_: ExitStack) -> RawDataset:
        with open_data_file(path, "CIFAR-100's archive") as file, gzip.open(file) as unzipped:
            bounded: Any = LastReadFile(unzipped, MAX_PICKLE_BYTES)
            with tarfile.open(fileobj=bounded, mode="r:") as archive:
                return read_cifar_100(*(read_archived_pickle(archive, path, part) for part in PICKLES))

    return FoundFormat("CIFAR-100's archive", [path], contents)


def read_archived_pickle(archive: tarfile.TarFile, path: Path, part: str) -> tuple[Path, Any]:
    info = archive.getmember(f"{FOLDER}/{part}")
    file = archive.extractfile(info) if info.isreg() and info.size <= MAX_PICKLE_BYTES else None
    if file is None:
        raise ValueError(f"{FOLDER}/{part} is no file in it of up to {MAX_PICKLE_BYTES} bytes")
    place = path / FOLDER / part
    return place, unpickle(file, place)  # pyright: ignore[reportArgumentType]


def read_cifar_100(train: tuple[Path, Any], test: tuple[Path, Any], meta: tuple[Path, Any]) -> RawDataset:
    with read_errors(meta[0], "CIFAR-100's pickle"):
        names = require_key(meta[1], "fine_label_names", list)
    halves = []
    for path, content in (train, test):
        with read_errors(path, "CIFAR-100's pickle"):
            images = require_key(content, "data", np.ndarray).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            labels = to_int64("fine_labels", require_key(content, "fine_labels", list))
            if images.dtype != np.uint8 or not set(labels.tolist()) <= set(range(len(names))):
                raise ValueError(f"{images.dtype} pictures of the classes {labels.min()} to {labels.max()}")
            check_same_count(len(images), len(labels), path)
        halves.append((path, images, labels))
    images = ((f"{path}[{i}]", row) for path, rows, _ in halves for i, row in enumerate(rows))
    return RawDataset([class_name(name) for name in names], np.concatenate([labels for _, _, labels in halves]), images)


# --- the two divisions of it -------------------------------------------------------------------------------


def cifar_dataset(name: str, prefix: str, folders: tuple[str, ...], *others: FormatDetector) -> PublishedDataset:
    split_pickles = partial(  # MetaOptNet's, whose classes have numbers only
        detect_split_files,
        name="a pickle for each split",
        patterns=(f"{prefix}_{{}}.pickle",),
        read=read_category_pickle,
    )
    return PublishedDataset(
        name=name,
        spec=SPEC,
        folders=(FOLDER, *folders),
        detectors=(cifar_pickles, cifar_archive, split_pickles, cifar_hdf5, *others),
        remedy=f"{ARCHIVE} from {ADDRESS}, unpacked or not (download=true fetches it), or {prefix}_train.pickle, "
        f"{prefix}_val.pickle and {prefix}_test.pickle, or Torchmeta's cifar100/data.hdf5 with its lists",
        official=(ADDRESS, MD5),
        cache_name="cifar",
    )


CIFAR_FS = cifar_dataset(
    "cifar_fs",
    "CIFAR_FS",
    ("CIFAR_FS", "CIFAR-FS", "cifar_fs", "cifar100", "cifarfs/cifar100", "cifarfs/processed"),
    partial(listed_folders, images="data", lists="splits/bertinetto"),
    split_folders,
)
FC100 = cifar_dataset("fc100", "FC100", ("FC100", "fc100", "cifar100"))
