"""Published data sets: found below data_dir in any known format, and downloaded if an official archive has an address.

To add one, write a `PublishedDataset` in a file of its own, name it in `data/__init__.py`, and put its class lists
into `data/class_lists`.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from metarun.data.cache import RawDataset, file_fingerprints, fingerprint, load_or_build_cache
from metarun.data.download import fetch
from metarun.data.formats.archives import archive_detector
from metarun.data.formats.detect import DataPaths, FormatDetector, FoundFormat, detect_format
from metarun.data.formats.image_folders import listing_format
from metarun.data.formats.listing import files_below
from metarun.data.image_set import ImageSet, image_set
from metarun.data.image_spec import ImageSpec
from metarun.data.splits import published_splits, resolve_split, split_classes
from metarun.errors import UserError, relative_to_cwd

ARCHIVE_SUFFIXES = ("tar.gz", "tgz", "tar", "zip")


class PublishedDataset(NamedTuple):
    """A data set's name, and where and in which formats its files may lie."""

    name: str  # as `dataset=` takes it
    spec: ImageSpec  # of the images that it is used with
    folders: Sequence[str]  # below data_dir, searched before data_dir itself
    detectors: Sequence[FormatDetector]  # of its formats; the first that finds one is used
    remedy: str  # the files that may be put into data_dir, for the message that it was not found
    archives: Sequence[str] = ()  # names, without suffix, of archives that hold one of the formats
    official: tuple[str, str] | None = None  # address and MD5 of an archive that one of the detectors finds
    cache_name: str | None = None  # prefix of the cached files, which data sets of the same images share


def load(dataset: PublishedDataset, paths: DataPaths, split: str, spec: ImageSpec | None = None) -> ImageSet:
    """Images and class splits of a published data set, from the first format found below data_dir.

    Args:
        split: name of a published division into classes, or path of a JSON file with one.
        spec: of the images, where it is not the data set's own.

    Raises:
        UserError: no files found, files damaged, download failed, classes missing, or cache_dir cannot be written.
    """
    resolve_split(published_splits(dataset.name), split)  # an unknown split is refused before any download
    found = locate(dataset, paths)
    if found is None and dataset.official is not None and paths.download:
        fetch(*dataset.official, paths.data_dir)
        found = locate(dataset, paths)
    if found is None:
        raise not_found_error(dataset, paths.data_dir)
    folder, files = found
    spec = spec or dataset.spec
    stamp = fingerprint(files.name, spec, *file_fingerprints(files.files))

    def read(stack: ExitStack) -> RawDataset:
        raw = files.read(stack)
        split_classes(dataset.name, split, raw.names, raw.splits)  # missing classes are reported before decoding
        return raw

    name = f"{dataset.cache_name or dataset.name}-{stamp}"
    cached = load_or_build_cache(paths.cache_dir, name, spec, folder, read)
    splits, class_split = split_classes(dataset.name, split, cached.manifest.names, cached.manifest.splits)
    return image_set(cached, spec, splits, class_split)


def candidate_dirs(dataset: PublishedDataset, data_dir: Path) -> list[Path]:
    """The folders that the data set may lie in; data_dir itself comes last."""
    return [*(data_dir / name for name in dataset.folders), data_dir]


def locate(dataset: PublishedDataset, paths: DataPaths) -> tuple[Path, FoundFormat] | None:
    """The first folder that holds one of the data set's formats, and that format, or None."""
    names = [f"{name}.{suffix}" for name in dataset.archives for suffix in ARCHIVE_SUFFIXES]
    detectors = [*dataset.detectors, archive_detector(names, paths.cache_dir, dataset.detectors)]
    return detect_format(candidate_dirs(dataset, paths.data_dir), detectors)


def not_found_error(dataset: PublishedDataset, data_dir: Path) -> UserError:
    """Error that names the folders searched and the files that may be put there."""
    shown = relative_to_cwd(data_dir)
    if not data_dir.is_dir():
        return UserError(
            f"data_dir={shown}: no such folder; make it and put {dataset.remedy} there, or give data_dir=FOLDER"
        )
    searched = ", ".join(map(str, candidate_dirs(dataset, data_dir)))
    return UserError(f"data_dir={shown}: {dataset.name} not found (looked in {searched}); put there {dataset.remedy}")


def published_class_folders(folder: Path, dataset: str) -> FoundFormat | None:
    """CLASS/*, for the class names of the published splits; other folders are ignored."""
    divisions = published_splits(dataset).values()
    names = sorted({name for splits in divisions for classes in splits.values() for name in classes})
    listing = {name: files_below(folder / name) for name in names if (folder / name).is_dir()}
    listing = {name: files for name, files in listing.items() if files}
    return listing_format("class folders", listing, folder) if listing else None
