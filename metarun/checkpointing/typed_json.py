"""Dataclasses to JSON values and back, checked against the declared types.

Text stays text: nothing in it is interpolated, imported or evaluated. Non-finite numbers, which JSON does not have, are
written as "nan", "inf" or "-inf". A saved name selects a group's class only if it is a key of `CONFIG_GROUPS`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from metarun.config.groups import CONFIG_GROUPS
from metarun.config.schema import Settings, check
from metarun.errors import UserError

NOT_FINITE = ("nan", "inf", "-inf")
REQUIRED = "???"  # the default of a key that must be given
TYPE_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    NoneType: "null",
    list: "a list",
    dict: "an object",
}


def to_json(value: Any) -> Any:
    """Convert a dataclass, list, tuple, mapping, number, str or None to a JSON value."""
    if is_dataclass(value):
        return {item.name: to_json(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {name: to_json(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def from_json(kind: Any, value: Any, name: str) -> Any:
    """Convert a JSON value to the type `kind`: a dataclass, bool, int, float, str, list, dict or union.

    Args:
        name: where the value is, e.g. `settings.eval`; messages begin with it.

    Raises:
        ValueError: the value is of another type, or a setting is out of its range.
    """
    if is_dataclass(kind):
        assert isinstance(kind, type)
        found = kind(**fields_from_json(kind, value, name))
        if isinstance(found, Settings):
            require_in_range(found)
        return found
    if get_origin(kind) in (Union, UnionType):
        return union_from_json(get_args(kind), value, name)
    if get_origin(kind) is list:
        (entry,) = get_args(kind)
        return [
            from_json(entry, each, f"{name}[{number}]") for number, each in enumerate(require_type(list, value, name))
        ]
    if get_origin(kind) is dict:
        entry = get_args(kind)[1]
        return {key: from_json(entry, each, f"{name}.{key}") for key, each in require_type(dict, value, name).items()}
    if kind is float:
        if isinstance(value, str) and value in NOT_FINITE:
            return float(value)
        return float(value) if type(value) is int else require_type(float, value, name)
    if kind is str and "\0" in require_type(str, value, name):
        raise ValueError(f"its {name} holds a zero byte")
    return require_type(kind, value, name)


def fields_from_json(kind: type, value: Any, name: str, exclude: tuple[str, ...] = ()) -> dict[str, Any]:
    """Keyword arguments for the dataclass `kind`, without the fields in `exclude`. Raises ValueError as `from_json`."""
    items = {item.name: item for item in fields(kind) if item.name not in exclude}  # type: ignore[arg-type]
    for key in require_type(dict, value, name):
        if key not in items:
            raise ValueError(f"its {name} has a key that this version does not know, {str(key)[:40]!r}")
    for key, item in items.items():
        chosen = kind is Settings and key in CONFIG_GROUPS  # None until one is chosen
        needed = chosen or (item.default in (NO_DEFAULT, REQUIRED) and item.default_factory is NO_DEFAULT)
        if key not in value and needed:
            raise ValueError(f"its {name} has no {key}")
    return {
        key: field_from_json(kind, items[key], entry, f"{name}.{key}") for key, entry in value.items()
    }  # what an earlier version did not have takes its default


def field_from_json(kind: type, item: Field, value: Any, name: str) -> Any:
    """Convert one field. A `Settings` field annotated Any is a config group, or has its type in metadata `several`."""
    hint = type_hints(kind)[item.name]
    if hint is not Any:
        return from_json(hint, value, name)
    if kind is Settings and item.name in CONFIG_GROUPS:
        return choice_from_json(item.name, value, name)
    entry = item.metadata["several"] or str
    return from_json(entry | list[entry] | None, value, name)


def require_in_range(settings: Settings) -> None:
    """Raise ValueError if a setting is out of its range or settings exclude each other."""
    try:
        check(settings)
    except UserError as error:
        raise ValueError(f"its settings cannot be: {error}") from error


def choice_from_json(group: str, value: Any, name: str) -> Any:
    """Convert the choice of a config group, e.g. `method`, whose class is looked up by its saved name."""
    chosen = require_type(dict, value, name).get("name")
    known = CONFIG_GROUPS[group]
    if not isinstance(chosen, str) or chosen not in known:
        raise ValueError(f"its {name}.name is {excerpt(chosen)}, known are {', '.join(known)}")
    return from_json(known[chosen], value, name)


def union_from_json(kinds: tuple[Any, ...], value: Any, name: str) -> Any:
    """Convert to the first member of a union that matches. Raises ValueError if none does."""
    for kind in kinds:
        plain = get_origin(kind) or kind
        if plain in TYPE_NAMES and (type(value) is plain or (plain is float and type(value) is int)):
            return from_json(kind, value, name)
    if value is None and NoneType in kinds:
        return None
    others = [kind for kind in kinds if kind is not NoneType]
    if len(others) == 1:
        return from_json(others[0], value, name)
    raise ValueError(f"its {name} is {excerpt(value)}, must be {' or '.join(type_name(kind) for kind in kinds)}")


def require_type(kind: type, value: Any, name: str) -> Any:
    """Return `value` if its type is exactly `kind`, else raise ValueError (a bool is not an int)."""
    if type(value) is not kind:
        raise ValueError(f"its {name} is {excerpt(value)}, must be {type_name(kind)}")
    return value


def type_name(kind: Any) -> str:
    return TYPE_NAMES.get(get_origin(kind) or kind, "an object")


def excerpt(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


@cache
def type_hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)
