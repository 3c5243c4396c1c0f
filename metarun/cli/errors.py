"""One-line messages for errors of Hydra, OmegaConf and the file system."""

import difflib
import re
from typing import Any

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from metarun.config import hints
from metarun.config.groups import CONFIG_GROUPS
from metarun.config.schema import Settings, iter_options
from metarun.errors import UserError, did_you_mean

# errors that are the user's if they are raised before a job begins
USER_ERRORS = (UserError, HydraException, OmegaConfBaseException, YAMLError, OSError, ValueError)
CONFIG_GROUP_NAMES = (*CONFIG_GROUPS, "experiment")  # groups that the command line can choose from
OPTION_NODES = [
    ("", Settings),
    *((f"{group}.", node) for group in CONFIG_GROUPS for node in CONFIG_GROUPS[group].values()),
]
KEYS = {name: item.metadata["help"] for prefix, node in OPTION_NODES for name, item, _ in iter_options(node, prefix)}
NESTED_GROUPS = {name.partition(".")[0] for name in KEYS if "." in name}  # eval, save, engine, dataset, ...
PLUGINS = {  # Hydra sweepers and launchers, and the command that installs them
    **dict.fromkeys(("joblib", "optuna"), "pip install 'metarun[sweep]'"),
    **dict.fromkeys(("submitit_local", "submitit_slurm"), "pip install 'metarun[slurm]'"),
    "ray": "pip install hydra-ray-launcher",
}
OMEGACONF_MESSAGES = {  # part of OmegaConf's message -> our message
    "converted to Integer": "must be a whole number",
    "converted to Float": "must be a number",
    "valid bool": "must be true or false",
    "not Optional": "needs a value",
    "NoneType is not a subclass": "needs a value, not null",
    "Invalid type assigned": "is several keys, which are set one by one",
    "Cannot merge DictConfig": "is several keys, which are set one by one",
    "is not a subclass of": "is several keys, which are set one by one",
    "to string": "must be text",
    "is not a ListConfig": "must be a list, as in [40,40]",
}


def user_message(error: BaseException) -> str:
    """One line that says what the user can do about an error of Hydra, OmegaConf or the file system."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    lines = str(error).splitlines() or [type(error).__name__]
    file = re.match(r"In '(.+?)': ", lines[0])
    prefix = f"{file[1]}.yaml: " if file else ""
    if own_errors := [link for link in chain if isinstance(link, (UserError, YAMLError))]:
        return str(own_errors[0])
    for link in chain:
        if isinstance(link, MissingConfigException) and link.options and link.missing_cfg_file:
            group, _, choice = link.missing_cfg_file.rpartition("/")
            more = f"; {choice} comes with {PLUGINS[choice]}" if choice in PLUGINS else ""
            if group == "backbone":
                more = f"; a network of torchvision: backbone=torchvision backbone.network={choice}"
            hint = did_you_mean(choice, link.options) + more
            return f"{group}={choice}: choose one of {', '.join(link.options)}{hint}"
        if isinstance(link, OverrideParseException):
            return f"{link.override}: cannot be read; special characters need quotes, as in \"key='a (b)'\""
        if isinstance(link, OSError) and link.filename is not None:
            return f"{link.filename}: no run folder can be made there ({link.strerror})"
        if isinstance(link, UnicodeDecodeError):
            return f"a config file is not UTF-8 text ({link})"
        if isinstance(link, (ConfigKeyError, ConfigAttributeError)) and link.full_key in CONFIG_GROUP_NAMES:
            return f"{prefix}its keys are not keys of metarun; begin the file with the line: # @package _global_"
        if isinstance(link, (ConfigKeyError, ConfigAttributeError)) and link.full_key:
            return prefix + unknown_key_message(link.full_key, link.object_type)
        if isinstance(link, OmegaConfBaseException) and link.full_key:
            override = re.match(r"Error merging override (.*)", lines[0])
            original = str(link.msg).splitlines()[0]
            reason = next((ours for part, ours in OMEGACONF_MESSAGES.items() if part in original), original)
            return f"{prefix}{override[1] if override else link.full_key}: {reason}"
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def unknown_key_message(name: str, node: Any = None) -> str:
    """Message for the unknown key `name`, with the closest known key.

    Args:
        name: dotted name, such as `dataset.splitt`.
        node: the config dataclass of the chosen dataset, backbone or method, if known.
    """
    group, _, last = name.rpartition(".")
    if group in CONFIG_GROUPS and node in CONFIG_GROUPS[group].values():
        known = ", ".join(key for key, _, _ in iter_options(node, f"{group}.")) or "none"
        return f"{name}: {group}={node.name} has no such key; its keys: {known}"
    if name in KEYS:
        return f"{name}: not in the file that is chosen; set it there, or begin the file with defaults: [X, _self_]"
    if hint := suggest_key(name if group in NESTED_GROUPS else last):
        return f"{name}: no such key; {hint}"
    ends: dict[str, str] = {}
    for key in sorted([*CONFIG_GROUP_NAMES, *KEYS], key=lambda key: key.count(".")):
        if group not in NESTED_GROUPS or key.startswith(f"{group}."):
            ends.setdefault(key.rpartition(".")[2], key)
    close = difflib.get_close_matches(last, ends, n=1)
    hint = f"did you mean {ends[close[0]]!r}?" if close else "metarun --help lists the keys"
    if not close and group in NESTED_GROUPS:
        hint = f"there are {', '.join(ends.values())}"
    return f"{name}: no such key; {hint}"


def suggest_key(word: str) -> str:
    """`did you mean 'X'?` for another program's name of a key, or a key with `_` in place of its dot; else empty."""
    node, _, key = word.partition("_")
    return f"did you mean '{node}.{key}'?" if f"{node}.{key}" in KEYS else hints.hint_for_key(word)
