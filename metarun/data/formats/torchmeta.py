"""Torchmeta's `data.hdf5`: all classes of CIFAR-100 or Omniglot in groups of groups, one array of pictures a class."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from metarun.data.cache import RawDataset
from metarun.data.formats.arrays import check_hdf5_storage, hdf5_images, raise_user_error
from metarun.data.formats.detect import FoundFormat
from metarun.data.formats.pickles import refuse_web_page
from metarun.errors import UserError
from metarun.utils.safe_files import open_regular

HDF5_NAME = "data.hdf5"
LISTS = ("fine_names.json", "train_labels.json", "cifar-fs/train_labels.json", "fc100/train_labels.json")


def grouped_hdf5(folder: Path) -> FoundFormat | None:
    """CIFAR-100 of CIFARFS or FC100: data.hdf5 of <superclass>/<class>, with fine_names.json or lists of labels.

    The lists are not read: the published division is of the same class names.
    """
    path = folder / HDF5_NAME
    if not path.is_file() or not any((folder / name).is_file() for name in LISTS):
        return None

    def contents(stack: ExitStack) -> RawDataset:
        groups = open_groups(path, 2, stack)
        classes = {name.rpartition("/")[2]: found for name, found in groups.items()}
        if len(classes) < len(groups):
            raise UserError(f"{path}: a class stands in it twice; put back the original file")
        labels = np.repeat(np.arange(len(classes)), [len(found) for found in classes.values()])
        return RawDataset(list(classes), labels, hdf5_images(path, classes))

    return FoundFormat("Torchmeta's HDF5 file of CIFAR-100", [path], contents)


def open_groups(path: Path, depth: int, stack: ExitStack) -> dict[str, Any]:
    """The arrays that lie in groups of that depth, by their paths in the file, which the stack closes.

    Raises:
        UserError: it is no HDF5 file, holds links, or anything but uint8 [n, height, width] or [n, height, width, 3].
    """
    import h5py

    with raise_user_error(path, "Torchmeta's HDF5 file"):
        with open_regular(path) as file:
            refuse_web_page(file.read(512), path)
        found = dict(iterate_datasets(stack.enter_context(h5py.File(path, "r", locking=False)), "", depth))
        check_hdf5_storage(path, found.values())
        return found


def iterate_datasets(group: Any, prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
    import h5py

    for name in group:
        place = f"{prefix}{name}"
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise ValueError(f"{place!r} is a link, which no data set needs")
        found = group[name]
        if depth > 1 and isinstance(found, h5py.Group):
            yield from iterate_datasets(found, f"{place}/", depth - 1)
        elif depth > 1 or not isinstance(found, h5py.Dataset):
            raise ValueError(f"{place!r} is not where a class of pictures is wanted")
        elif found.dtype != np.uint8 or found.shape[3:] not in ((), (3,)) or found.ndim < 3 or 0 in found.shape[1:]:
            raise ValueError(f"{place!r} is {found.dtype} {found.shape}, not uint8 pictures")
        else:
            yield place, found
