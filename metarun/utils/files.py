"""Files that are written whole or not at all, files that only grow, and what is said where the disk fails."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from metarun.errors import RunFailure, relative_to_cwd

REMEDIES = {  # what a disk says that cannot take a file, and what helps
    errno.ENOSPC: "make room on its disk",
    errno.EDQUOT: "make room in your quota",
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f)",
    errno.EIO: "look after its disk",
}
NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP)  # of file systems that know no fsync of a folder


def atomic_write(path: Path, content: str | bytes | memoryview) -> None:
    """Write under another name, flush to disk, rename, flush the folder; text as UTF-8.

    A reader finds the old file or the new one, never a part, whenever the process or the machine ends.

    Raises:
        RunFailure: the disk is full or fails, or the folder is gone; the file is the old one or the new one.
        OSError: any other reason, with `path` as its file.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with translate_os_errors(path):
        try:
            part.unlink(missing_ok=True)
            with part.open("xb", buffering=0) as file:  # which follows no link
                write_all(file.fileno(), content.encode() if isinstance(content, str) else content)
                os.fsync(file.fileno())
            part.replace(path)
            sync_folder(path.parent)
        except BaseException:
            with suppress(OSError):  # the first failure is the one to tell; `remove_parts` takes what is left
                part.unlink()
            raise


class AppendOnlyFile:
    """A file that is appended to; what is written reaches the system at once, and the disk with `sync`.

    Every method raises as `write` does.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with translate_os_errors(path):
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
            self.file = os.fdopen(os.open(path, flags, 0o666), "ab", buffering=0)

    def write(self, content: bytes) -> None:
        with translate_os_errors(self.path):
            write_all(self.file.fileno(), content)

    def sync(self) -> None:
        with translate_os_errors(self.path):
            os.fsync(self.file.fileno())

    def close(self) -> None:
        with translate_os_errors(self.path):
            self.file.close()


def write_all(descriptor: int, content: bytes | memoryview) -> None:
    """All of it: the system may take a part at a time."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def sync_folder(folder: Path) -> None:
    """Bring a folder's names to the disk, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)


def remove_partial_files(folder: Path) -> None:
    """Remove what `write` left unfinished in a run folder and the two below it, in processes that were killed.

    Only for the process that holds the folder's lock: another's file may still be being written.
    """
    for place in (folder, folder / "checkpoints", folder / "tensorboard"):
        for part in place.glob(".*.part"):
            if re.fullmatch(r"\..+\.\d+\.part", part.name):
                part.unlink(missing_ok=True)


@contextmanager
def translate_os_errors(path: Path) -> Iterator[None]:
    """Every OSError names the file; RunFailure where the disk cannot take it or its folder is gone."""
    try:
        yield
    except OSError as error:
        if not path.parent.is_dir():
            gone = f"{relative_to_cwd(path.parent)} was deleted or moved while the run wrote to it"
            raise RunFailure(f"{relative_to_cwd(path)} could not be written: {gone}") from error
        error.filename, error.filename2 = str(path), None
        if failure := as_run_failure(error):
            raise failure from error
        raise


def as_run_failure(error: Exception) -> RunFailure | None:
    """What stands for an error of a disk that cannot take a file; None for any other error."""
    if not isinstance(error, OSError) or error.errno not in REMEDIES:
        return None
    what = relative_to_cwd(Path(os.fsdecode(error.filename))) if error.filename else "a file"
    return RunFailure(f"{what} could not be written ({error.strerror}): {REMEDIES[error.errno]}")
