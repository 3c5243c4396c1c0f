"""A person's own pictures: class folders, train/val/test folders of those, or a CSV that names them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from metarun.data.counter import order
from metarun.data.images import ImageSet, image_set
from metarun.data.look import Look
from metarun.data.on_disk import Form, Places
from metarun.data.prepare import fingerprint, prepared, stamps
from metarun.data.source import SPLITS
from metarun.data.splits import sizes
from metarun.data.trees import class_folders, csv_rows, existing, of_listing, of_parts, split_folders
from metarun.errors import UserError
from metarun.places import root as existing_root

log = logging.getLogger(__name__)

SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}  # of the classes, where the folder does not divide them


def load(places: Places, root: str, size: int, grey: bool, seed: int, look: Look | None = None) -> ImageSet:
    """Pictures below `root`: uint8 [N, 3 or 1, size, size]. Those that cannot be read are left out with a warning.

    Args:
        root: CLASS/*, {train,val,test}/CLASS/*, or a CSV file with the columns path,label[,split].
        look: of the pictures, instead of `size` and `grey`.
        seed: of the division of the classes, where there is none on disk.

    Raises:
        UserError: no such folder, nothing in it, a class in two splits, or cache_dir cannot be written.
    """
    place = existing_root(root)
    look = look or Look(size, 1 if grey else 3)
    try:
        form = find(place)
        stamp = fingerprint(form.name, look, *stamps(form.files))
    except OSError as error:
        raise UserError(f"dataset.root={root}: {error.filename} cannot be read ({error.strerror})") from error
    ready = prepared(places.cache_dir, f"folder-{stamp}", look, place, form.contents, skip_unreadable=True)
    warn_of_case(ready.manifest.names)
    if ready.manifest.splits is not None:
        parts, how = ready.manifest.splits, "as-given"
    else:
        parts, how = shuffled(ready.manifest.names, seed), f"seed{seed}"
    found = image_set(ready, look, parts, f"{place.resolve().stem}-{how}-{sizes(parts)}")
    return replace(found, any_size=True)


def find(place: Path) -> Form:
    if place.is_file():
        return csv_file(place)
    form = split_folders(place) or class_folders(place)
    if form is None:
        raise UserError(
            f"dataset.root={place}: holds no class folders with pictures in them; put each class in its own"
        )
    return form


def csv_file(path: Path) -> Form:
    """path,label[,split]: paths are taken from where the CSV lies."""
    splits: dict[str, dict[str, list[Path]]] = {}
    for row in csv_rows(path, [{"path", "label"}]):
        file = existing([path.parent / Path(row["path"]).expanduser()], path, row["path"])
        splits.setdefault(row.get("split") or "", {}).setdefault(row["label"], []).append(file)
    if not splits:
        raise UserError(f"{path}: lists no pictures")
    if list(splits) == [""]:
        return of_listing("a CSV", splits[""], lists=[path])
    if set(splits) != set(SPLITS):
        found = ", ".join(repr(split) for split in splits)
        raise UserError(f"{path}: its splits must be train, val and test, found {found}")
    return of_parts("a CSV with splits", {split: splits[split] for split in SPLITS}, path, [path])


def shuffled(names: Sequence[str], seed: int) -> dict[str, list[str]]:
    """The classes divided 60/20/20 in random order. Raises UserError for fewer than three."""
    if len(names) < len(SPLITS):
        raise UserError(
            f"dataset.root: {len(names)} classes cannot train, validate and test; to sort pictures into a few classes "
            "of your own, use a trained network: mode=predict"
        )
    chosen = order(seed, 0, len(names))
    held = {part: max(1, int(SHARES[part] * len(names))) for part in ("val", "test")}
    begin, end = len(names) - sum(held.values()), len(names) - held["test"]
    parts = {"train": chosen[:begin], "val": chosen[begin:end], "test": chosen[end:]}
    return {part: [names[i] for i in sorted(numbers)] for part, numbers in parts.items()}


def warn_of_case(names: Sequence[str]) -> None:
    lower: dict[str, str] = {}
    for name in names:
        other = lower.setdefault(name.lower(), name)
        if other != name:
            log.warning("classes %r and %r differ in case only; they are taken as two", other, name)
