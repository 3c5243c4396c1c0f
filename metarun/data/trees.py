"""Data sets that lie on disk as image files, in folders or in lists of them."""

from __future__ import annotations

import csv
import json
import os
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from metarun.data.on_disk import Form
from metarun.data.prepare import Contents
from metarun.data.source import SPLITS
from metarun.errors import UserError

SPLIT_NAMES = {"train": ("train", "base"), "val": ("val", "validation", "valid"), "test": ("test", "novel")}
NOT_PICTURES = {"thumbs.db", "desktop.ini"}  # what other systems leave in folders, besides hidden files
Listing = Mapping[str, Sequence[Path]]  # class name -> its files


# --- finders -----------------------------------------------------------------------------------------------


def class_folders(folder: Path) -> Form | None:
    """CLASS/*."""
    listing = classes_in(folder)
    return of_listing("class folders", listing) if listing else None


def split_folders(folder: Path) -> Form | None:
    """{train,val,test}/CLASS/*."""
    parts = {split: one_of(folder, names) for split, names in SPLIT_NAMES.items()}
    if any(part is None for part in parts.values()):
        return None
    return of_parts("train, val and test folders", {s: classes_in(part) for s, part in parts.items() if part}, folder)


def csv_lists(folder: Path) -> Form | None:
    """{train,val,test}.csv of `filename,label` or `class_name,image_name`, with the files in images/."""
    return of_lists("CSV lists", folder, "csv", csv_list)


def json_lists(folder: Path) -> Form | None:
    """CloserLookFewShot's {base,val,novel}.json of `label_names`, `image_names`, `image_labels`."""
    return of_lists("JSON lists", folder, "json", json_list)


def listed_folders(folder: Path, images: str, lists: str) -> Form | None:
    """Class folders below `images`; the class names of each split, a line each, in `lists`/{train,val,test}.txt."""
    files = [folder / lists / f"{split}.txt" for split in SPLITS]
    if not all(file.is_file() for file in files) or not (folder / images).is_dir():
        return None
    listing = classes_in(folder / images)
    splits = {split: file.read_text().split() for split, file in zip(SPLITS, files, strict=True)}
    for file, names in zip(files, splits.values(), strict=True):
        lacking = [name for name in names if name not in listing]
        if lacking:
            raise UserError(f"{file}: lists {lacking[0]!r}, but {folder / images / lacking[0]} holds no pictures")
    wanted = {name: listing[name] for names in splits.values() for name in names}
    return of_listing("class folders and lists of classes", wanted, splits, files)


# --- what they are made of ---------------------------------------------------------------------------------


def of_parts(name: str, parts: Mapping[str, Listing], place: Path, lists: Sequence[Path] = ()) -> Form:
    """A form that divides its classes itself.

    Raises:
        UserError: a class stands in two splits, or a split is empty.
    """
    whole: dict[str, Sequence[Path]] = {}
    for split, listing in parts.items():
        if not listing:
            raise UserError(f"{place}: its {split} part holds no class folders with pictures")
        for label, files in listing.items():
            if label in whole:
                other = next(s for s, earlier in parts.items() if label in earlier)
                raise UserError(
                    f"{place}: class {label!r} stands in {other} and in {split}; few-shot splits share no class: "
                    "give one folder of all classes, and they are divided"
                )
            whole[label] = files
    return of_listing(name, whole, {split: list(listing) for split, listing in parts.items()}, lists)


def of_lists(name: str, folder: Path, ending: str, read: Callable[[Path, Path], Listing]) -> Form | None:
    """A list of files for each split, read by `read`, which is given the list's path and the folder."""
    found = [one_of(folder, [f"{split}.{ending}" for split in names]) for names in SPLIT_NAMES.values()]
    lists = [path for path in found if path is not None]
    if len(lists) < len(SPLIT_NAMES):
        return None
    return of_parts(
        name, {split: read(path, folder) for split, path in zip(SPLIT_NAMES, lists, strict=True)}, folder, lists
    )


def of_listing(
    name: str, listing: Listing, splits: dict[str, list[str]] | None = None, lists: Sequence[Path] = ()
) -> Form:
    files = [file for paths in listing.values() for file in paths]

    def contents(_: ExitStack) -> Contents:
        labels = np.repeat(np.arange(len(listing)), [len(paths) for paths in listing.values()])
        return Contents(list(listing), labels, ((str(file), file) for file in files), splits)

    return Form(name, [*lists, *files], contents)


def classes_in(folder: Path) -> dict[str, list[Path]]:
    """Class name -> all files below its folder, sorted; hidden files and empty folders are passed over."""
    return {
        spelt(name): files
        for name in sorted(entry.name for entry in visible(folder) if entry.is_dir())
        if (files := files_below(folder / name))
    }


def spelt(name: str) -> str:
    """A folder's name with accents spelt in one way, as file systems differ."""
    return unicodedata.normalize("NFC", name)


def files_below(folder: Path) -> list[Path]:
    found: list[Path] = []
    for entry in visible(folder):
        if entry.is_dir():
            if not entry.is_symlink():  # which may lead back up
                found += files_below(Path(entry.path))
        elif entry.name.lower() not in NOT_PICTURES:
            found.append(Path(entry.path))
    return sorted(found)


def visible(folder: Path) -> list[os.DirEntry]:
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(".")]


def one_of(folder: Path, names: Iterable[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).exists()), None)


def csv_list(path: Path, folder: Path) -> dict[str, list[Path]]:
    """Class -> files that the list names, below images/ or images/CLASS/ or the folder itself."""
    found: dict[str, list[Path]] = {}
    for row in csv_rows(path, [{"filename", "label"}, {"class_name", "image_name"}]):
        label = row.get("label") or row.get("class_name") or ""
        name = row.get("filename") or row.get("image_name") or ""
        file = existing([folder / "images" / name, folder / "images" / label / name, folder / name], path, name)
        found.setdefault(label, []).append(file)
    return found


def csv_rows(path: Path, admitted: Sequence[set[str]]) -> list[dict[str, str]]:
    """The rows of a CSV file whose header has one of the admitted sets of columns.

    Raises:
        UserError: other columns, a row that lacks one of them, or text that is no UTF-8.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = next((names for names in admitted if names <= set(reader.fieldnames or ())), None)
            if columns is None:
                wanted = " or ".join(",".join(sorted(names)) for names in admitted)
                raise UserError(f"{path}: its first line must name the columns {wanted}, found {reader.fieldnames}")
            rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV file in UTF-8 ({error})") from error
    for number, row in enumerate(rows, 2):
        if not all(row.get(column) for column in columns):
            raise UserError(f"{path}: line {number} lacks a value for {', '.join(sorted(columns))}: {row}")
    return rows


def json_list(path: Path, folder: Path) -> dict[str, list[Path]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names, files, labels = (content[key] for key in ("label_names", "image_names", "image_labels"))
        if len(files) != len(labels):
            raise ValueError(f"{len(files)} image_names, {len(labels)} image_labels")
        named = [(str(names[int(label)]), str(file)) for file, label in zip(files, labels, strict=True)]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(
            f"{path}: must hold label_names, image_names and image_labels of equal length ({error!r})"
        ) from error
    found: dict[str, list[Path]] = {}
    for label, name in named:  # these lists hold whole paths of the machine that they were written on
        tails = [folder.joinpath(*Path(name).parts[-n:]) for n in (4, 3, 2, 1)]
        file = existing([Path(name), folder / name, *tails, folder / "images" / label / Path(name).name], path, name)
        found.setdefault(label, []).append(file)
    return found


def existing(candidates: Sequence[Path], lists: Path, name: str) -> Path:
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        raise UserError(f"{lists}: lists {name}, which is not there (looked for {candidates[0]} and near it)")
    return found
