"""What lies in folders of pictures: classes and their files, without what systems and programs leave beside them."""

import logging
import os
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from metarun.errors import UserError
from metarun.utils.safe_files import check_regular

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
    """Entries sorted by name, without hidden ones and those that other programs leave."""
    with os.scandir(folder) as entries:
        found = [e for e in entries if not e.name.startswith(".") and e.name.lower() not in NOT_PICTURES]
    return sorted(found, key=lambda entry: entry.name)


def entries_of(folder: Path, left_out: LeftOut | None) -> list[os.DirEntry]:
    """`list_visible`, but if the folder cannot be read, it is added to `left_out`. None: raises OSError."""
    try:
        return list_visible(folder)
    except OSError as error:
        if left_out is None:
            raise
        left_out.append((str(folder), f"the folder cannot be read: {error.strerror}"))
        return []


def is_folder(entry: os.DirEntry) -> bool:
    """Whether it is, or links to, a folder."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or below a folder that may not be searched
        return False


def is_picture(entry: os.DirEntry) -> bool:
    """Whether a file is named like a picture."""
    return Path(entry.name).suffix.lower() in SUFFIXES and not is_folder(entry)


def holds_pictures(folder: Path) -> bool:
    return any(map(is_picture, entries_of(folder, [])))


def holds_class_folders(folder: Path) -> bool:
    """Whether a folder in it holds files, at any depth."""
    return any(is_folder(entry) and files_below(Path(entry.path), []) for entry in entries_of(folder, []))


def normalise_unicode(name: str) -> str:
    """A folder's name with accents in composed form (NFC), as file systems differ."""
    return unicodedata.normalize("NFC", name)


def files_below(folder: Path, left_out: LeftOut | None = None) -> list[Path]:
    """All files in a folder and in the folders in it, sorted. Links to folders are not followed.

    Args:
        left_out: receives what cannot be read. None: a folder raises OSError, and any other entry counts as a file.
    """
    files: list[Path] = []
    for entry in entries_of(folder, left_out):
        path, reason = Path(entry.path), None
        if is_folder(entry) and not entry.is_symlink():
            files += files_below(path, left_out)
            continue
        if is_folder(entry):  # which may lead back up
            reason = "a link to a folder, which is not followed here"
        elif left_out is not None:
            reason = unreadable_reason(path)
        if reason is None:
            files.append(path)
        elif left_out is not None:
            left_out.append((entry.path, reason))
    return sorted(files)


def unreadable_reason(path: Path) -> str | None:
    """Why a path is no regular file, or None if it is one, whether or not it may be opened."""
    try:
        check_regular(path, path.stat().st_mode)
        return None
    except FileNotFoundError:
        return "a link to what is not there"
    except OSError as error:
        return str(error.strerror)


# --- classes -----------------------------------------------------------------------------------------------


def classes_in(folder: Path) -> dict[str, list[Path]]:
    """Class name -> all files below its folder, sorted; empty folders are ignored.

    Two folders whose names differ in their Unicode form only are one class. Raises OSError for an unreadable folder.
    """
    found = [(entry.name, files_below(Path(entry.path))) for entry in list_visible(folder) if is_folder(entry)]
    return merge_classes(found, folder)


def merge_classes(found: Sequence[tuple[str, Sequence[Path]]], folder: Path) -> dict[str, list[Path]]:
    """The files of each name in NFC. Warns if two folders become one class."""
    listing: dict[str, list[Path]] = {}
    for name, files in found:
        if files:
            if normalise_unicode(name) in listing:
                log.warning("%s: two folders %r differ in their Unicode form only; they are one class", folder, name)
            listing.setdefault(normalise_unicode(name), []).extend(files)
    return dict(sorted(listing.items()))


def class_listing(folder: Path, left_out: LeftOut) -> dict[str, list[Path]]:
    """Class name -> its files, for a user's folder of class folders, or of groups of class folders.

    A folder that holds pictures is a class, with all that is below it. If the folders of `folder` hold none
    themselves, but folders of pictures, the classes are named GROUP/CLASS.

    Raises:
        UserError: some folders hold pictures, others only folders of pictures.
        OSError: `folder` cannot be read.
    """
    entries = list_visible(folder)
    left_out += [(entry.path, "lies in no class folder") for entry in entries if is_picture(entry)]
    folders = [Path(entry.path) for entry in entries if is_folder(entry)]
    classes = [path for path in folders if holds_pictures(path)]
    groups = [path for path in folders if path not in classes and holds_class_folders(path)]
    if groups and classes:
        raise UserError(
            f"{folder}: folder {classes[0].name!r} holds pictures, {groups[0].name!r} only folders of pictures; put "
            "the pictures of each class into one folder, all at the same depth"
        )
    found: list[tuple[str, list[Path]]] = []
    for path in folders:
        if path in groups:
            found += [(f"{path.name}/{name}", files) for name, files in class_listing(path, left_out).items()]
        else:
            found.append((path.name, files_below(path, left_out)))
    return merge_classes(found, folder)


def deduplicate(listing: Listing, place: Path | str) -> dict[str, list[Path]]:
    """The listing with each file once, by whatever names it is reached: links, hard links, `./`, letters' case.

    Warns if a file is in its class twice.

    Raises:
        UserError: a file is in two classes, or is not there.
    """
    seen: dict[object, tuple[str, Path]] = {}
    unique: dict[str, list[Path]] = {label: [] for label in listing}
    repeated: list[Path] = []
    for label, file in ((label, file) for label, files in listing.items() for file in files):
        try:
            status = file.stat()
        except OSError as error:
            raise UserError(f"{file}: cannot be read ({error.strerror}); put it back or take it away") from error
        key = (status.st_dev, status.st_ino) if status.st_ino else file.resolve()  # some file systems number no files
        other, first = seen.setdefault(key, (label, file))
        if other != label:
            what = f"{file} stands" if first == file else f"{first} and {file} are one file, which stands"
            raise UserError(
                f"{place}: {what} in the classes {other!r} and {label!r}; a picture belongs to one class: "
                "take it out of the other"
            )
        (unique[label] if first is file else repeated).append(file)
    if repeated:
        what = "%s: %d pictures stand in their class twice, first %s; each is taken once"
        log.warning(what, place, len(repeated), repeated[0])
    return unique
