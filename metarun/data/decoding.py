"""A data set's images, decoded and resized with all cores and written to one file, and the file's manifest."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from tqdm import tqdm

from metarun import __version__
from metarun.data.image_spec import ImageSpec, Raw, Unreadable, decode_image
from metarun.errors import UserError

DECODE_BATCH = 256  # images that are decoded at a time


# uint8 [channels, height, width]; sums [channels] of its pixels in [0, 1] and of their squares; a digest of the image
Decoded = tuple[np.ndarray, np.ndarray, np.ndarray, bytes]


class RawDataset(NamedTuple):
    """A data set on disk, listed but not yet decoded."""

    names: Sequence[str]  # of the classes
    labels: Sequence[int] | np.ndarray  # class number of each image
    images: Iterable[tuple[str, Raw]]  # in the same order, each with a name for messages
    splits: dict[str, list[str]] | None = None  # class names by split, if the files divide them
    left_out: Sequence[tuple[str, str]] = ()  # files and folders that could not be listed, and why


@dataclass
class Manifest:
    """Content of a prepared file."""

    source: str  # the folder or archive that it was made from
    shape: list[int]  # [images, channels, height, width]
    names: list[str]  # [classes]
    first: list[int]  # [classes]: index of each class's first image
    count: list[int]  # [classes]
    sums: list[list[float]]  # [classes, channels]: of all pixels in [0, 1]
    squares: list[list[float]]  # [classes, channels]: of their squares
    splits: dict[str, list[str]] | None
    sha256: str = ""  # of the prepared file
    left_out: list[tuple[str, str]] = field(default_factory=list)  # files that are no pictures, and why
    equal: list[tuple[str, str, bool]] = field(default_factory=list)  # two equal pictures, whether of one class
    metarun: str = __version__
    checked: list[int] = field(default_factory=list)  # size and time of change of the file when its digest was right
    digest: str = ""  # SHA-256 of all fields above but `checked`

    def own_digest(self) -> str:
        fields = {key: value for key, value in asdict(self).items() if key not in ("checked", "digest")}
        return hashlib.sha256(json.dumps(fields).encode()).hexdigest()


def write_images(
    file: BinaryIO, spec: ImageSpec, source: str, raw: RawDataset, skip_unreadable: bool, path: Path
) -> Manifest:
    """Decode all images and write them to `file` class after class; room for unreadable ones stays at a class's end.

    Raises:
        UserError: an image cannot be read, unless `skip_unreadable`; a source cannot be read; `path`, which is the file
            that is written, cannot be, or the disk is too small for it.
    """
    capacity = np.bincount(np.asarray(raw.labels, np.int64), minlength=len(raw.names))
    first, count = np.cumsum(capacity) - capacity, np.zeros_like(capacity)
    sums, squares = np.zeros((2, len(raw.names), spec.channels))
    shape = (int(capacity.sum()), spec.channels, spec.size, spec.size)
    left_out = list(raw.left_out)
    equal: list[tuple[str, str, bool]] = []
    earlier: dict[bytes, tuple[str, int]] = {}
    try:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        begin, size = file.tell(), int(np.prod(shape))
        if size > shutil.disk_usage(path.parent).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        file.truncate(begin + size)
        bar = {"desc": f"preparing {path.stem}", "total": shape[0], "unit": "image", "disable": None, "leave": False}
        with closing(decode_all(raw, spec)) as decoded, tqdm(decoded, **bar) as images:
            for label, name, image in images:
                if isinstance(image, Unreadable):
                    left_out.append((name, str(image)))
                    if not skip_unreadable:
                        raise UserError(
                            f"{name}: cannot be read as an image ({image}); put back the file or the whole archive"
                        ) from image
                    continue
                pixels, pixel_sums, pixel_squares, digest = image
                if skip_unreadable:  # a user's own pictures; published sets may hold equal ones
                    other, other_label = earlier.setdefault(digest, (name, label))
                    equal += [(name, other, bool(other_label == label))] if other != name else []
                file.seek(begin + int(first[label] + count[label]) * pixels.size)
                file.write(pixels.tobytes())
                count[label] += 1
                sums[label] += pixel_sums
                squares[label] += pixel_squares
        file.flush()
        os.fsync(file.fileno())
        sha256 = sha256_of_file(file)
    except OSError as error:
        if error.filename is not None:  # not the file that is written, which is open
            raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from error
        raise cache_error("write", path, error) from error
    numbers = (list(shape), list(raw.names), first.tolist(), count.tolist(), sums.tolist(), squares.tolist())
    return Manifest(source, *numbers, raw.splits, sha256, left_out, equal)


def decode_all(raw: RawDataset, spec: ImageSpec) -> Generator[tuple[int, str, Decoded | Unreadable], None, None]:
    """Label, name and decoded image, or why it cannot be read, of each image in order. Uses all cores."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        labelled = zip(raw.labels, raw.images, strict=True)
        while batch := list(islice(labelled, DECODE_BATCH)):
            images = pool.map(partial(decode, spec), (image for _, (_, image) in batch))
            for (label, (name, _)), image in zip(batch, images, strict=True):
                yield label, name, image


def decode(spec: ImageSpec, raw: Raw) -> Decoded | Unreadable:
    try:
        image = decode_image(raw, spec)
    except Unreadable as error:
        return error
    pixels = image.reshape(spec.channels, -1).astype(np.float32) / 255
    return image, pixels.sum(1), (pixels * pixels).sum(1), hashlib.blake2b(image.tobytes(), digest_size=16).digest()


def sha256_of_file(file: BinaryIO) -> str:
    """SHA-256 of the whole file."""
    file.seek(0)
    digest = hashlib.sha256()
    while part := file.read(2**20):
        digest.update(part)
    return digest.hexdigest()


def cache_error(verb: str, path: Path, error: OSError) -> UserError:
    cause = error.strerror or error
    return UserError(f"cache_dir: cannot {verb} {path} ({cause}); choose another folder with cache_dir=FOLDER")
