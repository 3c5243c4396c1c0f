"""What was typed, before Hydra sees it: what it would let pass, or tell at length."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from metarun.cli import settings
from metarun.cli.errors import CONFIG_GROUP_NAMES, KEYS, NESTED_GROUPS, meant, unknown_key_message
from metarun.config import paths
from metarun.errors import UserError, did_you_mean
from metarun.utils.run_dir import AUTO


def prepare_argv(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The choices of groups that a typed checkpoint brings, and the arguments with `key=value` before the flags.

    In between, Hydra's own parser would not know them.

    Raises:
        UserError: a flag or a key that does not exist, or text that is not `key=value`.
    """

    def refuse(message: str) -> NoReturn:
        if flag := re.match(r"unrecognized arguments: (--?([\w.-]+))", message):
            key = flag[2].replace("-", "_")
            hint = f"did you mean '{key}=VALUE'?" if key in (*KEYS, *CONFIG_GROUP_NAMES) else meant(key)
            raise UserError(f"{flag[1]}: no such flag; {hint or 'metarun --help shows what there is'}")
        raise UserError(f"{message}; metarun --help shows what there is")

    parser = get_args_parser()
    parser.error = refuse
    flags = parser.parse_intermixed_args(arguments)
    home = str(Path.home())
    typed = [re.sub(r"^([\w.]+)=~(?=/|$)", rf"\g<1>={home}", text) for text in flags.overrides]
    if flags.hydra_help or flags.shell_completion:
        return [], list(arguments)
    for text in typed:
        check_override(text, flags.multirun or any(word.startswith("hydra.mode=") for word in typed))
    brought = checkpoint_group_overrides(typed)
    return brought, [*typed, *(word for word in arguments if word not in flags.overrides)]


def checkpoint_group_overrides(typed: Sequence[str]) -> list[str]:
    """`dataset=...` and so on of the checkpoint that is typed, so that the keys of its choices are known."""
    overrides = OverridesParser.create().parse_overrides(list(typed))
    values = {override.key_or_group: override.value() for override in overrides if not override.is_delete()}
    resume, place = values.get("resume"), values.get("checkpoint")
    if isinstance(resume, str) and resume != AUTO:
        return settings.choices(paths.resume_dir(resume), True, list(values))
    if isinstance(place, str):
        return settings.choices(paths.checkpoint(place), False, list(values))
    return []


def check_override(text: str, sweeping: bool) -> None:
    if "=" not in text and not text.startswith("~"):
        hint = (
            f"; {meant(text)}"
            if meant(text)
            else ""
            if text in KEYS
            else did_you_mean(text, [*KEYS, *CONFIG_GROUP_NAMES])
        )
        raise UserError(f"{text}: has no value, write KEY=VALUE{hint}")
    (override,) = OverridesParser.create().parse_overrides([text])
    name = override.key_or_group if override.package is None else f"{override.key_or_group}@{override.package}"
    if override.value() == "":
        raise UserError(f"{text}: has no value, write {name}=VALUE")
    if override.is_hydra_override():
        return
    if override.is_delete():
        raise UserError(f"{text}: nothing can be taken away; give {name} another value")
    if name not in (*KEYS, *NESTED_GROUPS, *CONFIG_GROUP_NAMES):
        raise UserError(unknown_key_message(name))
    if override.is_add() or override.is_force_add():
        raise UserError(f"{text}: every key and group is there already; write it without the plus")
    if override.is_sweep_override() and not sweeping:
        raise UserError(f"{text}: several values need --multirun; a list is written {name}=[A,B]")
    if name == "resume" and sweeping and override.value() != AUTO:
        raise UserError(f"{text}: goes on with a single run, leave out --multirun or give resume=auto")
    several = (list, type(None)) if name == "experiment" else (dict,)
    if (
        name in CONFIG_GROUP_NAMES
        and not override.is_sweep_override()
        and not isinstance(override.value(), (str, *several))
    ):
        raise UserError(f"{text}: no choice of {name}; metarun --help lists them")


def task_overrides(hydra: Any) -> list[str]:
    """What was typed, as it was: a `${...}` in it is not for this list to resolve."""
    texts = OmegaConf.to_container(hydra.overrides.task, resolve=False)
    assert isinstance(texts, list)
    return [str(text) for text in texts]


def overridden_keys(overrides: Iterable[str]) -> Iterator[str]:
    """The keys and groups that overrides set."""

    def below(name: str, value: Any) -> Iterator[str]:
        if not isinstance(value, dict):
            yield name
        else:
            for key, entry in value.items():
                yield from below(f"{name}.{key}", entry)

    for override in OverridesParser.create().parse_overrides(list(overrides)):
        yield from below(override.key_or_group, override.value())
