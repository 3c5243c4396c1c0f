"""The text of `metarun --help`, filled from the schema."""

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import Field
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from metarun.cli.errors import CONFIG_GROUP_NAMES
from metarun.cli.overrides import FlagParser
from metarun.config.groups import CONFIG_GROUPS
from metarun.config.schema import Settings, format_value, iter_options
from metarun.errors import UserError

WIDTH = 100
COLUMN = 34  # where the meaning of a key begins

HEADINGS = {  # the key that each part of the list begins with
    "mode": "Work",
    "ways": "Tasks and inner loop",
    "meta_batch": "Outer loop",
    "data_dir": "Files",
    "support": "Prediction",
    "runs": "Report",
    "eval.tasks": "Evaluation",
    "save.every": "Checkpoints",
    "engine.tasks": "Engine: how it computes; precision alone changes what",
}

OPENING = """\
metarun: gradient-based meta-learning, from a config to a few-shot accuracy

  metarun [GROUP=CHOICE ...] [KEY=VALUE ...]
  metarun --multirun KEY=VALUE,VALUE ...       one run for each combination of values
"""

CLOSING = """\
Flags
  --cfg job          show the values that a command line comes to, and stop
  --config-dir DIR   add a folder of your own groups, such as DIR/experiment/mine.yaml
  --multirun, -m     sweep over values given as KEY=A,B
  --version          show the version
  --hydra-help       show Hydra's own flags

Examples
  metarun                                                     maml on glyphs: no download, minutes
  metarun dataset=sinusoid iterations=1000                    another data set, a shorter run
  metarun experiment=maml_omniglot_5way_1shot                 a published result
  metarun --multirun inner_loop=1,5 seed=range(3)             a sweep of six runs
  metarun resume=outputs/2025-01-31/12-00-00                  go on with a run that was stopped
  metarun mode=evaluate checkpoint=outputs/2025-01-31/12-00-00 eval.inner_loop=10
  metarun mode=predict checkpoint=outputs/2025-01-31/12-00-00 support=known query=new
  metarun mode=report runs=outputs/multirun/2025-01-31/12-00-00     tables and plots of a sweep

Values: method < data set < experiment < command line. A run is kept in outputs/<date>/<time>.
Exit status: 0 done, 2 a mistake in what was typed, 130/143/138 stopped by a signal, 1 else.
"""


def help_text(configs: Path, choices: Sequence[str], arguments: Sequence[str]) -> str:
    """The text of --help for a command line, composed without Hydra's own help, which takes a second.

    Args:
        configs: the folder of metarun's configs.
        choices: overrides of the groups by a checkpoint.
        arguments: the command line, flags included.
    """
    flags = FlagParser().parse_args(list(arguments))
    folder = Path(flags.config_dir) if flags.config_dir else None
    if folder and not folder.is_dir():
        raise UserError(f"--config-dir {folder}: no such folder; give one that holds groups, as experiment/mine.yaml")
    searched = [f"hydra.searchpath=[{folder.absolute()}]"] if folder else []
    with initialize_config_dir(str(configs), version_base="1.3"):
        config = compose("config", [*choices, *flags.overrides, *searched], return_hydra_config=True)
        loader = GlobalHydra.instance().config_loader()
    offered: dict[str, list[str]] = {}
    for group in CONFIG_GROUP_NAMES:
        users = folder.glob(f"{group}/*.yaml") if folder else ()
        offered[group] = sorted({*loader.get_group_options(group), *(path.stem for path in users)})
    return render_help(offered, config.hydra.runtime.choices, lambda name: OmegaConf.select(config, name))


def render_help(
    choices: Mapping[str, Sequence[str]], chosen: Mapping[str, str | None], value: Callable[[str], Any]
) -> str:
    """The text of --help.

    Args:
        choices: the choices of each group.
        chosen: the current choice of each group.
        value: returns the current value of a key, by its dotted name.
    """
    lines = [OPENING, "Groups, with what is chosen in brackets"]
    for group, names in choices.items():
        shown = ", ".join(f"[{name}]" if name == chosen[group] else name for name in names)
        lines += wrap_row(f"  {group}", shown, 14)
    lines += ["", f"Keys, with their values for dataset={chosen['dataset']}"]
    for name, item, _ in iter_options(Settings):
        if name in HEADINGS:
            lines += ["", HEADINGS[name]]
        lines += wrap_row(f"  {name}={format_value(value(name))}", meaning(item), COLUMN)
    lines += ["", "Keys of one choice of a group, with their defaults"]
    alike: dict[tuple[str, str], list[str]] = {}  # key and meaning -> the choices that have it
    for group, nodes in CONFIG_GROUPS.items():
        for choice, node in nodes.items():
            for name, item, default in iter_options(node, f"{group}."):
                alike.setdefault((f"{name}={format_value(default)}", meaning(item)), []).append(choice)
    for (key, help_text), names in alike.items():
        lines += wrap_row(f"  {key}", f"{', '.join(names)}: {help_text}", COLUMN)
    return "\n".join([*lines, "", CLOSING.rstrip()])


def wrap_row(left: str, right: str, column: int) -> Iterator[str]:
    """Lines with `left` and, from `column` on, `right` wrapped to WIDTH; `left` on its own line if it is too long."""
    if len(left) >= column:
        yield left
        left = ""
    first, *rest = textwrap.wrap(right, WIDTH - column)
    yield left.ljust(column) + first
    yield from (" " * column + line for line in rest)


def meaning(item: Field) -> str:
    choices = item.metadata["choices"]
    if choices is None or all(choice in item.metadata["help"] for choice in choices):
        return item.metadata["help"]
    return f"{item.metadata['help']} ({', '.join(choices)})"
