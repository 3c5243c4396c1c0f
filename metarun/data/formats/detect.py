"""Interface of the file formats: each detector looks for its own files in a folder."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from metarun.data.cache import RawDataset
from metarun.data.formats.reading import os_errors


class DataPaths(NamedTuple):
    """Folders of the data; data_dir is only read, except by a download."""

    data_dir: Path
    cache_dir: Path
    download: bool


class FoundFormat(NamedTuple):
    """A data set's files in one format, found but not yet read."""

    name: str  # of the format, in words; part of the cache's fingerprint
    files: Sequence[Path]  # if one of them changes, the cache is rebuilt
    read: Callable[[ExitStack], RawDataset]  # lists the images; files that it opens are closed by the stack
    left_out: Sequence[tuple[str, str]] = ()  # files and folders that are not used, and why


FormatDetector = Callable[[Path], FoundFormat | None]  # folder -> the data set in it, or None if in another format


def detect_format(folders: Sequence[Path], detectors: Sequence[FormatDetector]) -> tuple[Path, FoundFormat] | None:
    """The first folder that holds one of the formats, and that format, or None.

    Raises:
        UserError: a folder cannot be read.
    """
    for folder in folders:
        with os_errors(folder):
            for detector in detectors if folder.is_dir() else ():
                found = detector(folder)
                if found is not None:
                    return folder, found
    return None
