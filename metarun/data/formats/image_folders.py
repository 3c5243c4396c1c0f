"""Data sets of image files: in class folders, or listed with their classes in CSV and JSON files."""

import csv
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metarun.data.cache import RawDataset
from metarun.data.formats.detect import FoundFormat
from metarun.data.formats.listing import (
    LeftOut,
    Listing,
    classes_in,
    deduplicate,
    is_folder,
    list_visible,
    normalise_unicode,
)
from metarun.data.formats.reading import read_errors
from metarun.data.task_sampler import SPLITS
from metarun.errors import UserError
from metarun.utils.safe_files import read_json, read_text

SPLIT_NAMES = {  # in any case, of folders, lists and a CSV's values alike
    "train": ("train", "training", "base"),
    "val": ("val", "validation", "valid", "dev"),
    "test": ("test", "testing", "novel"),
}
COLUMNS = {  # a column's names, in lower case with `_` for spaces and hyphens; the first name has precedence
    "path": (
        *("path", "file", "filename", "file_name", "filepath", "file_path"),
        *("image", "image_name", "image_path", "img", "picture"),
    ),
    "label": ("label", "class", "class_name", "label_name", "category", "target"),
    "split": ("split", "set", "subset", "partition"),
}
DELIMITERS = ",;\t"


# --- formats of image files --------------------------------------------------------------------------------


def listing_format(
    name: str,
    listing: Listing,
    place: Path,
    splits: dict[str, list[str]] | None = None,
    lists: Sequence[Path] = (),
    left_out: LeftOut | None = None,
) -> FoundFormat:
    """Format of image files, each used once. Raises UserError if a file is in two classes."""
    listing = deduplicate(listing, place)
    files = [file for paths in listing.values() for file in paths]

    def read(_: ExitStack) -> RawDataset:
        labels = np.repeat(np.arange(len(listing)), [len(paths) for paths in listing.values()])
        return RawDataset(list(listing), labels, ((str(file), file) for file in files), splits, left_out or ())

    return FoundFormat(name, [*lists, *files], read, left_out or ())


def split_format(
    name: str, parts: Mapping[str, Listing], place: Path, lists: Sequence[Path] = (), left_out: LeftOut | None = None
) -> FoundFormat:
    """Format of image files in splits. Raises UserError for a class in two splits, or an empty split."""
    split_of: dict[str, str] = {}
    for split, listing in parts.items():
        if not listing:
            raise UserError(f"{place}: its {split} part holds no class folders with pictures")
        for label in listing:
            if label in split_of:
                raise UserError(
                    f"{place}: class {label!r} stands in {split_of[label]} and in {split}; few-shot splits share no "
                    "class: give one folder of all classes, and they are divided"
                )
            split_of[label] = split
    merged = {label: files for listing in parts.values() for label, files in listing.items()}
    return listing_format(name, merged, place, {split: list(part) for split, part in parts.items()}, lists, left_out)


def names_by_split(names: Iterable[str]) -> dict[str, list[str]]:
    """Split -> the names that mean it, in the order of SPLITS. Other names are ignored."""
    names = list(names)
    found = {s: [n for n in names if n.strip().casefold() in known] for s, known in SPLIT_NAMES.items()}
    return {split: known for split, known in found.items() if known}


def single_names(place: Path, found: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Split -> its only name. Raises UserError if two names mean one split."""
    for split, names in found.items():
        if len(names) > 1:
            raise UserError(f"{place}: {' and '.join(map(repr, names))} may both be its {split} part; leave one")
    return {split: names[0] for split, names in found.items()}


# --- detectors ---------------------------------------------------------------------------------------------


def split_folders(folder: Path) -> FoundFormat | None:
    """{train,val,test}/CLASS/*."""
    found = names_by_split(entry.name for entry in list_visible(folder) if is_folder(entry))
    if len(found) < len(SPLITS):
        return None
    parts = {split: classes_in(folder / name) for split, name in single_names(folder, found).items()}
    return split_format("train, val and test folders", parts, folder)


def listed_folders(folder: Path, images: str, lists: str) -> FoundFormat | None:
    """Class folders below `images`; the class names of each split, a line each, in `lists`/{train,val,test}.txt."""
    files = [folder / lists / f"{split}.txt" for split in SPLITS]
    if not all(file.is_file() for file in files) or not (folder / images).is_dir():
        return None
    listing, splits = classes_in(folder / images), {}
    for split, file in zip(SPLITS, files, strict=True):
        with read_errors(file, "a list of class names"):
            splits[split] = read_text(file).split()
        lacking = next((name for name in splits[split] if name not in listing), None)
        if lacking is not None:
            raise UserError(f"{file}: lists {lacking!r}, but {folder / images / lacking} holds no pictures")
    wanted = {name: listing[name] for names in splits.values() for name in names}
    return listing_format("class folders and lists of classes", wanted, folder, splits, files)


def split_lists(folder: Path, name: str, suffix: str, read: Callable[[Path, Path], Listing]) -> FoundFormat | None:
    """A list of files for each split. `read` is given its path and the folder."""
    found = names_by_split(Path(e.name).stem for e in list_visible(folder) if e.name.endswith(suffix))
    if len(found) < len(SPLITS):
        return None
    lists = {split: folder / f"{stem}{suffix}" for split, stem in single_names(folder, found).items()}
    return split_format(name, {s: read(path, folder) for s, path in lists.items()}, folder, list(lists.values()))


def read_csv_list(path: Path, folder: Path) -> Listing:
    listing: dict[str, list[Path]] = {}
    images = folder / "images"
    for row in csv_rows(path):
        places = [images / row.path, images / row.label / row.path, folder / row.path]
        listing.setdefault(row.label, []).append(first_existing(places, path, row.path))
    return listing


def read_json_list(path: Path, folder: Path) -> Listing:
    with read_errors(path, "JSON of label_names, image_names and image_labels of equal length"):
        content = read_json(path)
        names, files, labels = (content[key] for key in ("label_names", "image_names", "image_labels"))
        rows = [(str(file), str(names[int(label)])) for file, label in zip(files, labels, strict=True)]
    listing: dict[str, list[Path]] = {}
    for name, label in rows:  # these lists hold whole paths of the machine that they were written on
        tails = [folder.joinpath(*Path(name).parts[-n:]) for n in (4, 3, 2, 1)]
        places = [Path(name), folder / name, *tails, folder / "images" / label / Path(name).name]
        listing.setdefault(label, []).append(first_existing(places, path, name))
    return listing


# {train,val,test}.csv of `filename,label` or `class_name,image_name`, with the files in images/
csv_lists = partial(split_lists, name="CSV lists", suffix=".csv", read=read_csv_list)
# CloserLookFewShot's {base,val,novel}.json of `label_names`, `image_names`, `image_labels`
json_lists = partial(split_lists, name="JSON lists", suffix=".json", read=read_json_list)


# --- CSV files ---------------------------------------------------------------------------------------------


class Row(NamedTuple):
    path: str
    label: str
    split: str  # "" if the file has no such column


def csv_rows(path: Path) -> list[Row]:
    """Rows of a CSV file, separated by commas, semicolons or tabs, whose first line names its columns.

    Raises:
        UserError: no column of pictures or of classes, or two of either; a row that lacks a value; no text.
    """
    with read_errors(path, "a CSV file in UTF-8 or UTF-16", "save it again as CSV in UTF-8"):
        text = re.sub(r"\Asep=.\r?\n", "", read_text(path))  # which spreadsheets write
        lines = io.StringIO(text, newline="")
        columns, delimiter = find_columns(path, lines.readline())
        lines.seek(0)
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        next(reader)
        rows = []
        for row in reader:
            values = {kind: row[i].strip() if i < len(row) else "" for kind, i in columns.items()}
            if values["path"] and values["label"]:
                rows.append(Row(values["path"], normalise_unicode(values["label"]), values.get("split", "")))
            elif any(map(str.strip, row)):
                raise UserError(
                    f"{path}: line {reader.line_num} lacks a value for its picture or class: {delimiter.join(row)}"
                )
        return rows


def find_columns(path: Path, header: str) -> tuple[dict[str, int], str]:
    """Position of each known column, and the delimiter. Raises UserError if there is none, or several of one kind."""
    longest: list[str] = []
    for delimiter in DELIMITERS:
        names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])]
        plain = [re.sub(r"[ -]+", "_", name.casefold()) for name in names]
        longest = max(longest, names, key=len)
        columns: dict[str, int] = {}
        if not all(set(plain) & set(COLUMNS[kind]) for kind in ("path", "label")):
            continue
        for kind, known in COLUMNS.items():
            places = [i for i, name in enumerate(plain) if name in known]
            places = [i for i in places if plain[i] == known[0]] or places
            if len(places) > 1:
                both = " and ".join(repr(names[i]) for i in places)
                raise UserError(f"{path}: its columns {both} may both be the {kind}; call the one to be taken {kind!r}")
            if places:
                columns[kind] = places[0]
        return columns, delimiter
    raise UserError(
        f"{path}: its first line must name a column of pictures ({', '.join(COLUMNS['path'])}) and one of classes "
        f"({', '.join(COLUMNS['label'])}), found {longest}"
    )


def first_existing(candidates: Sequence[Path], list_path: Path, name: str) -> Path:
    """The first candidate that is a file. Raises UserError if none is."""
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        raise UserError(f"{list_path}: lists {name}, which is not there (looked for {candidates[0]} and near it)")
    return found
