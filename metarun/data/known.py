"""Published data sets: found below data_dir in any known form, and downloaded where an official address lasts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from metarun.data.archives import archived
from metarun.data.download import fetch
from metarun.data.images import ImageSet
from metarun.data.listing import files_below
from metarun.data.look import Look
from metarun.data.on_disk import Finder, Form, Places, absent, below, find, load_form
from metarun.data.splits import asked, published
from metarun.data.trees import of_listing

ENDS = ("tar.gz", "tgz", "tar", "zip")


class Known(NamedTuple):
    """What a data set is called, and where and how it lies on disk."""

    dataset: str
    look: Look
    folders: Sequence[str]  # below data_dir, besides data_dir itself
    finders: Sequence[Finder]  # of its forms; the first that finds one decides
    remedy: str  # what a person may put there
    archives: Sequence[str] = ()  # names of archives that hold one of the forms, without their ends
    official: tuple[str, str] | None = None  # address and md5 of an archive that is found by one of the finders
    kept_as: str | None = None  # begins the prepared file's name, where data sets of the same pictures share it


def load(known: Known, places: Places, split: str, look: Look | None = None) -> ImageSet:
    """The data set in the first form that lies there, its pictures in its own look or in another.

    Raises:
        UserError: none does, its files are damaged or not to be fetched, or cache_dir cannot be written.
    """
    asked(published(known.dataset), split)  # what is wrong is known before a download
    found = locate(known, places)
    if found is None and known.official is not None and places.download:
        fetch(*known.official, places.data_dir)
        found = locate(known, places)
    if found is None:
        raise absent(known.dataset, places.data_dir, below(places.data_dir, known.folders), known.remedy)
    return load_form(known.dataset, found, places, look or known.look, split, known.kept_as)


def locate(known: Known, places: Places) -> tuple[Path, Form] | None:
    """The folder and the form that the data set lies in, or None."""
    names = [f"{name}.{end}" for name in known.archives for end in ENDS]
    finders = [*known.finders, archived(names, places.cache_dir, known.finders)]
    return find(below(places.data_dir, known.folders), finders)


def known_folders(folder: Path, dataset: str) -> Form | None:
    """CLASS/*, of the data set's own classes; other folders are passed over."""
    divisions = published(dataset).values()
    names = sorted({name for parts in divisions for part in parts.values() for name in part})
    there = {name: files_below(folder / name) for name in names if (folder / name).is_dir()}
    listing = {name: files for name, files in there.items() if files}
    return of_listing("class folders", listing, folder) if listing else None
