"""tieredImageNet's files for each split: a pickle of PNG pictures or an NPZ array, and a pickle of labels.

The training pictures are 13 GB: they are read one after another, and never held whole.
"""

from __future__ import annotations

import math
import pickletools
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import numpy as np

from metarun.data.formats.arrays import (
    IMAGES_PER_READ,
    SplitArrays,
    check_same_count,
    class_name,
    get_key,
    make_format,
    name_classes,
    raise_user_error,
    split_files,
    to_int64,
)
from metarun.data.formats.detect import FoundFormat
from metarun.data.formats.pickles import ALLOWED_GLOBALS, load_pickle, refuse_web_page
from metarun.data.image_spec import Raw
from metarun.errors import UserError
from metarun.utils.safe_files import open_regular, require_room

PNG = b"\x89PNG\r\n\x1a\n"
ALLOWED_STRINGS = {
    word for pair in ALLOWED_GLOBALS for word in pair
} | {  # all that a list of arrays or bytes has for text
    *("numpy.core.numeric", "numpy._core.numeric", "_frombuffer", "latin1", "b", "u1", "O8", "|", "C")
}
NUM_SUPERCLASSES = {"train": 20, "val": 6, "test": 8}  # the superclasses, which are not the classes


def png_pickles(folder: Path) -> FoundFormat | None:
    """Ren's {train,val,test}_images_png.pkl, a list of PNG pictures, with {train,val,test}_labels.pkl."""
    return make_format(
        "Ren's pickles of tieredImageNet", split_files(folder, "{}_images_png.pkl {}_labels.pkl"), read_png_pickle
    )


def npz_files(folder: Path) -> FoundFormat | None:
    """MetaOptNet's {train,val,test}_images.npz, blue before green before red, with {train,val,test}_labels.pkl."""
    return make_format(
        "MetaOptNet's NPZ files of tieredImageNet", split_files(folder, "{}_images.npz {}_labels.pkl"), read_npz
    )


# --- tieredImageNet's labels -------------------------------------------------------------------------------


def read_labels(split: str, path: Path) -> tuple[list[str], np.ndarray]:
    """The classes' names and int64 [images] out of {split}_labels.pkl, of either kind.

    Raises:
        UserError: damaged, no labels, or those of the superclasses.
    """
    content = load_pickle(path)
    key = next(
        (key for key in ("label_specific", "labels", "label_general") if get_key(content, key) is not None), None
    )
    if key is None:
        raise UserError(f"{path}: holds no 'label_specific' and no 'labels'; it is not the file that its name says")
    found = to_int64(path, key, get_key(content, key))
    count = len(np.unique(found))
    if key == "label_general" or count == NUM_SUPERCLASSES[split]:
        raise UserError(
            f"{path}: its {key!r} number {count} superclasses, not classes; "
            "put there the file with 'label_specific', or with one of 'labels' for each class"
        )
    words = get_key(content, f"{key}_str")
    return name_classes(
        split, found, dict(enumerate(map(class_name, words))) if isinstance(words, list | np.ndarray) else {}
    )


# --- pickles of PNG pictures -------------------------------------------------------------------------------


def read_png_pickle(split: str, files: Sequence[Path], _: ExitStack) -> SplitArrays:
    path, labels_path = files
    names, labels = read_labels(split, labels_path)
    return SplitArrays(names, labels, counted_pngs(path, labels_path, len(labels)))


def counted_pngs(path: Path, labels_path: Path, count: int) -> Iterator[tuple[str, Raw]]:
    """As many as there are labels. Raises UserError where the pickle has more or fewer, as one listed twice would."""
    found = 0
    for found, picture in enumerate(iterate_pngs(path), 1):
        if found <= count:
            yield f"{path}[{found - 1}]", picture
    check_same_count(path, found, labels_path, count)


def iterate_pngs(path: Path) -> Iterator[bytes]:
    """The PNG pictures in a pickle, in order, one at a time in memory. It is only read through, and nothing is run.

    Raises:
        UserError: the file cannot be read, is a web page, is cut short, or has what no list of pictures needs.
    """
    with raise_user_error(path, "a pickle of PNG pictures"), open_regular(path) as file:
        refuse_web_page(file.read(512), path)
        file.seek(0)
        for _, argument, _ in pickletools.genops(file):
            if isinstance(argument, str):  # of Python 2, or array bytes as protocols before 3 have them
                if not argument.startswith(PNG.decode("latin1")):
                    if not ALLOWED_STRINGS.issuperset(argument.split()):
                        raise ValueError(f"it asks for {argument[:80]!r}, which no list of pictures needs")
                    continue
                argument = argument.encode("latin1")
            if isinstance(argument, bytes | bytearray) and argument.startswith(PNG):
                yield bytes(argument)


# --- NPZ ---------------------------------------------------------------------------------------------------


def read_npz(split: str, files: Sequence[Path], stack: ExitStack) -> SplitArrays:
    path, labels_path = files
    names, labels = read_labels(split, labels_path)
    with raise_user_error(path, "an NPZ file of pictures"):
        with open_regular(path) as file:
            refuse_web_page(file.read(512), path)
        archive = stack.enter_context(zipfile.ZipFile(path))
        require_room(path, archive.getinfo("images.npy").file_size)
        member = stack.enter_context(archive.open("images.npy"))
        shape = read_shape(member)
        if math.prod(shape) > archive.getinfo("images.npy").file_size:
            raise ValueError(f"it is too small for images of the shape {shape}")
    check_same_count(path, shape[0], labels_path, len(labels))
    return SplitArrays(names, labels, iterate_rows(path, member, shape))


def read_shape(member: IO[bytes]) -> tuple[int, ...]:
    """[N, height, width, 3] of uint8 pictures that follow. Raises ValueError for any other array."""
    version = np.lib.format.read_magic(member)  # pyright: ignore[reportArgumentType]
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"NPY version {version}")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that Python 2 wrote it, which these files' age explains
        shape, fortran, dtype = read(member)  # pyright: ignore[reportArgumentType]
    if dtype != np.uint8 or fortran or len(shape) != 4 or shape[3] != 3 or min(shape) < 1:
        raise ValueError(f"its images are {dtype} {shape}, not uint8 [N, height, width, 3]")
    return shape


def iterate_rows(path: Path, member: IO[bytes], shape: tuple[int, ...]) -> Iterator[tuple[str, Raw]]:
    size = math.prod(shape[1:])
    with raise_user_error(path, "a whole NPZ file"):
        rows = min(IMAGES_PER_READ, max(1, 2**26 // size))
        for first in range(0, shape[0], rows):
            count = min(rows, shape[0] - first)
            block = np.frombuffer(member.read(count * size), np.uint8).reshape(count, *shape[1:])
            for i, row in enumerate(block, first):
                yield f"{path}[{i}]", row[:, :, ::-1]  # OpenCV decoded these pictures, which puts blue first
