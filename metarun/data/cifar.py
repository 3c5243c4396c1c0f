"""CIFAR-FS and FC100: the 100 classes of CIFAR-100 (Krizhevsky 2009), 600 pictures each, divided in two ways.

CIFAR-FS: Bertinetto et al. 2019, arXiv 1805.08136. FC100: Oreshkin et al. 2018, arXiv 1805.10123; its splits share no
superclass. Both use the training and the test pictures of CIFAR-100 together.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from metarun.data.download import fetch
from metarun.data.images import ImageSet
from metarun.data.look import Look, Raw
from metarun.data.on_disk import Finder, Form, Places, absent, below, find, load_form
from metarun.data.pickles import load_pickle, read_pickle, refuse_web_page
from metarun.data.prepare import Contents
from metarun.data.source import SPLITS
from metarun.data.trees import listed_folders
from metarun.errors import UserError

LOOK = Look(size=32, channels=3)
FOLDER = "cifar-100-python"
ARCHIVE = f"{FOLDER}.tar.gz"
ADDRESS = f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}"
MD5 = "eb9058c3a382ffc7106e4002c42a8d85"
PARTS = ("train", "test", "meta")


def load_cifar_fs(places: Places, split: str) -> ImageSet:
    """CIFAR-FS, from any form below data_dir: uint8 [60000, 3, 32, 32].

    Raises:
        UserError: files are missing, damaged or not to be fetched; cache_dir cannot be written.
    """
    return load("cifar_fs", ("CIFAR_FS", "CIFAR-FS", "cifar_fs", "cifar100"), "CIFAR_FS", places, split)


def load_fc100(places: Places, split: str) -> ImageSet:
    """FC100, from any form below data_dir: uint8 [60000, 3, 32, 32]. Raises UserError as `load_cifar_fs`."""
    return load("fc100", ("FC100", "fc100"), "FC100", places, split)


def load(dataset: str, names: tuple[str, ...], prefix: str, places: Places, split: str) -> ImageSet:
    folders = below(places.data_dir, (FOLDER, *names))
    finders: list[Finder] = [cifar_100, cifar_archive, partial(split_pickles, prefix=prefix)]
    if dataset == "cifar_fs":
        finders.append(partial(listed_folders, images="data", lists="splits/bertinetto"))
    found = find(folders, finders)
    if found is None and places.download:
        fetch(ADDRESS, MD5, places.data_dir)
        found = find(folders, finders)
    if found is None:
        wanted = (
            f"{ARCHIVE} from {ADDRESS}, unpacked or not (download=true fetches it), or {prefix}_train.pickle, "
            f"{prefix}_val.pickle and {prefix}_test.pickle"
        )
        raise absent(dataset, places.data_dir, folders, wanted)
    return load_form(dataset, found, places, LOOK, split, kept_as="cifar")


def cifar_100(folder: Path) -> Form | None:
    """The pickles train, test and meta, as they are in the official archive."""
    files = [folder / part for part in PARTS]
    if not all(file.is_file() for file in files):
        return None

    def contents(_: ExitStack) -> Contents:
        return of_cifar_100(*((file, load_pickle(file)) for file in files))

    return Form("CIFAR-100's pickles", files, contents)


def cifar_archive(folder: Path) -> Form | None:
    """The official archive as it is: its three pickles are read in place, and nothing is unpacked."""
    path = folder / ARCHIVE
    if not path.is_file():
        return None

    def contents(_: ExitStack) -> Contents:
        try:
            with path.open("rb") as file:
                refuse_web_page(file.read(512), path)
            with tarfile.open(path) as archive:
                members = [archive.extractfile(f"{FOLDER}/{part}") for part in PARTS]
                read = [
                    (path / FOLDER / part, read_pickle(member, path / FOLDER / part))  # pyright: ignore[reportArgumentType]
                    for part, member in zip(PARTS, members, strict=True)
                ]
        except (tarfile.TarError, EOFError, KeyError, OSError, ValueError) as error:
            raise UserError(f"{path}: not the whole archive ({error}); fetch it again from {ADDRESS}") from error
        return of_cifar_100(*read)

    return Form("CIFAR-100's archive", [path], contents)


def of_cifar_100(train: tuple[Path, Any], test: tuple[Path, Any], meta: tuple[Path, Any]) -> Contents:
    names = field(meta, "fine_label_names", list)
    arrays = [field(part, "data", np.ndarray).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1) for part in (train, test)]
    labels = [field(part, "fine_labels", list) for part in (train, test)]
    return Contents(names, np.concatenate(labels), rows(zip((train[0], test[0]), arrays, strict=True)))


def split_pickles(folder: Path, prefix: str) -> Form | None:
    """MetaOptNet's PREFIX_train.pickle, _val, _test, which do not know their classes' names, only numbers."""
    files = [folder / f"{prefix}_{part}.pickle" for part in SPLITS]
    if not all(file.is_file() for file in files):
        return None

    def contents(_: ExitStack) -> Contents:
        read = [(file, load_pickle(file)) for file in files]
        arrays = [field(part, "data", np.ndarray) for part in read]
        names, labels, splits = [], [], {}
        for part, content in zip(SPLITS, read, strict=True):
            own, number = np.unique(np.asarray(field(content, "labels", (list, np.ndarray))), return_inverse=True)
            labels.append(number + len(names))
            splits[part] = [f"{part}/{label}" for label in own.tolist()]
            names += splits[part]
        return Contents(names, np.concatenate(labels), rows(zip(files, arrays, strict=True)), splits)

    return Form("a pickle for each split", files, contents)


def field(content: tuple[Path, Any], key: str, kind: Any) -> Any:
    """A pickle's value of that name, in whichever kind of string Python 2 or 3 wrote it."""
    path, values = content
    found = values.get(key, values.get(key.encode())) if isinstance(values, dict) else None
    if not isinstance(found, kind):
        raise UserError(f"{path}: holds no {key!r}; it is not the file that its name says")
    return found


def rows(arrays: Any) -> Iterator[tuple[str, Raw]]:
    return ((f"{path}[{i}]", row) for path, array in arrays for i, row in enumerate(array))
