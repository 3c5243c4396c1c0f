"""Atomic writes, append-only files, and messages for failures of the disk."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from metarun.errors import RunFailure, relative_to_cwd

REMEDIES = {  # errors of a full or failing disk -> what the user can do
    errno.ENOSPC: "make room on its disk",
    errno.EDQUOT: "make room in your quota",
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f)",
    errno.EIO: "look after its disk",
}
NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP)  # errors of file systems without fsync of a folder


def atomic_write(path: Path, content: str | bytes | memoryview) -> None:
    """Replace a file atomically: write a temporary file, fsync, rename, fsync the folder. Text is encoded as UTF-8.

    Readers see the old or the new file, never a part, even after a crash of the process or the machine.

    Raises:
        RunFailure: the disk is full or fails, or the folder is gone. The old or the new file is intact.
        OSError: any other reason; its `filename` is `path`.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with translate_os_errors(path):
        try:
            part.unlink(missing_ok=True)
            with part.open("xb", buffering=0) as file:  # mode x follows no link
                write_all(file.fileno(), content.encode() if isinstance(content, str) else content)
                os.fsync(file.fileno())
            part.replace(path)
            sync_folder(path.parent)
        except BaseException:
            with suppress(OSError):  # report the first error; `remove_partial_files` removes the rest
                part.unlink()
            raise


class AppendOnlyFile:
    """A file opened for appending, without a buffer; `sync` flushes it to disk.

    Every method raises RunFailure or OSError as `atomic_write` does.
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
    """Write all of `content`; one call of `os.write` may write only a part."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, if the file system supports it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)


def remove_partial_files(folder: Path) -> None:
    """Remove temporary files that killed processes left in a run folder, its checkpoints/ and tensorboard/.

    Call it only while holding the folder's lock, since another process may be writing such a file.
    """
    for place in (folder, folder / "checkpoints", folder / "tensorboard"):
        for part in place.glob(".*.part"):
            if re.fullmatch(r"\..+\.\d+\.part", part.name):
                part.unlink(missing_ok=True)


@contextmanager
def translate_os_errors(path: Path) -> Iterator[None]:
    """Set the file name of an OSError to `path`; RunFailure if the disk is full or fails or the folder is gone."""
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
    """A RunFailure that describes an error of a full or failing disk; None for any other error."""
    if not isinstance(error, OSError) or error.errno not in REMEDIES:
        return None
    what = relative_to_cwd(Path(os.fsdecode(error.filename))) if error.filename else "a file"
    return RunFailure(f"{what} could not be written ({error.strerror}): {REMEDIES[error.errno]}")
