"""Torchmeta's HDF5 files: one array of pictures for each class, at one depth of groups."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from metarun.data.cache import RawDataset
from metarun.data.formats.arrays import IMAGES_PER_READ, detect_split_files
from metarun.data.formats.detect import FoundFormat
from metarun.data.formats.reading import open_data_file, read_errors
from metarun.data.image_spec import Raw
from metarun.utils.safe_files import read_json, require_room

HDF5_NAME = "data.hdf5"
FILTERS = {1, 2, 3, 4, 5, 6, 32000}  # of HDF5 itself, and LZF, which h5py has
CIFAR_LISTS = ("fine_names.json", "train_labels.json", "cifar-fs/train_labels.json", "fc100/train_labels.json")


def read_split(_: str, files: Sequence[Path], stack: ExitStack) -> RawDataset:
    path, list_path = files
    with read_errors(list_path, "a JSON list of class names"):
        names = read_json(list_path)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("it is no list of names")
        if len(set(names)) < len(names):
            raise ValueError("it has a class twice")
    arrays = open_arrays(path, 2, stack)
    lacking = next((name for name in names if f"datasets/{name}" not in arrays), None)
    if lacking is not None:
        raise ValueError(f"it holds no pictures of the class {lacking!r}")
    return raw_dataset(path, {name: arrays[f"datasets/{name}"] for name in names})


def cifar_hdf5(folder: Path) -> FoundFormat | None:
    """CIFAR-100 of Torchmeta's CIFARFS or FC100: data.hdf5 of <superclass>/<class>, beside lists of labels.

    The lists are not read: the published split has the same class names.
    """
    path, what = folder / HDF5_NAME, "Torchmeta's HDF5 file of CIFAR-100"
    if not path.is_file() or not any((folder / name).is_file() for name in CIFAR_LISTS):
        return None

    def read(stack: ExitStack) -> RawDataset:
        with read_errors(path, what):
            arrays = open_arrays(path, 2, stack)
            classes = {name.rpartition("/")[2]: array for name, array in arrays.items()}
            if len(classes) < len(arrays):
                raise ValueError("it has a class twice")
            return raw_dataset(path, classes)

    return FoundFormat(what, [path], read)


def raw_dataset(path: Path, classes: Mapping[str, Any]) -> RawDataset:
    labels = np.repeat(np.arange(len(classes)), [len(array) for array in classes.values()])
    return RawDataset(list(classes), labels, iterate_images(path, classes))


def iterate_images(path: Path, classes: Mapping[str, Any]) -> Iterator[tuple[str, Raw]]:
    with read_errors(path, "a whole HDF5 file"):
        for name, array in classes.items():
            for first in range(0, len(array), IMAGES_PER_READ):
                for i, row in enumerate(array[first : first + IMAGES_PER_READ], first):
                    yield f"{path}[{name}][{i}]", row.tobytes() if array.ndim == 1 else row


def open_arrays(path: Path, depth: int, stack: ExitStack) -> dict[str, Any]:
    """The arrays in groups of `depth` levels, by their paths in the file, which the stack closes.

    Raises:
        ValueError: the file holds links or anything but pictures: uint8 [n, height, width], [n, height, width, 3], or
            the bytes of n encoded files; it unpacks to far more than its size, or with filters that HDF5 lacks.
    """
    import h5py

    with open_data_file(path, "an HDF5 file of pictures"):
        arrays = dict(iterate_arrays(stack.enter_context(h5py.File(path, "r", locking=False)), "", depth))
        require_room(path, sum(max(a.nbytes, math.prod(a.chunks or ()) * a.dtype.itemsize) for a in arrays.values()))
        return arrays


def iterate_arrays(group: Any, prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
    import h5py

    for name in group:
        place = f"{prefix}{name}"
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise ValueError(f"{place!r} is a link to another place or file")
        item = group[name]
        if depth > 1 and isinstance(item, h5py.Group):
            yield from iterate_arrays(item, f"{place}/", depth - 1)
        elif depth > 1 or not isinstance(item, h5py.Dataset):
            raise ValueError(f"{place!r} is not an array of pictures in a group of classes")
        else:
            check_array(place, item)
            yield place, item


def check_array(place: str, array: Any) -> None:
    import h5py

    stored, shape = array.id.get_create_plist(), array.shape
    if array.external or array.is_virtual:
        raise ValueError(f"{place!r} lies in another file")
    if not {stored.get_filter(i)[0] for i in range(stored.get_nfilters())} <= FILTERS:
        raise ValueError(f"{place!r} needs a filter that HDF5 does not have itself")
    if array.ndim == 1 and h5py.check_vlen_dtype(array.dtype) == np.uint8:  # encoded pictures
        return
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or shape[3:] not in ((), (3,)) or 0 in shape[1:]:
        raise ValueError(f"{place!r} is {array.dtype} {shape}, not uint8 [n, height, width, 3]")


# Torchmeta's {train,val,test}_data.hdf5, with {train,val,test}_labels.json
hdf5_files = partial(
    detect_split_files,
    name="Torchmeta's HDF5 files",
    patterns=("{}_data.hdf5", "{}_labels.json"),
    read=read_split,
)
