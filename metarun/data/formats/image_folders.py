"""Data sets that lie on disk as image files, in folders or in lists of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from metarun.data.cache import RawDataset
from metarun.data.formats.detect import FoundFormat
from metarun.data.formats.listing import LeftOut, Listing, classes_in, deduplicate, is_folder, list_visible
from metarun.data.formats.reading import read_errors
from metarun.data.formats.tables import csv_rows, first_existing, json_rows
from metarun.data.task_sampler import SPLITS
from metarun.errors import UserError
from metarun.utils.safe_files import read_text

SPLIT_NAMES = {  # in any case, of folders, lists and a CSV's values alike
    "train": ("train", "training", "base"),
    "val": ("val", "validation", "valid", "dev"),
    "test": ("test", "testing", "novel"),
}


# --- finders -----------------------------------------------------------------------------------------------


def split_folders(folder: Path) -> FoundFormat | None:
    """{train,val,test}/CLASS/*."""
    found = names_by_split(entry.name for entry in list_visible(folder) if is_folder(entry))
    if len(found) < len(SPLITS):
        return None
    parts = {split: classes_in(folder / name) for split, name in single_names(folder, found).items()}
    return split_format("train, val and test folders", parts, folder)


def csv_lists(folder: Path) -> FoundFormat | None:
    """{train,val,test}.csv of `filename,label` or `class_name,image_name`, with the files in images/."""
    return lists_format("CSV lists", folder, "csv", csv_list)


def json_lists(folder: Path) -> FoundFormat | None:
    """CloserLookFewShot's {base,val,novel}.json of `label_names`, `image_names`, `image_labels`."""
    return lists_format("JSON lists", folder, "json", json_list)


def listed_folders(folder: Path, images: str, lists: str) -> FoundFormat | None:
    """Class folders below `images`; the class names of each split, a line each, in `lists`/{train,val,test}.txt."""
    files = [folder / lists / f"{split}.txt" for split in SPLITS]
    if not all(file.is_file() for file in files) or not (folder / images).is_dir():
        return None
    listing = classes_in(folder / images)
    splits = {split: read_class_names(file) for split, file in zip(SPLITS, files, strict=True)}
    for file, names in zip(files, splits.values(), strict=True):
        lacking = [name for name in names if name not in listing]
        if lacking:
            raise UserError(f"{file}: lists {lacking[0]!r}, but {folder / images / lacking[0]} holds no pictures")
    wanted = {name: listing[name] for names in splits.values() for name in names}
    return listing_format("class folders and lists of classes", wanted, folder, splits, files)


def read_class_names(file: Path) -> list[str]:
    with read_errors(file, "a list of class names"):
        return read_text(file).split()


# --- what they are made of ---------------------------------------------------------------------------------


def names_by_split(names: Iterable[str]) -> dict[str, list[str]]:
    """Split -> those of the names that mean it, in the order of SPLITS; other names are passed over."""
    names = list(names)
    found = {s: [n for n in names if n.strip().casefold() in known] for s, known in SPLIT_NAMES.items()}
    return {split: known for split, known in found.items() if known}


def single_names(place: Path, found: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Split -> its only name. Raises UserError where two names mean one split."""
    for split, names in found.items():
        if len(names) > 1:
            raise UserError(f"{place}: {' and '.join(map(repr, names))} may both be its {split} part; leave one")
    return {split: names[0] for split, names in found.items()}


def split_format(
    name: str, parts: Mapping[str, Listing], place: Path, lists: Sequence[Path] = (), left_out: LeftOut | None = None
) -> FoundFormat:
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
    return listing_format(
        name, whole, place, {split: list(listing) for split, listing in parts.items()}, lists, left_out
    )


def lists_format(name: str, folder: Path, ending: str, read: Callable[[Path, Path], Listing]) -> FoundFormat | None:
    """A list of files for each split, read by `read`, which is given the list's path and the folder."""
    stems = [Path(e.name).stem for e in list_visible(folder) if e.name.endswith(f".{ending}")]
    found = names_by_split(stems)
    if len(found) < len(SPLITS):
        return None
    lists = {split: folder / f"{stem}.{ending}" for split, stem in single_names(folder, found).items()}
    return split_format(name, {s: read(path, folder) for s, path in lists.items()}, folder, list(lists.values()))


def listing_format(
    name: str,
    listing: Listing,
    place: Path,
    splits: dict[str, list[str]] | None = None,
    lists: Sequence[Path] = (),
    left_out: LeftOut | None = None,
) -> FoundFormat:
    """A form of picture files, each taken once. Raises UserError where one stands in two classes."""
    listing = deduplicate(listing, place)
    files = [file for paths in listing.values() for file in paths]

    def contents(_: ExitStack) -> RawDataset:
        labels = np.repeat(np.arange(len(listing)), [len(paths) for paths in listing.values()])
        return RawDataset(list(listing), labels, ((str(file), file) for file in files), splits, left_out or ())

    return FoundFormat(name, [*lists, *files], contents, left_out or ())


def csv_list(path: Path, folder: Path) -> dict[str, list[Path]]:
    """Class -> files that the list names, below images/ or images/CLASS/ or the folder itself."""
    found: dict[str, list[Path]] = {}
    for row in csv_rows(path):
        images = folder / "images"
        file = first_existing([images / row.path, images / row.label / row.path, folder / row.path], path, row.path)
        found.setdefault(row.label, []).append(file)
    return found


def json_list(path: Path, folder: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for name, label, _ in json_rows(path):  # these lists hold whole paths of the machine that they were written on
        tails = [folder.joinpath(*Path(name).parts[-n:]) for n in (4, 3, 2, 1)]
        images = folder / "images" / label / Path(name).name
        found.setdefault(label, []).append(first_existing([Path(name), folder / name, *tails, images], path, name))
    return found
