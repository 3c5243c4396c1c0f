"""Files and folders that a person names: looked at before any work, and without torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from metarun.config.groups import Folder
from metarun.config.schema import Settings
from metarun.errors import UserError


def expanded(place: str) -> Path:
    """A path in which `~` stands for a home folder. Raises UserError where that is of no user here."""
    try:
        return Path(place).expanduser()
    except RuntimeError as error:
        raise UserError(f"{place}: {place.split('/')[0]} is the home of no user of this machine") from error


def check(settings: Settings) -> None:
    """Refuse paths at which nothing can be, or is.

    Raises:
        UserError: names the key and the path.
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
        raise UserError(f"dataset.split={split}: no such file; give a JSON file, or the name of a division")


def absolute(settings: Settings) -> Settings:
    """The same, with paths that mean the same from any working folder; `~` does as it is."""

    def whole(place: str | None) -> str | None:
        return place if place is None or place.startswith("~") else str(Path(place).absolute())

    dataset = settings.dataset
    if isinstance(dataset, Folder):
        dataset = replace(dataset, root=whole(dataset.root))
    elif getattr(dataset, "split", "").endswith(".json"):
        dataset = replace(dataset, split=whole(dataset.split))
    places = {name: whole(getattr(settings, name)) for name in ("data_dir", "cache_dir", "start")}
    return replace(settings, dataset=dataset, **places)  # type: ignore[arg-type]


def dataset_root(place: str) -> Path:
    """Of dataset=folder. Raises UserError where nothing is there."""
    path = expanded(place)
    if not path.exists():
        raise UserError(
            f"dataset.root={place}: no such folder or file; "
            "give a folder of class folders, or a CSV with the columns path,label"
        )
    return path


def support_folder(place: str) -> Path:
    """Raises UserError where there is none."""
    folder = expanded(place)
    if not folder.is_dir():
        raise UserError(f"support={place}: no such folder; give one that holds a folder of pictures for each class")
    return folder


def query_place(place: str) -> Path:
    """A file or a folder. Raises UserError where there is none."""
    path = expanded(place)
    if not path.is_file() and not path.is_dir():
        raise UserError(f"query={place}: no such file or folder; give a folder of pictures, or files as [FILE,FILE]")
    return path


def checkpoint(place: str) -> Path:
    """A checkpoint file or a run folder. Raises UserError where there is none."""
    path = expanded(place)
    if not path.is_file() and not (path / "checkpoints").is_dir():
        raise UserError(f"checkpoint={place}: no such checkpoint file, nor a run folder with checkpoints/ in it")
    return path


def warm_start_path(place: str) -> Path:
    """A run folder, a checkpoint or a file of weights to begin with. Raises UserError where there is none."""
    path = expanded(place)
    if not path.is_file() and not (path / "checkpoints").is_dir():
        raise UserError(f"start={place}: no such file, nor a run folder with checkpoints/ in it")
    return path


def resume_dir(place: object) -> Path:
    """A run folder to continue. Raises UserError where it is none."""
    folder = expanded(str(place))
    if not (folder / "checkpoints").is_dir():
        raise UserError(f"resume={place}: no run folder, {folder / 'checkpoints'} does not exist")
    return folder
