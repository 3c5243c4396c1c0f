"""Expands lists in `eval.*`: `eval.shots=[1,5] eval.split=[val,test]` gives the settings of four evaluations."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

from metarun.config.groups import CONFIG_GROUPS, Folder
from metarun.config.schema import Settings
from metarun.errors import UserError

LISTS = ("dataset", "split", "ways", "shots", "inner_loop")  # keys of `eval` that take lists; the last varies fastest


def expand_eval_grid(settings: Settings) -> list[Settings]:
    """Settings of each evaluation: the Cartesian product of the lists, with `dataset` set to the evaluated data set.

    Raises:
        UserError: `eval.dataset=folder`, which has no default `dataset.root`.
    """
    lists = [as_list(getattr(settings.eval, name)) for name in LISTS]
    return [eval_settings(settings, dict(zip(LISTS, values, strict=True))) for values in product(*lists)]


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def eval_settings(settings: Settings, values: dict[str, Any]) -> Settings:
    """Copy of the settings with one value for each key of `LISTS`."""
    name = values.pop("dataset")
    dataset = settings.dataset if name in (None, settings.dataset.name) else default_dataset(name)
    return replace(settings, dataset=dataset, eval=replace(settings.eval, dataset=None, **values))


def default_dataset(name: str) -> Any:
    """Config of a data set with default values."""
    if CONFIG_GROUPS["dataset"][name] is Folder:
        raise UserError("eval.dataset=folder: its folder is not known; give dataset=folder dataset.root=FOLDER")
    return CONFIG_GROUPS["dataset"][name]()
