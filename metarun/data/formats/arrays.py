"""Data sets with one or two large files for each split: pickles of arrays or of PNG pictures, and NPZ.

Up to 13 GB of pictures are read one after another, and never held whole, except from pickles of arrays.
"""

import math
import pickletools
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np

from metarun.data.cache import RawDataset
from metarun.data.formats.detect import FoundFormat
from metarun.data.formats.pickles import ALLOWED_GLOBALS, load_pickle
from metarun.data.formats.reading import open_data_file, read_errors
from metarun.data.image_spec import Raw
from metarun.data.task_sampler import SPLITS
from metarun.utils.safe_files import require_room

IMAGES_PER_READ = 64  # pictures that are read at a time
PNG = b"\x89PNG\r\n\x1a\n"
ALLOWED_STRINGS = {  # all text in a pickled list of arrays or bytes
    *(word for pair in ALLOWED_GLOBALS for word in pair),
    *("numpy.core.numeric", "numpy._core.numeric", "_frombuffer", "latin1", "b", "u1", "O8", "|", "C"),
}
NUM_SUPERCLASSES = {"train": 20, "val": 6, "test": 8}  # of tieredImageNet


# --- files of each split -----------------------------------------------------------------------------------


def detect_split_files(
    folder: Path,
    name: str,
    patterns: Sequence[str],
    read: Callable[[str, Sequence[Path], ExitStack], RawDataset],
    parts: Sequence[str] = SPLITS,
) -> FoundFormat | None:
    """Format with one file for each split and pattern, or None if any is missing.

    Args:
        name: of the format; part of the cache's fingerprint.
        patterns: names of a split's files, with {} for the split; the first is the file with the pictures.
        read: lists the pictures of a split, its files and a stack for what it opens. Whatever it raises, then or while
            its pictures are read, is reported with the name of its first file.
        parts: the splits' names in the file names; the validation split may also be called "validation".
    """
    for val in (parts[1], "validation"):
        files = [[folder / pattern.format(part) for pattern in patterns] for part in (parts[0], val, parts[2])]
        if all(file.is_file() for split_files in files for file in split_files):
            break
    else:
        return None

    def read_all(stack: ExitStack) -> RawDataset:
        raw = []
        for split, split_files in zip(SPLITS, files, strict=True):
            with read_errors(split_files[0], f"of the format '{name}'"):
                found = read(split, split_files, stack)
            raw.append(found._replace(images=reported(found.images, split_files[0], f"of the format '{name}'")))
        return merge_splits(raw)

    return FoundFormat(name, [file for split_files in files for file in split_files], read_all)


def reported(images: Iterable[tuple[str, Raw]], path: Path, what: str) -> Iterator[tuple[str, Raw]]:
    with read_errors(path, what):
        yield from images


def merge_splits(parts: Sequence[RawDataset]) -> RawDataset:
    """The splits' classes one after another, named SPLIT/NAME if any name is in two splits."""
    names = [name for part in parts for name in part.names]
    if len(set(names)) < len(names):
        names = [f"{split}/{name}" for split, part in zip(SPLITS, parts, strict=True) for name in part.names]
    ends = np.cumsum([len(part.names) for part in parts]).tolist()
    begins = [0, *ends[:-1]]
    labels = np.concatenate([np.asarray(part.labels) + begin for part, begin in zip(parts, begins, strict=True)])
    splits = {split: names[begin:end] for split, begin, end in zip(SPLITS, begins, ends, strict=True)}
    return RawDataset(names, labels, chain.from_iterable(part.images for part in parts), splits)


def name_classes(split: str, numbers: np.ndarray, words: Mapping[Any, str]) -> tuple[list[str], np.ndarray]:
    """Class names, and int64 [images] labels. A class is named SPLIT/NUMBER unless `words` names all differently."""
    known, labels = np.unique(numbers, return_inverse=True)
    names = [words.get(number, "") for number in known.tolist()]
    if "" in names or len(set(names)) < len(names):
        names = [f"{split}/{number}" for number in known.tolist()]
    return names, labels


def check_same_count(images: int, labels: int, labels_path: Path) -> None:
    if images != labels:
        raise ValueError(f"it holds {images} images, but {labels_path.name} has {labels} labels")


# --- content of pickles ------------------------------------------------------------------------------------


def get_key(content: Any, key: str) -> Any:
    """Value of a dict whose keys Python 2 or 3 wrote, or None."""
    return content.get(key, content.get(key.encode())) if isinstance(content, dict) else None


def require_key(content: Any, key: str, kind: type) -> Any:
    value = get_key(content, key)
    if not isinstance(value, kind):
        raise ValueError(f"it holds no {key!r}")
    return value


def class_name(name: Any) -> str:
    """A class's name; empty if it is neither text nor a number."""
    if isinstance(name, bytes):
        return name.decode("latin1")
    return str(name) if isinstance(name, str | int | float) else ""


def to_int64(key: str, value: Any) -> np.ndarray:
    """int64 [N] of a list or array of whole numbers."""
    nested = isinstance(value, list) and any(isinstance(entry, list | tuple | dict) for entry in value)
    array = np.zeros((0, 0)) if nested else np.asarray(value)  # few bytes can nest without end
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"{key} is not a list of whole numbers")
    return array.astype(np.int64)


def check_pictures(what: str, dtype: np.dtype, shape: Sequence[int]) -> None:
    if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape[1:]:
        raise ValueError(f"{what} {dtype} {shape}, not uint8 [N, height, width, 3]")


def require_images(content: Any, key: str) -> np.ndarray:
    images = require_key(content, key, np.ndarray)
    check_pictures(f"its {key!r} is", images.dtype, images.shape)
    return images


# --- pickles of arrays -------------------------------------------------------------------------------------


def read_cache_pickle(_: str, files: Sequence[Path], __: ExitStack) -> RawDataset:
    (path,) = files
    content = load_pickle(path)
    images, classes = require_images(content, "image_data"), require_key(content, "class_dict", dict)
    if sum(len(rows) for rows in classes.values() if isinstance(rows, list | np.ndarray)) > len(images):
        raise ValueError(f"its class_dict lists more than its {len(images)} images")
    rows = [to_int64(f"class_dict[{class_name(name)!r}]", indices) for name, indices in classes.items()]
    order = np.concatenate([np.zeros(0, np.int64), *rows])
    if not np.array_equal(np.sort(order), np.arange(len(images))):
        raise ValueError(f"its class_dict does not give each of its {len(images)} images one class")
    labels = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    return RawDataset(list(map(class_name, classes)), labels, ((f"{path}[{i}]", images[i]) for i in order.tolist()))


def read_category_pickle(split: str, files: Sequence[Path], _: ExitStack) -> RawDataset:
    (path,) = files
    content = load_pickle(path)
    images, labels = require_images(content, "data"), to_int64("labels", get_key(content, "labels"))
    check_same_count(len(images), len(labels), path)
    known = get_key(content, "catname2label")
    pairs = known.items() if isinstance(known, dict) else ()
    words = {number: class_name(name) for name, number in pairs if isinstance(number, int)}
    return RawDataset(*name_classes(split, labels, words), ((f"{path}[{i}]", image) for i, image in enumerate(images)))


# --- tieredImageNet: labels beside pickles of PNG pictures, or NPZ -----------------------------------------


def read_labels(split: str, path: Path) -> tuple[list[str], np.ndarray]:
    """Class names and int64 [images] labels of {split}_labels.pkl. Raises UserError for labels of superclasses."""
    content = load_pickle(path)
    with read_errors(path, "a pickle of class labels"):
        keys = ("label_specific", "labels", "label_general")
        key = next((key for key in keys if get_key(content, key) is not None), None)
        if key is None:
            raise ValueError("it holds no 'label_specific' and no 'labels'")
        numbers = to_int64(key, get_key(content, key))
        count = len(np.unique(numbers))
        if key == "label_general" or count == NUM_SUPERCLASSES[split]:
            raise ValueError(f"its {key!r} number {count} superclasses, not classes, which 'label_specific' has")
        words = get_key(content, f"{key}_str")
        words = dict(enumerate(map(class_name, words))) if isinstance(words, list | np.ndarray) else {}
        return name_classes(split, numbers, words)


def read_png_pickle(split: str, files: Sequence[Path], _: ExitStack) -> RawDataset:
    path, labels_path = files
    names, labels = read_labels(split, labels_path)

    def images() -> Iterator[tuple[str, Raw]]:
        count = 0
        for picture in iterate_pngs(path):
            if count < len(labels):
                yield f"{path}[{count}]", picture
            count += 1
        check_same_count(count, len(labels), labels_path)  # a picture that is listed twice is stored once

    return RawDataset(names, labels, images())


def iterate_pngs(path: Path) -> Iterator[bytes]:
    """The PNG pictures in a pickle, in order, one at a time in memory. The pickle is only parsed, and never run.

    Raises:
        UserError: the file cannot be read, is a web page, is cut short, or has what no list of pictures needs.
    """
    with open_data_file(path, "a pickle of PNG pictures") as file:
        for _, argument, _ in pickletools.genops(file):
            if isinstance(argument, str):  # of Python 2, or array bytes as protocols before 3 have them
                if not argument.startswith(PNG.decode("latin1")):
                    if not ALLOWED_STRINGS.issuperset(argument.split()):
                        raise ValueError(f"it asks for {argument[:80]!r}, which no list of pictures needs")
                    continue
                argument = argument.encode("latin1")
            if isinstance(argument, bytes | bytearray) and argument.startswith(PNG):
                yield bytes(argument)


def read_npz(split: str, files: Sequence[Path], stack: ExitStack) -> RawDataset:
    path, labels_path = files
    names, labels = read_labels(split, labels_path)
    with open_data_file(path, "an NPZ file"):
        archive = stack.enter_context(zipfile.ZipFile(path))
    size = archive.getinfo("images.npy").file_size
    require_room(path, size)
    member = stack.enter_context(archive.open("images.npy"))
    shape = read_shape(member)
    if math.prod(shape) > size:
        raise ValueError(f"it is too small for images of the shape {shape}")
    check_same_count(shape[0], len(labels), labels_path)
    return RawDataset(names, labels, iterate_rows(path, member, shape))


def read_shape(member: IO[bytes]) -> tuple[int, ...]:
    """[N, height, width, 3] of uint8 pictures that follow. Raises ValueError for any other array."""
    version = np.lib.format.read_magic(member)  # pyright: ignore[reportArgumentType]
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"NPY version {version}")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy warns that Python 2 wrote the file
        shape, fortran, dtype = read(member)  # pyright: ignore[reportArgumentType]
    check_pictures("its images are", dtype, shape)
    if fortran or not shape[0]:
        raise ValueError("its images are in Fortran order" if fortran else "it holds no images")
    return shape


def iterate_rows(path: Path, member: IO[bytes], shape: tuple[int, ...]) -> Iterator[tuple[str, Raw]]:
    size = math.prod(shape[1:])
    rows = min(IMAGES_PER_READ, max(1, 2**26 // size))
    for first in range(0, shape[0], rows):
        count = min(rows, shape[0] - first)
        block = np.frombuffer(member.read(count * size), np.uint8).reshape(count, *shape[1:])
        for i, row in enumerate(block, first):
            yield f"{path}[{i}]", row[:, :, ::-1]  # OpenCV decoded these pictures, which puts blue first


# --- formats -----------------------------------------------------------------------------------------------

cache_pickles = partial(
    detect_split_files,
    name="Ren's pickles of mini-ImageNet",
    patterns=("mini-imagenet-cache-{}.pkl",),
    read=read_cache_pickle,
)
category_pickles = partial(
    detect_split_files,
    name="MetaOptNet's pickles of mini-ImageNet",
    patterns=("miniImageNet_category_split_{}.pickle",),
    read=read_category_pickle,
    parts=("train_phase_train", "val", "test"),
)
png_pickles = partial(  # a list of PNG pictures
    detect_split_files,
    name="Ren's pickles of tieredImageNet",
    patterns=("{}_images_png.pkl", "{}_labels.pkl"),
    read=read_png_pickle,
)
npz_files = partial(  # blue before green before red
    detect_split_files,
    name="MetaOptNet's NPZ files of tieredImageNet",
    patterns=("{}_images.npz", "{}_labels.pkl"),
    read=read_npz,
)
