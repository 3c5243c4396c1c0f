"""Checks of the files and folders that keys name. Imports no torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from metarun.config.groups import Folder
from metarun.config.schema import Settings
from metarun.errors import UserError


def expanded(path: str) -> Path:
    """The path with `~` and `~USER` expanded. Raises UserError if there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: {path.split('/')[0]} is the home folder of no user of this machine") from error


def check(settings: Settings) -> None:
    """Check the paths that the settings read.

    Raises:
        UserError: a path does not exist or is of the wrong kind; names the key and the path.
    """
    for key in ("data_dir", "cache_dir"):
        place = getattr(settings, key)
        if expanded(place).is_file():
            raise UserError(f"{key}={place}: is a file; give a folder")
    if settings.start is not None and settings.mode == "train" and settings.resume is None:
        warm_start_path(settings.start)
    if settings.mode == "predict":  # needs no data set
        support_folder(str(settings.support))
        for place in settings.query if isinstance(settings.query, list) else [settings.query]:
            query_place(str(place))
        return
    if settings.mode == "report":
        return
    if isinstance(settings.dataset, Folder):
        dataset_root(settings.dataset.root)
    split = getattr(settings.dataset, "split", "")
    if split.endswith(".json") and not expanded(split).is_file():
        raise UserError(f"dataset.split={split}: no such file; give a JSON file, or the name of a split")


def absolute(settings: Settings) -> Settings:
    """Settings with relative paths made absolute, so that they stay valid in another working directory."""

    def make_absolute(path: str | None) -> str | None:
        return path if path is None or path.startswith("~") else str(Path(path).absolute())

    dataset = settings.dataset
    if isinstance(dataset, Folder):
        dataset = replace(dataset, root=make_absolute(dataset.root))
    elif getattr(dataset, "split", "").endswith(".json"):
        dataset = replace(dataset, split=make_absolute(dataset.split))
    absolute_paths = {name: make_absolute(getattr(settings, name)) for name in ("data_dir", "cache_dir", "start")}
    return replace(settings, dataset=dataset, **absolute_paths)  # type: ignore[arg-type]


def dataset_root(place: str) -> Path:
    """Path of `dataset.root`. Raises UserError if it does not exist."""
    path = expanded(place)
    if not path.exists():
        raise UserError(
            f"dataset.root={place}: no such folder or file; "
            "give a folder of class folders, or a CSV with the columns path,label"
        )
    return path


def support_folder(place: str) -> Path:
    """Path of `support`. Raises UserError if it is not a folder."""
    folder = expanded(place)
    if not folder.is_dir():
        raise UserError(f"support={place}: no such folder; give one that holds a folder of pictures for each class")
    return folder


def query_place(place: str) -> Path:
    """Path of an entry of `query`. Raises UserError if it is neither a file nor a folder."""
    path = expanded(place)
    if not path.is_file() and not path.is_dir():
        raise UserError(f"query={place}: no such file or folder; give a folder of pictures, or files as [FILE,FILE]")
    return path


def checkpoint(place: str) -> Path:
    """Path of `checkpoint`. Raises UserError if it is neither a file nor a run folder."""
    path = expanded(place)
    if not path.is_file() and not (path / "checkpoints").is_dir():
        raise UserError(f"checkpoint={place}: no such checkpoint file, nor a run folder with checkpoints/ in it")
    return path


def warm_start_path(place: str) -> Path:
    """Path of `start`. Raises UserError if it is neither a file nor a run folder."""
    path = expanded(place)
    if not path.is_file() and not (path / "checkpoints").is_dir():
        raise UserError(f"start={place}: no such file, nor a run folder with checkpoints/ in it")
    return path


def resume_dir(place: object) -> Path:
    """Path of `resume`. Raises UserError if it is not a run folder."""
    folder = expanded(str(place))
    if not (folder / "checkpoints").is_dir():
        raise UserError(f"resume={place}: no run folder, {folder / 'checkpoints'} does not exist")
    return folder
