"""Pictures decoded and resized once, kept as one memory-mapped uint8 file with a manifest beside it.

`NAME.npy` holds the images, class after class, and `NAME.json` what they are. Both are written under other names and
renamed when whole; a reader takes neither without the other. One process prepares, others that start meanwhile wait
for it; the lock dies with its process.
"""

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import BaseFileLock, FileLock, Timeout

from metarun.data.decoding import Manifest, RawDataset, cache_error, sha256_of_file, write_images
from metarun.data.image_spec import ImageSpec
from metarun.errors import RunFailure, UserError
from metarun.utils import files as whole_files
from metarun.utils.text import pluralize, printable

log = logging.getLogger(__name__)

VERSION = 1  # raised whenever the same pictures would give another file: it names it
ALWAYS_CHECKED = 2**28  # bytes of a prepared file: its digest takes a fraction of a second
MAX_LISTED = 3  # files that a warning lists


class CachedDataset(NamedTuple):
    images: np.ndarray  # uint8 [images, channels, height, width], mapped from disk
    manifest: Manifest
    path: Path  # of the manifest


def load_or_build_cache(
    cache_dir: Path,
    name: str,
    spec: ImageSpec,
    source: Path | str,
    contents: Callable[[ExitStack], RawDataset],
    skip_unreadable: bool = False,
) -> CachedDataset:
    """Images cached in cache_dir under `name`; built from `contents` if they are missing or damaged.

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
        lock = acquire_cache_lock(stem)
        try:
            found = read(stem, tell=True)
            if found is None:
                build(stem, spec, source, contents, skip_unreadable)
                found = read(stem)
        finally:
            lock.release()
    assert found is not None
    warn_left_out_and_equal(found)
    return found


def warn_left_out_and_equal(found: CachedDataset) -> None:
    """Warn of pictures that were left out and of duplicates."""
    listed = f"; {found.path} lists them"
    if left_out := found.manifest.left_out:
        names = [f"{name} ({reason})" for name, reason in left_out]
        log.warning(
            "%d files or folders are left out, as they are no pictures or stand in no class, first %s%s",
            len(names),
            first_few(names),
            listed,
        )
    for one_class, where in ((True, "the same class: both may stand in one task"), (False, "another class")):
        pairs = [f"{name} = {other}" for name, other, same in found.manifest.equal if same == one_class]
        if pairs:
            count = f"{pluralize(len(pairs), 'picture')} {'is' if len(pairs) == 1 else 'are'}"
            log.warning("%s equal to one of %s, first %s%s", count, where, first_few(pairs), listed)


def first_few(names: Sequence[str]) -> str:
    """The first few entries, joined by commas."""
    return ", ".join(map(printable, names[:MAX_LISTED])) + (", ..." if len(names) > MAX_LISTED else "")


def acquire_cache_lock(stem: Path) -> BaseFileLock:
    """Lock of the cached files under `stem`; waits while another process holds it."""
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{stem}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("another run is preparing %s; waiting for it", stem.name)
            lock.acquire()
    except OSError as error:
        raise cache_error("write", images_path(stem), error) from error
    return lock


# --- reading -----------------------------------------------------------------------------------------------


def read(stem: Path, tell: bool = False) -> CachedDataset | None:
    """The cached images under `stem`, or None if they are missing or damaged; damage is logged if asked."""
    path = manifest_path(stem)
    try:
        manifest = Manifest(**json.loads(path.read_text()))
        images = np.lib.format.open_memmap(images_path(stem), mode="r")
        if list(images.shape) != manifest.shape or images.dtype != np.uint8:
            raise ValueError(f"it holds {images.dtype} {images.shape}, not uint8 {tuple(manifest.shape)}")
        verify(stem, manifest)
        return CachedDataset(images, manifest, path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError, EOFError) as error:
        if tell:
            log.warning("%s is damaged (%s); it is made again", images_path(stem), " ".join(str(error).split()))
        return None
    except OSError as error:
        raise cache_error("read", path, error) from error


def verify(stem: Path, manifest: Manifest) -> None:
    """Compare both files with their SHA-256: a large file once, and again when its size or time of change differs.

    Raises:
        ValueError: either is not as it was written.
    """
    path = images_path(stem)
    if manifest.digest and manifest.digest != manifest.own_digest():  # earlier versions wrote none
        raise ValueError(f"{manifest_path(stem).name} does not have the SHA-256 that stands in it")
    status = path.stat()
    now = [status.st_size, status.st_mtime_ns]
    if status.st_size > ALWAYS_CHECKED:
        if now == manifest.checked:
            return
        log.info("comparing %s with its SHA-256, as it may have changed", path)
    with path.open("rb") as file:
        if sha256_of_file(file) != manifest.sha256:
            raise ValueError("it does not have the SHA-256 that was written with it")
    if now != manifest.checked:
        manifest.checked = now
        with contextlib.suppress(OSError, RunFailure):  # of a folder that may only be read: compared again next time
            whole_files.atomic_write(manifest_path(stem), json.dumps(asdict(manifest)))


def manifest_path(stem: Path) -> Path:
    return stem.with_name(f"{stem.name}.json")


def images_path(stem: Path) -> Path:
    return stem.with_name(f"{stem.name}.npy")


# --- making ------------------------------------------------------------------------------------------------


def build(
    stem: Path, spec: ImageSpec, source: Path | str, contents: Callable[[ExitStack], RawDataset], skip_unreadable: bool
) -> None:
    """Write both files atomically. The caller holds the lock, so that leftover temporary files can be removed."""
    partial_images, partial_manifest = (Path(f"{path}.partial") for path in (images_path(stem), manifest_path(stem)))
    try:
        with ExitStack() as stack:
            try:
                file = stack.enter_context(partial_images.open("w+b"))
            except OSError as error:
                raise cache_error("write", images_path(stem), error) from error
            manifest = write_images(file, spec, str(source), contents(stack), skip_unreadable, images_path(stem))
            status = partial_images.stat()
            manifest.checked, manifest.digest = [status.st_size, status.st_mtime_ns], manifest.own_digest()
        try:
            with partial_manifest.open("w") as file:
                json.dump(asdict(manifest), file)
                file.flush()
                os.fsync(file.fileno())
            manifest_path(stem).unlink(missing_ok=True)
            partial_images.replace(images_path(stem))
            partial_manifest.replace(manifest_path(stem))
        except OSError as error:
            raise cache_error("write", images_path(stem), error) from error
    finally:
        for left in (partial_images, partial_manifest):
            with contextlib.suppress(OSError):
                left.unlink()


# --- naming ------------------------------------------------------------------------------------------------


def fingerprint(*lines: Any) -> str:
    """Fingerprint of the lines: 16 hexadecimal digits."""
    return hashlib.sha256("\n".join(map(str, lines)).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def file_fingerprints(files: Iterable[Path]) -> Iterator[str]:
    """A line per file with its path, size and modification time. Raises UserError if a file is missing."""
    for file in files:
        try:
            status = file.stat()
        except OSError as error:
            raise UserError(f"{file}: cannot be read ({error.strerror}); put it back or take it away") from error
        yield f"{file.absolute()} {status.st_size} {status.st_mtime_ns}"
