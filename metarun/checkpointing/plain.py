"""Typed values as JSON and back: each is compared with the type that its dataclass declares, and nothing is resolved.

Text stays text, whatever stands in it. A number that is not finite, which JSON has not, is written as "nan", "inf" or
"-inf". A saved name chooses a group's class only where it equals one of `GROUPS`.
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
NEEDED = "???"  # the default of a key without one
WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    NoneType: "null",
    list: "a list",
    dict: "an object",
}


def to_json(value: Any) -> Any:
    """A dataclass, list, dict, number, text or None as what JSON holds."""
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
    """`value` as `kind`: a dataclass, bool, int, float, str, list[...], dict[str, ...] or a union of those.

    Raises:
        ValueError: it is something else, or a setting is out of its range; the message gives its place, which `name` is
            the beginning of.
    """
    if is_dataclass(kind):
        assert isinstance(kind, type)
        found = kind(**fields_from_json(kind, value, name))
        if isinstance(found, Settings):
            require_in_range(found)
        return found
    if get_origin(kind) in (Union, UnionType):
        return one_of(get_args(kind), value, name)
    if get_origin(kind) is list:
        (entry,) = get_args(kind)
        return [from_json(entry, each, f"{name}[{number}]") for number, each in enumerate(expected(list, value, name))]
    if get_origin(kind) is dict:
        entry = get_args(kind)[1]
        return {key: from_json(entry, each, f"{name}.{key}") for key, each in expected(dict, value, name).items()}
    if kind is float:
        if isinstance(value, str) and value in NOT_FINITE:
            return float(value)
        return float(value) if type(value) is int else expected(float, value, name)
    if kind is str and "\0" in expected(str, value, name):
        raise ValueError(f"its {name} holds a zero byte")
    return expected(kind, value, name)


def fields_from_json(kind: type, value: Any, name: str, leaving: tuple[str, ...] = ()) -> dict[str, Any]:
    """The arguments of a dataclass, without those named in `leaving`; the rest as `from_json`."""
    items = {item.name: item for item in fields(kind) if item.name not in leaving}  # type: ignore[arg-type]
    for key in expected(dict, value, name):
        if key not in items:
            raise ValueError(f"its {name} has a key that this version does not know, {str(key)[:40]!r}")
    for key, item in items.items():
        if key not in value and (item.default in (NO_DEFAULT, NEEDED) and item.default_factory is NO_DEFAULT):
            raise ValueError(f"its {name} has no {key}")
    return {
        key: from_json_of_field(kind, items[key], entry, f"{name}.{key}") for key, entry in value.items()
    }  # what an earlier version did not have takes its default


def from_json_of_field(kind: type, item: Field, value: Any, name: str) -> Any:
    """The value of one field of a dataclass; those of `Settings` whose annotation is Any say in words what they are."""
    hint = hints(kind)[item.name]
    if hint is not Any:
        return from_json(hint, value, name)
    if kind is Settings and item.name in CONFIG_GROUPS:
        return choice(item.name, value, name)
    entry = item.metadata["several"] or str
    return from_json(entry | list[entry] | None, value, name)


def require_in_range(settings: Settings) -> None:
    try:
        check(settings)
    except UserError as error:
        raise ValueError(f"its settings cannot be: {error}") from error


def choice(group: str, value: Any, name: str) -> Any:
    """The choice of a group with its keys; its saved name is compared with the known ones."""
    chosen = expected(dict, value, name).get("name")
    known = CONFIG_GROUPS[group]
    if not isinstance(chosen, str) or chosen not in known:
        raise ValueError(f"its {name}.name is {shown(chosen)}, known are {', '.join(known)}")
    return from_json(known[chosen], value, name)


def one_of(kinds: tuple[Any, ...], value: Any, name: str) -> Any:
    """The first of the kinds that a value is of."""
    for kind in kinds:
        plain = get_origin(kind) or kind
        if plain in WORDS and (type(value) is plain or (plain is float and type(value) is int)):
            return from_json(kind, value, name)
    if value is None and NoneType in kinds:
        return None
    others = [kind for kind in kinds if kind is not NoneType]
    if len(others) == 1:
        return from_json(others[0], value, name)
    raise ValueError(f"its {name} is {shown(value)}, must be {' or '.join(word(kind) for kind in kinds)}")


def expected(kind: type, value: Any, name: str) -> Any:
    if type(value) is not kind:
        raise ValueError(f"its {name} is {shown(value)}, must be {word(kind)}")
    return value


def word(kind: Any) -> str:
    return WORDS.get(get_origin(kind) or kind, "an object")


def shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


@cache
def hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)
