"""Reads the pictures of mode=predict: class folders to learn from, and pictures to label."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from metarun.config.paths import existing_path
from metarun.data.formats.listing import classes_in, files_below, list_visible, normalise_unicode
from metarun.data.image_spec import ImageSpec, Unreadable, decode_image
from metarun.errors import UserError
from metarun.utils.safe_files import is_regular

log = logging.getLogger(__name__)

NAMED = 10  # names that a message lists


@dataclass(frozen=True)
class LabelledImages:
    """Decoded pictures, in the order of their paths."""

    files: list[Path]
    labels: list[int | None]  # class numbers; None where the class is not known
    images: np.ndarray  # uint8 [pictures, channels, size, size]


def read(support: str, query: Sequence[str], spec: ImageSpec) -> tuple[list[str], LabelledImages, LabelledImages]:
    """The sorted class names, the support pictures, and the pictures of all places in `query`, each once.

    A query is labelled if its folder is named like a class. Queries that cannot be read are left out with a warning.

    Raises:
        UserError: no such folder or file, fewer than two classes, a class or a query without pictures, or a file of
            the support that is no picture; the message names all files that cannot be read.
    """
    try:
        files_of = support_files(support)
        classes = list(files_of)
        query_paths = sorted({path for place in query for path in filter(is_regular, query_files(place, classes))})
    except OSError as error:
        raise UserError(f"support or query: {error.filename} cannot be read ({error.strerror})") from error
    labels: list[int | None] = [label for label, paths in enumerate(files_of.values()) for _ in paths]
    support_images, bad = decode([path for paths in files_of.values() for path in paths], spec)
    query_images, left_out = decode(query_paths, spec)
    reasons = "; ".join(f"{path} ({reason})" for path, reason in {**bad, **left_out}.items())
    if bad:
        of_query = f", and {len(left_out)} of query" if left_out else ""
        raise UserError(
            f"support={support}: {len(bad)} of its files cannot be read{of_query}: {reasons}; "
            "replace them or take them away"
        )
    if left_out:
        log.warning("query: left out, as they cannot be read: %d, %s", len(left_out), reasons)
    if not query_images:
        raise UserError(
            f"query={' '.join(query)}: holds no picture that can be read; give pictures, or a folder of them"
        )
    numbers = {name: label for label, name in enumerate(classes)}
    query_labels = [numbers.get(normalise_unicode(path.absolute().parent.name)) for path in query_images]
    return (
        classes,
        LabelledImages(list(support_images), labels, np.stack(list(support_images.values()))),
        LabelledImages(list(query_images), query_labels, np.stack(list(query_images.values()))),
    )


def decode(files: Iterable[Path], spec: ImageSpec) -> tuple[dict[Path, np.ndarray], dict[Path, str]]:
    """The pixels of each file, and the reason for each that cannot be read."""
    images, bad = {}, {}
    for path in files:
        try:
            images[path] = decode_image(path, spec)
        except Unreadable as error:
            bad[path] = str(error)
    return images, bad


def support_files(place: str) -> dict[str, list[Path]]:
    """The regular files below place/CLASS by class name, sorted.

    Raises:
        UserError: no such folder, fewer than two classes, or a class without files.
        OSError: a folder cannot be read.
    """
    folder = existing_path("support", place)
    files = {name: [path for path in paths if is_regular(path)] for name, paths in classes_in(folder).items()}
    if not files:
        raise UserError(f"support={place}: no pictures in class folders; put those of each class in {place}/<class>/")
    folders = [entry.name for entry in list_visible(folder) if entry.is_dir()]
    if empty := [name for name in folders if not files.get(normalise_unicode(name))]:
        raise UserError(f"support={place}: class folder {min(empty)!r} holds no pictures; add one or take it away")
    if len(files) < 2:
        raise UserError(f"support={place}: holds one class, {folders[0]!r}; two or more are needed to tell apart")
    return files


def query_files(place: str, classes: Sequence[str]) -> list[Path]:
    """A file; or the files in a folder; or all below it if it has a folder that is named like a class.

    Raises:
        UserError: no such file or folder, or no files in it.
        OSError: a folder cannot be read.
    """
    path = existing_path("query", place)
    if path.is_file():
        return [path]
    entries = list_visible(path)
    if any(entry.is_dir() and normalise_unicode(entry.name) in classes for entry in entries):
        return files_below(path)
    files = [Path(entry.path) for entry in entries if not entry.is_dir()]
    if not files:
        raise UserError(
            f"query={place}: no pictures in it; folders in it are searched where one is named like a class of the "
            f"support ({join_truncated(classes)})"
        )
    return files


def join_truncated(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
