"""Data sets that a network did not learn: their pictures are made to look like those that it did."""

from __future__ import annotations

from typing import Any

import torch

from metarun.data import likeness
from metarun.data.sampler import ImageSource
from metarun.data.source import Source
from metarun.errors import UserError
from metarun.groups import Sinusoid


def form_learned(content: dict[str, Any], path: str, device: torch.device) -> ImageSource:
    """What brings pictures into the form of those that a checkpoint learned.

    Raises:
        UserError: it does not say, or what it says is damaged.
    """
    if "pictures" not in content:
        raise UserError(f"checkpoint {path}: does not say what its pictures look like, as older ones; train it again")
    try:
        return likeness.source_like(content["pictures"], device)
    except ValueError as error:
        raise UserError(f"checkpoint {path}: what it says of its pictures is damaged ({error})") from error


def form_for(dataset: Any, content: dict[str, Any], path: str, device: torch.device) -> ImageSource | None:
    """The form that `dataset`, a choice with its keys, is brought into; None where the checkpoint learned it.

    Raises:
        UserError: one of the two has pictures and the other curves, or as `form_learned`.
    """
    learned = content["config"]["dataset"]
    if all(learned.get(key) == getattr(dataset, key, None) for key in ("name", "root")):
        return None
    if Sinusoid.name in (learned["name"], dataset.name):
        raise UserError(f"dataset={dataset.name}: checkpoint {path} learned {learned['name']}; one has no pictures")
    return form_learned(content, path, device)


def require_same_pictures(dataset: Any, source: Source, content: dict[str, Any]) -> None:
    """Raises UserError where `dataset.root` is another than the run's, and so are the training pictures in it."""
    root = getattr(dataset, "root", None)
    if root == content["config"]["dataset"].get("root"):
        return
    now, before = likeness.of(source) or {}, content.get("pictures") or {}
    differ = [f"their {name} was {before.get(name)}, is {now[name]}" for name in now if now[name] != before.get(name)]
    if differ:
        raise UserError(
            f"dataset.root={root}: its training pictures are not those that the run learned ({'; '.join(differ)}); "
            "give the folder that it was trained on, where it is now, or start a new run"
        )
