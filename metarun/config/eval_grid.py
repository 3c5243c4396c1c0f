"""Expands lists in `eval.*`: `eval.shots=[1,5] eval.split=[val,test]` gives the settings of four evaluations."""

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
    values = [getattr(settings.eval, name) for name in LISTS]
    grid = product(*(value if isinstance(value, list) else [value] for value in values))
    return [eval_settings(settings, *point) for point in grid]


def eval_settings(settings: Settings, dataset: str | None, *values: Any) -> Settings:
    """Copy of the settings with one value for each key of `LISTS`."""
    evaluated = settings.dataset
    if dataset not in (None, settings.dataset.name):
        if dataset == Folder.name:
            raise UserError("eval.dataset=folder: its folder is not known; give dataset=folder dataset.root=FOLDER")
        evaluated = CONFIG_GROUPS["dataset"][dataset]()
    eval_config = replace(settings.eval, dataset=None, **dict(zip(LISTS[1:], values, strict=True)))
    return replace(settings, dataset=evaluated, eval=eval_config)
