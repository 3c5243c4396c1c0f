"""A user's own images: class folders, train/val/test folders of class folders, or a CSV that lists them."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from metarun.config.paths import existing_path
from metarun.data.cache import file_fingerprints, fingerprint, load_or_build_cache
from metarun.data.decoding import Manifest
from metarun.data.formats.detect import DataPaths, FoundFormat
from metarun.data.formats.image_folders import (
    csv_rows,
    first_existing,
    listing_format,
    names_by_split,
    single_names,
    split_format,
)
from metarun.data.formats.listing import (
    LeftOut,
    class_listing,
    holds_class_folders,
    holds_pictures,
    is_folder,
    list_visible,
)
from metarun.data.image_set import ImageSet, image_set
from metarun.data.image_spec import ImageSpec
from metarun.data.random_numbers import permutation_list
from metarun.data.splits import format_sizes
from metarun.data.task_sampler import SPLITS
from metarun.errors import UserError, relative_to_cwd

log = logging.getLogger(__name__)

DEAL_ORDER = (
    "train",
    "val",
    "test",
    "train",
    "train",
)  # splits that classes are dealt to in turn, if the folder has no splits
VAL_DEAL_ORDER = (
    "train",
    "val",
    "train",
    "train",
)  # the same for the training classes, if the folder has no validation split
MAX_LISTED = 5  # folders listed in a message


def load(paths: DataPaths, root: str, size: int, grey: bool, seed: int, spec: ImageSpec | None = None) -> ImageSet:
    """Images below `root`: uint8 [N, 3 or 1, size, size]. Unreadable files are left out with a warning.

    Args:
        root: CLASS/*, GROUP/CLASS/*, {train,val,test}/CLASS/*, or a CSV file with the columns path,label[,split].
        seed: of the random split of the classes, if the files have none.
        spec: of the images, instead of `size` and `grey`.

    Raises:
        UserError: the folder is missing, empty or ambiguous; a class is in two splits or an image in two classes;
            cache_dir cannot be written.
    """
    place = existing_path("dataset.root", root)
    spec = spec or ImageSpec(size, 1 if grey else 3)
    try:
        form = detect_format(place)
        stamp = fingerprint(form.name, spec, *file_fingerprints(form.files), *form.left_out)
    except OSError as error:
        raise UserError(f"dataset.root={root}: {error.filename} cannot be read ({error.strerror})") from error
    ready = load_or_build_cache(paths.cache_dir, f"folder-{stamp}", spec, place, form.read, skip_unreadable=True)
    warn_of_case(ready.manifest.names)
    parts, how = resolve_splits(ready.manifest, seed)
    found = image_set(ready, spec, parts, f"{place.resolve().stem}-{how}-{format_sizes(parts)}")
    return replace(found, any_size=True)


def detect_format(place: Path) -> FoundFormat:
    """Format of a CSV file, a folder of class folders, or split folders of class folders.

    Raises:
        UserError: there are no images, or the layout is ambiguous.
        OSError: `place` cannot be read.
    """
    if place.is_file():
        return csv_file(place)
    left_out: LeftOut = []
    folders = [entry.name for entry in list_visible(place) if is_folder(entry)]
    found = names_by_split(folders)
    named = [name for names in found.values() for name in names]
    if not named:
        return class_folders(place, left_out)
    nested = [name for name in folders if holds_class_folders(place / name)]
    direct = [name for name in folders if holds_pictures(place / name)]
    others = [n for n in folders if n in {*nested, *direct} and n not in named]
    if others and set(named) <= set(direct):  # a class may be called "train"
        return class_folders(place, left_out)
    flat = [name for name in named if name in direct and name not in nested]
    if flat:
        raise UserError(
            f"{place}: folder {flat[0]!r} holds pictures, where each class wants a folder of its own in it; "
            "put them there, or give the folder of one split, and its classes are divided"
        )
    if others and set(found) != set(SPLITS):
        mixed = ", ".join(map(repr, [*named, *others][:MAX_LISTED]))
        raise UserError(f"{place}: holds folders of splits and others ({mixed}); give one that holds either")
    split_names = single_names(place, found)
    require_splits(place, split_names.values(), found)
    parts = {split: class_listing(place / name, left_out) for split, name in split_names.items()}
    left_out += [(str(place / name), "lies beside the folders of the splits") for name in others]
    warn_of_groups(place, [label for part in parts.values() for label in part])
    return split_format("split folders", parts, place, left_out=left_out)


def class_folders(place: Path, left_out: LeftOut) -> FoundFormat:
    listing = class_listing(place, left_out)
    if not listing:
        lists = [entry.name for entry in list_visible(place) if entry.name.lower().endswith((".csv", ".tsv"))]
        hint = f", or give its list of pictures, dataset.root={relative_to_cwd(place / lists[0])}" if lists else ""
        raise UserError(
            f"dataset.root={relative_to_cwd(place)}: holds no class folders with pictures in them; "
            "put each class in its own"
            f"{hint}"
        )
    warn_of_groups(place, list(listing))
    return listing_format("class folders", listing, place, left_out=left_out)


def warn_of_groups(place: Path, labels: Sequence[str]) -> None:
    grouped = [label for label in labels if "/" in label]
    if grouped:
        what = "%s: holds folders of class folders; its %d classes are named by both, as %r"
        log.warning(what, place, len(labels), grouped[0])


def csv_file(path: Path) -> FoundFormat:
    """Format of a CSV file of images, their classes and optionally splits; paths are relative to the CSV file."""
    rows = csv_rows(path)
    if not rows:
        raise UserError(f"{path}: lists no pictures")
    names = list(dict.fromkeys(row.split for row in rows))
    found = names_by_split(names)
    require_splits(path, names, found)
    split_of = {name: split for split, name in single_names(path, found).items()}
    parts: dict[str, dict[str, list[Path]]] = {split: {} for split in found or [""]}
    for row in rows:
        places = [path.parent / Path(text).expanduser() for text in (row.path, row.path.replace("\\", "/"))]
        listing = parts[split_of.get(row.split, "")]
        listing.setdefault(row.label, []).append(first_existing(places, path, row.path))
    if not found:
        return listing_format("a CSV", parts[""], path, lists=[path])
    return split_format("a CSV with splits", parts, path, [path])


def require_splits(place: Path, names: Iterable[str], found: Mapping[str, Sequence[str]]) -> None:
    """Raises UserError unless the names are three splits, two splits or none."""
    names = list(names)
    known = sum(len(spellings) for spellings in found.values())
    if names != [""] and (known < len(names) or not {"train", "test"} <= set(found)):
        raise UserError(
            f"{place}: its splits must be train, val and test, or train and test, found "
            f"{', '.join(map(repr, names))}; rename them, or give the folder of one split, and its classes are divided"
        )


def deal_classes(ready: Manifest, names: Sequence[str], pattern: Sequence[str], seed: int) -> dict[str, list[str]]:
    """Classes by split: dealt out to the splits of `pattern` in turn, largest class first, ties in random order.

    Where classes of too few pictures are left out, those that stay are the first ones: they are in the same splits,
    and each split has its share of them.
    """
    count = dict(zip(ready.names, ready.count, strict=True))
    ordered = sorted((names[i] for i in permutation_list(seed, 0, len(names))), key=lambda name: -count[name])
    parts = {split: [n for i, n in enumerate(ordered) if pattern[i % len(pattern)] == split] for split in set(pattern)}
    return {split: sorted(parts[split]) for split in SPLITS if split in parts}


def resolve_splits(manifest: Manifest, seed: int) -> tuple[dict[str, list[str]], str]:
    """Class names of each split, and a name for the split. Raises UserError if there are too few classes."""
    given = manifest.splits
    if given is None:
        able = sum(number > 0 for number in manifest.count)
        if 0 < able < len(SPLITS):
            raise UserError(
                f"dataset.root: {able} classes cannot train, validate and test; to sort pictures into a few classes "
                "of your own, use a trained network: mode=predict"
            )
        return deal_classes(manifest, manifest.names, DEAL_ORDER, seed), f"seed{seed}"
    if "val" in given:
        return given, "as-given"
    if len(given["train"]) < 2:
        raise UserError("dataset.root: holds no val part, and one training class, of which none can be held out for it")
    log.warning("dataset.root: holds no val part; every fourth training class validates, by dataset.seed=%d", seed)
    held = deal_classes(manifest, given["train"], VAL_DEAL_ORDER, seed)
    return {**held, "test": given["test"]}, f"as-given-val-seed{seed}"


def warn_of_case(names: Sequence[str]) -> None:
    lower: dict[str, str] = {}
    for name in names:
        other = lower.setdefault(name.lower(), name)
        if other != name:
            log.warning("classes %r and %r differ in case only; they are taken as two", other, name)
