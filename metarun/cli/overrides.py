"""Checks command-line flags and overrides before Hydra parses them, so that mistakes give one clear line."""

import argparse
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from metarun.cli import settings
from metarun.cli.errors import CONFIG_GROUP_NAMES, KEYS, NESTED_GROUPS, suggest_key, unknown_key_message
from metarun.config import paths
from metarun.errors import UserError, did_you_mean
from metarun.utils.run_dir_lock import AUTO

HYDRA_SWITCHES = (
    *(("--help", "-h"), ("--hydra-help",), ("--version",), ("--resolve",), ("--run", "-r"), ("--multirun", "-m")),
    ("--shell-completion", "-sc"),
)
HYDRA_OPTIONS = (
    *(("--package", "-p"), ("--config-path", "-cp"), ("--config-name", "-cn"), ("--config-dir", "-cd")),
    ("--experimental-rerun",),
)


class FlagParser(argparse.ArgumentParser):
    """Parser of Hydra's command-line flags that raises UserError where argparse would exit."""

    def __init__(self) -> None:
        super().__init__(add_help=False)
        self.add_argument("overrides", nargs="*")
        for names in HYDRA_SWITCHES:
            self.add_argument(*names, action="store_true")
        for names in HYDRA_OPTIONS:
            self.add_argument(*names)
        self.add_argument("--cfg", "-c", choices=["job", "hydra", "all"])
        pages = ["all", "config", "defaults", "defaults-tree", "plugins", "searchpath"]
        self.add_argument("--info", "-i", nargs="?", const="all", choices=pages)

    def error(self, message: str) -> NoReturn:
        if flag := re.match(r"unrecognized arguments: (--?([\w.-]+))", message):
            key = flag[2].replace("-", "_")
            hint = f"did you mean '{key}=VALUE'?" if key in (*KEYS, *CONFIG_GROUP_NAMES) else suggest_key(key)
            raise UserError(f"{flag[1]}: no such flag; {hint or 'metarun --help shows what there is'}")
        raise UserError(f"{message}; metarun --help shows what there is")


def prepare_argv(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Check the arguments and prepare them for Hydra, whose parser does not accept overrides between flags.

    Returns:
        GROUP=CHOICE overrides for the groups of the given checkpoint or resumed run, and the arguments with the
        overrides before the flags.

    Raises:
        UserError: an unknown flag or key, or an override that is not `key=value`.
    """
    flags = FlagParser().parse_intermixed_args(arguments)
    home = str(Path.home())
    overrides = [re.sub(r"^([\w.]+)=~(?=/|$)", rf"\g<1>={home}", text) for text in flags.overrides]
    if flags.hydra_help or flags.shell_completion:
        return [], list(arguments)
    multirun = flags.multirun or any(text.startswith("hydra.mode=") for text in overrides)
    for text in overrides:
        check_override(text, multirun)
    other_arguments = [text for text in arguments if text not in flags.overrides]
    return checkpoint_group_overrides(overrides), [*overrides, *other_arguments]


def checkpoint_group_overrides(overrides: Sequence[str]) -> list[str]:
    """Overrides `GROUP=CHOICE` of the checkpoint or run that the overrides name; empty if they name none.

    Hydra needs them to know the keys of these choices.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    values = {override.key_or_group: override.value() for override in parsed if not override.is_delete()}
    resume, checkpoint = values.get("resume"), values.get("checkpoint")
    if isinstance(resume, str) and resume != AUTO:
        return settings.checkpoint_choices(paths.existing_path("resume", resume), True, list(values))
    if isinstance(checkpoint, str):
        return settings.checkpoint_choices(paths.existing_path("checkpoint", checkpoint), False, list(values))
    return []


def check_override(text: str, multirun: bool) -> None:
    """Raise UserError unless `text` is a valid override `KEY=VALUE` or `GROUP=CHOICE` of this command."""
    if "=" not in text and not text.startswith("~"):
        hint = suggest_key(text)
        if not hint and text not in KEYS:
            hint = did_you_mean(text, [*KEYS, *CONFIG_GROUP_NAMES]).removeprefix("; ")
        raise UserError(f"{text}: has no value, write KEY=VALUE" + (f"; {hint}" if hint else ""))
    (override,) = OverridesParser.create().parse_overrides([text])
    name = override.key_or_group if override.package is None else f"{override.key_or_group}@{override.package}"
    if override.value() == "":
        raise UserError(f"{text}: has no value, write {name}=VALUE")
    if override.is_hydra_override():
        return
    if override.is_delete():
        raise UserError(f"{text}: keys and groups cannot be removed; give {name} another value")
    if name not in (*KEYS, *NESTED_GROUPS, *CONFIG_GROUP_NAMES):
        raise UserError(unknown_key_message(name))
    if override.is_add() or override.is_force_add():
        raise UserError(f"{text}: every key and group exists already; write it without the plus")
    if override.is_sweep_override() and not multirun:
        raise UserError(f"{text}: several values need --multirun; a list is written {name}=[A,B]")
    if name == "resume" and multirun and override.value() != AUTO:
        raise UserError(f"{text}: goes on with a single run, leave out --multirun or give resume=auto")
    other_types = (list, type(None)) if name == "experiment" else (dict,)
    single = name in CONFIG_GROUP_NAMES and not override.is_sweep_override()
    if single and not isinstance(override.value(), (str, *other_types)):
        raise UserError(f"{text}: not a choice of {name}; metarun --help lists them")


def task_overrides(hydra: Any) -> list[str]:
    """The overrides of the job as they were written; `${...}` in them is not resolved."""
    texts = OmegaConf.to_container(hydra.overrides.task, resolve=False)
    assert isinstance(texts, list)
    return [str(text) for text in texts]


def overridden_keys(overrides: Iterable[str]) -> Iterator[str]:
    """Names of the keys and groups that the overrides set, those within `{...}` by their dotted names."""

    def flatten(name: str, value: Any) -> Iterator[str]:
        if not isinstance(value, dict):
            yield name
        else:
            for key, entry in value.items():
                yield from flatten(f"{name}.{key}", entry)

    for override in OverridesParser.create().parse_overrides(list(overrides)):
        yield from flatten(override.key_or_group, override.value())
