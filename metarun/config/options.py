"""`option`, the field of a configuration key."""

from dataclasses import field
from typing import Any


def option(
    default: Any,
    help: str,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    choices: Any = None,
    pattern: str = "",
    several: type | None = None,
) -> Any:
    """A dataclass field for a configuration key.

    Args:
        default: the default value; "???" for a key that must be given.
        help: one phrase for `--help` and docs/keys.md.
        least, most: inclusive bounds of a number, or of each number of a list.
        above: exclusive lower bound.
        choices: the allowed values.
        pattern: regular expression that text must match as a whole.
        several: type of one value of a key that also takes a list; the field is then annotated Any.
    """
    metadata = {"help": help, "least": least, "above": above, "most": most, "choices": choices, "pattern": pattern}
    metadata["several"] = several
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)
