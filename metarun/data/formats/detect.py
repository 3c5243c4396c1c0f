"""How data sets lie on disk: a form is found by what is in the folder, then prepared once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from metarun.data.cache import RawDataset
from metarun.errors import UserError


class DataPaths(NamedTuple):
    """Where files lie; data_dir is only read, except by a download."""

    data_dir: Path
    cache_dir: Path
    download: bool


class FoundFormat(NamedTuple):
    """One data set in one form, found but not read."""

    name: str  # what kind of files they are, in words
    files: Sequence[Path]  # where one of them changes, the data set is prepared again
    read: Callable[[ExitStack], RawDataset]  # lists the pictures; what it opens it enters into the stack
    left_out: Sequence[tuple[str, str]] = ()  # files and folders that are not taken, and why


FormatDetector = Callable[[Path], FoundFormat | None]  # a folder -> what lies in it, if it is of the finder's form


def detect_format(folders: Sequence[Path], finders: Sequence[FormatDetector]) -> tuple[Path, FoundFormat] | None:
    """The first form that lies in one of the folders. Raises UserError where a folder may not be read."""
    for folder in folders:
        try:
            for finder in finders if folder.is_dir() else ():
                form = finder(folder)
                if form is not None:
                    return folder, form
        except OSError as error:
            raise UserError(f"{error.filename or folder}: cannot be read ({error.strerror or error})") from error
    return None
