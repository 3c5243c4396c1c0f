"""How data sets lie on disk: a form is found by what is in the folder, then prepared once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from metarun.data.cache import Contents, file_fingerprints, fingerprint, load_or_build_cache
from metarun.data.image_set import ImageSet, image_set
from metarun.data.image_spec import ImageSpec
from metarun.data.splits import divide
from metarun.errors import UserError, relative_to_cwd


class DataPaths(NamedTuple):
    """Where files lie; data_dir is only read, except by a download."""

    data_dir: Path
    cache_dir: Path
    download: bool


class FoundFormat(NamedTuple):
    """One data set in one form, found but not read."""

    name: str  # what kind of files they are, in words
    files: Sequence[Path]  # where one of them changes, the data set is prepared again
    contents: Callable[[ExitStack], Contents]  # lists the pictures; what it opens it enters into the stack
    left_out: Sequence[tuple[str, str]] = ()  # files and folders that are not taken, and why


FormatDetector = Callable[[Path], FoundFormat | None]  # a folder -> what lies in it, if it is of the finder's form


def find(folders: Sequence[Path], finders: Sequence[FormatDetector]) -> tuple[Path, FoundFormat] | None:
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


def load_form(
    dataset: str,
    found: tuple[Path, FoundFormat],
    places: DataPaths,
    look: ImageSpec,
    split: str,
    kept_as: str | None = None,
) -> ImageSet:
    """Prepare what was found, or take what has been prepared, and divide its classes.

    Args:
        kept_as: begins the prepared file's name, where data sets of the same pictures share it.

    Raises:
        UserError: files are damaged, classes are missing, or cache_dir cannot be written.
    """
    folder, form = found
    stamp = fingerprint(form.name, look, *file_fingerprints(form.files))

    def contents(stack: ExitStack) -> Contents:
        listed = form.contents(stack)
        divide(dataset, split, listed.names, listed.splits)  # what is wrong is known before the work
        return listed

    ready = load_or_build_cache(places.cache_dir, f"{kept_as or dataset}-{stamp}", look, folder, contents)
    parts, class_split = divide(dataset, split, ready.manifest.names, ready.manifest.splits)
    return image_set(ready, look, parts, class_split)


def candidate_dirs(data_dir: Path, names: Sequence[str]) -> list[Path]:
    """The folders below data_dir that a data set may lie in; data_dir itself comes last."""
    return [*(data_dir / name for name in names), data_dir]


def not_found_error(dataset: str, data_dir: Path, folders: Sequence[Path], wanted: str) -> UserError:
    """That nothing was found, with what was looked for and where."""
    if not data_dir.is_dir():
        return UserError(
            f"data_dir={relative_to_cwd(data_dir)}: no such folder; "
            f"make it and put {wanted} there, or give data_dir=FOLDER"
        )
    looked = ", ".join(str(folder) for folder in folders)
    place = relative_to_cwd(data_dir)
    return UserError(f"data_dir={place}: {dataset} not found (looked in {looked}); put there {wanted}")
