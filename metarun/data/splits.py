"""The classes of the train, validation and test split: published lists, a user's own, or as the files divide them."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from metarun.data.task_sampler import SPLITS
from metarun.errors import UserError, did_you_mean
from metarun.utils.safe_files import read_json

ClassSplits = Mapping[str, Sequence[str]]  # "train", "val", "test" -> class names


def published_splits(dataset: str) -> dict[str, ClassSplits]:
    """The published splits of a data set, by their names."""
    prefix, splits = f"{dataset}-", {}
    for file in (files("metarun.data") / "class_lists").iterdir():
        if file.name.startswith(prefix):
            content = json.loads(file.read_text())
            splits[file.name.removeprefix(prefix).removesuffix(".json")] = {part: content[part] for part in SPLITS}
    return splits


def split_classes(dataset: str, split: str, names: Iterable[str], given: ClassSplits | None) -> tuple[ClassSplits, str]:
    """The classes of each split, and a name for the split in results.

    Args:
        split: name of a published split, or path of a user's JSON file.
        names: the classes that exist.
        given: how the files on disk divide them. It replaces a published split of the same sizes if the files do not
            use its class names.

    Raises:
        UserError: no such split or file, or classes that do not exist.
    """
    known = published_splits(dataset)
    wanted, title = resolve_split(known, split)
    existing = set(names)
    lacking = [name for part in SPLITS for name in wanted[part] if name not in existing]
    if lacking and given is not None and split in known and format_sizes(given) == format_sizes(wanted):
        wanted, lacking, title = given, [], f"{title}-as-given"
    if lacking:
        held = format_sizes(given) if given is not None else f"{len(existing)} classes"
        raise UserError(
            f"dataset.split={split}: {len(lacking)} of its classes ({format_sizes(wanted)}) are not there, "
            f"first {lacking[0]!r}; the files hold {held}"
        )
    return wanted, f"{dataset}-{title}-{format_sizes(wanted)}"


def resolve_split(known: Mapping[str, ClassSplits], split: str) -> tuple[ClassSplits, str]:
    """Classes of each split, and a title. Raises UserError if `split` is neither known nor a valid JSON file."""
    if split in known:
        return known[split], split
    if split.endswith(".json"):
        return load_custom_split(Path(split).expanduser()), Path(split).stem
    raise UserError(
        f"dataset.split={split}: choose one of {', '.join(sorted(known))}, or give a JSON file with lists of class "
        f"names for train, val and test{did_you_mean(split, known)}"
    )


def format_sizes(parts: ClassSplits) -> str:
    """Such as 64/16/20."""
    return "/".join(str(len(parts[part])) for part in SPLITS)


def load_custom_split(path: Path) -> ClassSplits:
    """A user's own split. Raises UserError if the file is not one, or lists a class twice."""
    try:
        content = read_json(path)
        parts = {part: content[part] for part in SPLITS}
    except OSError as error:
        raise UserError(f"dataset.split={path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f'dataset.split={path}: must be JSON, {{"train": [class names], "val": [...], "test": [...]}} ({error!r})'
        ) from error
    for part, classes in parts.items():
        if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
            raise UserError(f"dataset.split={path}: {part} must be a list of class names")
    name, count = Counter(name for classes in parts.values() for name in classes).most_common(1)[0]
    if count > 1:
        raise UserError(f"dataset.split={path}: class {name!r} stands in it twice; a class belongs to one split")
    return parts
