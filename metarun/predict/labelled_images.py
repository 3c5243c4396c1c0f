"""A person's own pictures on disk: class folders to learn from, and pictures to label."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from metarun.config.paths import existing_path
from metarun.data.formats.listing import NOT_PICTURES, classes_in, files_below, list_visible, normalise_unicode
from metarun.data.image_spec import ImageSpec, Unreadable, decode_image
from metarun.errors import UserError
from metarun.utils.safe_files import is_regular

log = logging.getLogger(__name__)

NAMED = 10  # files that a warning lists


@dataclass(frozen=True)
class LabelledImages:
    """Decoded pictures, in the order of their paths."""

    files: list[Path]
    labels: list[int | None]  # class numbers; None where the class is not known
    images: np.ndarray  # uint8 [pictures, channels, size, size]

    def in_(self, other: LabelledImages) -> list[bool]:
        """Of each picture, whether `other` has it as well, under whatever name: the pixels that a network is given."""
        there = {image.tobytes() for image in other.images}
        return [image.tobytes() in there for image in self.images]

    def of(self, label: int) -> list[Path]:
        return [file for file, own in zip(self.files, self.labels, strict=True) if own == label]


def read(support: str, query: Sequence[str], look: ImageSpec) -> tuple[list[str], LabelledImages, LabelledImages]:
    """The classes, the support pictures, and all pictures at the places of `query`, each once, sorted by path.

    A query is labelled where its folder is named like a class. Queries that are no pictures are left out, with a
    warning.

    Raises:
        UserError: no such folder or file, fewer than two classes, a class or a query without pictures, or a file of
            the support that is no picture: all files that cannot be read are named.
    """
    classes, files, labels = support_files(support)
    known, bad = decode(files, look)
    paths = sorted({path for place in query for path in existing_files(query_files(place, classes))})
    new, left_out = decode(paths, look)
    if bad:
        told = "; ".join(f"{path} ({reason})" for path, reason in {**bad, **left_out}.items())
        of_query = f", and {len(left_out)} of query" if left_out else ""
        raise UserError(
            f"support={support}: {len(bad)} of its files cannot be read{of_query}: {told}; "
            "replace them or take them away"
        )
    if left_out:
        words = [f"{path} ({reason})" for path, reason in left_out.items()]
        log.warning("query: left out, as they cannot be read: %d, %s", len(words), "; ".join(words))
    if not new:
        raise UserError(
            f"query={' '.join(query)}: holds no picture that can be read; give pictures, or a folder of them"
        )
    number = {name: label for label, name in enumerate(classes)}
    of_query = [number.get(normalise_unicode(path.absolute().parent.name)) for path in new]
    return (
        classes,
        LabelledImages(files, list(labels), np.stack(list(known.values()))),
        LabelledImages(list(new), of_query, np.stack(list(new.values()))),
    )


def decode(files: Iterable[Path], look: ImageSpec) -> tuple[dict[Path, np.ndarray], dict[Path, str]]:
    """The pixels of each file, and of those that cannot be read the reason."""
    images, bad = {}, {}
    for path in files:
        try:
            images[path] = decode_image(path, look)
        except Unreadable as error:
            bad[path] = str(error)
    return images, bad


# --- support -----------------------------------------------------------------------------------------------


def support_files(place: str) -> tuple[list[str], list[Path], list[int]]:
    """The class names, sorted, the files below place/<class>, and the class number of each.

    Raises:
        UserError: no such folder, fewer than two classes, or a class without files.
    """
    folder = existing_path("support", place)
    try:
        found = {name: existing_files(files) for name, files in classes_in(folder).items()}
        empty = [
            entry.name
            for entry in list_visible(folder)
            if entry.is_dir() and not found.get(normalise_unicode(entry.name))
        ]
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
    labelled = [(path, label) for label, paths in enumerate(found.values()) for path in paths]
    return list(found), [path for path, _ in labelled], [label for _, label in labelled]


# --- query -------------------------------------------------------------------------------------------------


def query_files(place: str, classes: Sequence[str]) -> list[Path]:
    """A file; or those in a folder; or all below it where it has a folder that is named like a class."""
    path = existing_path("query", place)
    if path.is_file():
        return [path]
    try:
        entries = list_visible(path)
        if any(entry.is_dir() and normalise_unicode(entry.name) in classes for entry in entries):
            return files_below(path)
        found = [Path(entry.path) for entry in entries if not entry.is_dir() and entry.name.lower() not in NOT_PICTURES]
    except OSError as error:
        raise UserError(f"query={place}: {error.filename} cannot be read ({error.strerror})") from error
    if not found:
        raise UserError(
            f"query={place}: no pictures in it; folders in it are searched where one is named like a class of the "
            f"support ({join_truncated(classes)})"
        )
    return found


# --- both --------------------------------------------------------------------------------------------------


def existing_files(paths: Iterable[Path]) -> list[Path]:
    """Those that are files, or would be if they could be read; a pipe would wait for its other end."""
    return [path for path in paths if is_regular(path)]


def join_truncated(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
