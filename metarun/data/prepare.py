"""Pictures decoded and resized once, kept as one memory-mapped uint8 file with a manifest beside it.

`NAME.npy` holds the images, class after class, and `NAME.json` what they are. Both are written under other names and
renamed when whole; a reader takes neither without the other. One process prepares, others that start meanwhile wait
for it; the lock dies with its process.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from filelock import BaseFileLock, FileLock, Timeout
from tqdm import tqdm

from metarun import __version__
from metarun.data.look import Look, Raw, Unreadable, pixels
from metarun.errors import UserError

log = logging.getLogger(__name__)

VERSION = 1  # raised whenever the same pictures would give another file: it names it
LOT = 256  # images that are decoded at a time


class Contents(NamedTuple):
    """A data set as it lies on disk, listed but not yet decoded."""

    names: Sequence[str]  # of the classes
    labels: Sequence[int] | np.ndarray  # class number of each image
    images: Iterable[tuple[str, Raw]]  # each image in the same order, with a name for messages
    splits: dict[str, list[str]] | None = None  # class names by split, where the files themselves divide them


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
    metarun: str = __version__


class Prepared(NamedTuple):
    images: np.ndarray  # uint8 [images, channels, height, width], mapped from disk
    manifest: Manifest
    path: Path  # of the manifest


def prepared(
    cache_dir: Path,
    name: str,
    look: Look,
    source: Path | str,
    contents: Callable[[ExitStack], Contents],
    skip_unreadable: bool = False,
) -> Prepared:
    """The images kept in cache_dir under `name`; made of `contents` where there are none or they are damaged.

    Args:
        name: names the files; it must change with whatever changes what they hold.
        source: where the pictures come from, for the manifest and messages.
        contents: lists the pictures; what it opens it enters into the stack.
        skip_unreadable: leave out files that are no pictures, with a warning, instead of stopping.

    Raises:
        UserError: a picture cannot be read; the folder cannot be written; the disk is full; a file cannot be read.
    """
    stem = cache_dir / f"{name}-v{VERSION}"
    found = read(stem)
    if found is None:
        lock = hold(stem)
        try:
            found = read(stem)
            if found is None:
                make(stem, look, source, contents, skip_unreadable)
                found = read(stem)
        finally:
            lock.release()
    assert found is not None
    left_out = found.manifest.left_out
    if left_out:
        file, reason = left_out[0]
        log.warning(
            "%d files are no pictures and left out, first %s (%s); %s lists them",
            len(left_out),
            file,
            reason,
            found.path,
        )
    return found


def hold(stem: Path) -> BaseFileLock:
    """The lock of what is kept under `stem`, once no other process holds it."""
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{stem}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("another run is preparing %s; waiting for it", stem.name)
            lock.acquire()
    except OSError as error:
        raise refusal("write", images_path(stem), error) from error
    return lock


# --- reading -----------------------------------------------------------------------------------------------


def read(stem: Path) -> Prepared | None:
    """What is kept under `stem`, or None where it is not there or damaged."""
    path = manifest_path(stem)
    try:
        manifest = Manifest(**json.loads(path.read_text()))
        images = np.lib.format.open_memmap(images_path(stem), mode="r")
        if list(images.shape) != manifest.shape or images.dtype != np.uint8:
            raise ValueError(f"it holds {images.dtype} {images.shape}, not uint8 {tuple(manifest.shape)}")
        return Prepared(images, manifest, path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError, EOFError) as error:
        log.warning("%s is damaged (%s); it is made again", images_path(stem), " ".join(str(error).split()))
        return None
    except OSError as error:
        raise refusal("read", path, error) from error


def manifest_path(stem: Path) -> Path:
    return stem.with_name(f"{stem.name}.json")


def images_path(stem: Path) -> Path:
    return stem.with_name(f"{stem.name}.npy")


# --- making ------------------------------------------------------------------------------------------------


def make(
    stem: Path, look: Look, source: Path | str, contents: Callable[[ExitStack], Contents], skip_unreadable: bool
) -> None:
    """Write both files, whole or not at all. Whoever calls this holds the lock, so what is left over is nobody's."""
    partial_images, partial_manifest = (Path(f"{path}.partial") for path in (images_path(stem), manifest_path(stem)))
    try:
        with ExitStack() as stack:
            try:
                file = stack.enter_context(partial_images.open("w+b"))
            except OSError as error:
                raise refusal("write", images_path(stem), error) from error
            manifest = fill(file, look, str(source), contents(stack), skip_unreadable, images_path(stem))
        try:
            with partial_manifest.open("w") as file:
                json.dump(asdict(manifest), file)
                file.flush()
                os.fsync(file.fileno())
            manifest_path(stem).unlink(missing_ok=True)
            partial_images.replace(images_path(stem))
            partial_manifest.replace(manifest_path(stem))
        except OSError as error:
            raise refusal("write", images_path(stem), error) from error
    finally:
        for left in (partial_images, partial_manifest):
            with contextlib.suppress(OSError):
                left.unlink()


def fill(file: BinaryIO, look: Look, source: str, found: Contents, skip_unreadable: bool, path: Path) -> Manifest:
    """Decode with all cores and write each image behind those of its class; the unreadable leave room at its end."""
    room = np.bincount(np.asarray(found.labels, np.int64), minlength=len(found.names))
    first = np.cumsum(room) - room
    count = np.zeros_like(room)
    sums, squares = np.zeros((2, len(found.names), look.channels))
    shape = (int(room.sum()), look.channels, look.size, look.size)
    left_out: list[tuple[str, str]] = []
    try:
        begin = reserve(file, shape)
        bar = tqdm(total=shape[0], desc=f"preparing {path.stem}", unit="image", disable=None, leave=False)
        with ThreadPoolExecutor(os.cpu_count()) as pool, bar:
            labelled = zip(found.labels, found.images, strict=True)
            while lot := list(islice(labelled, LOT)):
                decoded = pool.map(partial(decode, look=look), (image for _, image in lot))
                for (label, (name, _)), result in zip(lot, decoded, strict=True):
                    if isinstance(result, Unreadable):
                        left_out.append((name, str(result)))
                        if not skip_unreadable:
                            raise UserError(
                                f"{name}: cannot be read as an image ({result}); put back the file or the whole archive"
                            ) from result
                        continue
                    image, total, square = result
                    file.seek(begin + int(first[label] + count[label]) * image.size)
                    file.write(image.tobytes())
                    count[label] += 1
                    sums[label] += total
                    squares[label] += square
                bar.update(len(lot))
        file.flush()
        os.fsync(file.fileno())
        sha256 = digest(file)
    except OSError as error:
        if error.filename is not None:  # not the file that is written here, which is open
            raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from error
        raise refusal("write", path, error) from error
    return Manifest(
        source,
        list(shape),
        list(found.names),
        first.tolist(),
        count.tolist(),
        sums.tolist(),
        squares.tolist(),
        found.splits,
        sha256,
        left_out,
    )


def reserve(file: BinaryIO, shape: tuple[int, ...]) -> int:
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


def decode(image: tuple[str, Raw], look: Look) -> tuple[np.ndarray, np.ndarray, np.ndarray] | Unreadable:
    """An image's pixels, and the sums of them and of their squares by channel, with pixels in [0, 1]."""
    try:
        found = pixels(image[1], look)
    except Unreadable as error:
        return error
    channels = found.reshape(look.channels, -1).astype(np.float32) / 255
    return found, channels.sum(1), (channels * channels).sum(1)


def digest(file: BinaryIO) -> str:
    file.seek(0)
    found = hashlib.sha256()
    while part := file.read(2**20):
        found.update(part)
    return found.hexdigest()


def refusal(verb: str, path: Path, error: OSError) -> UserError:
    cause = error.strerror or error
    return UserError(f"cache_dir: cannot {verb} {path} ({cause}); choose another folder with cache_dir=FOLDER")


# --- naming ------------------------------------------------------------------------------------------------


def fingerprint(*lines: Any) -> str:
    """16 hexadecimal digits that change with any of the lines."""
    return hashlib.sha256("\n".join(map(str, lines)).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def stamps(files: Iterable[Path]) -> Iterator[str]:
    """A line for each file, which changes when the file does."""
    for file in files:
        stat = file.stat()
        yield f"{file} {stat.st_size} {stat.st_mtime_ns}"
