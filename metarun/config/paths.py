"""Checks of the files and folders that keys name. Imports no torch."""

import os
from dataclasses import replace
from pathlib import Path

from metarun.config.groups import Folder
from metarun.config.schema import Settings
from metarun.errors import UserError


def has_checkpoints(path: Path) -> bool:
    return (path / "checkpoints").is_dir()


PATHS = {  # key -> test of its path, and what is wrong with a path that fails it
    "data_dir": (lambda path: not path.is_file(), "is a file; give a folder"),
    "cache_dir": (lambda path: not path.is_file(), "is a file; give a folder"),
    "dataset.root": (
        Path.exists,
        "no such folder or file; give a folder of class folders, or a CSV with the columns path,label",
    ),
    "dataset.split": (Path.is_file, "no such file; give a JSON file, or the name of a split"),
    "support": (Path.is_dir, "no such folder; give one that holds a folder of images for each class"),
    "query": (
        lambda path: path.is_file() or path.is_dir(),
        "no such file or folder; give a folder of images, or files as [FILE,FILE]",
    ),
    **dict.fromkeys(
        ("checkpoint", "start"),
        (
            lambda path: path.is_file() or has_checkpoints(path),
            "no such file, nor a run folder with checkpoints/ in it",
        ),
    ),
    "resume": (has_checkpoints, "not a run folder with checkpoints/ in it"),
}


def existing_path(key: str, value: str) -> Path:
    """The path that a key of `PATHS` names, with `~` and `~USER` expanded.

    Raises:
        UserError: the path does not exist or is of the wrong kind, or there is no such user.
    """
    try:
        path = Path(value).expanduser()
    except RuntimeError as error:
        raise UserError(
            f"{key}={value}: {value.split('/')[0]} is the home folder of no user of this machine"
        ) from error
    is_valid, message = PATHS[key]
    if not is_valid(path):
        raise UserError(f"{key}={value}: {message}")
    return path


def check(settings: Settings) -> None:
    """Check the paths that the settings read. Raises UserError as `existing_path`."""
    dataset, split = settings.dataset, getattr(settings.dataset, "split", "")
    queries = settings.query if isinstance(settings.query, list) else [settings.query]
    paths = [("data_dir", settings.data_dir), ("cache_dir", settings.cache_dir)]
    if settings.start is not None and settings.mode == "train" and settings.resume is None:
        paths.append(("start", settings.start))
    if settings.mode == "predict":  # reads no data set
        paths += [("support", settings.support), *(("query", query) for query in queries)]
    elif settings.mode != "report" and isinstance(dataset, Folder):
        paths.append(("dataset.root", dataset.root))
    elif settings.mode != "report" and split.endswith(".json"):
        paths.append(("dataset.split", split))
    for key, path in paths:
        existing_path(key, path)


def absolute(settings: Settings) -> Settings:
    """Settings with relative paths made absolute, so that they stay valid in another working directory."""
    dataset = settings.dataset
    if isinstance(dataset, Folder):
        dataset = replace(dataset, root=absolute_path(dataset.root))
    elif getattr(dataset, "split", "").endswith(".json"):
        dataset = replace(dataset, split=absolute_path(dataset.split))
    paths = {name: absolute_path(getattr(settings, name)) for name in ("data_dir", "cache_dir")}
    return replace(settings, dataset=dataset, start=settings.start and absolute_path(settings.start), **paths)


def absolute_path(path: str) -> str:
    """The path from the root, without `..` unless that is behind a link, which is not followed. `~` stays as it is."""
    if path.startswith("~"):
        return path
    absolute = str(Path(path).absolute())
    plain = os.path.normpath(absolute)
    return plain if os.path.realpath(plain) == os.path.realpath(absolute) else absolute
