"""Print docs/keys.md: every key of the command, read from the schema and from configs/.

python -m scripts.keys_table > docs/keys.md
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from metarun.cli.help import format_value, meaning
from metarun.config import groups
from metarun.config.groups import CONFIG_GROUPS
from metarun.config.schema import Settings, iter_options

CONFIGS = Path(__file__).parents[1] / "configs"
OPENING = """\
# Keys

<!-- Written by `python -m scripts.keys_table > docs/keys.md` from the schema; a test compares the two. -->

A data set brings the backbone and the values that suit it. Later sources win over earlier ones: method, data set,
experiment, command line. An evaluation follows `shots`, `queries` and `inner_loop` where they are typed and `eval.*`
is not. `metarun --cfg job` shows the values that a command line comes to, and `--config-dir DIR` adds configs of your
own, such as `DIR/experiment/mine.yaml`.

## Groups

| group | choices |
| --- | --- |
"""
GROUP_PAGES = {"dataset": "data.md", "backbone": "backbones.md", "method": "methods.md", "experiment": "experiments.md"}


def page() -> str:
    lines = [f"| [`{group}`]({link}) | {choices(group)} |" for group, link in GROUP_PAGES.items()]
    lines += ["", "## Keys of every run", "", "| key | default | by data set | meaning |", "| --- | --- | --- | --- |"]
    values = dataset_values()
    for name, item, default in iter_options(Settings):
        lines.append(f"| `{name}` | {code(default)} | {by_dataset(name, values)} | {cell(meaning(item))} |")
    lines += ["", "## Keys of one choice of a group", "", "| key | default | choice | meaning |"]
    lines += ["| --- | --- | --- | --- |"]
    lines += choice_rows()
    return OPENING + "\n".join(lines) + "\n"


def choices(group: str) -> str:
    if group == "experiment":
        return "none, or a published result: [the list](experiments.md)"
    return ", ".join(f"`{choice}`" for choice in groups.choices(group))


def dataset_values() -> dict[str, dict[str, Any]]:
    """What each data set's config sets, by dotted key."""
    found = {}
    for path in sorted((CONFIGS / "dataset").glob("*.yaml")):
        content = OmegaConf.to_container(OmegaConf.load(path))
        assert isinstance(content, dict)
        found[path.stem] = dict(flatten(content))
    return found


def flatten(node: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}.")
        elif name != "defaults":
            yield f"{prefix}{name}", value


def by_dataset(name: str, values: dict[str, dict[str, Any]]) -> str:
    """The data sets that set a key, grouped by the value that they set."""
    groups: dict[str, list[str]] = {}
    for dataset, own in values.items():
        if name in own:
            groups.setdefault(format_value(own[name]), []).append(dataset)
    return "; ".join(f"{', '.join(datasets)} `{value}`" for value, datasets in groups.items())


def choice_rows() -> Iterator[str]:
    rows: dict[tuple[str, str, str], list[str]] = {}
    for group, nodes in CONFIG_GROUPS.items():
        for choice, node in nodes.items():
            for name, item, default in iter_options(node, f"{group}."):
                rows.setdefault((name, code(default), cell(meaning(item))), []).append(choice)
    for (name, default, said), having in rows.items():
        yield f"| `{name}` | {default} | {', '.join(having)} | {said} |"


def code(value: Any) -> str:
    """A default as it is typed; an interpolation of the environment in words, and nothing for a key without default."""
    text = format_value(value)
    if text == "???":
        return ""
    if text.startswith("${oc.env:"):
        variable, _, default = text.removeprefix("${oc.env:").rstrip("}").partition(",")
        return f"`{default.strip(chr(39))}`, or `{variable}` of the environment"
    return f"`{text}`"


def cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(page(), end="")
