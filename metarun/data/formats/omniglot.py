"""Omniglot's drawings on disk: in the two archives, in unpacked folders, or in Torchmeta's HDF5 file."""

import re
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metarun.data.cache import file_fingerprints
from metarun.data.datasets.omniglot_splits import BACKGROUND, EVALUATION
from metarun.data.download import fetch
from metarun.data.formats.hdf5 import HDF5_NAME, open_arrays
from metarun.data.formats.listing import is_folder, list_visible
from metarun.data.formats.reading import open_data_file, os_errors, read_errors
from metarun.data.image_spec import Raw
from metarun.errors import UserError, relative_to_cwd
from metarun.utils.safe_files import LIST_BYTES

FOLDERS = ("omniglot-py", ".", "omniglot")  # below data_dir
ADDRESS = "https://github.com/brendenlake/omniglot/raw/master/python"
MD5 = {
    "images_background": "68d2efa1b9178cc56df9314c21c6e718",
    "images_evaluation": "6b91aef0f799c5bb55b94e3f2daec811",
}
HALF_NAMES = tuple(MD5)
FETCH_AGAIN = f"delete it and fetch the archive from {ADDRESS}"


@dataclass(frozen=True, order=True)
class Drawing:
    """One PNG, in an archive or in a folder, or one row of an HDF5 file."""

    name: str  # of its class: "Latin/character01"
    file: str  # "0001_01.png"; its row in an HDF5 file
    source: Path  # the archive, the folder of alphabets, or the HDF5 file
    member: str  # its path in there
    stamp: str  # changes when the file does: its CRC, or path, size and time of change


def find_drawings(data_dir: Path, download: bool) -> list[Drawing]:
    """All drawings below data_dir, sorted by class and file.

    Raises:
        UserError: no files, only one of the two halves, a damaged archive, no permission, or a download that failed.
    """
    if data_dir.is_file():
        raise UserError(f"data_dir={relative_to_cwd(data_dir)}: a file; give the folder that data sets lie in")
    with os_errors(data_dir):
        return sorted(iterate_drawings(data_dir, download))


def iterate_drawings(data_dir: Path, download: bool) -> Iterator[Drawing]:
    missing = [half for half in HALF_NAMES if locate(data_dir, half) is None]
    if len(missing) == len(HALF_NAMES):
        for folder in (data_dir / place for place in FOLDERS):
            if any((folder / alphabet).is_dir() for alphabet in (*BACKGROUND, *EVALUATION)):
                return (yield from in_folder(folder.resolve()))
    if missing and (hdf5 := locate_hdf5(data_dir)):
        return (yield from in_hdf5(hdf5))
    for half in missing if download else ():
        fetch(f"{ADDRESS}/{half}.zip", MD5[half], data_dir / FOLDERS[0])
    halves = {half: locate(data_dir, half) for half in HALF_NAMES}
    if None in halves.values():
        raise UserError(not_found_message(data_dir, [half for half, path in halves.items() if path is None]))
    for half, path in halves.items():
        assert path is not None
        zipped = path.suffix == ".zip"
        drawings = list(in_archive(path, half) if zipped else in_folder(path))
        if not drawings:
            inside = f"{half}/" if zipped else ""
            raise UserError(f"{path}: holds no {inside}<alphabet>/<character>/*.png; {remedy(data_dir, [half])}")
        yield from drawings


def locate(data_dir: Path, half: str) -> Path | None:
    """The archive or the folder of one half, or None."""
    for folder in (data_dir / place for place in FOLDERS):
        if (folder / f"{half}.zip").is_file():
            return folder / f"{half}.zip"
        if (folder / half).is_dir():
            return folder / half
    return None


def locate_hdf5(data_dir: Path) -> Path | None:
    """Torchmeta's file of both halves, or None."""
    return next(filter(Path.is_file, (data_dir / place / HDF5_NAME for place in FOLDERS)), None)


def not_found_message(data_dir: Path, missing: list[str]) -> str:
    shown = relative_to_cwd(data_dir)
    if not data_dir.is_dir():
        return f"data_dir={shown}: no such folder; {remedy(data_dir, missing)}"
    places = ", ".join(str(data_dir / place) for place in FOLDERS)
    what = " and ".join(f"{half}.zip or {half}/" for half in missing)
    return f"data_dir={shown}: Omniglot's {what} not found (looked in {places}); {remedy(data_dir, missing)}"


def remedy(data_dir: Path, halves: list[str]) -> str:
    archives = " and ".join(f"{half}.zip" for half in halves)
    return f"give download=true, or put {archives} from {ADDRESS} in {data_dir / FOLDERS[0]}"


def open_archive(path: Path) -> zipfile.ZipFile:
    with open_data_file(path, "a whole zip archive", FETCH_AGAIN):
        return zipfile.ZipFile(path)


def in_archive(path: Path, half: str) -> Iterator[Drawing]:
    """The drawings of one archive; other members are ignored."""
    with open_archive(path) as archive:
        for info in archive.infolist():
            match = re.fullmatch(rf"{half}/([^./][^/]*)/([^./][^/]*)/([^./][^/]*\.png)", info.filename)
            if match:
                if info.file_size > LIST_BYTES:
                    raise UserError(f"{path / info.filename}: unpacks to {info.file_size} bytes, which is no drawing")
                alphabet, character, file = match.groups()
                yield Drawing(f"{alphabet}/{character}", file, path, info.filename, f"{info.CRC:08x}")


def in_folder(folder: Path) -> Iterator[Drawing]:
    """The drawings <alphabet>/<character>/<file>.png of one folder; hidden files are ignored."""
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
        for place, array in open_arrays(path, 3, stack).items():
            yield from (Drawing(place.partition("/")[2], f"{i:02}", path, place, stamp) for i in range(len(array)))


def iterate_images(drawings: Sequence[Drawing], stack: ExitStack) -> Iterator[tuple[str, Raw]]:
    """Place and content of each drawing; the stack closes the files that are opened."""
    sources: dict[Path, Any] = {}
    for drawing in drawings:
        path, place = drawing.source, drawing.source / drawing.member
        if path.name == HDF5_NAME:
            arrays = sources[path] = sources.get(path) or open_arrays(path, 3, stack)
            with read_errors(path, "a whole HDF5 file"):
                image = 255 - arrays[drawing.member][int(drawing.file)]  # Torchmeta's ink is white
        elif path.suffix == ".zip":
            archive = sources[path] = sources.get(path) or stack.enter_context(open_archive(path))
            with read_errors(place, "a whole member of the archive", "put back the whole archive"):
                image = archive.read(drawing.member)
        else:
            image = place
        yield str(place), image
