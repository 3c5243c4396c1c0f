"""Which classes train, validate and test: the published lists, a person's own, or what the files themselves say."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from metarun.data.task_sampler import SPLITS
from metarun.errors import UserError, did_you_mean
from metarun.utils.safe_files import read_json

ClassSplits = Mapping[str, Sequence[str]]  # "train", "val", "test" -> class names


def published_splits(dataset: str) -> dict[str, dict[str, list[str]]]:
    """The published divisions of a data set, by their names."""
    folder = files("metarun.data") / "class_lists"
    lists = (file for file in folder.iterdir() if file.name.startswith(f"{dataset}-"))
    named = {file.name.removeprefix(f"{dataset}-").removesuffix(".json"): file.read_text() for file in lists}
    return {name: select_splits(json.loads(text)) for name, text in named.items()}


def select_splits(content: Any) -> dict[str, list[str]]:
    return {part: content[part] for part in SPLITS}


def split_classes(dataset: str, split: str, names: Iterable[str], given: ClassSplits | None) -> tuple[ClassSplits, str]:
    """The classes of each split, and the division's name for results.

    Args:
        split: the name of a published division, or a JSON file of a person's own.
        names: the classes that there are.
        given: the division that the files on disk have. It stands in for a published one whose class names the
            files do not use, where it is of the same size.

    Raises:
        UserError: no such division or file, or classes that are not there.
    """
    known = published_splits(dataset)
    wanted, title = resolve_split(known, split)
    there = set(names)
    lacking = [name for part in SPLITS for name in wanted[part] if name not in there]
    if lacking and given is not None and split in known and format_sizes(given) == format_sizes(wanted):
        wanted, lacking, title = given, [], f"{title}-as-given"
    if lacking:
        found = format_sizes(given) if given is not None else f"{len(there)} classes"
        raise UserError(
            f"dataset.split={split}: {len(lacking)} of its classes ({format_sizes(wanted)}) are not there, "
            f"first {lacking[0]!r}; the files hold {found}"
        )
    return wanted, f"{dataset}-{title}-{format_sizes(wanted)}"


def resolve_split(known: Mapping[str, ClassSplits], split: str) -> tuple[ClassSplits, str]:
    """The division that is asked for, and its title. Raises UserError where there is none, or the file is no such."""
    if split in known:
        return known[split], split
    if split.endswith(".json"):
        return load_custom_split(Path(split).expanduser()), Path(split).stem
    raise UserError(
        f"dataset.split={split}: choose one of {', '.join(sorted(known))}, or give a JSON file with lists of class "
        f"names for train, val and test{did_you_mean(split, known)}"
    )


def format_sizes(parts: ClassSplits) -> str:
    return "/".join(str(len(parts[part])) for part in SPLITS)


def load_custom_split(path: Path) -> dict[str, list[str]]:
    """A person's own division. Raises UserError where the file is none, or a class stands twice."""
    try:
        parts = select_splits(read_json(path))
    except OSError as error:
        raise UserError(f"dataset.split={path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f'dataset.split={path}: must be JSON, {{"train": [class names], "val": [...], "test": [...]}} ({error!r})'
        ) from error
    for part, classes in parts.items():
        if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
            raise UserError(f"dataset.split={path}: {part} must be a list of class names")
    every = [name for part in SPLITS for name in parts[part]]
    twice = next((name for i, name in enumerate(every) if name in every[:i]), None)
    if twice is not None:
        raise UserError(f"dataset.split={path}: class {twice!r} stands in it twice; a class belongs to one split")
    return parts
