"""Data sets that people fetch by hand, as no address gives them for good: any known form of them below data_dir."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from metarun.data.archives import archived
from metarun.data.images import ImageSet
from metarun.data.look import Look
from metarun.data.on_disk import Finder, Form, Places, absent, below, find, load_form
from metarun.data.splits import published
from metarun.data.trees import files_below, of_listing

ENDS = ("tar.gz", "tgz", "tar", "zip")


class Wanted(NamedTuple):
    """What is looked for."""

    dataset: str
    look: Look
    folders: Sequence[str]  # below data_dir, besides data_dir itself
    finders: Sequence[Finder]  # of its forms; the first that finds one decides
    archives: Sequence[str]  # names of archives that hold one of the forms, without their ends
    remedy: str  # what a person may put there


def load(wanted: Wanted, places: Places, split: str) -> ImageSet:
    """The data set in the first form that lies there.

    Raises:
        UserError: none does, its files are damaged, or cache_dir cannot be written.
    """
    names = [f"{name}.{end}" for name in wanted.archives for end in ENDS]
    folders = below(places.data_dir, wanted.folders)
    found = find(folders, [*wanted.finders, archived(names, places.cache_dir, wanted.finders)])
    if found is None:
        raise absent(wanted.dataset, places.data_dir, folders, wanted.remedy)
    return load_form(wanted.dataset, found, places, wanted.look, split)


def known_folders(folder: Path, dataset: str) -> Form | None:
    """CLASS/*, of the data set's own classes; other folders are passed over."""
    divisions = published(dataset).values()
    names = sorted({name for parts in divisions for part in parts.values() for name in part})
    there = {name: files_below(folder / name) for name in names if (folder / name).is_dir()}
    listing = {name: files for name, files in there.items() if files}
    return of_listing("class folders", listing) if listing else None
