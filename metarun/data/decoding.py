"""Pictures decoded and resized with all cores, and written class after class into one open file."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
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


class RawDataset(NamedTuple):
    """A data set as it lies on disk, listed but not yet decoded."""

    names: Sequence[str]  # of the classes
    labels: Sequence[int] | np.ndarray  # class number of each image
    images: Iterable[tuple[str, Raw]]  # each image in the same order, with a name for messages
    splits: dict[str, list[str]] | None = None  # class names by split, where the files themselves divide them
    left_out: Sequence[tuple[str, str]] = ()  # files and folders that could not be listed, and why


@dataclass
class Manifest:
    """What a prepared file holds."""

    source: str  # the folder or archive it was made of
    shape: list[int]  # [images, channels, height, width]
    names: list[str]  # [classes]
    first: list[int]  # [classes]: where each class's images begin
    count: list[int]  # [classes]
    sums: list[list[float]]  # [classes, channels]: of all pixels in [0, 1]
    squares: list[list[float]]  # [classes, channels]: of their squares
    splits: dict[str, list[str]] | None
    sha256: str = ""  # of the prepared file
    left_out: list[tuple[str, str]] = field(default_factory=list)  # files that are no pictures, and why
    equal: list[tuple[str, str, bool]] = field(default_factory=list)  # a picture, one like it, whether of one class
    metarun: str = __version__
    checked: list[int] = field(default_factory=list)  # size and time of change of the file whose digest was right
    digest: str = ""  # SHA-256 of all fields above but `checked`

    def own_digest(self) -> str:
        fields = {key: value for key, value in asdict(self).items() if key not in ("checked", "digest")}
        return hashlib.sha256(json.dumps(fields).encode()).hexdigest()


class Decoded(NamedTuple):
    image: np.ndarray  # uint8 [channels, height, width]
    sums: np.ndarray  # [channels]: of its pixels in [0, 1]
    squares: np.ndarray  # [channels]: of their squares
    digest: bytes  # of the image, the same for equal images


def write_images(
    file: BinaryIO, spec: ImageSpec, source: str, found: RawDataset, skip_unreadable: bool, path: Path
) -> Manifest:
    """Decode with all cores and write each image behind those of its class; the unreadable leave room at its end."""
    room = np.bincount(np.asarray(found.labels, np.int64), minlength=len(found.names))
    first = np.cumsum(room) - room
    count = np.zeros_like(room)
    sums, squares = np.zeros((2, len(found.names), spec.channels))
    shape = (int(room.sum()), spec.channels, spec.size, spec.size)
    left_out = list(found.left_out)
    equal: list[tuple[str, str, bool]] = []
    earlier: dict[bytes, tuple[str, int]] = {}
    try:
        begin = reserve_space(file, shape)
        bar = tqdm(total=shape[0], desc=f"preparing {path.stem}", unit="image", disable=None, leave=False)
        with ThreadPoolExecutor(os.cpu_count()) as pool, bar:
            labelled = zip(found.labels, found.images, strict=True)
            while lot := list(islice(labelled, DECODE_BATCH)):
                decoded = pool.map(partial(decode, spec=spec), (image for _, image in lot))
                for (label, (name, _)), result in zip(lot, decoded, strict=True):
                    if isinstance(result, Unreadable):
                        left_out.append((name, str(result)))
                        if not skip_unreadable:
                            raise UserError(
                                f"{name}: cannot be read as an image ({result}); put back the file or the whole archive"
                            ) from result
                        continue
                    if skip_unreadable:  # a person's own pictures; those of published sets are as they are
                        other, of = earlier.setdefault(result.digest, (name, label))
                        equal += [(name, other, bool(of == label))] if other != name else []
                    file.seek(begin + int(first[label] + count[label]) * result.image.size)
                    file.write(result.image.tobytes())
                    count[label] += 1
                    sums[label] += result.sums
                    squares[label] += result.squares
                bar.update(len(lot))
        file.flush()
        os.fsync(file.fileno())
        sha256 = sha256_of_file(file)
    except OSError as error:
        if error.filename is not None:  # not the file that is written here, which is open
            raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from error
        raise cache_error("write", path, error) from error
    numbers = (list(shape), list(found.names), first.tolist(), count.tolist(), sums.tolist(), squares.tolist())
    return Manifest(source, *numbers, found.splits, sha256, left_out, equal)


def reserve_space(file: BinaryIO, shape: tuple[int, ...]) -> int:
    """Write the header, take the room for all images, and say where they begin: a full disk is known at once."""
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    begin, size = file.tell(), int(np.prod(shape))
    file.flush()
    if size and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), begin, size)
            return begin
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # which a file system may answer
                raise
    file.truncate(begin + size)
    return begin


def decode(image: tuple[str, Raw], spec: ImageSpec) -> Decoded | Unreadable:
    try:
        found = decode_image(image[1], spec)
    except Unreadable as error:
        return error
    channels = found.reshape(spec.channels, -1).astype(np.float32) / 255
    digest = hashlib.blake2b(found.tobytes(), digest_size=16).digest()
    return Decoded(found, channels.sum(1), (channels * channels).sum(1), digest)


def sha256_of_file(file: BinaryIO) -> str:
    """SHA-256 of the whole file."""
    file.seek(0)
    found = hashlib.sha256()
    while part := file.read(2**20):
        found.update(part)
    return found.hexdigest()


def cache_error(verb: str, path: Path, error: OSError) -> UserError:
    cause = error.strerror or error
    return UserError(f"cache_dir: cannot {verb} {path} ({cause}); choose another folder with cache_dir=FOLDER")
