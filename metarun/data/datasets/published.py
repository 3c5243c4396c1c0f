"""Published data sets: found below data_dir in any known form, and downloaded where an official address lasts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from metarun.data.download import fetch
from metarun.data.formats.archives import archived
from metarun.data.formats.detect import (
    DataPaths,
    FormatDetector,
    FoundFormat,
    candidate_dirs,
    find,
    load_form,
    not_found_error,
)
from metarun.data.formats.image_folders import of_listing
from metarun.data.formats.listing import files_below
from metarun.data.image_set import ImageSet
from metarun.data.image_spec import ImageSpec
from metarun.data.splits import published, resolve_split

ENDS = ("tar.gz", "tgz", "tar", "zip")


class PublishedDataset(NamedTuple):
    """What a data set is called, and where and how it lies on disk."""

    dataset: str
    look: ImageSpec
    folders: Sequence[str]  # below data_dir, besides data_dir itself
    finders: Sequence[FormatDetector]  # of its forms; the first that finds one decides
    remedy: str  # what a person may put there
    archives: Sequence[str] = ()  # names of archives that hold one of the forms, without their ends
    official: tuple[str, str] | None = None  # address and md5 of an archive that is found by one of the finders
    kept_as: str | None = None  # begins the prepared file's name, where data sets of the same pictures share it


def load(known: PublishedDataset, places: DataPaths, split: str, look: ImageSpec | None = None) -> ImageSet:
    """The data set in the first form that lies there, its pictures in its own look or in another.

    Raises:
        UserError: none does, its files are damaged or not to be fetched, or cache_dir cannot be written.
    """
    resolve_split(published(known.dataset), split)  # what is wrong is known before a download
    found = locate(known, places)
    if found is None and known.official is not None and places.download:
        fetch(*known.official, places.data_dir)
        found = locate(known, places)
    if found is None:
        raise not_found_error(
            known.dataset, places.data_dir, candidate_dirs(places.data_dir, known.folders), known.remedy
        )
    return load_form(known.dataset, found, places, look or known.look, split, known.kept_as)


def locate(known: PublishedDataset, places: DataPaths) -> tuple[Path, FoundFormat] | None:
    """The folder and the form that the data set lies in, or None."""
    names = [f"{name}.{end}" for name in known.archives for end in ENDS]
    finders = [*known.finders, archived(names, places.cache_dir, known.finders)]
    return find(candidate_dirs(places.data_dir, known.folders), finders)


def published_class_folders(folder: Path, dataset: str) -> FoundFormat | None:
    """CLASS/*, of the data set's own classes; other folders are passed over."""
    divisions = published(dataset).values()
    names = sorted({name for parts in divisions for part in parts.values() for name in part})
    there = {name: files_below(folder / name) for name in names if (folder / name).is_dir()}
    listing = {name: files for name, files in there.items() if files}
    return of_listing("class folders", listing, folder) if listing else None
