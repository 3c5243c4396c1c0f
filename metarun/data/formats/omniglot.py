"""Omniglot's drawings on disk: found in the two archives or in unpacked folders, listed, and read in memory."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metarun.data.cache import file_fingerprints
from metarun.data.datasets.omniglot_splits import BACKGROUND, EVALUATION
from metarun.data.download import fetch
from metarun.data.formats.arrays import raise_user_error
from metarun.data.formats.listing import is_folder, list_visible
from metarun.data.formats.pickles import refuse_web_page
from metarun.data.formats.torchmeta import HDF5_NAME, open_groups
from metarun.data.image_spec import Raw
from metarun.errors import UserError, relative_to_cwd
from metarun.utils.safe_files import LIST_BYTES, open_regular

HALF_NAMES = ("images_background", "images_evaluation")
FOLDERS = ("omniglot-py", ".", "omniglot")  # below data_dir
ADDRESS = "https://github.com/brendenlake/omniglot/raw/master/python"
MD5 = {
    "images_background": "68d2efa1b9178cc56df9314c21c6e718",
    "images_evaluation": "6b91aef0f799c5bb55b94e3f2daec811",
}


@dataclass(frozen=True, order=True)
class Drawing:
    """One PNG, in an archive or in a folder."""

    name: str  # of its class: "Latin/character01"
    file: str  # "0001_01.png"
    source: Path  # the archive, or the folder of alphabets
    member: str  # its path in there
    stamp: str  # changes when the file does: its CRC, or path, size and time of change


def find_drawings(data_dir: Path, download: bool) -> list[Drawing]:
    """Every drawing below data_dir, sorted by class and file.

    Raises:
        UserError: nothing there, only one of the two halves, a damaged archive, what may not be read, or a
            download that failed.
    """
    try:
        return search(data_dir, download)
    except OSError as error:
        raise UserError(f"{error.filename or data_dir}: cannot be read ({error.strerror or error})") from error


def search(data_dir: Path, download: bool) -> list[Drawing]:
    if data_dir.is_file():
        raise UserError(f"data_dir={relative_to_cwd(data_dir)}: a file; give the folder that data sets lie in")
    halves = {top: locate(data_dir, top) for top in HALF_NAMES}
    missing = [top for top, path in halves.items() if path is None]
    bare = next((place for place in FOLDERS if holds_alphabets(data_dir / place)), None)
    if len(missing) == len(HALF_NAMES) and bare is not None:
        return sorted(in_folder((data_dir / bare).resolve()))
    if missing and (path := locate_hdf5(data_dir)):
        return sorted(in_hdf5(path))
    if missing and download:
        for top in missing:
            fetch(f"{ADDRESS}/{top}.zip", MD5[top], data_dir / FOLDERS[0])
        halves = {top: locate(data_dir, top) for top in HALF_NAMES}
        missing = [top for top, path in halves.items() if path is None]
    if missing:
        raise UserError(not_found_message(data_dir, missing))
    found = []
    for top, path in halves.items():
        assert path is not None
        drawings = list(in_archive(path, top) if path.suffix == ".zip" else in_folder(path))
        if not drawings:
            inside = f"{top}/" if path.suffix == ".zip" else ""
            raise UserError(f"{path}: holds no {inside}<alphabet>/<character>/*.png; {remedy(data_dir, [top])}")
        found += drawings
    return sorted(found)


def locate(data_dir: Path, top: str) -> Path | None:
    """The archive or the folder of one half, or None."""
    for place in FOLDERS:
        folder = data_dir / place
        if (folder / f"{top}.zip").is_file():
            return folder / f"{top}.zip"
        if (folder / top).is_dir():
            return folder / top
    return None


def locate_hdf5(data_dir: Path) -> Path | None:
    """Torchmeta's file of both halves, or None."""
    return next(filter(Path.is_file, (data_dir / place / HDF5_NAME for place in FOLDERS)), None)


def holds_alphabets(folder: Path) -> bool:
    return any((folder / alphabet).is_dir() for alphabet in (*BACKGROUND, *EVALUATION))


def not_found_message(data_dir: Path, missing: list[str]) -> str:
    if not data_dir.is_dir():
        return f"data_dir={relative_to_cwd(data_dir)}: no such folder; {remedy(data_dir, missing)}"
    places = ", ".join(str(data_dir / place) for place in FOLDERS)
    what = " and ".join(f"{top}.zip or {top}/" for top in missing)
    place = relative_to_cwd(data_dir)
    return f"data_dir={place}: Omniglot's {what} not found (looked in {places}); {remedy(data_dir, missing)}"


def remedy(data_dir: Path, tops: list[str]) -> str:
    archives = " and ".join(f"{top}.zip" for top in tops)
    return f"give download=true, or put {archives} from {ADDRESS} in {data_dir / FOLDERS[0]}"


def in_archive(path: Path, top: str) -> Iterator[Drawing]:
    """The drawings of one archive; other members are passed over."""
    with open_archive(path) as archive:
        for info in archive.infolist():
            match = re.fullmatch(rf"{top}/([^./][^/]*)/([^./][^/]*)/([^./][^/]*\.png)", info.filename)
            if match:
                if info.file_size > LIST_BYTES:
                    raise UserError(f"{path / info.filename}: unpacks to {info.file_size} bytes, which is no drawing")
                alphabet, character, file = match.groups()
                yield Drawing(f"{alphabet}/{character}", file, path, info.filename, f"{info.CRC:08x}")


def open_archive(path: Path) -> zipfile.ZipFile:
    try:
        with open_regular(path) as file:
            refuse_web_page(file.read(512), path)
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise UserError(
            f"{path}: not a whole zip archive ({error}); delete it and fetch the archive from {ADDRESS}"
        ) from error


def in_folder(folder: Path) -> Iterator[Drawing]:
    """The drawings <alphabet>/<character>/<file>.png of one folder; hidden files are passed over."""
    for alphabet in filter(is_folder, list_visible(folder)):
        for character in filter(is_folder, list_visible(alphabet)):
            for file in list_visible(character):
                if file.name.endswith(".png") and file.is_file():
                    name = f"{alphabet.name}/{character.name}"
                    (stamp,) = file_fingerprints([Path(file.path)])
                    yield Drawing(name, file.name, folder, f"{name}/{file.name}", stamp)


def in_hdf5(path: Path) -> Iterator[Drawing]:
    """The drawings of Torchmeta's file of <half>/<alphabet>/<character>; its lists of labels are not needed."""
    (stamp,) = file_fingerprints([path])
    with ExitStack() as stack:
        for place, found in open_groups(path, 3, stack).items():
            name = place.partition("/")[2]
            yield from (Drawing(name, f"{i:02}", path, place, stamp) for i in range(len(found)))


class DrawingReader:
    """Where a drawing's bytes are, or they themselves out of an archive, which it keeps open while it is entered."""

    def __enter__(self) -> DrawingReader:
        self.stack = ExitStack()
        self.archives: dict[Path, zipfile.ZipFile] = {}
        self.groups: dict[Path, dict[str, Any]] = {}
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def read(self, drawing: Drawing) -> Raw:
        if drawing.source.name == HDF5_NAME:
            if drawing.source not in self.groups:
                self.groups[drawing.source] = open_groups(drawing.source, 3, self.stack)
            with raise_user_error(drawing.source, "a whole HDF5 file"):
                return 255 - self.groups[drawing.source][drawing.member][int(drawing.file)]  # Torchmeta's ink is white
        if drawing.source.suffix != ".zip":
            return drawing.source / drawing.member
        if drawing.source not in self.archives:
            self.archives[drawing.source] = self.stack.enter_context(open_archive(drawing.source))
        try:
            return self.archives[drawing.source].read(drawing.member)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            place = drawing.source / drawing.member
            raise UserError(
                f"{place}: cannot be read as an image ({error}); put back the file or the whole archive"
            ) from error
