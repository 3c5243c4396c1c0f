"""A person's own pictures on disk: class folders to learn from, and pictures to label."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from metarun.data.listing import NOT_PICTURES, classes_in, files_below, spelt, visible
from metarun.data.look import Look, Unreadable, pixels
from metarun.errors import UserError
from metarun.places import query_place, support_folder
from metarun.utils.safe_files import is_regular
from metarun.utils.text import printable

log = logging.getLogger(__name__)

NAMED = 10  # files that a warning lists


@dataclass(frozen=True)
class Pictures:
    """Decoded pictures, in the order of their paths."""

    files: list[Path]
    labels: list[int | None]  # class numbers; None where the class is not known
    images: np.ndarray  # uint8 [pictures, channels, size, size]

    def of(self, label: int) -> list[Path]:
        return [file for file, own in zip(self.files, self.labels, strict=True) if own == label]


# --- support -----------------------------------------------------------------------------------------------


def read_support(place: str, look: Look) -> tuple[list[str], Pictures]:
    """The class names, sorted, and the pictures below place/<class>.

    Raises:
        UserError: no such folder, fewer than two classes, a class without pictures, or a file that is no picture.
    """
    folder = support_folder(place)
    try:
        found = {name: regular(files) for name, files in classes_in(folder).items()}
        empty = [entry.name for entry in visible(folder) if entry.is_dir() and not found.get(spelt(entry.name))]
    except OSError as error:
        raise UserError(f"support={place}: {error.filename} cannot be read ({error.strerror})") from error
    if not found:
        raise UserError(f"support={place}: no pictures in class folders; put those of each class in {place}/<class>/")
    if empty:
        raise UserError(f"support={place}: class folder {min(empty)!r} holds no pictures; add one or take it away")
    if len(found) < 2:
        raise UserError(
            f"support={place}: holds one class, {next(iter(found))!r}; two or more are needed to tell apart"
        )
    files, labels, images = [], [], []
    for label, paths in enumerate(found.values()):
        for path in paths:
            try:
                images.append(pixels(path, look))
            except Unreadable as error:
                raise UserError(f"support: {path}: cannot be read ({error}); replace it or take it away") from error
            files.append(path)
            labels.append(label)
    return list(found), Pictures(files, labels, np.stack(images))


# --- query -------------------------------------------------------------------------------------------------


def read_query(places: Sequence[str], classes: Sequence[str], look: Look) -> Pictures:
    """All pictures at `places`, each once, sorted by path; labelled where their folder is named like a class.

    Files that are no pictures are left out with a warning.

    Raises:
        UserError: no such folder or file, or no pictures there.
    """
    paths = {path for place in places for path in regular(query_files(place, classes))}
    files, images, left_out = [], [], []
    for path in sorted(paths):
        try:
            images.append(pixels(path, look))
            files.append(path)
        except Unreadable as error:
            left_out.append(printable(f"{path} ({error})"))
    if left_out:
        log.warning("query: left out, as they cannot be read: %d, %s", len(left_out), listed(left_out))
    if not files:
        raise UserError(
            f"query={' '.join(places)}: holds no picture that can be read; give pictures, or a folder of them"
        )
    number = {name: label for label, name in enumerate(classes)}
    labels = [number.get(spelt(path.absolute().parent.name)) for path in files]
    return Pictures(files, labels, np.stack(images))


def query_files(place: str, classes: Sequence[str]) -> list[Path]:
    """A file; or those in a folder; or all below it where it has a folder that is named like a class."""
    path = query_place(place)
    if path.is_file():
        return [path]
    try:
        entries = visible(path)
        if any(entry.is_dir() and spelt(entry.name) in classes for entry in entries):
            return files_below(path)
        found = [Path(entry.path) for entry in entries if not entry.is_dir() and entry.name.lower() not in NOT_PICTURES]
    except OSError as error:
        raise UserError(f"query={place}: {error.filename} cannot be read ({error.strerror})") from error
    if not found:
        raise UserError(
            f"query={place}: no pictures in it; folders in it are searched where one is named like a class of the "
            f"support ({listed(classes)})"
        )
    return found


# --- both --------------------------------------------------------------------------------------------------


def regular(paths: Iterable[Path]) -> list[Path]:
    """Those that are files, or would be if they could be read; a pipe would wait for its other end."""
    return [path for path in paths if is_regular(path)]


def listed(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
