"""Dataclasses to JSON values and back, checked against the declared types.

Text stays text: nothing in it is interpolated, imported or evaluated. Non-finite numbers, which JSON does not have, are
written as "nan", "inf" or "-inf". A saved name selects a group's class only if it is a key of `CONFIG_GROUPS`.
"""

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
    origin, args = get_origin(kind) or kind, get_args(kind)
    if is_dataclass(kind):
        result = origin(**fields_from_json(origin, value, name))
        if isinstance(result, Settings):
            try:
                check(result)
            except UserError as error:
                raise ValueError(f"its settings cannot be: {error}") from error
        return result
    if origin in (Union, UnionType):
        return union_from_json(args, value, name)
    if kind is float and (type(value) is int or value in NOT_FINITE):
        return float(value)
    require_type(origin, value, name)
    if origin is list:
        return [from_json(args[0], entry, f"{name}[{i}]") for i, entry in enumerate(value)]
    if origin is dict:
        return {key: from_json(args[1], entry, f"{name}.{key}") for key, entry in value.items()}
    if kind is str and "\0" in value:
        raise ValueError(f"its {name} holds a zero byte")
    return value


def fields_from_json(kind: type, value: Any, name: str, exclude: tuple[str, ...] = ()) -> dict[str, Any]:
    """Keyword arguments for the dataclass `kind`, without the fields in `exclude`. Raises ValueError as `from_json`.

    A key that earlier versions did not have may be missing, and takes its default.
    """
    items = {item.name: item for item in fields(kind) if item.name not in exclude}
    for key in require_type(dict, value, name):
        if key not in items:
            raise ValueError(f"its {name} has a key that this version does not know, {excerpt(key)}")
    for key, item in items.items():
        is_group = kind is Settings and key in CONFIG_GROUPS  # its default, None, is no choice
        required = is_group or (item.default in (NO_DEFAULT, REQUIRED) and item.default_factory is NO_DEFAULT)
        if required and key not in value:
            raise ValueError(f"its {name} has no {key}")
    return {key: field_from_json(kind, items[key], entry, f"{name}.{key}") for key, entry in value.items()}


def field_from_json(kind: type, item: Field, value: Any, name: str) -> Any:
    """Convert one field. A `Settings` field annotated Any is a config group, or has its type in metadata `several`."""
    hint = type_hints(kind)[item.name]
    if hint is not Any:
        return from_json(hint, value, name)
    if kind is Settings and item.name in CONFIG_GROUPS:
        choices = CONFIG_GROUPS[item.name]
        choice = require_type(dict, value, name).get("name")
        if not isinstance(choice, str) or choice not in choices:
            raise ValueError(f"its {name}.name is {excerpt(choice)}, known are {', '.join(choices)}")
        return from_json(choices[choice], value, name)
    entry = item.metadata["several"] or str
    return from_json(entry | list[entry] | None, value, name)


def union_from_json(members: tuple[Any, ...], value: Any, name: str) -> Any:
    """Convert to the member of a union that matches the value's type. Raises ValueError if none does."""
    others = [member for member in members if member is not NoneType]
    match = [member for member in members if type(value) is (get_origin(member) or member)]
    if match or len(others) == 1:
        return from_json((match or others)[0], value, name)
    raise ValueError(f"its {name} is {excerpt(value)}, must be {' or '.join(map(type_name, members))}")


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


type_hints = cache(get_type_hints)
