"""Data sets that lie in one large file, or two, for each split: pickles of arrays, and HDF5."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metarun.data.cache import RawDataset
from metarun.data.formats.detect import FoundFormat
from metarun.data.formats.pickles import load_pickle, refuse_web_page
from metarun.data.image_spec import Raw
from metarun.data.task_sampler import SPLITS
from metarun.errors import UserError
from metarun.utils.safe_files import open_regular, read_json, require_room

HDF5_FILTERS = {1, 2, 3, 4, 5, 6, 32000}  # of HDF5 itself, and LZF, which h5py has
IMAGES_PER_READ = 64  # pictures that are read at a time
AGAIN = "put back the original file"


class SplitArrays(NamedTuple):
    """One split."""

    names: Sequence[str]  # of its classes
    labels: np.ndarray  # int64 [images]: each one's class
    images: Iterable[tuple[str, Raw]]  # in the same order


# --- finders -----------------------------------------------------------------------------------------------


def cache_pickles(folder: Path) -> FoundFormat | None:
    """Ren's mini-imagenet-cache-{train,val,test}.pkl of `image_data` and `class_dict`."""
    return make_format(
        "Ren's pickles of mini-ImageNet", split_files(folder, "mini-imagenet-cache-{}.pkl"), read_cache_pickle
    )


def category_pickles(folder: Path) -> FoundFormat | None:
    """MetaOptNet's miniImageNet_category_split_{train_phase_train,val,test}.pickle of `data` and `labels`."""
    parts = ("train_phase_train", "val", "test")
    files = split_files(folder, "miniImageNet_category_split_{}.pickle", parts)
    return make_format("MetaOptNet's pickles of mini-ImageNet", files, read_category_pickle)


def hdf5_files(folder: Path) -> FoundFormat | None:
    """Torchmeta's {train,val,test}_data.hdf5, one data set a class, with {train,val,test}_labels.json."""
    return make_format("Torchmeta's HDF5 files", split_files(folder, "{}_data.hdf5 {}_labels.json"), read_hdf5)


def split_files(folder: Path, patterns: str, parts: Sequence[str] = SPLITS) -> list[list[Path]] | None:
    """The files of each split, one for each pattern, or None where any is missing; val may be called validation."""
    for val in (parts[1], "validation"):
        names = [part if part != parts[1] else val for part in parts]
        found = [[folder / pattern.format(name) for pattern in patterns.split()] for name in names]
        if all(file.is_file() for files in found for file in files):
            return found
    return None


def make_format(
    name: str, found: list[list[Path]] | None, read: Callable[[str, Sequence[Path], ExitStack], SplitArrays]
) -> FoundFormat | None:
    if found is None:
        return None

    def contents(stack: ExitStack) -> RawDataset:
        return merge_splits([read(split, files, stack) for split, files in zip(SPLITS, found, strict=True)])

    return FoundFormat(name, [file for files in found for file in files], contents)


def merge_splits(parts: Sequence[SplitArrays]) -> RawDataset:
    """The splits' classes one after another; names get their split in front where one stands in two splits."""
    names = [name for part in parts for name in part.names]
    if len(set(names)) < len(names):
        names = [f"{split}/{name}" for split, part in zip(SPLITS, parts, strict=True) for name in part.names]
    ends = np.cumsum([len(part.names) for part in parts]).tolist()
    begins = [0, *ends[:-1]]
    labels = np.concatenate([part.labels + begin for part, begin in zip(parts, begins, strict=True)])
    splits = {split: names[begin:end] for split, begin, end in zip(SPLITS, begins, ends, strict=True)}
    return RawDataset(names, labels, chain.from_iterable(part.images for part in parts), splits)


# --- pickles that fit in memory ----------------------------------------------------------------------------


def read_cache_pickle(_: str, files: Sequence[Path], __: ExitStack) -> SplitArrays:
    (path,) = files
    content = load_pickle(path)
    images, classes = require_images(path, content, "image_data"), require_key(path, content, "class_dict", dict)
    if sum(len(rows) for rows in classes.values() if isinstance(rows, list | np.ndarray)) > len(images):
        raise UserError(f"{path}: its class_dict lists more than its {len(images)} images; {AGAIN}")
    rows = [to_int64(path, f"class_dict[{class_name(name)!r}]", indices) for name, indices in classes.items()]
    every = np.concatenate([np.zeros(0, np.int64), *rows])
    if not np.array_equal(np.sort(every), np.arange(len(images))):
        raise UserError(f"{path}: its class_dict does not give each of its {len(images)} images one class; {AGAIN}")
    labels = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    return SplitArrays(
        [class_name(name) for name in classes], labels, ((f"{path}[{i}]", images[i]) for i in every.tolist())
    )


def read_category_pickle(split: str, files: Sequence[Path], _: ExitStack) -> SplitArrays:
    (path,) = files
    content = load_pickle(path)
    images, labels = require_images(path, content, "data"), to_int64(path, "labels", get_key(content, "labels"))
    check_same_count(path, len(images), path, len(labels))
    known = get_key(content, "catname2label")
    pairs = known.items() if isinstance(known, dict) else ()
    words = {number: class_name(name) for name, number in pairs if isinstance(number, int)}
    return SplitArrays(*name_classes(split, labels, words), ((f"{path}[{i}]", image) for i, image in enumerate(images)))


def get_key(content: Any, key: str) -> Any:
    """A dict's value of that name, in whichever kind of string Python 2 or 3 wrote it, or None."""
    return content.get(key, content.get(key.encode())) if isinstance(content, dict) else None


def require_key(path: Path, content: Any, key: str, kind: type) -> Any:
    found = get_key(content, key)
    if not isinstance(found, kind):
        raise UserError(f"{path}: holds no {key!r}; it is not the file that its name says")
    return found


def class_name(name: Any) -> str:
    """A class's name; nothing where it is neither text nor a number."""
    if isinstance(name, bytes):
        return name.decode("latin1")
    return str(name) if isinstance(name, str | int | float) else ""


def require_images(path: Path, content: Any, key: str) -> np.ndarray:
    images = require_key(path, content, key, np.ndarray)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape[1:]:
        raise UserError(
            f"{path}: its {key!r} is {images.dtype} {images.shape}, not uint8 [N, height, width, 3]; {AGAIN}"
        )
    return images


def to_int64(path: Path, key: str, found: Any) -> np.ndarray:
    """A list or an array of whole numbers as int64 [N]."""
    with raise_user_error(path, "the file that its name says"):
        if isinstance(found, list) and any(isinstance(entry, list | tuple | dict) for entry in found):
            raise ValueError(f"{key} is not a list of whole numbers")  # which few bytes can nest without end
        array = np.asarray(found)
        if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
            raise ValueError(f"{key} is not a list of whole numbers")
        return array.astype(np.int64)


def name_classes(split: str, found: np.ndarray, words: Mapping[Any, str]) -> tuple[list[str], np.ndarray]:
    """The classes' names, which are SPLIT/NUMBER unless words have one for each; and int64 [images], each one's."""
    own, labels = np.unique(found, return_inverse=True)
    names = [words.get(number, "") for number in own.tolist()]
    if "" in names or len(set(names)) < len(names):
        names = [f"{split}/{number}" for number in own.tolist()]
    return names, labels


def check_same_count(path: Path, images: int, labels_path: Path, labels: int) -> None:
    if images != labels:
        raise UserError(f"{path}: holds {images} images, but {labels_path.name} has {labels} labels; {AGAIN}s")


# --- HDF5 --------------------------------------------------------------------------------------------------


def read_hdf5(_: str, files: Sequence[Path], stack: ExitStack) -> SplitArrays:
    path, list_path = files
    with raise_user_error(list_path, "a JSON list of class names"):
        names = read_json(list_path)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("it is no list of names")
        if len(set(names)) < len(names):
            raise ValueError("a class stands in it twice")
    with raise_user_error(path, "an HDF5 file of pictures"):
        with open_regular(path) as file:
            refuse_web_page(file.read(512), path)
        import h5py

        file = stack.enter_context(h5py.File(path, "r", locking=False))
        classes = {name: hdf5_class(file, name) for name in names}
        check_hdf5_storage(path, classes.values())
        labels = np.repeat(np.arange(len(names)), [len(found) for found in classes.values()])
    return SplitArrays(names, labels, hdf5_images(path, classes))


def hdf5_class(file: Any, name: str) -> Any:
    """The pictures of a class: uint8 [n, height, width, 3], or n files' bytes. Raises ValueError for anything else."""
    import h5py

    found = file
    for part in ("datasets", name):
        link = None if "/" in part else found.get(part, getlink=True)  # which does not follow it
        if link is None:
            raise ValueError(f"it holds no pictures of the class {name!r}")
        if not isinstance(link, h5py.HardLink):
            raise ValueError(f"the pictures of the class {name!r} lie in another file or place")
        found = found[part]
    if not isinstance(found, h5py.Dataset):
        raise ValueError(f"it holds no pictures of the class {name!r}")
    encoded = found.ndim == 1 and h5py.check_vlen_dtype(found.dtype) == np.uint8
    if not encoded and (found.dtype != np.uint8 or found.ndim != 4 or found.shape[3] != 3 or 0 in found.shape[1:]):
        raise ValueError(f"the class {name!r} is {found.dtype} {found.shape}, not uint8 [n, height, width, 3]")
    return found


def check_hdf5_storage(path: Path, found: Iterable[Any]) -> None:
    """Raises ValueError where HDF5 datasets are not stored in the file itself, by HDF5's own filters, at their size."""
    unpacked = 0
    for one in found:
        stored, name = one.id.get_create_plist(), one.name.rpartition("/")[2]
        if one.external or one.is_virtual:
            raise ValueError(f"the pictures of the class {name!r} lie in another file")
        if not {stored.get_filter(i)[0] for i in range(stored.get_nfilters())} <= HDF5_FILTERS:
            raise ValueError(f"the pictures of the class {name!r} need a filter that HDF5 does not have itself")
        unpacked += max(one.nbytes, math.prod(one.chunks or ()) * one.dtype.itemsize)
    require_room(path, unpacked)


def hdf5_images(path: Path, classes: Mapping[str, Any]) -> Iterator[tuple[str, Raw]]:
    with raise_user_error(path, "a whole HDF5 file"):
        for name, found in classes.items():
            for first in range(0, len(found), IMAGES_PER_READ):
                for i, row in enumerate(found[first : first + IMAGES_PER_READ], first):
                    yield f"{path}[{name}][{i}]", row.tobytes() if found.ndim == 1 else row


# --- damage ------------------------------------------------------------------------------------------------


@contextmanager
def raise_user_error(path: Path, kind: str) -> Iterator[None]:
    """Makes a UserError that names the file of whatever its reader says, as damaged bytes do anything."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error
        cause = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: not {kind}, or damaged ({cause}); {AGAIN}") from error
