"""What lies in folders of pictures: classes and their files, without what systems and programs leave beside them."""

from __future__ import annotations

import logging
import os
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from metarun.errors import UserError
from metarun.utils.safe_files import UnsafeFile, check_regular

log = logging.getLogger(__name__)

NOT_PICTURES = {  # of Windows, macOS, Synology, QNAP and others, in lower case, besides hidden files and folders
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "picasa.ini", "icon\r", "__macosx", "lost+found"),
    *("@eadir", "@tmp", "@sharebin", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "~snapshot"),
    *("$recycle.bin", "recycler", "system volume information", "network trash folder", "temporary items"),
}
SUFFIXES = {  # of pictures; other files in a class folder are tried as well
    *(".avif", ".bmp", ".dib", ".gif", ".ico", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pcx", ".pgm"),
    *(".png", ".pnm", ".ppm", ".qoi", ".sgi", ".tga", ".tif", ".tiff", ".webp"),
}
Listing = Mapping[str, Sequence[Path]]  # class name -> its files
LeftOut = list[tuple[str, str]]  # a file or folder, and why


def list_visible(folder: Path | os.DirEntry) -> list[os.DirEntry]:
    """All entries but hidden ones and those that are left by other programs, sorted by name."""
    with os.scandir(folder) as entries:
        found = [e for e in entries if not e.name.startswith(".") and e.name.lower() not in NOT_PICTURES]
    return sorted(found, key=lambda entry: entry.name)


def normalise_unicode(name: str) -> str:
    """A folder's name with accents spelt in one way, as file systems differ."""
    return unicodedata.normalize("NFC", name)


def files_below(folder: Path, left_out: LeftOut | None = None) -> list[Path]:
    """All files in a folder and in the folders in it, sorted; links to folders are not followed.

    Args:
        left_out: takes up what cannot be read; None: a folder raises OSError, and any other entry counts as a file.
    """
    found: list[Path] = []
    for entry in entries_of(folder, left_out):
        path = Path(entry.path)
        if is_folder(entry):
            if not entry.is_symlink():  # which may lead back up
                found += files_below(path, left_out)
            elif left_out is not None:
                left_out.append((entry.path, "a link to a folder, which is not followed here"))
        elif left_out is None or is_readable(path, left_out):
            found.append(path)
    return sorted(found)


def entries_of(folder: Path, left_out: LeftOut | None) -> list[os.DirEntry]:
    try:
        return list_visible(folder)
    except OSError as error:
        if left_out is None:
            raise
        left_out.append((str(folder), f"the folder cannot be read: {error.strerror}"))
        return []


def is_readable(path: Path, left_out: LeftOut) -> bool:
    """Whether a regular file is there, which may be another's problem to open."""
    try:
        check_regular(path, path.stat().st_mode)
    except UnsafeFile as error:
        left_out.append((str(path), str(error.strerror)))
        return False
    except OSError as error:
        broken = "a link to what is not there" if path.is_symlink() else str(error.strerror)
        left_out.append((str(path), broken))
        return False
    return True


def classes_in(folder: Path) -> dict[str, list[Path]]:
    """Class name -> all files below its folder, sorted; empty folders are passed over.

    Two folders whose names differ in their Unicode form only are one class. Raises OSError for an unreadable folder.
    """
    found = [(entry.name, files_below(Path(entry.path))) for entry in list_visible(folder) if is_folder(entry)]
    return merge_classes(found, folder)


def merge_classes(found: Sequence[tuple[str, Sequence[Path]]], folder: Path) -> dict[str, list[Path]]:
    """The files of each name, as `spelt`; a warning says where two folders become one class."""
    listing: dict[str, list[Path]] = {}
    for name, files in found:
        if files:
            if normalise_unicode(name) in listing:
                log.warning("%s: two folders %r differ in their Unicode form only; they are one class", folder, name)
            listing.setdefault(normalise_unicode(name), []).extend(files)
    return dict(sorted(listing.items()))


def class_listing(folder: Path, left_out: LeftOut) -> dict[str, list[Path]]:
    """Class name -> its files, where a person's folder holds class folders, or groups of class folders.

    A folder that holds pictures is a class, with all that is below it. Where the folders of `folder` hold none
    themselves, but folders of pictures, the classes are named GROUP/CLASS.

    Raises:
        UserError: some folders hold pictures, others only folders of pictures.
        OSError: `folder` cannot be read.
    """
    folders, groups, classes = [], [], []
    for entry in list_visible(folder):
        if is_folder(entry):
            folders.append(entry)
            inside = entries_of(Path(entry.path), [])  # what cannot be read is noted below
            if any(map(is_picture, inside)):
                classes.append(entry)
            elif any(is_folder(inner) and files_below(Path(inner.path), []) for inner in inside):
                groups.append(entry)
        elif is_picture(entry):
            left_out.append((entry.path, "lies in no class folder"))
    if groups and classes:
        raise UserError(
            f"{folder}: folder {classes[0].name!r} holds pictures, {groups[0].name!r} only folders of pictures; put "
            "the pictures of each class into one folder, all at the same depth"
        )
    if not groups:
        return merge_classes([(entry.name, files_below(Path(entry.path), left_out)) for entry in folders], folder)
    found: list[tuple[str, list[Path]]] = []
    for entry in folders:
        if entry in groups:
            inner = class_listing(Path(entry.path), left_out)
            found += [(f"{entry.name}/{name}", files) for name, files in inner.items()]
        else:
            found.append((entry.name, files_below(Path(entry.path), left_out)))
    return merge_classes(found, folder)


def is_folder(entry: os.DirEntry) -> bool:
    """Whether it is, or links to, a folder."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or below a folder that may not be searched
        return False


def is_picture(entry: os.DirEntry) -> bool:
    """Whether a file is named like a picture."""
    return Path(entry.name).suffix.lower() in SUFFIXES and not is_folder(entry)


def deduplicate(listing: Listing, place: Path | str) -> dict[str, list[Path]]:
    """The listing with each file once, by whatever names it is reached: links, hard links, `./`, letters' case.

    A file that stands in its class twice is told.

    Raises:
        UserError: a file stands in two classes, or is not there.
    """
    seen: dict[object, tuple[str, Path]] = {}
    found: dict[str, list[Path]] = {label: [] for label in listing}
    twice: list[Path] = []
    for label, files in listing.items():
        for file in files:
            key = file_identity(file)
            if key not in seen:
                seen[key] = label, file
                found[label].append(file)
                continue
            other, first = seen[key]
            if other != label:
                what = f"{file} stands" if first == file else f"{first} and {file} are one file, which stands"
                raise UserError(
                    f"{place}: {what} in the classes {other!r} and {label!r}; a picture belongs to one class: "
                    "take it out of the other"
                )
            twice.append(file)
    if twice:
        what = "%s: %d pictures stand in their class twice, first %s; each is taken once"
        log.warning(what, place, len(twice), twice[0])
    return found


def file_identity(file: Path) -> object:
    """What is the same for all names of a file."""
    try:
        status = file.stat()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); put it back or take it away") from error
    return (status.st_dev, status.st_ino) if status.st_ino else file.resolve()  # some file systems number no files
