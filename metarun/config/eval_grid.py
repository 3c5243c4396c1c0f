"""Evaluations over lists: `eval.shots=[1,5] eval.split=[val,test]` is four of them, each with settings of its own."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

from metarun.config.groups import CONFIG_GROUPS, Folder
from metarun.config.schema import Settings
from metarun.errors import UserError

LISTS = ("dataset", "split", "ways", "shots", "inner_loop")  # of `eval`; the last changes fastest


def expand_eval_grid(settings: Settings) -> list[Settings]:
    """The settings of each evaluation, whose `eval.*` hold one value each, and `dataset` what they are tested on.

    Raises:
        UserError: `eval.dataset` names one that has no default.
    """
    lists = [listed(getattr(settings.eval, name)) for name in LISTS]
    return [eval_settings(settings, dict(zip(LISTS, values, strict=True))) for values in product(*lists)]


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def eval_settings(settings: Settings, values: dict[str, Any]) -> Settings:
    name = values.pop("dataset")
    dataset = settings.dataset if name in (None, settings.dataset.name) else default_dataset(name)
    return replace(settings, dataset=dataset, eval=replace(settings.eval, dataset=None, **values))


def default_dataset(name: str) -> Any:
    """A data set with the values that it has by default."""
    if CONFIG_GROUPS["dataset"][name] is Folder:
        raise UserError("eval.dataset=folder: its pictures are not known; give dataset=folder dataset.root=FOLDER")
    return CONFIG_GROUPS["dataset"][name]()
